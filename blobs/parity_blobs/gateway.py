"""The trustless-gateway client: fetches a DAG over HTTP and believes nothing but hashes.

Follows the IPFS Trustless Gateway specification: a CAR in depth-first order, or block by block from a gateway that has
no CARs. Each block is hashed as it comes, so a transfer that breaks anywhere goes on with the next block at the next
gateway; gateways of one rank are raced when the first does not answer at once.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import anyio
import httpx

from parity_blobs.base import BlobStat, BlobStore
from parity_blobs.car import CarReader
from parity_blobs.cid import CODEC_RAW, Block, Cid
from parity_blobs.download import download
from parity_blobs.gateway_http import (
    DEFAULT_FETCH_LIMITS,
    FetchLimits,
    Gateway,
    GatewayHttp,
    Meter,
    NoCar,
    RetryLater,
    url_problem,
)
from parity_blobs.gateways import Bench, GatewayHealth
from parity_blobs.verify import CheckedBlock, DagLimits, DagVerifier
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import (
    BadDocument,
    ConfigInvalid,
    DigestMismatch,
    Forbidden,
    NotFound,
    ParityError,
    TooLarge,
    Unreachable,
)

__all__ = ["DEFAULT_FETCH_LIMITS", "FetchLimits", "Gateway", "Partial", "Progress", "TrustlessGateway"]

Progress = Callable[[int, int | None], None]
"""Called with the content bytes that are here and checked, and those of the whole: None while that is not known."""

_SECTION_OVERHEAD_BYTES = 64  # of a CAR around each block: length and CID, generously
_DAG_OVERHEAD_BYTES = 65_536  # of nodes above the content, besides an eighth of it
_PARALLEL_BLOCKS = 8
_MAX_TRIES = 3  # of one gateway in one fetch, as long as each brings something


class Partial(Protocol):
    """What an earlier, broken fetch left behind."""

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing more can come from it."""
        ...

    def block(self, cid: Cid) -> CheckedBlock | None:
        """Return the block that is wanted next, hashed again, or None when it is not here."""
        ...


class _Fault(Exception):
    """The content itself, as its hashes prove it, is not acceptable: no other gateway can help."""

    def __init__(self, cause: ParityError) -> None:
        super().__init__(cause.message)
        self.cause = cause


@dataclass
class _Fetch:
    """One fetch, over all gateways."""

    cid: Cid
    dag: DagLimits
    walk: DagVerifier
    partial: Partial | None
    progress: Progress | None
    problems: list[tuple[str, ParityError]] = field(default_factory=list)
    tries: dict[str, int] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
    current: Gateway | None = None
    ahead: dict[Cid, CheckedBlock] = field(default_factory=dict)  # fetched in parallel, not yet their turn


@dataclass
class _Opened:
    gateway: Gateway
    cid: Cid
    response: httpx.Response
    is_car: bool


