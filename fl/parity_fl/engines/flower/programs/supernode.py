"""Starts a SuperNode of one lease: ``python supernode.py PARENT BUNDLE FOLDER SUPERLINK PORT TRAINER MEMORY CPU``.

What it may run is decided here: the bundle that the SuperLink sends is hashed before anything of it is read, and one
with another SHA-256 ends the process with ``REFUSED``. SUPERLINK is ``host:port``, or ``unix:PATH`` of a socket that leads there.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REFUSED = 77  # exit status: another bundle
PR_SET_PDEATHSIG = 1
NICENESS = 10
MAX_FILE_BYTES = 2 << 30
MAX_OPEN_FILES = 1024
LOOK_S = 0.3  # between two questions for a message; flwr's own is 3 s


def die_with(parent: int) -> None:
    """End when the node does; a sandbox between us ends us itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:
        sys.exit(1)


def checked(get_fab: Callable[..., Any], expected: str) -> Callable[..., Any]:
    """Return ``get_fab`` that ends this process rather than hand on another bundle."""

    def get(fab_hash: str, run_id: int) -> Any:
        fab = get_fab(fab_hash, run_id)
        found = sha256(fab.content).hexdigest()
        if found != expected:
            print(f"refused: the SuperLink sent the bundle {found}, expected {expected}", flush=True)  # noqa: T201
            os._exit(REFUSED)  # not an exception: flwr would go on with the next message
        return fab

    return get


def forward(path: str) -> str:
    """Listen on loopback and carry each connection to the Unix socket ``path``; return the address."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def carry(inner: socket.socket) -> None:
        with inner, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as outer:
            try:
                outer.connect(path)
            except OSError:
                return
            back = threading.Thread(target=pump, args=(outer, inner), daemon=True)
            back.start()
            pump(inner, outer)
            back.join()

    def serve() -> None:
        while True:
            inner, _ = listener.accept()
            threading.Thread(target=carry, args=(inner,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def limit(memory_bytes: int, cpu_s: int) -> None:
    """Bound what this process, and each that it starts, may use of the machine."""
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    wanted = [
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CPU, cpu_s),
    ]
    if sys.platform == "linux":  # macOS accepts it and then refuses to map libraries
        wanted.append((resource.RLIMIT_DATA, memory_bytes))
    for kind, most in wanted:
        _, hard = resource.getrlimit(kind)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound))


def main(arguments: list[str]) -> None:
    """Run until killed, refused, or the SuperLink does not know the key."""
    parent, expected, folder, superlink, port, trainer, memory_bytes, cpu_s = arguments
    die_with(int(parent))
    limit(int(memory_bytes), int(cpu_s))
    if superlink.startswith("unix:"):
        superlink = forward(superlink.removeprefix("unix:"))
    from flwr.supernode import start_client_internal as inner
    from flwr.supernode.cli import flower_supernode

    connect = inner.http_request_response

    @contextmanager
    def connected(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
        with connect(*args, **kwargs) as found:
            parts = list(found)
            parts[4] = checked(parts[4], expected)
            yield tuple(parts)

    inner.http_request_response = connected
    inner.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, LOOK_S)))
    secret = str(Path(folder) / "superexec.secret")
    subprocess.Popen(
        [
            str(Path(sys.executable).with_name("flower-superexec")),
            *("--runtime-api-address", f"127.0.0.1:{port}", "--insecure"),
            *("--superexec-auth-secret-file", secret, "--parent-pid", str(os.getpid())),
        ]
    )
    sys.argv = [
        "flower-supernode",
        *("--superlink", superlink, "--root-certificates", str(Path(folder) / "root.pem")),
        *("--auth-supernode-private-key", str(Path(folder) / "node.key")),
        *("--isolation", "process", "--superexec-auth-secret-file", secret),
        *("--host", "127.0.0.1", "--port", port, "--node-config", f'trainer="{trainer}"'),
    ]
    flower_supernode()


if __name__ == "__main__":
    main(sys.argv[1:])
