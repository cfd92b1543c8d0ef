"""The local blob store: bounded, durable, and checked on every read.

Layout of its folder::

    lock              held by the one process that uses the store
    index.sqlite3     objects, their blocks, and the bytes of objects up to 64 KiB
    packs/ab/*.car    larger objects, one CARv1 file each
    tmp/              objects on their way in; emptied at start
    quarantine/       what did not match its hash when it was read; the newest few

An object goes in as: temporary file, hash and cap while streaming, fsync, rename, fsync of the folder, commit of the
index. ``kill -9`` anywhere leaves either the whole object or a file that the next start removes.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.to_thread

from parity_blobs.base import BlobStat, Scope
from parity_blobs.cid import CODEC_RAW, Block, Cid
from parity_blobs.export import iter_dag, iter_file, measure_dag
from parity_blobs.importer import DEFAULT_OPTIONS, AddOptions, FileImporter
from parity_blobs.local_evict import Evictor, StoredEntry, StoreRoom, StoreUsage
from parity_blobs.local_index import LocalIndex, Transaction
from parity_blobs.local_read import Source, StoredObject, locate, pack_path, roots_around
from parity_blobs.local_threads import Batches, Worker, settled, submit, translate_os, wait
from parity_blobs.spool import INLINE_BYTES, Sealed, Spool, fsync_folder
from parity_blobs.unixfs import Kind
from parity_blobs.verify import DEFAULT_LIMITS, DagLimits, DagSummary, DagVerifier, Order
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import Conflict, NotFound, TooLarge, Unavailable

__all__ = ["LocalBlobStore", "StoreRoom", "StoreUsage", "StoredEntry"]

T = TypeVar("T")

_WRITE_BATCH_BYTES = 1 << 20  # collected before a thread hashes and writes them
_WRITE_BATCH_BLOCKS = 256
_THREADS = 4
_KEPT_QUARANTINE = 8  # objects


class LocalBlobStore:
    """Implements ``BlobStore`` in a folder. Use it as ``async with LocalBlobStore(path, max_bytes=…) as store``.

    Args:
        path: The folder; made with mode 0700 when it is missing.
        max_bytes: What all objects together may take; content that is not pinned is evicted to stay below. Objects on
            their way in come on top until they are complete, themselves never more than what is not pinned.
        floor_bytes: Free space that a write leaves on the file system; what may be evicted goes first. 0 does not look.
        in_use: Returns the CIDs that must not be evicted now; called on threads. Text that is no CID is passed over.
        clock: Says when something was used.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        floor_bytes: int = 0,
        in_use: Callable[[], Iterable[str]] = tuple,
        clock: Clock | None = None,
    ) -> None:
        self._path = path
        self._packs = path / "packs"
        self._tmp = path / "tmp"
        self._quarantine = path / "quarantine"
        self._evictor = Evictor(self._packs, max_bytes=max_bytes, floor_bytes=floor_bytes, in_use=in_use)
        self._clock = clock or SystemClock()
        self._in_flight = 0
        self._in_flight_lock = threading.Lock()
        self._lock: int | None = None
        self._pool: ThreadPoolExecutor
        self._index: LocalIndex

    async def __aenter__(self) -> Self:
        """Open the store.

        Raises:
            Conflict: Another process uses it.
            Unavailable: The folder cannot be used.
        """
        await anyio.to_thread.run_sync(self._start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what was accepted and close."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._stop)

    async def put(
        self,
        data: AsyncIterable[bytes],
        *,
        max_bytes: int,
        options: AddOptions = DEFAULT_OPTIONS,
        pin: bool = False,
    ) -> BlobStat:
        """See ``BlobStore.put``."""
        importer = FileImporter(options)

        def take(pieces: list[bytes]) -> None:
            for piece in pieces:
                spool.add(importer.feed(piece))

        def finish() -> tuple[DagSummary, Sealed]:
            done = importer.finish()
            spool.add(done.blocks)
            sealed = spool.seal(done.cid)
            stored = sum(row[3] for row in sealed.rows)
            return DagSummary(done.cid, Kind.FILE, done.size, stored, len(sealed.rows)), sealed

        async with self._spool(options.cid_version) as (spool, worker):
            size, pieces, held = 0, list[bytes](), 0
            async for piece in data:
                size += len(piece)
                if size > max_bytes:
                    raise TooLarge(f"more than {max_bytes} bytes came")
                pieces.append(piece)
                held += len(piece)
                if held >= _WRITE_BATCH_BYTES:
                    await worker.push(take, pieces)
                    pieces, held = [], 0
            await worker.push(take, pieces)
            return await self._commit(*await worker.last(finish), pin=pin)

    async def put_bytes(self, data: bytes, *, options: AddOptions = DEFAULT_OPTIONS, pin: bool = False) -> Cid:
        """See ``BlobStore.put_bytes``."""
        if len(data) > INLINE_BYTES - 64:  # room for what dag-pb puts around it

            async def pieces() -> AsyncIterator[bytes]:
                view = memoryview(data)
                for at in range(0, len(data), _WRITE_BATCH_BYTES):
                    yield bytes(view[at : at + _WRITE_BATCH_BYTES])

            return (await self.put(pieces(), max_bytes=len(data), options=options, pin=pin)).cid
        importer = FileImporter(options)
        importer.feed(data)
        done = importer.finish()
        (block,) = done.blocks
        sealed = Sealed([(block.cid.digest, block.cid.codec, 0, len(block.data))], block.data, None, len(block.data))
        return (await self._commit(DagSummary(done.cid, Kind.FILE, done.size, len(block.data), 1), sealed, pin=pin)).cid

    async def put_blocks(
        self,
        root: Cid,
        blocks: AsyncIterable[Block],
        *,
        limits: DagLimits = DEFAULT_LIMITS,
        order: Order = Order.DFS,
        pin: bool = False,
    ) -> BlobStat:
        """See ``BlobStore.put_blocks``."""
        verifier = DagVerifier(root, limits, order=order)

        def take(batch: list[Block]) -> None:
            for block in batch:
                verifier.add(block)
            spool.add(batch)

        def finish() -> tuple[DagSummary, Sealed]:
            return verifier.finish(), spool.seal(root)

        async with self._spool(root.version) as (spool, worker):
            batch, held = list[Block](), 0
            async for block in blocks:
                batch.append(block)
                held += len(block.data)
                if held >= _WRITE_BATCH_BYTES or len(batch) >= _WRITE_BATCH_BLOCKS:
                    await worker.push(take, batch)
                    batch, held = [], 0
            await worker.push(take, batch)
            return await self._commit(*await worker.last(finish), pin=pin)

    def open(self, cid: Cid, *, max_bytes: int) -> AsyncIterator[bytes]:
        """See ``BlobStore.open``."""

        def begin() -> tuple[Source | None, Iterator[bytes]]:
            if cid.inline is not None:
                return None, iter_file(cid, _no_block, max_bytes=max_bytes)
            source = self._source(cid, only_this_block=cid.codec == CODEC_RAW)
            return source, iter_file(cid, source.get_block, max_bytes=max_bytes)

        return self._stream(Batches(begin, len))

    def blocks(self, cid: Cid, *, scope: Scope = "all") -> AsyncIterator[Block]:
        """See ``BlobStore.blocks``."""

        def begin() -> tuple[Source | None, Iterator[Block]]:
            if cid.inline is not None:
                return None, iter((Block(cid, cid.inline),) if scope == "block" else ())
            source = self._source(cid, only_this_block=scope == "block" or cid.codec == CODEC_RAW)
            if scope == "block":
                return source, (Block(each, source.get_block(each)) for each in (cid,))
            return source, iter_dag(cid, source.get_block)

        return self._stream(Batches(begin, lambda block: len(block.data)))

    async def stat(self, cid: Cid) -> BlobStat | None:
        """See ``BlobStore.stat``."""
        return await self._run(lambda: self._stat(cid))

    async def pin(self, cid: Cid, *, keep: bool = True) -> None:
        """See ``BlobStore.pin``."""
        if cid.inline is not None:
            return

        def operation(transaction: Transaction) -> None:
            found = locate(transaction.connection, cid)
            if found is None:
                raise NotFound(f"{cid} is not in this store")
            transaction.connection.execute("UPDATE object SET pinned = ? WHERE id = ?", (int(keep), found.id))

        await settled(self._index.submit(operation))

    async def delete(self, cid: Cid) -> bool:
        """See ``BlobStore.delete``."""

        def operation(transaction: Transaction) -> bool:
            found = locate(transaction.connection, cid)
            if found is None or (found.digest, found.codec) != (cid.digest, cid.codec):
                return False
            if found.pinned:
                raise Conflict(f"{cid} is pinned")
            self._evictor.remove(transaction, found.id, found.digest, found.codec)
            return True

        return await settled(self._index.submit(operation))

    async def roots_around(self, cid: Cid, *, limit: int = 16) -> list[Cid]:
        """Return the roots, as CIDs of version 1, of up to ``limit`` objects that contain a block."""
        return await self._run(lambda: roots_around(self._index.reader(), cid, limit))

    async def usage(self) -> StoreUsage:
        """Return how full the store is."""
        query = "SELECT bytes, pinned FROM usage"
        used, pinned = await self._run(lambda: self._index.reader().execute(query).fetchone())
        return StoreUsage(used, pinned, self._evictor.max_bytes)

    def limit(self, max_bytes: int) -> None:
        """Change what all objects together may take; the next write or ``evict`` removes what is over it."""
        self._evictor.max_bytes = max_bytes

    async def entries(self) -> list[StoredEntry]:
        """Return what is here, what would be evicted first at the head; as many as ``local_evict.MAX_ENTRIES``."""
        return await settled(self._index.submit(self._evictor.entries))

    async def room(self, wanted: Iterable[Cid] = ()) -> StoreRoom:
        """Return how many bytes may go and how many must stay, ``wanted`` among these; looks at every object."""
        keys = frozenset(cid.key for cid in wanted)
        return await settled(self._index.submit(lambda transaction: self._evictor.room(transaction, keys)))

    async def evict(
        self, wanted_bytes: int, *, unused_since: float | None = None, dry_run: bool = False
    ) -> list[StoredEntry]:
        """Remove what is neither pinned nor in use, least recently used first, and return what went.

        Args:
            wanted_bytes: At least so many, if there are.
            unused_since: Unix seconds; what was used later stays. None for any age.
            dry_run: Remove nothing, and say what would go.
        """
        evict = partial(self._evictor.free, wanted=wanted_bytes, unused_since=unused_since, dry_run=dry_run)
        return await settled(self._index.submit(evict))

    # -- opening and closing -------------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            for folder in (self._path, self._packs, self._tmp, self._quarantine):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise Unavailable(f"blob store {self._path}: {exc.strerror}") from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._lock)
            raise Conflict(f"blob store {self._path} is in use by another process") from exc
        try:
            for orphan in self._tmp.iterdir():
                orphan.unlink()
            self._index = LocalIndex(self._path / "index.sqlite3", now=lambda: self._clock.now().timestamp())
        except BaseException:
            os.close(self._lock)
            raise
        self._sweep()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="blob-io")

    def _stop(self) -> None:
        self._pool.shutdown(wait=True)
        self._index.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _sweep(self) -> None:
        """Make files and index agree: a crash between rename and commit leaves a file, one before unlink too."""

        def operation(transaction: Transaction) -> None:
            known = {
                pack_path(self._packs, digest, codec): object_id
                for object_id, digest, codec in transaction.connection.execute(
                    "SELECT id, digest, codec FROM object WHERE in_file"
                )
            }
            for path in self._packs.glob("*/*"):
                if known.pop(path, None) is None:
                    path.unlink()
            transaction.connection.executemany(
                "DELETE FROM object WHERE id = ?", [(object_id,) for object_id in known.values()]
            )

        self._index.submit(operation).result()

    # -- writing -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _spool(self, version: int) -> AsyncGenerator[tuple[Spool, Worker]]:
        """Provide a place for one object's blocks; whatever is left of it at the end is removed."""
        reserved = 0

        def reserve(count: int) -> None:
            nonlocal reserved
            with self._in_flight_lock:
                self._evictor.reserve(self._index, self._in_flight, count)
                self._in_flight += count
                reserved += count

        spool = Spool(self._tmp / uuid.uuid4().hex, reserve, version=version)
        worker = Worker(self._pool)
        try:
            yield spool, worker
        finally:
            with anyio.CancelScope(shield=True):
                await worker.settle()
                await self._run(spool.discard)
            with self._in_flight_lock:
                self._in_flight -= reserved

    async def _commit(self, summary: DagSummary, sealed: Sealed, *, pin: bool) -> BlobStat:
        cid = summary.root

        def operation(transaction: Transaction) -> bool:
            connection = transaction.connection
            found = connection.execute(
                "SELECT id, in_file, pinned FROM object WHERE digest = ? AND codec = ?", (cid.digest, cid.codec)
            ).fetchone()
            path = pack_path(self._packs, cid.digest, cid.codec)
            if found is not None and (path.exists() or not found[1]):
                if pin and not found[2]:
                    connection.execute("UPDATE object SET pinned = 1 WHERE id = ?", (found[0],))
                self._index.touch(found[0])
                return bool(pin or found[2])
            if found is not None:
                connection.execute("DELETE FROM object WHERE id = ?", (found[0],))
            self._evictor.make_room(transaction, sealed.footprint)
            if sealed.path is not None:
                self._move_in(sealed.path, path)
            self._insert(transaction, summary, sealed, pin=pin)
            return pin

        if cid.inline is not None:  # nothing to store: the name holds the content
            return BlobStat(cid, summary.kind, summary.size, 0, 0, is_pinned=False)
        is_pinned = await settled(self._index.submit(operation))
        return BlobStat(cid, summary.kind, summary.size, summary.stored, summary.blocks, is_pinned)

    def _insert(self, transaction: Transaction, summary: DagSummary, sealed: Sealed, *, pin: bool) -> None:
        cid, execute = summary.root, transaction.connection.execute
        values = (cid.digest, cid.codec, summary.kind.value, summary.size, summary.stored, summary.blocks)
        object_id = execute(
            "INSERT INTO object (digest, codec, kind, size, stored, blocks, footprint, in_file, pinned, used)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, sealed.footprint, int(sealed.path is not None), int(pin), self._index.next_use()),
        ).lastrowid
        transaction.connection.executemany(
            "INSERT INTO block (object, digest, codec, at, length) VALUES (?, ?, ?, ?, ?)",
            [(object_id, *row) for row in sealed.rows],
        )
        if sealed.inline is not None:
            execute("INSERT INTO inline (object, data) VALUES (?, ?)", (object_id, sealed.inline))

    def _move_in(self, temporary: Path, path: Path) -> None:
        """Give a synced file its name, durably. On the writer's thread, so that it never races an eviction."""
        try:
            if not path.parent.is_dir():
                path.parent.mkdir(mode=0o700)
                fsync_folder(self._packs)
            temporary.replace(path)
            fsync_folder(path.parent)
        except OSError as exc:
            raise translate_os(exc) from exc

    # -- reading -------------------------------------------------------------------------------------------------

    def _source(self, cid: Cid, *, only_this_block: bool = False) -> Source:
        source = Source(self._index.reader(), self._packs, cid, on_rot=self._set_aside, only_this_block=only_this_block)
        self._index.touch(source.object.id)
        return source

    def _set_aside(self, rotten: StoredObject) -> None:
        """Take an object out of service and keep its bytes for the operator."""

        def operation(transaction: Transaction) -> None:
            connection = transaction.connection
            inline = connection.execute("SELECT data FROM inline WHERE object = ?", (rotten.id,)).fetchone()
            connection.execute("DELETE FROM object WHERE id = ?", (rotten.id,))
            target = self._quarantine / f"{rotten.codec:02x}-{rotten.digest.hex()}"
            with suppress(OSError):
                if inline is not None:
                    target.write_bytes(inline[0])
                else:
                    pack_path(self._packs, rotten.digest, rotten.codec).replace(target)
                kept = sorted(self._quarantine.iterdir(), key=lambda path: path.stat().st_mtime_ns)
                for old in kept[:-_KEPT_QUARANTINE]:
                    old.unlink()

        self._index.submit(operation).result()

    def _stat(self, cid: Cid) -> BlobStat | None:
        if cid.inline is not None:
            kind, size, stored, blocks = measure_dag(cid, _no_block, lambda _: 0)
            return BlobStat(cid, kind, size, stored, blocks, is_pinned=False)
        found = locate(self._index.reader(), cid)
        if found is None:
            return None
        if (found.digest, found.codec) == (cid.digest, cid.codec):
            return BlobStat(cid, Kind(found.kind), found.size, found.stored, found.blocks, bool(found.pinned))
        try:
            source = self._source(cid)
        except NotFound:
            return None
        try:
            return BlobStat(cid, *measure_dag(cid, source.get_block, source.length_of), bool(found.pinned))
        finally:
            source.close()

    async def _stream(self, batches: Batches[T]) -> AsyncGenerator[T]:
        """Yield items while a thread reads the next ones ahead."""
        future = submit(self._pool, batches.next)
        try:
            while True:
                items, is_last = await asyncio.wrap_future(future)
                if not is_last:
                    future = submit(self._pool, batches.next)
                for item in items:
                    yield item
                if is_last:
                    return
        finally:
            with anyio.CancelScope(shield=True):
                await wait(future)
                batches.close()

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.wrap_future(submit(self._pool, function))


def _no_block(cid: Cid) -> bytes:
    raise NotFound(f"block {cid} is not in this store")
