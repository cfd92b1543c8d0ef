"""Reading from one gateway: whatever form it sends, what comes out are hashed blocks in the order of the walk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

import anyio
import httpx

from parity_blobs.bulk import MIN_BULK_BYTES, Bulk
from parity_blobs.car import CarReader
from parity_blobs.cid import CODEC_RAW, Block, Cid
from parity_blobs.gateway_http import Form, Gateway, GatewayHttp, NotInThisForm
from parity_blobs.http_transport import TakenOver
from parity_blobs.local_threads import translate_os
from parity_blobs.meter import Meter
from parity_blobs.plain import Cutter, Leaf, are_new, is_leaf_like, is_worth_it, layout_of
from parity_blobs.unixfs import Node, read_node
from parity_blobs.verify import CheckedBlock, CheckedLeaf, DagLimits, DagVerifier
from parity_protocol.errors import BadDocument, DigestMismatch, ParityError

__all__ = ["Fault", "Fetch", "GatewayReader", "Opened", "Partial", "Progress", "from_partial"]

Progress = Callable[[int, int | None], None]
"""Called with the content bytes that are here and checked, and those of the whole: None while that is not known."""

_SECTION_OVERHEAD_BYTES = 64  # of a CAR around each block: length and CID, generously
_PARALLEL_BLOCKS = 8


class Partial(Protocol):
    """A file on its way in, and what an earlier, broken fetch left of it."""

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing more can come from it."""
        ...

    def block(self, cid: Cid) -> CheckedBlock | None:
        """Return the block that is wanted next, hashed again, or None when it is not here."""
        ...

    def room(self) -> tuple[int, int]:
        """Return the open file, and the position at which the content of the leaves that come next is to be written."""
        ...

    def wrote(self, leaf: CheckedLeaf) -> None:
        """Take a leaf that was written there; it need not be a whole transfer's."""
        ...


class Fault(Exception):
    """The content itself, as its hashes prove it, is not acceptable, or our own disk failed: no other gateway can help."""

    def __init__(self, cause: ParityError) -> None:
        super().__init__(cause.message)
        self.cause = cause


@dataclass
class Fetch:
    """One fetch, over all gateways.

    Attributes:
        ahead: Blocks that are here before their turn.
        large: The root, once it is known to be a file that is better had as plain bytes.
    """

    cid: Cid
    dag: DagLimits
    walk: DagVerifier
    partial: Partial | None
    progress: Progress | None
    problems: list[tuple[str, ParityError]] = field(default_factory=list)
    tries: dict[str, int] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
    current: Gateway | None = None
    ahead: dict[Cid, CheckedBlock] = field(default_factory=dict)
    large: CheckedBlock | None = None

    @property
    def is_resuming(self) -> bool:
        """Whether an earlier fetch may still have what is wanted, so that single blocks are asked for."""
        return self.partial is not None and not self.partial.is_exhausted

    def accept(self, block: CheckedBlock) -> CheckedBlock:
        """Take the block that is due."""
        if block.cid.key == self.cid.key and self.cid.codec != CODEC_RAW:
            self.large = block if is_worth_it(_node(block)) else None
        _add(self.walk, block)
        if self.progress is not None:
            self.progress(*self.walk.progress)
        return block

    def accept_leaf(self, leaf: CheckedLeaf) -> None:
        """Take the leaf that is due and was written."""
        try:
            self.walk.add_leaf(leaf)
        except ParityError as exc:
            raise Fault(exc) from exc
        if self.progress is not None:
            self.progress(*self.walk.progress)

    def due(self) -> Iterator[CheckedBlock]:
        """Take the blocks whose turn it is from ``ahead``."""
        while self.ahead and (turn := self.walk.wanted(1)) and turn[0] in self.ahead:
            yield self.accept(self.ahead.pop(turn[0]))


@dataclass
class Opened:
    """An answer that has begun."""

    gateway: Gateway
    cid: Cid
    response: httpx.Response
    form: Form