class TrustlessGateway:
    """Fetches content from gateways into a store or a file.

    Use it as ``async with TrustlessGateway([...]) as gateway``. Redirects are not followed and the environment's
    proxies are not used: either would send a signed request to somebody it was not meant for.

    Args:
        gateways: In order of preference within each rank. One that failed is tried last for a while.
        verify: TLS trust, such as a context with a pinned certificate.
        transport: Replaces the network; for tests.

    Raises:
        ConfigInvalid: No gateway, or an address that is not accepted.
    """

    def __init__(
        self,
        gateways: Sequence[Gateway | str],
        *,
        clock: Clock | None = None,
        limits: FetchLimits = DEFAULT_FETCH_LIMITS,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._gateways = [Gateway(each) if isinstance(each, str) else each for each in gateways]
        problems = [problem for each in self._gateways if (problem := url_problem(each.url))]
        if problems or not self._gateways:
            raise ConfigInvalid(problems or ["gateways: expected at least one address, got none"])
        self._limits = limits
        clock = clock or SystemClock()
        self._bench = Bench(self._gateways, clock)
        self._without_car: set[str] = set()
        self._http = GatewayHttp(clock, limits, verify=verify, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        with anyio.CancelScope(shield=True):
            await self._http.aclose()

    def health(self) -> list[GatewayHealth]:
        """Return how each gateway did lately, in the order they were given."""
        return self._bench.health()

    async def fetch_into(
        self,
        cid: Cid,
        store: BlobStore,
        *,
        max_bytes: int | None = None,
        pin: bool = False,
        progress: Progress | None = None,
    ) -> BlobStat:
        """Make sure that ``store`` holds all of ``cid``.

        Args:
            max_bytes: Content bytes accepted, as a manifest states them (the blocks around them may take an eighth
                more); None leaves it to the limits.

        Raises:
            NotFound: No gateway has it.
            DigestMismatch: No gateway delivered, and one sent bytes that do not match.
            BadDocument: As before, and one sent something else than what was asked for; or it is not UnixFS.
            TooLarge: The content is over the limits.
            StorageFull: The store has no room.
            Unreachable: No gateway delivered; the message says what each did.
        """
        if (found := await store.stat(cid)) is not None:
            _check_size(found, max_bytes)
            if pin:
                await store.pin(cid)
                found = replace(found, is_pinned=True)
            return found
        dag = self._dag_limits(max_bytes)
        async with aclosing(self.stream(cid, max_bytes=max_bytes, progress=progress)) as blocks:
            stat = await store.put_blocks(cid, blocks, limits=dag, pin=pin)
        try:
            _check_size(stat, max_bytes)
        except TooLarge:  # repeated blocks: few bytes to store, many to read
            await store.pin(cid, keep=False)
            await store.delete(cid)
            raise
        return stat

    async def fetch_to(
        self,
        cid: Cid,
        target: Path,
        *,
        max_bytes: int,
        progress: Progress | None = None,
        is_durable: bool = True,
    ) -> BlobStat:
        """Write content straight to ``target``, a file or a folder; it appears complete or not at all.

        A file that breaks off leaves ``.NAME.parity-part`` beside ``target``; the next call goes on from there and
        believes none of it before hashing it again.

        Args:
            target: Must not exist; its parent must.
            is_durable: Whether that holds after a power cut too.

        Raises:
            InvalidInput: ``target`` exists.
            ParityError: As ``fetch_into``.
        """
        return await download(self, cid, target, max_bytes=max_bytes, progress=progress, is_durable=is_durable)

    async def stream(
        self,
        cid: Cid,
        *,
        max_bytes: int | None = None,
        progress: Progress | None = None,
        partial: Partial | None = None,
    ) -> AsyncGenerator[CheckedBlock]:
        """Yield every different block of a DAG once, depth first, each hashed; ends only when none is missing.

        Raises:
            ParityError: As ``fetch_into``; what was yielded before is right.
        """
        dag = self._dag_limits(max_bytes)
        fetch = _Fetch(cid, dag, DagVerifier(cid, dag), partial, progress)
        try:
            async with aclosing(self._blocks(fetch)) as blocks:
                async for block in blocks:
                    yield block
            fetch.walk.finish()
        except _Fault as exc:
            raise exc.cause from exc

    def _dag_limits(self, max_bytes: int | None) -> DagLimits:
        dag = self._limits.dag
        if max_bytes is None:
            return dag
        return replace(dag, max_bytes=min(dag.max_bytes, max_bytes + max_bytes // 8 + _DAG_OVERHEAD_BYTES))

    # -- over all gateways -----------------------------------------------------------------------------------------

    async def _blocks(self, fetch: _Fetch) -> AsyncGenerator[CheckedBlock]:
        is_clean = True  # the last answer ended as it should: one that goes on after the end is refused
        while True:
            for block in _from_partial(fetch):
                yield block
            if fetch.walk.is_complete:
                if is_clean or self._eligible(fetch):
                    return
                raise _verdict(fetch.cid, fetch.problems)
            opened = await self._open(fetch)
            before = fetch.walk.progress[0]
            is_clean = False
            try:
                async with aclosing(self._read(opened, fetch)) as blocks:
                    async for block in blocks:
                        yield block
            except NoCar:
                self._without_car.add(opened.gateway.url)
            except ParityError as exc:
                self._failed(fetch, opened.gateway, exc, has_progress=fetch.walk.progress[0] > before)
            else:
                is_clean = True
                fetch.current = opened.gateway
                self._bench.praise(opened.gateway)

    def _eligible(self, fetch: _Fetch) -> list[Gateway]:
        """Return the gateways of the lowest rank that is not exhausted, the first to ask at the front."""
        left = [each for each in self._gateways if each.url not in fetch.excluded]
        lowest = min((each.rank for each in left), default=0)
        ordered = self._bench.order(each for each in left if each.rank == lowest)
        if fetch.current in ordered:  # it just delivered, and its connection is warm
            ordered.remove(fetch.current)
            ordered.insert(0, fetch.current)
        return ordered

    def _failed(self, fetch: _Fetch, gateway: Gateway, exc: ParityError, *, has_progress: bool = False) -> None:
        fetch.problems.append((gateway.url, exc))
        fetch.tries[gateway.url] = fetch.tries.get(gateway.url, 0) + 1
        if fetch.current == gateway:
            fetch.current = None
        # A connection that breaks after it brought something is worth another try; a liar is not.
        if not (has_progress and isinstance(exc, Unreachable)) or fetch.tries[gateway.url] >= _MAX_TRIES:
            fetch.excluded.add(gateway.url)
        if not isinstance(exc, NotFound):
            self._bench.blame(gateway, at_least_s=exc.after_s if isinstance(exc, RetryLater) else 0.0)

    async def _open(self, fetch: _Fetch) -> _Opened:
        """Return the first good answer for what is wanted next; a gateway that is slow to begin is raced by the next.

        Raises:
            ParityError: None came; the verdict over every gateway.
        """
        (wanted,) = fetch.walk.wanted(1)
        while contenders := self._eligible(fetch):
            winner = await self._race(contenders, wanted, fetch)
            if winner is not None:
                return winner
        raise _verdict(fetch.cid, fetch.problems)

    async def _race(self, contenders: list[Gateway], wanted: Cid, fetch: _Fetch) -> _Opened | None:
        winner: _Opened | None = None
        settled = anyio.Event()

        async def contend(gateway: Gateway) -> None:
            nonlocal winner
            try:
                opened = await self._ask(gateway, wanted, fetch)
            except ParityError as exc:
                self._failed(fetch, gateway, exc)
            else:
                if winner is None:
                    winner = opened
                    group.cancel_scope.cancel()
                else:
                    with anyio.CancelScope(shield=True):
                        await opened.response.aclose()
            settled.set()

        async with anyio.create_task_group() as group:
            for gateway in contenders:
                settled = anyio.Event()
                group.start_soon(contend, gateway)
                with anyio.move_on_after(self._limits.hedge_s):
                    await settled.wait()
                if winner is not None:
                    break
        return winner

    async def _ask(self, gateway: Gateway, wanted: Cid, fetch: _Fetch) -> _Opened:
        is_resuming = fetch.partial is not None and not fetch.partial.is_exhausted
        if wanted.codec != CODEC_RAW and gateway.url not in self._without_car and not is_resuming:
            try:
                return _Opened(gateway, wanted, await self._http.open(gateway, wanted, car=True), is_car=True)
            except NoCar:
                self._without_car.add(gateway.url)
        return _Opened(gateway, wanted, await self._http.open(gateway, wanted, car=False), is_car=False)

    # -- one gateway -----------------------------------------------------------------------------------------------

    async def _read(self, opened: _Opened, fetch: _Fetch) -> AsyncGenerator[CheckedBlock]:
        meter = self._http.meter(opened.gateway)
        try:
            if opened.is_car:
                async with aclosing(self._read_car(opened, fetch, meter)) as blocks:
                    async for block in blocks:
                        yield block
                return
            pieces = meter.watch(opened.response, fetch.dag.max_block_bytes)
            data = b"".join([piece async for piece in pieces])
        finally:
            with anyio.CancelScope(shield=True):
                await opened.response.aclose()
        yield _accept(fetch, CheckedBlock.of(Block(opened.cid, data)))
        async with aclosing(self._read_blocks(opened.gateway, fetch, meter)) as blocks:
            async for block in blocks:
                yield block

    async def _read_car(self, opened: _Opened, fetch: _Fetch, meter: Meter) -> AsyncGenerator[CheckedBlock]:
        """Yield what is new in a CAR. One of a part is walked on its own, since it may repeat what came before."""
        walk, dag, url = fetch.walk, fetch.dag, opened.gateway.url
        part = walk if opened.cid.key == fetch.cid.key else DagVerifier(opened.cid, dag)
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
                yield _accept(fetch, checked)
            if reader.roots is not None and [root.key for root in reader.roots] != [opened.cid.key]:
                raise BadDocument(f"{url}: a CAR of {reader.roots[0]} instead of {opened.cid}")
        reader.finish()
        if not part.is_complete:
            raise BadDocument(f"{url}: ended early, block {part.wanted(1)[0]} and maybe more are missing")

    async def _read_blocks(self, gateway: Gateway, fetch: _Fetch, meter: Meter) -> AsyncGenerator[CheckedBlock]:
        """Yield blocks that are fetched one at a time, some in parallel, until a CAR would be better."""
        has_car = gateway.url not in self._without_car
        while not fetch.walk.is_complete:
            for block in _from_partial(fetch):
                yield block
            wanted = fetch.walk.wanted(_PARALLEL_BLOCKS)
            if not wanted:
                return
            is_resuming = fetch.partial is not None and not fetch.partial.is_exhausted
            if has_car and wanted[0].codec != CODEC_RAW and not is_resuming:
                return
            if has_car:
                wanted = [each for each in wanted if each.codec == CODEC_RAW] if not is_resuming else wanted[:1]
            await self._several(gateway, [each for each in wanted if each not in fetch.ahead], fetch, meter)
            while (turn := fetch.walk.wanted(1)) and turn[0] in fetch.ahead:
                yield _accept(fetch, fetch.ahead.pop(turn[0]))

    async def _several(self, gateway: Gateway, cids: list[Cid], fetch: _Fetch, meter: Meter) -> None:
        """Fetch some blocks at once; the first failure ends the others, what came before it is kept."""
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
                group.start_soon(one, cid)
        if problems:
            raise problems[0]


def _from_partial(fetch: _Fetch) -> Iterator[CheckedBlock]:
    """Yield what an earlier fetch left, as long as it is what comes next."""
    while fetch.partial is not None and (wanted := fetch.walk.wanted(1)):
        block = fetch.partial.block(wanted[0])
        if block is None:
            return
        yield _accept(fetch, block)


def _accept(fetch: _Fetch, block: CheckedBlock) -> CheckedBlock:
    _add(fetch.walk, block)
    if fetch.progress is not None:
        fetch.progress(*fetch.walk.progress)
    return block


def _add(walk: DagVerifier, block: CheckedBlock) -> None:
    """Accept a block that is due and whose hash is right: whatever is wrong with it now is wrong with the content."""
    try:
        walk.add(block)
    except ParityError as exc:
        raise _Fault(exc) from exc


def _check_size(stat: BlobStat, max_bytes: int | None) -> None:
    if max_bytes is not None and stat.size > max_bytes:
        raise TooLarge(f"{stat.cid} has {stat.size} bytes, at most {max_bytes} are accepted")


def _verdict(cid: Cid, problems: list[tuple[str, ParityError]]) -> ParityError:
    """Return what to tell the caller after every gateway failed."""
    texts = "; ".join(exc.message for _, exc in problems)
    for kind in (TooLarge, DigestMismatch, BadDocument, Forbidden):
        for _, exc in problems:
            if type(exc) is kind:
                return exc
    if all(isinstance(exc, NotFound) for _, exc in problems):
        return NotFound(f"{cid} is on no gateway: {texts}")
    return Unreachable(f"{cid} came from no gateway: {texts}")
