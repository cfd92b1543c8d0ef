"""Results that wait for their upload: files and folders that nobody may remove before the market has them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ResultEntry", "ResultFolder", "remove_path", "size_on_disk"]

MAX_ENTRIES = 100_000  # files that are counted of one result; a result holds at most 10,000


@dataclass(frozen=True, slots=True)
class ResultEntry:
    """One result, or what is left of one."""

    path: Path
    size_bytes: int
    written_at: float  # unix seconds


class ResultFolder:
    """The folder of results. Every call reads the disk: run it on a thread.

    Args:
        max_bytes: What all results that wait may take; at it the node takes no new work.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes

    def entries(self) -> list[ResultEntry]:
        """Return what is there, oldest first."""
        found = []
        for path in self._children():
            try:
                found.append(ResultEntry(path, size_on_disk(path), path.lstat().st_mtime))
            except OSError:  # uploaded and removed meanwhile
                continue
        return sorted(found, key=lambda entry: entry.written_at)

    def used_bytes(self) -> int:
        """Return the bytes of everything there."""
        return sum(entry.size_bytes for entry in self.entries())

    def leftovers(self, waiting: Collection[str], *, before: float) -> list[ResultEntry]:
        """Return what no queued report speaks of.

        Args:
            waiting: Paths that queued reports name.
            before: Unix seconds; what was written later may be a result whose report is being queued just now.
        """
        return [entry for entry in self.entries() if str(entry.path) not in waiting and entry.written_at < before]

    def remove(self, entry: ResultEntry) -> bool:
        """Remove one entry; return whether it is gone."""
        return remove_path(entry.path)

    def _children(self) -> Iterator[Path]:
        try:
            yield from self.path.iterdir()
        except OSError:
            return


def remove_path(path: Path) -> bool:
    """Remove a file or a whole folder, following no link; return whether it is gone."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        return not os.path.lexists(path)
    return True


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file or of everything in a folder, as long as they are said to be.

    Raises:
        OSError: It cannot be read.
    """
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    total, left = 0, MAX_ENTRIES
    for folder, _, names in os.walk(path):
        for name in names:
            total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - many files
            left -= 1
            if left <= 0:
                return total
    return total
