"""How the command line talks to the running agent: one line of JSON each way over a Unix socket of mode 0600.

``{"command": "status"}``, ``{"command": "drain", "grace_s": 600}``, ``{"command": "logs", "task_id": "…", "offset": 0}``,
``{"command": "cache", "action": "list"}`` (see ``cache/requests.py``), ``{"command": "data", …}`` (``shards.LentData``).
An answer has ``ok``; a failed one has ``code`` and ``message``.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketStream

from parity_contracts.files import write_file
from parity_protocol import strict_json
from parity_protocol.errors import BadDocument, NotFound, ParityError, Unreachable

__all__ = ["ask_agent", "serve_control"]

POINTER_FILE = "control.json"  # where the socket is and who serves it
SOCKET_FILE = "control.sock"
MAX_REQUEST_BYTES = 32_768  # a path has up to 4,096 bytes, and each may be escaped
MAX_ANSWER_BYTES = 4 << 20
REQUEST_TIMEOUT_S = 5.0  # to say what is wanted
ANSWER_TIMEOUT_S = 110.0  # an engine may take its time to remove images
_MAX_SOCKET_PATH = 100  # characters; the system takes about 108

Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


async def serve_control(state_dir: Path, handle: Handler) -> None:
    """Answer requests until cancelled. The caller holds the state folder's lock, so an old socket is nobody's."""
    path = state_dir / SOCKET_FILE
    if len(str(path)) > _MAX_SOCKET_PATH:
        path = Path(await anyio.to_thread.run_sync(tempfile.mkdtemp, None, "parity-")) / SOCKET_FILE
    await anyio.Path(path).unlink(missing_ok=True)
    before = os.umask(0o177)  # the socket is born private
    try:
        listener = await anyio.create_unix_listener(path, mode=0o600)
    finally:
        os.umask(before)
    write_file(state_dir / POINTER_FILE, json.dumps({"pid": os.getpid(), "socket": str(path)}).encode())

    async def answer(stream: SocketStream) -> None:
        async with stream:
            try:
                request = b""
                with anyio.move_on_after(REQUEST_TIMEOUT_S):
                    request = await _line(stream)
                with anyio.move_on_after(ANSWER_TIMEOUT_S):
                    await stream.send(await _answer(request, handle))
            except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
                return

    try:
        await listener.serve(answer)
    finally:
        with anyio.CancelScope(shield=True):
            await listener.aclose()
            await anyio.Path(path).unlink(missing_ok=True)


def ask_agent(state_dir: Path, request: Mapping[str, Any], *, timeout_s: float = 10.0) -> dict[str, Any]:
    """Send one request to the agent that runs on ``state_dir`` and return its answer; blocks.

    Raises:
        Unreachable: No agent runs there.
        ParityError: As the agent raised it (by its code).
    """
    try:
        pointer = json.loads((state_dir / POINTER_FILE).read_bytes())
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(timeout_s)
            link.connect(pointer["socket"])
            link.sendall(json.dumps(dict(request)).encode() + b"\n")
            data = bytearray()
            while chunk := link.recv(65_536):
                data += chunk
                if len(data) > MAX_ANSWER_BYTES:
                    raise BadDocument("the agent's answer is too long")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise Unreachable(
            f"no agent answers on the state folder {state_dir}", hint="Start it with `parity node run`."
        ) from exc
    if not data:
        raise Unreachable(f"the agent on {state_dir} ended while it was asked")
    found: dict[str, Any] = json.loads(data)
    if not found.get("ok"):
        error = NotFound if found.get("code") == NotFound.code else BadDocument
        raise error(str(found.get("message", "the agent refused")))
    return found


async def _line(stream: SocketStream) -> bytes:
    data = b""
    while b"\n" not in data:
        data += await stream.receive(1_024)
        if len(data) > MAX_REQUEST_BYTES:
            return b""
    return data.split(b"\n", 1)[0]


async def _answer(request: bytes, handle: Handler) -> bytes:
    try:
        value = strict_json.loads(request)
        if not isinstance(value, dict):
            raise BadDocument("expected a JSON object")
        document: dict[str, Any] = {"ok": True, **await handle(value)}
    except ParityError as exc:
        document = {"ok": False, "code": exc.code, "message": exc.message}
    return json.dumps(document).encode() + b"\n"
