"""A blob store in the operator's own Kubo, over its RPC.

Content lives in a folder of Kubo's file system (MFS), one entry for each object, which keeps it from Kubo's garbage
collection and never touches the operator's own pins::

    /parity-node/NAME/pinned/f.SIZE.STORED.BLOCKS.CID
    /parity-node/NAME/held/d.SIZE.STORED.BLOCKS.CID

Removing an entry lets Kubo collect the blocks when it collects; so do blocks of an upload that failed. Every block that
Kubo returns is hashed again. One process uses a folder at a time.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import anyio

from parity_blobs.base import BlobStat, Scope
from parity_blobs.car import CarReader, car_header, car_section_prefix
from parity_blobs.cid import CODEC_DAG_PB, CODEC_RAW, HASH_IDENTITY, Block, Cid
from parity_blobs.export import measure_dag
from parity_blobs.importer import DEFAULT_OPTIONS, AddOptions, FileImporter
from parity_blobs.kubo_rpc import KuboRpc
from parity_blobs.unixfs import Kind, Node, read_node
from parity_blobs.verify import DEFAULT_LIMITS, CheckedBlock, DagLimits, DagSummary, DagVerifier, Order, check_block
from parity_protocol.errors import (
    BadCid,
    BadDocument,
    ConfigInvalid,
    Conflict,
    DigestMismatch,
    InvalidInput,
    NotFound,
    ParityError,
    StorageFull,
    TooLarge,
    Unavailable,
)

__all__ = ["KuboBlobStore"]

_Key = tuple[int, int, bytes]  # Cid.key

UNDO_S = 10.0  # for taking back what failed
_PINNED, _HELD = "pinned", "held"
_KINDS = {"f": Kind.FILE, "d": Kind.DIRECTORY}
_ENTRY = re.compile(r"([fd])\.([0-9]{1,19})\.([0-9]{1,19})\.([0-9]{1,9})\.([A-Za-z0-9]{1,200})")
_FOLDER = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PARALLEL_BLOCKS = 8
_MAX_DEPTH = 32
_CAR_ROOT = Cid(1, CODEC_RAW, b"", HASH_IDENTITY)  # an import knows its root last, and Kubo is not asked to pin one


@dataclass
class _Object:
    stat: BlobStat
    keys: set[_Key] | None  # of its blocks; None until somebody asks for one of them


class KuboBlobStore:
    """Implements ``BlobStore``. Use it as ``async with KuboBlobStore(api, max_bytes=…) as store``.

    Args:
        api: Where Kubo's RPC is, as ``kubo_rpc.parse_api`` takes it; set by the operator.
        max_bytes: Of the blocks of everything in this folder; what is not pinned is let go to stay below.
        folder: Below ``/parity-node`` in Kubo; stores with different ones do not see each other.
        authorization: As ``KuboRpc``.

    Raises:
        ConfigInvalid: The address, the header or the folder is not accepted.
    """

    def __init__(self, api: str, *, max_bytes: int, folder: str = "blobs", authorization: str = "") -> None:
        if _FOLDER.fullmatch(folder) is None:
            raise ConfigInvalid([f"the folder in Kubo must be of a-z, 0-9 and '-', got {folder[:80]!r}"])
        self.rpc = KuboRpc(api, authorization=authorization)
        self._base = f"/parity-node/{folder}"
        self._max_bytes = max_bytes
        self._in_flight = 0
        self._objects: OrderedDict[_Key, _Object] = OrderedDict()  # by root, least recently used first
        self._changing = anyio.Lock()

    async def __aenter__(self) -> Self:
        """Connect and read what is there.

        Raises:
            Unreachable: Nobody answers.
            Unavailable: It is no Kubo, or it is too old.
        """
        await self.rpc.__aenter__()
        try:
            for place in (_HELD, _PINNED):
                await self.rpc.command("files/mkdir", f"{self._base}/{place}", parents="true")
                answer = await self.rpc.command("files/ls", f"{self._base}/{place}", U="true")
                for entry in (answer or {}).get("Entries") or ():
                    self._read_entry(str(entry.get("Name", "")), is_pinned=place == _PINNED)
        except BaseException:
            await self.rpc.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.rpc.__aexit__(kind, value, trace)

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
        sent = _Sent()
        done = None

        async def blocks() -> AsyncIterator[Block]:
            nonlocal done
            size = 0
            async for piece in data:
                size += len(piece)
                if size > max_bytes:
                    raise TooLarge(f"more than {max_bytes} bytes came")
                for block in importer.feed(piece):
                    yield block
            done = importer.finish()
            for block in done.blocks:
                yield block

        await self._send(blocks(), sent)
        assert done is not None
        summary = DagSummary(done.cid, Kind.FILE, done.size, sent.bytes, len(sent.keys))
        return await self._commit(summary, sent.keys, pin=pin)

    async def put_bytes(self, data: bytes, *, options: AddOptions = DEFAULT_OPTIONS, pin: bool = False) -> Cid:
        """See ``BlobStore.put_bytes``."""

        async def pieces() -> AsyncIterator[bytes]:
            yield data

        return (await self.put(pieces(), max_bytes=len(data), options=options, pin=pin)).cid

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
        walk, sent = DagVerifier(root, limits, order=order), _Sent()

        async def checked() -> AsyncIterator[Block]:
            async for block in blocks:
                walk.add(block)
                yield block

        await self._send(checked(), sent)
        return await self._commit(walk.finish(), sent.keys, pin=pin)

    async def open(self, cid: Cid, *, max_bytes: int) -> AsyncIterator[bytes]:
        """See ``BlobStore.open``."""
        await self._locate(cid)
        node = await self._node(cid)
        if node.kind is not Kind.FILE:
            raise InvalidInput(f"{cid} is a directory, not a file")
        if node.size > max_bytes:
            raise TooLarge(f"{cid} has {node.size} bytes, at most {max_bytes} are accepted")
        stack: list[tuple[Cid, int, int]] = []  # what comes next is at the end: CID, claimed bytes, depth
        depth = 0
        while True:
            if node.data:
                yield node.data
            pairs = zip(node.links, node.sizes, strict=True)
            stack.extend([(link.cid, size, depth + 1) for link, size in pairs][::-1])
            if depth > _MAX_DEPTH:
                raise TooLarge(f"{cid}: deeper than {_MAX_DEPTH} links")
            while stack and stack[-1][0].codec == CODEC_RAW:
                for piece in await self._leaves(cid, stack):
                    yield piece
            if not stack:
                return
            child, claimed, depth = stack.pop()
            node = await self._node(child)
            if node.kind is not Kind.FILE or node.size != claimed:
                raise BadDocument(f"{cid}: piece {child} is not a file of {claimed} bytes")

    async def blocks(self, cid: Cid, *, scope: Scope = "all") -> AsyncIterator[Block]:
        """See ``BlobStore.blocks``."""
        await self._locate(cid)
        if scope == "block" or cid.codec == CODEC_RAW:
            if cid.inline is None or scope == "block":
                yield Block(cid, await self._block(cid))
            return
        walk = DagVerifier(cid)
        async with aclosing(self._export(walk)) as blocks:
            async for block in blocks:
                yield block

    async def stat(self, cid: Cid) -> BlobStat | None:
        """See ``BlobStore.stat``."""
        if cid.inline is not None:
            return BlobStat(cid, *measure_dag(cid, _no_block, lambda _: 0), is_pinned=False)
        found = await self._find(cid)
        if found is None:
            return None
        if found.stat.cid.key == cid.key:
            return replace(found.stat, cid=cid)
        if cid.codec == CODEC_RAW:
            size = len(await self._block(cid))
            return BlobStat(cid, Kind.FILE, size, size, 1, found.stat.is_pinned)
        walk = DagVerifier(cid)
        async with aclosing(self._export(walk)) as blocks:
            async for _ in blocks:
                pass
        done = walk.finish()
        return BlobStat(cid, done.kind, done.size, done.stored, done.blocks, found.stat.is_pinned)

    async def pin(self, cid: Cid, *, keep: bool = True) -> None:
        """See ``BlobStore.pin``."""
        if cid.inline is not None:
            return
        found = await self._find(cid)
        if found is None:
            raise NotFound(f"{cid} is not in this store")
        with anyio.CancelScope(shield=True):
            async with self._changing:
                await self._mark(found, is_pinned=keep)

    async def delete(self, cid: Cid) -> bool:
        """See ``BlobStore.delete``."""
        with anyio.CancelScope(shield=True):
            async with self._changing:
                found = self._objects.get(cid.key)
                if found is None:
                    return False
                if found.stat.is_pinned:
                    raise Conflict(f"{cid} is pinned")
                await self._let_go(found)
        return True

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _send(self, blocks: AsyncIterator[Block], sent: _Sent) -> None:
        """Stream blocks into Kubo; nothing refers to them yet."""

        async def car() -> AsyncIterator[bytes]:
            yield car_header(_CAR_ROOT)
            async for cid, data in blocks:
                if cid.key in sent.keys:
                    continue
                self._reserve(len(data))
                sent.keys.add(cid.key)
                sent.bytes += len(data)
                yield car_section_prefix(cid, len(data)) + data

        try:
            await self.rpc.upload("dag/import", car(), pin_roots="false", allow_big_block="true")
        finally:
            self._in_flight -= sent.bytes

    def _reserve(self, count: int) -> None:
        pinned = sum(each.stat.stored for each in self._objects.values() if each.stat.is_pinned)
        if pinned + self._in_flight + count > self._max_bytes:
            raise StorageFull(f"the store in Kubo holds at most {self._max_bytes} bytes, {pinned} are pinned")
        self._in_flight += count

    async def _commit(self, summary: DagSummary, keys: set[_Key], *, pin: bool) -> BlobStat:
        cid = summary.root
        if cid.inline is not None:  # nothing to store: the name holds the content
            return BlobStat(cid, summary.kind, summary.size, 0, 0, is_pinned=False)
        stat = BlobStat(cid, summary.kind, summary.size, summary.stored, summary.blocks, is_pinned=pin)
        with anyio.CancelScope(shield=True):
            async with self._changing:
                if cid.key not in self._objects:
                    await self._make_room(summary.stored)
                    await self._hold(stat)
                    self._objects[cid.key] = _Object(stat, keys)
                elif pin:
                    await self._mark(self._objects[cid.key], is_pinned=True)
                self._objects.move_to_end(cid.key)
                is_pinned = self._objects[cid.key].stat.is_pinned
        return replace(stat, is_pinned=is_pinned)

    async def _hold(self, stat: BlobStat) -> None:
        """Give content its entry, and make sure that Kubo did not collect a block of it in the meantime."""
        entry = self._entry(stat)
        await self.rpc.command("files/cp", f"/ipfs/{stat.cid}", entry)
        is_whole = False
        try:
            answer = await self.rpc.command("files/stat", entry, with_local="true")
            is_whole = isinstance(answer, dict) and answer.get("Local") is True
        finally:
            if not is_whole:  # an entry that is not in our books would be in the way of the next try
                with anyio.move_on_after(UNDO_S, shield=True), suppress(ParityError):
                    await self.rpc.command("files/rm", entry, force="true")
        if not is_whole:
            raise Unavailable(f"{self.rpc.name} lost blocks of {stat.cid} while they were stored; try again")

    async def _mark(self, found: _Object, *, is_pinned: bool) -> None:
        if found.stat.is_pinned != is_pinned:
            after = replace(found.stat, is_pinned=is_pinned)
            await self.rpc.command("files/mv", self._entry(found.stat), self._entry(after))
            found.stat = after

    async def _let_go(self, found: _Object) -> None:
        await self.rpc.command("files/rm", self._entry(found.stat), force="true")
        self._objects.pop(found.stat.cid.key, None)

    async def _make_room(self, needed: int) -> None:
        pinned = sum(each.stat.stored for each in self._objects.values() if each.stat.is_pinned)
        if pinned + needed > self._max_bytes:
            raise StorageFull(f"the store in Kubo holds at most {self._max_bytes} bytes, {pinned} are pinned")
        used = sum(each.stat.stored for each in self._objects.values())
        for each in list(self._objects.values()):
            if used + needed <= self._max_bytes:
                return
            if not each.stat.is_pinned:
                used -= each.stat.stored
                await self._let_go(each)

    def _entry(self, stat: BlobStat) -> str:
        place = _PINNED if stat.is_pinned else _HELD
        return f"{self._base}/{place}/{stat.kind.value[0]}.{stat.size}.{stat.stored}.{stat.blocks}.{stat.cid}"

    def _read_entry(self, name: str, *, is_pinned: bool) -> None:
        """Take note of an entry; one that is not ours is left alone."""
        found = _ENTRY.fullmatch(name)
        if found is None:
            return
        try:
            cid = Cid.parse(found[5])
        except BadCid:
            return
        stat = BlobStat(cid, _KINDS[found[1]], int(found[2]), int(found[3]), int(found[4]), is_pinned)
        self._objects[cid.key] = _Object(stat, None)

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _locate(self, cid: Cid) -> None:
        if cid.inline is not None:
            return
        found = await self._find(cid)
        if found is None:
            raise NotFound(f"{cid} is not in this store")
        self._objects.move_to_end(found.stat.cid.key)

    async def _find(self, cid: Cid) -> _Object | None:
        """Find the object whose root ``cid`` is, or any that contains it."""
        if (found := self._objects.get(cid.key)) is not None:
            return found
        raw = Cid(1, CODEC_RAW, cid.digest, cid.hash_code).key
        node = Cid(1, CODEC_DAG_PB, cid.digest, cid.hash_code).key
        wanted = {raw, node} if cid.codec == CODEC_RAW else {node}
        for each in list(self._objects.values()):
            if not wanted.isdisjoint(await self._keys_of(each)):
                return each
        return None

    async def _keys_of(self, found: _Object) -> set[_Key]:
        if found.keys is None:
            keys = {found.stat.cid.key}
            options = {"recursive": "true", "unique": "true", "offline": "true"}
            async with aclosing(self.rpc.lines("refs", str(found.stat.cid), **options)) as lines:
                async for line in lines:
                    if line.get("Err"):
                        raise Unavailable(f"{self.rpc.name} has not got all of {found.stat.cid}")
                    keys.add(Cid.parse(str(line.get("Ref", ""))).key)
            found.keys = keys
        return found.keys

    async def _node(self, cid: Cid) -> Node:
        return read_node(cid, await self._block(cid))

    async def _block(self, cid: Cid) -> bytes:
        if cid.inline is not None:
            return cid.inline
        data = bytearray()
        async with self.rpc.stream("block/get", str(cid), offline="true") as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > DEFAULT_LIMITS.max_block_bytes:
                    raise DigestMismatch(f"block {cid}: {self.rpc.name} sends more than a block can have")
        block = bytes(data)
        check_block(cid, block)
        return block

    async def _leaves(self, root: Cid, stack: list[tuple[Cid, int, int]]) -> list[bytes]:
        """Take some leaves that come next off ``stack`` and return their content, fetched at once."""
        batch: list[tuple[Cid, int]] = []
        while stack and stack[-1][0].codec == CODEC_RAW and len(batch) < _PARALLEL_BLOCKS:
            cid, claimed, _ = stack.pop()
            batch.append((cid, claimed))
        found: dict[Cid, bytes] = {}

        async def fetch(cid: Cid) -> None:
            found[cid] = await self._block(cid)

        try:
            async with anyio.create_task_group() as group:
                for cid in {cid for cid, _ in batch}:
                    group.start_soon(fetch, cid)
        except BaseExceptionGroup as exc:
            raise _first(exc) from exc
        for cid, claimed in batch:
            if len(found[cid]) != claimed:
                raise BadDocument(f"{root}: piece {cid} is not a file of {claimed} bytes")
        return [found[cid] for cid, _ in batch]

    async def _export(self, walk: DagVerifier) -> AsyncGenerator[CheckedBlock]:
        reader = CarReader()
        async with self.rpc.stream("dag/export", str(walk.root), offline="true", progress="false") as pieces:
            async for piece in pieces:
                for block in reader.feed(piece):
                    checked = CheckedBlock.of(block)
                    walk.add(checked)
                    yield checked
        reader.finish()
        if not walk.is_complete:
            raise Unavailable(f"{self.rpc.name} has not got all of {walk.root}")


class _Sent:
    """What went to Kubo in one upload."""

    def __init__(self) -> None:
        self.keys: set[_Key] = set()
        self.bytes = 0


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _no_block(cid: Cid) -> bytes:
    raise NotFound(f"block {cid} is not in this store")
