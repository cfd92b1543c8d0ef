"""What a session's ServerApp asks of the market, over a Unix socket that only this user can open.

``next``: whom to ask for what; ``model``: the file that they start from; ``update``: one came; ``failed``: one will not.
Nothing is decided there: an update is taken or refused by the rules of every other one.
"""

from __future__ import annotations

import asyncio
import json
import struct
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import anyio.to_thread
import structlog

from parity_fl.limits import MAX_UPDATE_BYTES
from parity_protocol.errors import BadDocument, ParityError

__all__ = ["Bridge", "Carried", "serve_bridge"]

log = structlog.get_logger(__name__)

MAX_HEADER_BYTES = 1 << 16
PIECE_BYTES = 1 << 20
MAX_SOCKET_PATH = 100  # characters; the system takes about 108

Body = AsyncGenerator[bytes, None]


class Carried(Protocol):
    """The session's side: see ``carrier``."""

    async def next(self) -> dict[str, Any]:
        """Return ``state`` ``train`` with ``round``, ``phase``, ``base`` and ``nodes``, or ``wait``, or ``end``."""
        ...

    async def model(self, base: str) -> bytes:
        """Return the model file of this hash; ``NotFound`` when the session has moved on."""
        ...

    async def update(self, asked: Mapping[str, Any], body: Body) -> None:
        """Take a part's update; raises what refuses it."""
        ...

    async def failed(self, asked: Mapping[str, Any]) -> None:
        """Note that a part could not be reached, or that its training failed."""
        ...


class Bridge:
    """One listening socket.

    Attributes:
        path: Of the socket.
        connected: Set once the ServerApp is there.
        hung_up: Set once it has gone again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connected = asyncio.Event()
        self.hung_up = asyncio.Event()


@asynccontextmanager
async def serve_bridge(folder: Path, carried: Carried) -> AsyncIterator[Bridge]:
    """Answer the ServerApp while the body runs."""
    path, short = folder / "bridge.sock", None
    if len(str(path)) > MAX_SOCKET_PATH:
        short = Path(await anyio.to_thread.run_sync(tempfile.mkdtemp, None, "parity-"))
        path = short / "bridge.sock"
    path.unlink(missing_ok=True)
    bridge = Bridge(path)
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bridge.connected.set()
        try:
            while await _answer(reader, writer, carried):
                pass
        except (OSError, ValueError, asyncio.IncompleteReadError) as exc:
            log.info("flower_bridge_ended", problem=str(exc))
        finally:
            writer.close()
            bridge.hung_up.set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(talk(reader, writer))
        talks.add(task)
        task.add_done_callback(talks.discard)

    server = await asyncio.start_unix_server(begin, path=str(path))  # in a folder of mode 0700
    try:
        yield bridge
    finally:
        server.close()
        for task in list(talks):
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        with suppress(OSError):
            path.unlink(missing_ok=True)
            if short is not None:
                short.rmdir()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, carried: Carried) -> bool:
    """Answer one question; return False when the other end has hung up."""
    try:
        (length,) = struct.unpack(">I", await reader.readexactly(4))
    except asyncio.IncompleteReadError:
        return False
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    asked = json.loads(await reader.readexactly(length))
    size = asked.get("size", 0) if isinstance(asked, dict) else -1
    if not isinstance(size, int) or not 0 <= size <= MAX_UPDATE_BYTES:
        raise ValueError(f"a body of {size!r} bytes")
    left = size

    async def body() -> Body:
        nonlocal left
        while left > 0:
            piece = await reader.readexactly(min(left, PIECE_BYTES))
            left -= len(piece)
            yield piece

    said: dict[str, Any] = {}
    data = b""
    stream = body()
    try:
        said, data = await _do(carried, asked, stream)
    except ParityError as exc:
        said = {"refused": exc.message}
        log.info("flower_refused", do=str(asked.get("do")), part=asked.get("part"), problem=exc.message)
    await stream.aclose()
    while left > 0:  # what was refused before it was read
        left -= len(await reader.readexactly(min(left, PIECE_BYTES)))
    header = json.dumps({**said, "size": len(data)}).encode()
    writer.write(struct.pack(">I", len(header)) + header)
    writer.write(data)
    await writer.drain()
    return True


async def _do(carried: Carried, asked: Mapping[str, Any], body: Body) -> tuple[dict[str, Any], bytes]:
    match asked.get("do"):
        case "next":
            return await carried.next(), b""
        case "model":
            return {}, await carried.model(str(asked.get("base")))
        case "update":
            await carried.update(asked, body)
            return {}, b""
        case "failed":
            await carried.failed(asked)
            return {}, b""
        case other:
            raise BadDocument(f"there is no question {other!a}")
