"""How many bytes a task has moved, counted across restarts of the node."""

from __future__ import annotations

import os
from pathlib import Path

from parity_protocol.disk import failure_of
from parity_protocol.errors import ExecutionFailed

__all__ = ["Meter"]

_DIGITS = 20


class Meter:
    """Counts both directions together against one cap.

    Args:
        path: Keeps the count. It is written at each step without a sync: it has to outlive the node, not the machine.

    Raises:
        ExecutionFailed: The file cannot be opened (``node_fault``, ``disk_full``).
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as exc:
            raise ExecutionFailed(failure_of(exc), f"{path}: {exc.strerror}") from exc
        text = os.pread(self._fd, _DIGITS, 0).strip()
        self.used = int(text) if text.isdigit() else 0

    @property
    def is_used_up(self) -> bool:
        """Whether nothing more may pass."""
        return self.used >= self.max_bytes

    def take(self, count: int) -> int:
        """Count ``count`` bytes that are about to pass and return how many of them may."""
        allowed = max(0, min(count, self.max_bytes - self.used))
        self.used += allowed
        if self._fd >= 0:
            try:
                os.pwrite(self._fd, f"{self.used:0{_DIGITS}d}".encode(), 0)
            except OSError:  # a full disk: the count in memory holds
                return allowed
        return allowed

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
