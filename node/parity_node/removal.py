"""Removing the folders of executions: off the event loop, and those that ended together in one go."""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

__all__ = ["FolderRemover", "remove_folder"]

log = structlog.get_logger(__name__)


class FolderRemover:
    """Removes folders on a thread.

    To remove a folder waits for the file system's journal, 0.1 to 0.3 ms, and so does everything else when the event loop
    does it; a thread for each short task's folder would cost as much.
    """

    def __init__(self) -> None:
        self._waiting: dict[Path, None] = {}
        self._lock = anyio.Lock()

    async def remove(self, folder: Path) -> None:
        """Remove a folder; one that cannot be removed is logged, and the next start sweeps it away."""
        self._waiting[folder] = None
        async with self._lock:
            if folder in self._waiting:  # else it went with those of the caller before
                batch, self._waiting = list(self._waiting), {}
                await anyio.to_thread.run_sync(_remove_all, batch)


def _remove_all(folders: list[Path]) -> None:
    for folder in folders:
        try:
            remove_folder(folder)
        except OSError as exc:
            log.warning("folder_not_removed", path=str(folder), reason=exc.strerror)


def remove_folder(folder: Path) -> None:
    """Remove a folder with what is in it, without following links; nothing if it is not there.

    Raises:
        OSError: It cannot be removed.
    """
    try:
        folder.rmdir()  # most are empty
    except FileNotFoundError:
        return
    except OSError:
        shutil.rmtree(folder)
