"""The node's store of verified data sets, opened when it is first needed: an idle node pays nothing for it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.to_thread

from parity_blobs.cid import Cid
from parity_blobs.local import LocalBlobStore, StoredEntry, StoreRoom, StoreUsage
from parity_node.cache.uses import Uses
from parity_protocol.clock import Clock

__all__ = ["DataCache"]


class DataCache:
    """A ``LocalBlobStore`` under a cap that leaves the disk its floor and evicts nothing that is in use.

    Args:
        folder: Of the store; nobody else may use it.
        floor_bytes: Free space that downloads leave on the folder's file system.
    """

    def __init__(self, folder: Path, *, max_bytes: int, floor_bytes: int, clock: Clock, uses: Uses) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._floor_bytes = floor_bytes
        self._clock = clock
        self._uses = uses
        self._resources = AsyncExitStack()
        self._opened: LocalBlobStore | None = None
        self._opening = anyio.Lock()

    async def store(self) -> LocalBlobStore:
        """Return the open store. Opening it removes what a killed download left, and counts again what is there.

        Raises:
            Conflict: Another process uses it.
            Unavailable: The folder cannot be used.
        """
        async with self._opening:
            if self._opened is None:
                self._opened = await self._resources.enter_async_context(
                    LocalBlobStore(
                        self.folder,
                        max_bytes=self.max_bytes,
                        floor_bytes=self._floor_bytes,
                        in_use=lambda: self._uses.names,
                        clock=self._clock,
                    )
                )
            return self._opened

    def limit(self, max_bytes: int) -> None:
        """Change the cap; what is over it goes with the next download or collection."""
        self.max_bytes = max_bytes
        if self._opened is not None:
            self._opened.limit(max_bytes)

    async def existing(self) -> LocalBlobStore | None:
        """Return the open store, or None when nothing was ever kept here: looking makes no folder."""
        if self._opened is None and not await anyio.Path(self.folder / "index.sqlite3").exists():
            return None
        return await self.store()

    async def usage(self) -> StoreUsage:
        """Return how full it is."""
        store = await self.existing()
        return await store.usage() if store is not None else StoreUsage(0, 0, self.max_bytes)

    async def entries(self) -> list[StoredEntry]:
        """Return what is there, what would be evicted first at the head."""
        store = await self.existing()
        return await store.entries() if store is not None else []

    async def room(self, wanted: Iterable[Cid] = ()) -> StoreRoom:
        """Return what may go and what must stay; as ``LocalBlobStore.room``."""
        store = await self.existing()
        return await store.room(wanted) if store is not None else StoreRoom(0, 0, 0)

    async def evict(
        self, wanted_bytes: int, *, unused_since: float | None = None, dry_run: bool = False
    ) -> list[StoredEntry]:
        """Remove what is neither pinned nor in use; as ``LocalBlobStore.evict``."""
        store = await self.existing()
        if store is None:
            return []
        return await store.evict(wanted_bytes, unused_since=unused_since, dry_run=dry_run)

    async def sweep(self) -> None:
        """Remove what killed downloads left, without opening the store."""
        async with self._opening:
            if self._opened is None:  # opening it does the same
                await anyio.to_thread.run_sync(_remove_files, self.folder / "tmp")

    async def aclose(self) -> None:
        """Close the store; idempotent."""
        with anyio.CancelScope(shield=True):
            self._opened = None
            await self._resources.aclose()


def _remove_files(folder: Path) -> None:
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
