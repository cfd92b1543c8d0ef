"""Starts a SuperNode of one lease: ``python supernode.py PARENT BUNDLE FOLDER SUPERLINK PORT TRAINER``; in flwr's environment.

What it may run is decided here: the bundle that the SuperLink sends is hashed before anything of it is read, and one
with another SHA-256 ends the process with ``REFUSED``. BUNDLE is that hash, or ``*`` where the operator allows any.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REFUSED = 77  # exit status: another bundle
PR_SET_PDEATHSIG = 1
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
        if expected not in ("*", found):
            print(f"refused: the SuperLink sent the bundle {found}, expected {expected}", flush=True)  # noqa: T201
            os._exit(REFUSED)  # not an exception: flwr would go on with the next message
        return fab

    return get


def main(arguments: list[str]) -> None:
    """Run until killed, refused, or the SuperLink does not know the key."""
    parent, expected, folder, superlink, port, trainer = arguments
    die_with(int(parent))
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
