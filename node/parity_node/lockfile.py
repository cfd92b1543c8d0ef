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
def exclusive_lock(path: Path, *, node_id: str = "") -> Iterator[None]:
    """Hold ``path`` locked; the system frees it when the process ends, however it ends.

    The file stays: removing it would let two processes lock two files of one name.

    Args:
        node_id: Whose state folder it is, for the message.

    Raises:
        NodeInUse: Another process holds it; the message names its process id.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise NodeInUse(
                f"{f'node {node_id}' if node_id else 'a node'} is already running here (pid {holder}), on the state"
                f" folder {path.parent}",
                hint="`parity node status` shows how it does, `parity node drain` ends it. A second node on this machine"
                " has a folder of its own: PARITY_HOME=… parity node init.",
            ) from None  # that it is locked is all there is to say
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
