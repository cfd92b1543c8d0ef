"""Making room in the local store: what goes first, what never goes, and the free space that the disk must keep."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from parity_blobs.cid import Cid
from parity_blobs.local_index import LocalIndex, Transaction
from parity_blobs.local_read import locate, pack_path
from parity_protocol.errors import BadCid, StorageFull

__all__ = ["Evictor", "StoreRoom", "StoreUsage", "StoredEntry"]

MAX_ENTRIES = 10_000  # of one listing

_LISTED = "SELECT id, digest, codec, kind, size, footprint, pinned, used FROM object ORDER BY pinned, used"


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """How full a store is, in bytes."""

    used: int
    pinned: int
    limit: int


@dataclass(frozen=True, slots=True)
class StoreRoom:
    """What of a store may go for something new, in bytes; of all that it holds, however much that is.

    Attributes:
        kept: Of what is pinned, in use or wanted.
        evictable: Of the rest.
        here: Of what is wanted.
    """

    kept: int
    evictable: int
    here: int


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """One object of a store.

    Attributes:
        size: Content bytes.
        footprint: Bytes that count against the store's limit.
        used_at: Unix seconds of its last use.
        is_held: Whether somebody uses it now, so that it is not evicted.
    """

    cid: Cid
    kind: str
    size: int
    footprint: int
    used_at: float
    is_pinned: bool
    is_held: bool


class Evictor:
    """Removes what is not pinned and not in use, least recently used first. Its operations run in a transaction.

    Args:
        in_use: Returns the CIDs that somebody uses now; called on the writer's thread.
        floor_bytes: Free space that the store leaves on its file system when it writes; 0 does not look.
    """

    def __init__(
        self, packs: Path, *, max_bytes: int, floor_bytes: int = 0, in_use: Callable[[], Iterable[str]] = tuple
    ) -> None:
        self._packs = packs
        self.max_bytes = max_bytes  # may be changed at any time; what is over it goes with the next write or eviction
        self._floor_bytes = floor_bytes
        self._in_use = in_use

    def reserve(self, index: LocalIndex, in_flight: int, count: int) -> None:
        """Check that ``count`` more bytes may be written, evicting for the disk's sake if need be.

        Args:
            in_flight: Bytes of all objects on their way in, ``count`` not included.

        Raises:
            StorageFull: They may not.
        """
        pinned = index.reader().execute("SELECT pinned FROM usage").fetchone()[0]
        if pinned + in_flight + count > self.max_bytes:
            raise StorageFull(f"the blob store holds at most {self.max_bytes} bytes, {pinned} are pinned")
        missing = self._missing(count)
        if missing > 0:
            index.submit(lambda transaction: self.free(transaction, missing)).result()
            missing = self._missing(count)
            if missing > 0:
                raise StorageFull(f"{missing} bytes more would leave less than {self._floor_bytes} free on the disk")

    def make_room(self, transaction: Transaction, needed: int) -> None:
        """Evict until ``needed`` more bytes fit.

        Raises:
            StorageFull: They do not fit beside what is kept.
        """
        execute = transaction.connection.execute
        used, pinned = execute("SELECT bytes, pinned FROM usage").fetchone()
        excess = used + needed - self.max_bytes
        if pinned + needed > self.max_bytes:
            raise StorageFull(f"the blob store holds at most {self.max_bytes} bytes, {pinned} are pinned")
        if excess > 0:
            chosen = list(_until(excess, self._evictable(transaction)))
            if sum(entry.footprint for _, entry in chosen) < excess:
                raise StorageFull(f"the blob store holds at most {self.max_bytes} bytes, the rest is pinned or in use")
            for object_id, entry in chosen:
                self.remove(transaction, object_id, entry.cid.digest, entry.cid.codec)

    def free(
        self, transaction: Transaction, wanted: int, *, unused_since: float | None = None, dry_run: bool = False
    ) -> list[StoredEntry]:
        """Evict up to ``wanted`` bytes, or the little more that the last object has, and return what went.

        Args:
            unused_since: Unix seconds; only what was not used after it goes. None for any age.
            dry_run: Remove nothing, and say what would go.
        """
        entries = (
            (object_id, entry)
            for object_id, entry in self._evictable(transaction)
            if unused_since is None or entry.used_at <= unused_since
        )
        chosen = list(_until(wanted, entries))
        for object_id, entry in chosen:
            if not dry_run:
                self.remove(transaction, object_id, entry.cid.digest, entry.cid.codec)
        return [entry for _, entry in chosen]

    def remove(self, transaction: Transaction, object_id: int, digest: bytes, codec: int) -> None:
        """Take an object out of the index, and its file away once that is committed."""
        connection = transaction.connection
        connection.execute("DELETE FROM object WHERE id = ?", (object_id,))

        def unlink() -> None:
            # The same content may have come back in the same commit.
            query = "SELECT 1 FROM object WHERE digest = ? AND codec = ? AND in_file"
            if connection.execute(query, (digest, codec)).fetchone() is None:
                with suppress(OSError):  # the next start tries again
                    pack_path(self._packs, digest, codec).unlink(missing_ok=True)

        transaction.on_commit.append(unlink)

    def entries(self, transaction: Transaction) -> list[StoredEntry]:
        """Return what is here, what goes first at the head; at most ``MAX_ENTRIES``."""
        return [entry for _, entry in self._listed(transaction, MAX_ENTRIES)]

    def room(self, transaction: Transaction, wanted: Collection[tuple[int, int, bytes]] = ()) -> StoreRoom:
        """Return what may go, and what of ``wanted`` (keys of CIDs) is here."""
        kept = evictable = here = 0
        for _, entry in self._listed(transaction):
            is_wanted = entry.cid.key in wanted
            here += entry.footprint if is_wanted else 0
            if is_wanted or entry.is_pinned or entry.is_held:
                kept += entry.footprint
            else:
                evictable += entry.footprint
        return StoreRoom(kept, evictable, here)

    def _evictable(self, transaction: Transaction) -> Iterator[tuple[int, StoredEntry]]:
        return (item for item in self._listed(transaction) if not (item[1].is_pinned or item[1].is_held))

    def _listed(self, transaction: Transaction, limit: int = -1) -> Iterator[tuple[int, StoredEntry]]:
        held = self._held(transaction)
        # Fetched some at a time, and only as many as are needed: the cursor is closed before rows are removed.
        rows = transaction.connection.execute(f"{_LISTED} LIMIT ?", (limit,))
        for object_id, digest, codec, kind, size, footprint, pinned, used in rows:
            cid = Cid(1, codec, digest)
            yield (
                object_id,
                StoredEntry(cid, kind, size, footprint, used / 1e6, bool(pinned), is_held=object_id in held),
            )

    def _held(self, transaction: Transaction) -> set[int]:
        """Return the objects that hold what is in use; a CID inside a larger object keeps the whole of it."""
        held = set()
        for text in self._in_use():
            try:
                found = locate(transaction.connection, Cid.parse(text))
            except BadCid:  # the name of something else, such as an image
                continue
            if found is not None:
                held.add(found.id)
        return held

    def _missing(self, count: int) -> int:
        if not self._floor_bytes:
            return 0
        found = os.statvfs(self._packs)
        return self._floor_bytes + count - found.f_bavail * found.f_frsize


def _until(wanted: int, entries: Iterable[tuple[int, StoredEntry]]) -> Iterator[tuple[int, StoredEntry]]:
    """Yield entries until they have ``wanted`` bytes together."""
    got = 0
    for object_id, entry in entries:
        if got >= wanted:
            return
        got += entry.footprint
        yield object_id, entry
