"""What a task prints, in a file: bounded, and honest about what it could not keep."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from parity_protocol.disk import failure_of
from parity_protocol.errors import ExecutionFailed

__all__ = ["LogFile"]


class LogFile:
    """Takes what a task prints into a file, at most ``max_bytes`` of it; the rest is dropped.

    Args:
        path: Replaced if it is there, never followed if it is a link; mode 0600.

    Raises:
        ExecutionFailed: It cannot be written (``disk_full``, ``node_fault``).
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.size = 0
        self.is_truncated = False
        self.is_disk_full = False
        self._least = 0  # bytes of an earlier reading that this one must reach before it replaces it
        self._on_full: Callable[[], None] | None = None
        self._replaces: Path | None = None
        self._file = _create(path)

    @classmethod
    def reread(cls, path: Path, max_bytes: int) -> LogFile:
        """Read everything again, from a container's beginning, beside what was read before.

        The two outputs of a program come in an order of their own each time. The new reading replaces the old one when
        it is as long, so that whoever reads on from an offset finds what belongs there.
        """
        found = cls(path.with_name(f"{path.name}.again"), max_bytes)
        found._replaces = path
        found._least = path.stat().st_size if path.exists() else 0
        found._settle()
        return found

    @property
    def is_behind(self) -> bool:
        """Whether an earlier reading had more: the engine has dropped the beginning since."""
        return self._replaces is not None

    @property
    def is_full(self) -> bool:
        """Whether more has come than is kept, or could be."""
        return self.is_truncated or self.is_disk_full

    def when_full(self, call: Callable[[], None]) -> None:
        """Call ``call`` once, as soon as it is full, at once if that is so already."""
        self._on_full = call
        self._tell()

    def write(self, data: bytes | memoryview) -> None:
        """Append, up to the cap."""
        if self.is_full or self._file < 0:
            return
        room = self.max_bytes - self.size
        kept = data[:room]
        try:
            while kept:
                written = os.write(self._file, kept)
                self.size += written
                kept = kept[written:]
        except OSError:  # the result would be short, which must not pass for success
            self.is_disk_full = True
        self.is_truncated = len(data) > room
        self._settle()
        self._tell()

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._replaces is not None:
            self.path.unlink(missing_ok=True)

    def _tell(self) -> None:
        if self.is_full and self._on_full is not None:
            self._on_full()

    def _settle(self) -> None:
        if self._replaces is not None and self.size >= self._least:
            self.path.rename(self._replaces)
            self.path, self._replaces = self._replaces, None


def _create(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise ExecutionFailed(failure_of(exc), f"{path}: {exc.strerror}") from exc
