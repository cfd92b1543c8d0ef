"""One agent per state folder: two would answer for the same leases."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parity_protocol.errors import NodeInUse

__all__ = ["exclusive_lock"]


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold ``path`` locked; the system frees it when the process ends, however it ends.

    The file stays: removing it would let two processes lock two files of one name.

    Raises:
        NodeInUse: Another process holds it; the message names its id.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise NodeInUse(
                f"another agent (process {holder}) runs on the state folder {path.parent}",
                hint=f"Stop it first (`kill {holder}` drains it), or set RUNNER_STATE_DIR to another folder.",
            ) from exc
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