class GatewayReader:
    """Reads blocks from gateways, one at a time, and remembers what each of them cannot do."""

    def __init__(self, http: GatewayHttp) -> None:
        self._http = http
        self._cannot: set[tuple[str, Form]] = set()

    async def ask(self, gateway: Gateway, fetch: Fetch) -> Opened:
        """Ask for what is wanted next and return once a good answer begins.

        Raises:
            ParityError: As ``GatewayHttp.open``.
        """
        if fetch.partial is not None and not fetch.walk.has(fetch.cid):
            # Perhaps a large file, and a CAR that is given up after its root costs the gateway more than a block.
            return Opened(gateway, fetch.cid, await self._http.open(gateway, fetch.cid, "raw"), "raw")
        (wanted,) = fetch.walk.wanted(1)
        if not fetch.walk.progress[0] and not fetch.is_resuming:
            wanted = fetch.cid  # one CAR of everything rather than one of each part
        if self._prefers_file(gateway, fetch):
            wanted = fetch.cid  # its root tells whether the gateway is there; the file follows
        elif wanted.codec != CODEC_RAW and self._can(gateway, "car") and not fetch.is_resuming:
            try:
                return Opened(gateway, wanted, await self._http.open(gateway, wanted, "car"), "car")
            except NotInThisForm:
                self._cannot.add((gateway.url, "car"))
        return Opened(gateway, wanted, await self._http.open(gateway, wanted, "raw"), "raw")

    async def read(self, opened: Opened, fetch: Fetch) -> AsyncGenerator[CheckedBlock]:
        """Yield the blocks that are due, until there are none or another form of request would be better.

        Raises:
            ParityError: The gateway failed; what was yielded before is right.
            Fault: The content is not acceptable.
        """
        meter = self._http.meter(opened.gateway)
        try:
            if opened.form == "car":
                async with aclosing(self._read_car(opened, fetch, meter)) as blocks:
                    async for block in blocks:
                        yield block
            else:
                data = b"".join([piece async for piece in meter.watch(opened.response, fetch.dag.max_block_bytes)])
                checked = CheckedBlock.of(Block(opened.cid, data))
                if not fetch.walk.has(opened.cid):
                    yield fetch.accept(checked)
        finally:
            with anyio.CancelScope(shield=True):
                await opened.response.aclose()
        while not fetch.walk.is_complete:
            if self._prefers_file(opened.gateway, fetch):
                following = self._read_file(opened.gateway, fetch, meter)
            elif opened.form == "raw":
                following = self._read_blocks(opened.gateway, fetch, meter)
            else:
                return
            before = fetch.walk.progress
            async with aclosing(following) as blocks:
                async for block in blocks:
                    yield block
            if fetch.walk.progress == before:
                return

    def _can(self, gateway: Gateway, form: Form) -> bool:
        return (gateway.url, form) not in self._cannot

    def _prefers_file(self, gateway: Gateway, fetch: Fetch) -> bool:
        return fetch.large is not None and self._can(gateway, "file") and not fetch.is_resuming

    async def _read_car(self, opened: Opened, fetch: Fetch, meter: Meter) -> AsyncGenerator[CheckedBlock]:
        """Yield what is new in a CAR. One of a part is walked on its own, since it may repeat what came before."""
        walk, dag, url = fetch.walk, fetch.dag, opened.gateway.url
        is_first = opened.cid.key == fetch.cid.key and not walk.has(fetch.cid)
        part = walk if is_first else DagVerifier(opened.cid, dag)
        reader = CarReader(max_block_bytes=dag.max_block_bytes)
        budget = dag.max_bytes + _SECTION_OVERHEAD_BYTES * dag.max_blocks
        async for piece in meter.watch(opened.response, budget):
            for block in reader.feed(piece):
                checked = CheckedBlock.of(block)
                if not part.expects(checked.cid):
                    raise BadDocument(f"{url}: sent block {checked.cid}, which is not what comes next in {opened.cid}")
                if part is not walk:
                    _add(part, checked)
                    if walk.has(checked.cid):
                        continue
                yield fetch.accept(checked)
                if self._prefers_file(opened.gateway, fetch):
                    return
            if reader.roots is not None and [root.key for root in reader.roots] != [opened.cid.key]:
                raise BadDocument(f"{url}: a CAR of {reader.roots[0]} instead of {opened.cid}")
        reader.finish()
        if not part.is_complete:
            raise BadDocument(f"{url}: ended early, block {part.wanted(1)[0]} and maybe more are missing")

    async def _read_blocks(self, gateway: Gateway, fetch: Fetch, meter: Meter) -> AsyncGenerator[CheckedBlock]:
        """Yield blocks that are fetched one at a time, some in parallel, until another form would be better."""
        has_car = self._can(gateway, "car")
        while True:
            for block in from_partial(fetch):
                yield block
            if fetch.walk.is_complete or self._prefers_file(gateway, fetch):
                return
            wanted = fetch.walk.wanted(_PARALLEL_BLOCKS)
            if not wanted:
                return
            is_one_leaf = wanted[0].codec == CODEC_RAW and fetch.walk.progress[0]
            if has_car and not is_one_leaf and not fetch.is_resuming:
                return
            if has_car:
                wanted = wanted[:1] if fetch.is_resuming else [each for each in wanted if each.codec == CODEC_RAW]
            await self._several(gateway, wanted, fetch, meter)
            for block in fetch.due():
                yield block

    async def _read_file(self, gateway: Gateway, fetch: Fetch, meter: Meter) -> AsyncGenerator[CheckedBlock]:
        """Yield the blocks of a large file that is sent as it is."""
        opened: list[httpx.Response] = []
        try:
            leaves = await self._layout(gateway, fetch, meter, opened)
            if leaves is None:
                fetch.large = None
                return
            first = next((at for at, leaf in enumerate(leaves) if not fetch.walk.has(leaf.cid)), len(leaves))
            if first == len(leaves):
                for block in fetch.due():
                    yield block
                return
            if not opened and self._can(gateway, "file"):
                await self._open_file(gateway, fetch, meter, leaves[first].start, opened)
            if not opened:
                return
            async with aclosing(_leaves_of(opened[0], leaves[first:], fetch, meter)) as blocks:
                async for block in blocks:
                    yield block
        finally:
            with anyio.CancelScope(shield=True):
                for response in opened:
                    await response.aclose()

    async def _layout(
        self, gateway: Gateway, fetch: Fetch, meter: Meter, opened: list[httpx.Response]
    ) -> list[Leaf] | None:
        """Return the leaves of a large file; if none of them is here, the file itself is asked for meanwhile."""
        nodes: dict[Cid, Node] = {}
        problems: list[Exception] = []

        async def look() -> None:
            try:
                nodes.update(await self._nodes(gateway, fetch, meter))
            except (ParityError, Fault) as exc:
                problems.append(exc)
                group.cancel_scope.cancel()

        async def ask() -> None:
            try:
                await self._open_file(gateway, fetch, meter, 0, opened)
            except ParityError as exc:
                problems.append(exc)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            if not fetch.walk.progress[0]:
                group.start_soon(ask)
            group.start_soon(look)
        if problems:
            raise problems[0]
        return layout_of(fetch.cid, nodes, fetch.dag)

    async def _open_file(
        self, gateway: Gateway, fetch: Fetch, meter: Meter, start: int, opened: list[httpx.Response]
    ) -> None:
        """Ask for a file from ``start`` and put the answer into ``opened``, or note that there are no files here."""
        try:
            with meter.waiting():
                opened.append(await self._http.open(gateway, fetch.cid, "file", start=start))
        except NotInThisForm:
            self._cannot.add((gateway.url, "file"))

    async def _nodes(self, gateway: Gateway, fetch: Fetch, meter: Meter) -> dict[Cid, Node]:
        """Return the nodes of a large file above its leaves; those that are not due yet wait in ``ahead``."""
        assert fetch.large is not None
        root = _node(fetch.large)
        nodes = {fetch.cid: root}
        wanted, depth, links = _inner(root), 0, len(root.links)
        while wanted and depth < fetch.dag.max_depth:
            if len(nodes) + len(wanted) > fetch.dag.max_blocks or links > fetch.dag.max_links:
                break  # the walk says so in its own words
            below: list[Cid] = []
            for start in range(0, len(wanted), _PARALLEL_BLOCKS):
                batch = wanted[start : start + _PARALLEL_BLOCKS]
                await self._several(gateway, batch, fetch, meter, is_again=True)
                for cid in batch:
                    node = nodes[cid] = _node(fetch.ahead[cid])
                    links += len(node.links)
                    below += _inner(node)
                    if fetch.walk.has(cid):
                        del fetch.ahead[cid]
            wanted, depth = [cid for cid in dict.fromkeys(below) if cid not in nodes], depth + 1
        return nodes

    async def _several(
        self, gateway: Gateway, cids: list[Cid], fetch: Fetch, meter: Meter, *, is_again: bool = False
    ) -> None:
        """Fetch some blocks at once into ``ahead``; the first failure ends the others, what came before it is kept."""
        problems: list[ParityError] = []

        async def one(cid: Cid) -> None:
            try:
                data = await self._http.block(gateway, cid, fetch.dag.max_block_bytes, meter)
                fetch.ahead[cid] = CheckedBlock.of(Block(cid, data))
            except ParityError as exc:
                problems.append(exc)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for cid in cids:
                if cid not in fetch.ahead and (is_again or not fetch.walk.has(cid)):
                    group.start_soon(one, cid)
        if problems:
            raise problems[0]


