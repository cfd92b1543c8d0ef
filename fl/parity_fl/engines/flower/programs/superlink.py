"""Starts a SuperLink of one session: ``python superlink.py PARENT SECRETS HOST PORT FOLDER``; runs in flwr's environment.

Fleet, control and runtime share one port. Who reaches the port may talk to the fleet's part, which asks for a registered
key; starting runs and registering keys needs a secret, and taking a run's tasks needs another one.
"""

from __future__ import annotations

import ctypes
import hmac
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

CONTROL_HEADER = b"x-parity-control"
PR_SET_PDEATHSIG = 1
MAX_MEMORY_BYTES = 8 << 30
NICENESS = 5


class Gate:
    """An ASGI middleware that lets through what a session needs, and nothing else."""

    def __init__(self, app: Any, *, secret: bytes) -> None:
        self._app = app
        self._secret = secret

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer 404."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._may(scope)):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def _may(self, scope: Any) -> bool:
        path = scope["path"]
        if path.startswith("/v1/fleet/"):
            return True
        if path.startswith("/v1/control/"):
            given = dict(scope["headers"]).get(CONTROL_HEADER, b"")
            return hmac.compare_digest(given, self._secret)
        peer = (scope.get("client") or ("", 0))[0]
        return path.startswith("/v1/runtime/") and (peer.startswith("127.") or peer == "::1")


def die_with(parent: int) -> None:
    """End when the market does."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def bound() -> None:
    """Bound this process and each that it starts: what nodes send is kept in memory, and must not take the market along."""
    os.nice(NICENESS)
    wanted = [(resource.RLIMIT_CORE, 0)]
    if sys.platform == "linux":  # macOS accepts it and then refuses to map libraries
        wanted.append((resource.RLIMIT_DATA, MAX_MEMORY_BYTES))
    for kind, most in wanted:
        _, hard = resource.getrlimit(kind)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))


def main(arguments: list[str]) -> None:
    """Run until killed."""
    parent, control, host, port, folder = (
        int(arguments[0]),
        arguments[1],
        arguments[2],
        arguments[3],
        Path(arguments[4]),
    )
    die_with(parent)
    bound()
    from flwr.superlink import extensions
    from flwr.superlink.cli import flower_superlink
    from starlette.middleware import Middleware

    gate = Middleware(Gate, secret=Path(control).read_bytes())
    extensions.get_middleware = lambda: (gate,)
    secret = str(folder / "superexec.secret")
    tls = str(folder / "root.pem")
    local = f"127.0.0.1:{port}"
    subprocess.Popen(
        [
            str(Path(sys.executable).with_name("flower-superexec")),
            *("--runtime-api-address", local, "--root-certificates", tls),
            *("--superexec-auth-secret-file", secret, "--parent-pid", str(os.getpid())),
        ]
    )
    sys.argv = [
        "flower-superlink",
        *("--host", host, "--port", port, "--isolation", "process", "--enable-supernode-auth"),
        *(
            "--ssl-ca-certfile",
            tls,
            "--ssl-certfile",
            str(folder / "server.pem"),
            "--ssl-keyfile",
            str(folder / "server.key"),
        ),
        *("--superexec-auth-secret-file", secret, "--disable-runtime-dependency-installation"),
    ]
    flower_superlink()


if __name__ == "__main__":
    main(sys.argv[1:])
