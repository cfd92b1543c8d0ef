"""Everything a node keeps, in one place: list it, pin it, free it, and make room when a disk needs some."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

import anyio.to_thread
import structlog

from parity_blobs.base import BlobStat
from parity_blobs.cid import Cid
from parity_blobs.local import StoredEntry, StoreRoom
from parity_node.cache.data import DataCache
from parity_node.cache.images import ImageCache, ImageRow
from parity_node.cache.results import ResultEntry, ResultFolder
from parity_node.cache.uses import Uses, names_of
from parity_node.disk import DiskGuard
from parity_node.disk_need import DiskNeed, DiskRoom, need_of
from parity_protocol.clock import Clock
from parity_protocol.errors import BadCid, NotFound, ParityError
from parity_protocol.policy import Denial
from parity_protocol.task import CommandSpec, DockerSpec, FederatedLearningSpec, LlmSpec

__all__ = ["CacheItem", "CacheKind", "CacheTotal", "NodeCache"]

DATA_FOLDER = "inputs"
LEDGER_FILE = "images.json"
FRESH_S = 3_600.0  # a result younger than this may be one whose report is being queued
EVERYTHING = 1 << 62

log = structlog.get_logger(__name__)


class CacheKind(StrEnum):
    """What is kept."""

    DATA = "data"
    IMAGE = "image"
    RESULT = "result"


@dataclass(frozen=True, slots=True)
class CacheItem:
    """One thing that is kept."""

    kind: CacheKind
    name: str  # CID, image id, or the result's execution
    size_bytes: int
    used_at: float  # unix seconds
    is_pinned: bool = False
    is_used: bool = False
    label: str = ""  # how people call it: an image's reference


@dataclass(frozen=True, slots=True)
class CacheTotal:
    """How full one part is, in bytes; ``kept`` is what cannot be freed now."""

    used: int
    kept: int
    limit: int


class NodeCache:
    """Data sets, images and results of one node. Use it on the event loop; ``aclose`` when done.

    Args:
        cache_dir: Of data sets and the ledger of images.
        results_dir: Of results.
        floor_bytes: Free space that stays on the disk when data is fetched.
    """

    def __init__(
        self,
        *,
        cache_dir: Path,
        results_dir: Path,
        max_data_bytes: int,
        max_image_bytes: int,
        max_result_bytes: int,
        floor_bytes: int,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._settings_caps = (max_data_bytes, max_image_bytes)
        self.uses = Uses()
        self.data = DataCache(
            cache_dir / DATA_FOLDER, max_bytes=max_data_bytes, floor_bytes=floor_bytes, clock=clock, uses=self.uses
        )
        self.images = ImageCache(cache_dir / LEDGER_FILE, max_bytes=max_image_bytes, clock=clock, uses=self.uses)
        self.results = ResultFolder(results_dir, max_bytes=max_result_bytes)
        self._waiting: Callable[[], Collection[str]] | None = None
        self._results_used = 0

    def results_wait(self, waiting: Callable[[], Collection[str]]) -> None:
        """Say which results queued reports name; until then none is taken for a leftover."""
        self._waiting = waiting

    def narrow(self, max_bytes: int | None) -> bool:
        """Keep data and images together below ``max_bytes`` (None: no such cap); return whether that changed anything.

        Each gets the share that it has of the settings' caps, so that neither can take all of it from the other.
        """
        data, images = self._settings_caps
        if max_bytes is not None and max_bytes < data + images:
            share = max_bytes * data // (data + images)
            data, images = share, max_bytes - share
        if (data, images) == (self.data.max_bytes, self.images.max_bytes):
            return False
        self.data.limit(data)
        self.images.max_bytes = images
        return True

    @property
    def results_used_bytes(self) -> int:
        """What the results took when they were counted last."""
        return self._results_used

    async def count_results(self) -> None:
        """Count the bytes of the results again; it reads the disk, so it is not done for each task."""
        self._results_used = await anyio.to_thread.run_sync(self.results.used_bytes)

    async def items(self) -> list[CacheItem]:
        """Return everything that is kept; within a kind, what goes first at the head."""
        results = await anyio.to_thread.run_sync(self.results.entries)
        waiting = self._waiting() if self._waiting is not None else {str(entry.path) for entry in results}
        return [
            *map(_of_data, await self.data.entries()),
            *(self._of_image(row) for row in self.images.rows),
            *(_of_result(entry, is_used=str(entry.path) in waiting) for entry in results),
        ]

    async def totals(self) -> Mapping[CacheKind, CacheTotal]:
        """Return how full each part is."""
        items = await self.items()
        usage = await self.data.usage()
        kept = {
            kind: sum(item.size_bytes for item in items if item.kind is kind and (item.is_pinned or item.is_used))
            for kind in CacheKind
        }
        kept[CacheKind.DATA] = (await self.data.room()).kept  # also of what a listing has no room for
        results = sum(item.size_bytes for item in items if item.kind is CacheKind.RESULT)
        return {
            CacheKind.DATA: CacheTotal(usage.used, kept[CacheKind.DATA], usage.limit),
            CacheKind.IMAGE: CacheTotal(self.images.used_bytes, kept[CacheKind.IMAGE], self.images.max_bytes),
            CacheKind.RESULT: CacheTotal(results, kept[CacheKind.RESULT], self.results.max_bytes),
        }

    async def pin(self, name: str, *, keep: bool = True) -> CacheItem:
        """Spare a data set (by its CID) or an image (by id or reference) from eviction, or no longer.

        Raises:
            NotFound: Nothing here is called so.
            StorageFull: No room to write it down.
        """
        try:
            cid = Cid.parse(name)
        except BadCid:
            return self._of_image(self.images.pin(name, keep=keep))
        store = await self.data.existing()
        if store is None or await store.stat(cid) is None:
            raise NotFound(f"{name} is not in this node's cache")
        await store.pin(cid, keep=keep)
        found = await store.stat(cid)
        return _of_stat(cid, found, keep=keep)

    async def collect(
        self, *, everything: bool = False, older_than_s: float | None = None, dry_run: bool = False
    ) -> list[CacheItem]:
        """Free what may be freed and return what went: leftovers, and what is over a cap.

        Nothing goes that is pinned, that a running execution uses, or that a queued report names.

        Args:
            everything: All of it, not only what is over a cap.
            older_than_s: Also what was not used for so many seconds.
            dry_run: Remove nothing, and say what would go.
        """
        since = None if older_than_s is None else self._clock.now().timestamp() - older_than_s
        gone = await self._collect_data(everything=everything, since=since, dry_run=dry_run)
        gone += await self._collect_images(everything=everything, since=since, dry_run=dry_run)
        before = self._clock.now().timestamp() - FRESH_S
        leftovers = await anyio.to_thread.run_sync(partial(self._leftovers, before))
        for entry in leftovers:
            if dry_run or await anyio.to_thread.run_sync(self.results.remove, entry):
                gone.append(_of_result(entry, is_used=False))
        if gone and not dry_run:
            log.info("cache_freed", items=len(gone), freed_bytes=sum(item.size_bytes for item in gone))
        return gone

    async def relieve(self, disk: DiskGuard) -> int:
        """Evict for a disk that is below its floor; return the bytes that were freed."""
        shortage = disk.shortage_bytes()
        freed = 0
        if missing := shortage.get("cache", 0):
            freed += sum(entry.footprint for entry in await self.data.evict(missing))
        if missing := shortage.get("images", 0):
            freed += sum(row.size_bytes for row in await self.images.trim(self.images.used_bytes - missing))
        return freed

    async def denials(
        self,
        spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec,
        disk: DiskGuard,
        committed: DiskNeed,
    ) -> list[Denial]:
        """Return why a task does not fit here; an empty list when it does, were the cache to give way.

        Args:
            committed: What the executions that run now may still write.
        """
        if obstacle := disk.obstacle():  # the offer waited for while the disk became full
            return [Denial("disk.full", obstacle)]
        need = need_of(spec)
        used = await self._data_used() if need.cache else 0
        results_left = max(0, self.results.max_bytes - self._results_used)
        simple = DiskRoom(disk.volumes(), disk.floor_bytes, 0, max(0, self.data.max_bytes - used), results_left)
        if not simple.denials(need, committed):
            return []
        return (await self.room_for(spec, disk)).denials(need, committed)

    async def room_for(
        self, spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec, disk: DiskGuard
    ) -> DiskRoom:
        """Return what there is for a task: what is free, what may be evicted, and which of its inputs are here."""
        volumes = disk.volumes()
        results_left = max(0, self.results.max_bytes - self._results_used)
        names = names_of(spec)
        try:
            room = await self.data.room(cid for cid in map(_parse, names) if cid is not None)
        except ParityError:
            room = StoreRoom(0, 0, 0)
        left = max(0, self.data.max_bytes - room.kept)
        return DiskRoom(volumes, disk.floor_bytes, room.evictable, left, results_left, room.here)

    async def aclose(self) -> None:
        """Close the store; idempotent."""
        await self.data.aclose()

    async def _data_used(self) -> int:
        try:
            return (await self.data.usage()).used
        except ParityError as exc:  # the store does not open: the task will meet the same, and say it
            log.warning("cache_not_readable", error=exc.message)
            return 0

    # -- parts of a collection -----------------------------------------------------------------------------------

    async def _collect_data(self, *, everything: bool, since: float | None, dry_run: bool) -> list[CacheItem]:
        usage = await self.data.usage()
        wanted = EVERYTHING if everything else usage.used - usage.limit
        gone = await self.data.evict(wanted, dry_run=dry_run) if wanted > 0 else []
        if since is not None and not everything:
            known = {entry.cid for entry in gone}
            aged = await self.data.evict(EVERYTHING, unused_since=since, dry_run=dry_run)
            gone += [entry for entry in aged if entry.cid not in known]
        return [_of_data(entry) for entry in gone]

    async def _collect_images(self, *, everything: bool, since: float | None, dry_run: bool) -> list[CacheItem]:
        rows = self.images.candidates(0 if everything else self.images.max_bytes)
        if since is not None and not everything:
            aged = self.images.candidates(0, unused_since=since)
            rows = [*rows, *(row for row in aged if row not in rows)]
        items = [self._of_image(row) for row in rows]
        if dry_run:
            return items if self.images.can_remove else []
        gone = {row.id for row in await self.images.remove(rows)}
        return [item for item in items if item.name in gone]

    def _leftovers(self, before: float) -> list[ResultEntry]:
        return self.results.leftovers(self._waiting(), before=before) if self._waiting is not None else []

    def _of_image(self, row: ImageRow) -> CacheItem:
        return CacheItem(
            CacheKind.IMAGE, row.id, row.size_bytes, row.used_at, row.is_pinned, self.images.is_used(row), row.reference
        )


def _of_data(entry: StoredEntry) -> CacheItem:
    return CacheItem(
        CacheKind.DATA, str(entry.cid), entry.footprint, entry.used_at, entry.is_pinned, entry.is_held, entry.kind
    )


def _of_stat(cid: Cid, stat: BlobStat | None, *, keep: bool) -> CacheItem:
    return CacheItem(CacheKind.DATA, str(cid), stat.stored if stat is not None else 0, 0.0, is_pinned=keep)


def _of_result(entry: ResultEntry, *, is_used: bool) -> CacheItem:
    return CacheItem(CacheKind.RESULT, entry.path.name, entry.size_bytes, entry.written_at, is_used=is_used)


def _parse(name: str) -> Cid | None:
    try:
        return Cid.parse(name)
    except BadCid:
        return None