async def _leaves_of(
    response: httpx.Response, leaves: list[Leaf], fetch: Fetch, meter: Meter
) -> AsyncGenerator[CheckedBlock]:
    """Yield the blocks of a file from the first of ``leaves`` on."""
    if (taken := _taken_over(response, fetch, leaves)) is not None:
        reading = _in_bulk(taken, leaves, fetch, meter)
    else:
        size = leaves[-1].start + leaves[-1].size - leaves[0].start
        reading = _piecewise(meter.watch(response, size), Cutter(fetch.walk, leaves), fetch)
    try:
        async with aclosing(reading) as blocks:
            async for block in blocks:
                yield block
    except DigestMismatch:
        wrong = next(leaf for leaf in leaves if not fetch.walk.has(leaf.cid))
        if wrong.cid.codec == CODEC_RAW:
            raise
        fetch.large = None  # no leaf of the usual form, or a lie: blocks tell


async def _piecewise(pieces: AsyncIterator[bytes], cutter: Cutter, fetch: Fetch) -> AsyncGenerator[CheckedBlock]:
    """Yield the blocks of a file that comes through the event loop.

    Raises:
        DigestMismatch: A leaf is not what it should be.
        BadDocument: It ended early.
    """
    async for piece in pieces:
        for leaf in cutter.feed(piece):
            for block in fetch.due():
                yield block
            yield fetch.accept(leaf)
        if cutter.problem is not None:
            raise cutter.problem
    if not cutter.is_complete:
        raise BadDocument(f"{fetch.cid}: the file ended early")


