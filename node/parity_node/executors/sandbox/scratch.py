"""A sandbox's own writable folders, seen from outside: how full they are, and what is in ``/output`` after the end.

They are tmpfs with a size, in the task's memory and never on the node's disk, so a task cannot fill that, and what it
leaves is gone with them. A folder of the disk, watched and ended when it grows, was the alternative: the watcher sees it
a gigabyte too late, and a million empty files stay to be removed. The price is that an output is no larger than memory.

The descriptors of the mount namespace and of its root keep the folders alive when the last process is gone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["Fill", "Scratch"]


@dataclass(frozen=True, slots=True)
class Fill:
    """How full folders are, together."""

    size: int  # bytes
    files: int  # and folders, links …
    has_room: bool  # in each of them


class Scratch:
    """Open descriptors of a sandbox's writable folders; ``close`` lets them go.

    Args:
        pid: The sandbox's first process, when its mounts all stand.
        folders: Absolute paths inside, each a tmpfs of its own.

    Raises:
        ExecutionFailed: They cannot be seen (``sandbox_failed``).
        ProcessLookupError: That process is gone.
    """

    def __init__(self, pid: int, folders: tuple[str, ...]) -> None:
        self._fds = dict[str, int]()
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            self._fds["namespace"] = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            self.root = self._fds["/"] = os.open(f"/proc/{pid}/root", flags)
            for path in folders:
                self._fds[path] = os.open(path[1:], flags | os.O_NOFOLLOW, dir_fd=self.root)
        except OSError as exc:
            self.close()
            if isinstance(exc, FileNotFoundError | ProcessLookupError):
                raise ProcessLookupError from exc
            raise ExecutionFailed(FailureReason.SANDBOX_FAILED, f"cannot see the sandbox: {exc.strerror}") from exc
        self.folders = folders

    def path(self, folder: str) -> Path:
        """Return where this process finds a folder, until ``close``."""
        return Path(f"/proc/self/fd/{self.root}{folder}")

    def fill(self, *folders: str) -> Fill:
        """Return how full ``folders`` are, all of them by default; nothing is walked."""
        size, files, has_room = 0, 0, True
        for path in folders or self.folders:
            found = os.statvfs(self._fds[path])
            size += (found.f_blocks - found.f_bfree) * found.f_frsize
            files += found.f_files - found.f_ffree
            has_room = has_room and (found.f_bfree > 0 or found.f_blocks == 0)
        return Fill(size, files, has_room)

    def close(self) -> None:
        """Let the folders go; idempotent. What is in them is freed when the sandbox is gone."""
        while self._fds:
            os.close(self._fds.popitem()[1])
