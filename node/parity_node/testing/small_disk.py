"""A real, tiny file system for one test (needs root), a file that takes what is free, and a wait for what comes back."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parity_node.disk import free_bytes
from parity_protocol.clock import Clock
from parity_protocol.errors import StorageFull

__all__ = ["PAGE", "Filler", "ext4", "space_returns", "tmpfs"]

PAGE = 4096  # bytes
SAME_FREE_BYTES = 1 << 20  # what a file system may keep for itself when "the same" is free again


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system in memory of ``size`` bytes on ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "parity-test", str(folder))
    try:
        yield folder
    finally:
        _run("umount", "-l", str(folder))


@contextmanager
def ext4(folder: Path, size: int) -> Iterator[Path]:
    """The same with ext4 in a file, whose own books need room too."""
    folder.mkdir(parents=True, exist_ok=True)
    image = folder.with_name(folder.name + ".img")
    with image.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-m", "0", str(image))
    _run("mount", "-o", "loop", str(image), str(folder))
    try:
        yield folder
    finally:
        _run("umount", "-l", str(folder))
        image.unlink()


class Filler:
    """Takes room on a file system and gives it back."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "filler"

    def fill(self, leave: int = 0) -> None:
        """Write until ``leave`` bytes are free, to the page."""
        self.empty()
        found = os.statvfs(self._path.parent)
        with self._path.open("wb", buffering=0) as file:
            left = max(0, found.f_bavail * found.f_frsize - leave)
            try:
                while left > 0:
                    left -= file.write(bytes(min(left, 1 << 20)))
                if not leave:
                    while file.write(bytes(PAGE)):
                        pass
            except OSError:
                pass
            os.fsync(file.fileno())

    def empty(self) -> None:
        """Give everything back."""
        self._path.unlink(missing_ok=True)


async def space_returns(
    folder: Path, before_bytes: int, clock: Clock, *, within_s: float = 5.0, slack_bytes: int = SAME_FREE_BYTES
) -> float:
    """Wait until as much is free again as before something ran, and return the seconds that it took.

    Raises:
        StorageFull: It is not, after ``within_s``; the message says how much is missing.
    """
    begun = clock.monotonic()
    while (missing := before_bytes - slack_bytes - free_bytes(folder)) > 0:
        if clock.monotonic() - begun > within_s:
            raise StorageFull(f"{missing} bytes of {folder} did not come back within {within_s:g} s")
        await clock.sleep(0.05)
    return clock.monotonic() - begun


def _run(program: str, *arguments: str) -> None:
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise FileNotFoundError(f"{program} is not installed")
    subprocess.run([found, *arguments], check=True, timeout=30)
