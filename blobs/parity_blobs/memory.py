"""A blob store in memory: for tests, demonstrations and short-lived processes. Same rules as every other store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, replace

from parity_blobs.base import BlobStat, Scope
from parity_blobs.cid import CODEC_DAG_PB, CODEC_RAW, Block, Cid
from parity_blobs.export import GetBlock, iter_dag, iter_file, measure_dag
from parity_blobs.importer import DEFAULT_OPTIONS, AddOptions, FileImporter
from parity_blobs.unixfs import Kind
from parity_blobs.verify import DEFAULT_LIMITS, DagLimits, DagVerifier, Order, check_block
from parity_protocol.errors import Conflict, DigestMismatch, NotFound, StorageFull, TooLarge

__all__ = ["MemoryBlobStore"]

_Key = tuple[int, int, bytes]  # Cid.key


@dataclass
class _Object:
    stat: BlobStat
    blocks: dict[_Key, bytes]


class MemoryBlobStore:
    """Implements ``BlobStore`` without I/O.

    Args:
        max_bytes: Of all blocks together; content that is not pinned is evicted to stay below.
    """

    def __init__(self, *, max_bytes: int = 1 << 30) -> None:
        self._max_bytes = max_bytes
        self._objects: OrderedDict[_Key, _Object] = OrderedDict()  # by root, least recently used first

    async def put(
        self,
        data: AsyncIterable[bytes],
        *,
        max_bytes: int,
        options: AddOptions = DEFAULT_OPTIONS,
        pin: bool = False,
    ) -> BlobStat:
        """See ``BlobStore.put``."""
        importer, blocks, size = FileImporter(options), dict[_Key, bytes](), 0
        async for piece in data:
            size += len(piece)
            if size > max_bytes:
                raise TooLarge(f"more than {max_bytes} bytes came")
            blocks.update((block.cid.key, block.data) for block in importer.feed(piece))
            self._check_room(size)
        done = importer.finish()
        blocks.update((block.cid.key, block.data) for block in done.blocks)
        return self._keep(done.cid, Kind.FILE, size, blocks, pin=pin)

    async def put_bytes(self, data: bytes, *, options: AddOptions = DEFAULT_OPTIONS, pin: bool = False) -> Cid:
        """See ``BlobStore.put_bytes``."""
        importer = FileImporter(options)
        blocks = importer.feed(data)
        done = importer.finish()
        kept = {block.cid.key: block.data for block in (*blocks, *done.blocks)}
        return self._keep(done.cid, Kind.FILE, len(data), kept, pin=pin).cid

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
        verifier, kept, total = DagVerifier(root, limits, order=order), dict[_Key, bytes](), 0
        async for block in blocks:
            verifier.add(block)
            kept[block.cid.key] = block.data
            total += len(block.data)
            self._check_room(total)
        done = verifier.finish()
        return self._keep(root, done.kind, done.size, kept, pin=pin)

    async def open(self, cid: Cid, *, max_bytes: int) -> AsyncIterator[bytes]:
        """See ``BlobStore.open``."""
        for piece in iter_file(cid, self._reader(cid), max_bytes=max_bytes):
            yield piece

    async def blocks(self, cid: Cid, *, scope: Scope = "all") -> AsyncIterator[Block]:
        """See ``BlobStore.blocks``."""
        get_block = self._reader(cid)
        if scope == "block":
            yield Block(cid, get_block(cid) if cid.inline is None else cid.inline)
            return
        for block in iter_dag(cid, get_block):
            yield block

    async def stat(self, cid: Cid) -> BlobStat | None:
        """See ``BlobStore.stat``."""
        if cid.inline is not None:
            return BlobStat(cid, *measure_dag(cid, self._reader(cid), lambda _: 0), is_pinned=False)
        found = self._find(cid)
        if found is None:
            return None
        if found.stat.cid.key == cid.key:
            return replace(found.stat, cid=cid)
        get_block = self._reader(cid)
        return BlobStat(cid, *measure_dag(cid, get_block, lambda each: len(get_block(each))), found.stat.is_pinned)

    async def pin(self, cid: Cid, *, keep: bool = True) -> None:
        """See ``BlobStore.pin``."""
        if cid.inline is not None:
            return
        found = self._find(cid)
        if found is None:
            raise NotFound(f"{cid} is not in this store")
        found.stat = replace(found.stat, is_pinned=keep)

    async def delete(self, cid: Cid) -> bool:
        """See ``BlobStore.delete``."""
        found = self._objects.get(cid.key)
        if found is None:
            return False
        if found.stat.is_pinned:
            raise Conflict(f"{cid} is pinned")
        del self._objects[cid.key]
        return True

    def _find(self, cid: Cid) -> _Object | None:
        found = self._objects.get(cid.key)
        if found is None:
            raw = Cid(1, CODEC_RAW, cid.digest, cid.hash_code).key
            node = Cid(1, CODEC_DAG_PB, cid.digest, cid.hash_code).key
            keys = (raw, node) if cid.codec == CODEC_RAW else (node,)
            found = next((each for each in self._objects.values() if any(key in each.blocks for key in keys)), None)
        return found

    def _reader(self, cid: Cid) -> GetBlock:
        found = None if cid.inline is not None else self._find(cid)
        if found is not None:
            self._objects.move_to_end(found.stat.cid.key)
        elif cid.inline is None:
            raise NotFound(f"{cid} is not in this store")

        def get_block(wanted: Cid) -> bytes:
            blocks = found.blocks if found is not None else {}
            data = blocks.get(wanted.key)
            if data is None and wanted.codec == CODEC_RAW:  # a node's bytes are also raw bytes
                data = blocks.get((CODEC_DAG_PB, wanted.hash_code, wanted.digest))
            if data is None or found is None:
                raise NotFound(f"block {wanted} is not in this store")
            try:
                check_block(wanted, data)
            except DigestMismatch:
                self._objects.pop(found.stat.cid.key, None)
                raise
            return data

        return get_block

    def _keep(self, root: Cid, kind: Kind, size: int, blocks: dict[_Key, bytes], *, pin: bool) -> BlobStat:
        if root.inline is not None:  # nothing to store: the name holds the content
            return BlobStat(root, kind, size, 0, 0, is_pinned=False)
        old = self._objects.get(root.key)
        stored = sum(map(len, blocks.values()))
        stat = BlobStat(root, kind, size, stored, len(blocks), pin or (old is not None and old.stat.is_pinned))
        if old is None:
            self._make_room(stored)
        self._objects[root.key] = _Object(stat, blocks)
        self._objects.move_to_end(root.key)
        return stat

    def _check_room(self, needed: int) -> None:
        pinned = sum(each.stat.stored for each in self._objects.values() if each.stat.is_pinned)
        if pinned + needed > self._max_bytes:
            raise StorageFull(f"the store holds at most {self._max_bytes} bytes, {pinned} of them are pinned")

    def _make_room(self, needed: int) -> None:
        self._check_room(needed)
        used = sum(each.stat.stored for each in self._objects.values())
        for key, each in list(self._objects.items()):
            if used + needed <= self._max_bytes:
                return
            if not each.stat.is_pinned:
                used -= each.stat.stored
                del self._objects[key]