async def _in_bulk(taken: TakenOver, leaves: list[Leaf], fetch: Fetch, meter: Meter) -> AsyncGenerator[CheckedBlock]:
    """Yield the nodes of a file whose leaves go from the socket to the disk past the event loop.

    Raises:
        DigestMismatch: A leaf is not what it should be.
        Unreachable: It came too slowly, or broke off.
        Fault: Our own disk failed.
    """
    assert fetch.partial is not None
    bulk = Bulk(taken, leaves, fetch.partial.room(), meter)
    try:
        async for written in bulk.news():
            while written:
                if not fetch.walk.expects(written[0].cid):
                    for block in fetch.due():
                        yield block
                leaf = written.popleft()
                fetch.partial.wrote(leaf)
                fetch.accept_leaf(leaf)
    except OSError as exc:
        raise Fault(translate_os(exc)) from exc
    finally:
        with anyio.CancelScope(shield=True):
            await bulk.stop()
        while bulk.written:  # nobody waits any more; the next transfer goes on from there
            fetch.partial.wrote(bulk.written.popleft())


def _taken_over(response: httpx.Response, fetch: Fetch, leaves: list[Leaf]) -> TakenOver | None:
    """Return the connection if just these leaves are to come on it, each once and each to be written to a file."""
    size = sum(leaf.size for leaf in leaves)
    if fetch.partial is None or size < MIN_BULK_BYTES or not are_new(leaves, fetch.walk):
        return None
    taken: TakenOver | None = response.extensions.get("take_over", lambda _: None)(size)
    return taken


def from_partial(fetch: Fetch) -> Iterator[CheckedBlock]:
    """Yield what an earlier fetch left, as long as it is what comes next."""
    while fetch.partial is not None and (wanted := fetch.walk.wanted(1)):
        block = fetch.partial.block(wanted[0])
        if block is None:
            return
        yield fetch.accept(block)


def _add(walk: DagVerifier, block: CheckedBlock) -> None:
    """Accept a block that is due and whose hash is right: whatever is wrong with it now is wrong with the content."""
    try:
        walk.add(block)
    except ParityError as exc:
        raise Fault(exc) from exc


def _node(block: CheckedBlock) -> Node:
    try:
        return read_node(block.cid, block.data)
    except ParityError as exc:
        raise Fault(exc) from exc


def _inner(node: Node) -> list[Cid]:
    pairs = zip(node.links, node.sizes, strict=False)  # a directory has no sizes, and no business here
    return list(dict.fromkeys(link.cid for link, size in pairs if not is_leaf_like(link.cid, size)))
