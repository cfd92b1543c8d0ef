"""Room on disk: what is free where the node writes, what must stay free, and a ballast to throw off.

SQLite needs room even to delete (measured: after ENOSPC a DELETE fails as well), so a file beside the journal takes
some that can be given back at once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from parity_protocol.clock import Clock

__all__ = ["AFTER_FULL_S", "Ballast", "DiskGuard", "Volume", "free_bytes", "measure_volumes"]

AFTER_FULL_S = 10.0  # after the disk was full no new task for so long: a task that meets it again must not make us spin
_FILL_CHUNK = 1 << 20
_NO_FALLOCATE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})

log = structlog.get_logger(__name__)


class Ballast:
    """A file that takes room, so that there is some to free.

    Args:
        size_bytes: 0 for none.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes

    @property
    def is_whole(self) -> bool:
        """Whether there is as much to free as there should be."""
        try:
            return not self.size_bytes or self.path.stat().st_size == self.size_bytes
        except OSError:
            return False

    def fill(self) -> bool:
        """Take the room, unless it is taken; return whether it is. Needs no more than ``size_bytes`` free."""
        if self.is_whole:
            return True
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                _allocate(file, self.size_bytes)
            finally:
                os.close(file)
            temporary.rename(self.path)
        except OSError as exc:
            temporary.unlink(missing_ok=True)
            log.warning("ballast_missing", path=str(self.path), reason=exc.strerror)
            return False
        return True

    def free(self) -> bool:
        """Give the room back; return whether there was any."""
        try:
            size = self.path.stat().st_size
            self.path.unlink()
        except OSError:
            return False
        log.error("disk_full", freed_bytes=size, path=str(self.path))
        return True


@dataclass(frozen=True, slots=True)
class Volume:
    """One file system that the node writes to."""

    device: int
    names: tuple[str, ...]  # of the folders that lie on it
    free_bytes: int  # for us: without what is reserved for root


class DiskGuard:
    """Says whether there is room for new work, by looking each time it is asked.

    Args:
        folders: By the names that people read: state, executions, results, cache. They exist.
        floor_bytes: What must stay free on each of their file systems.
        measure: Replaces the system's answer; for tests.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        *,
        floor_bytes: int,
        clock: Clock,
        measure: Callable[[Mapping[str, Path]], tuple[Volume, ...]] | None = None,
    ) -> None:
        self._folders = dict(folders)
        self._clock = clock
        self._measure = measure or measure_volumes
        self._full_at: float | None = None
        self.floor_bytes = floor_bytes

    def watch(self, name: str, folder: Path) -> None:
        """Look after one more folder, such as an engine's; ``images`` is where images go."""
        self._folders[name] = folder

    def volumes(self) -> tuple[Volume, ...]:
        """Measure now; a folder that cannot be looked at counts as full."""
        return self._measure(self._folders)

    def volume_of(self, name: str) -> Volume:
        """Return the file system that a folder lies on."""
        return next(volume for volume in self.volumes() if name in volume.names)

    def shortage_bytes(self) -> Mapping[str, int]:
        """Return how much is missing to the floor, by each folder's name; only where something is."""
        return {
            name: self.floor_bytes - volume.free_bytes
            for volume in self.volumes()
            if volume.free_bytes < self.floor_bytes
            for name in volume.names
        }

    def note_full(self) -> None:
        """Note that something met a full disk just now."""
        self._full_at = self._clock.monotonic()

    def obstacle(self) -> str:
        """Return why no new task may begin, for people; empty when one may."""
        for volume in self.volumes():
            if volume.free_bytes < self.floor_bytes:
                where = ", ".join(volume.names)
                return f"{volume.free_bytes} bytes are free on the disk of {where}; RUNNER_DISK_FLOOR is {self.floor_bytes}"
        if self._full_at is not None and self._clock.monotonic() - self._full_at < AFTER_FULL_S:
            return f"the disk was full less than {AFTER_FULL_S:g} s ago"
        self._full_at = None
        return ""


def measure_volumes(folders: Mapping[str, Path]) -> tuple[Volume, ...]:
    """Return the file systems that ``folders`` lie on; a folder that cannot be looked at counts as a full one."""
    found: dict[int, Volume] = {}
    for index, (name, folder) in enumerate(folders.items()):
        try:
            device, free = folder.stat().st_dev, free_bytes(folder)
        except OSError:
            device, free = -1 - index, 0
        known = found.get(device)
        found[device] = Volume(device, (*known.names, name) if known else (name,), free)
    return tuple(found.values())


def free_bytes(folder: Path) -> int:
    """Return the free bytes of a folder's file system, without what is reserved for root.

    Raises:
        OSError: It cannot be looked at.
    """
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _allocate(file: int, size: int) -> None:
    """Reserve real blocks: a hole would have nothing to free, nor would zeros on a file system that compresses."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as exc:
            if exc.errno not in _NO_FALLOCATE:
                raise
        else:
            return
    left = size
    while left:
        left -= os.write(file, os.urandom(min(left, _FILL_CHUNK)))
    os.fsync(file)
