"""The trustless-gateway client: fetches a DAG over HTTP and believes nothing but hashes.

Follows the IPFS Trustless Gateway specification: a CAR in depth-first order, block by block from a gateway that has no
CARs, and large files as plain bytes whose leaves are hashed against their nodes. Each block is hashed as it comes, so a
transfer that breaks anywhere goes on with the next block at the next gateway; gateways of one rank are raced when the
first does not answer at once.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import httpx

from parity_blobs.base import BlobStat, BlobStore
from parity_blobs.cid import Cid
from parity_blobs.download import download
from parity_blobs.gateway_http import DEFAULT_FETCH_LIMITS, FetchLimits, Gateway, GatewayHttp, RetryLater, url_problem
from parity_blobs.gateway_read import Fault, Fetch, GatewayReader, Opened, Partial, Progress, from_partial
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

_DAG_OVERHEAD_BYTES = 65_536  # of nodes above the content, besides an eighth of it
_MAX_TRIES = 3  # of one gateway in one fetch, as long as each brings something


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
        self._http = GatewayHttp(clock, limits, verify=verify, transport=transport)
        self._reader = GatewayReader(self._http)

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
        fetch = Fetch(cid, dag, DagVerifier(cid, dag), partial, progress)
        try:
            async with aclosing(self._blocks(fetch)) as blocks:
                async for block in blocks:
                    yield block
            fetch.walk.finish()
        except Fault as exc:
            raise exc.cause from exc

    def _dag_limits(self, max_bytes: int | None) -> DagLimits:
        dag = self._limits.dag
        if max_bytes is None:
            return dag
        return replace(dag, max_bytes=min(dag.max_bytes, max_bytes + max_bytes // 8 + _DAG_OVERHEAD_BYTES))

    # -- over all gateways -----------------------------------------------------------------------------------------

    async def _blocks(self, fetch: Fetch) -> AsyncGenerator[CheckedBlock]:
        is_clean = True  # the last answer ended as it should: one that goes on after the end is refused
        while True:
            for block in from_partial(fetch):
                yield block
            if fetch.walk.is_complete:
                if is_clean or self._eligible(fetch):
                    return
                raise _verdict(fetch.cid, fetch.problems)
            opened = await self._open(fetch)
            before = fetch.walk.progress[0]
            is_clean = False
            try:
                async with aclosing(self._reader.read(opened, fetch)) as blocks:
                    async for block in blocks:
                        yield block
            except ParityError as exc:
                self._failed(fetch, opened.gateway, exc, has_progress=fetch.walk.progress[0] > before)
            else:
                is_clean = True
                fetch.current = opened.gateway
                self._bench.praise(opened.gateway)

    def _eligible(self, fetch: Fetch) -> list[Gateway]:
        """Return the gateways of the lowest rank that is not exhausted, the first to ask at the front."""
        left = [each for each in self._gateways if each.url not in fetch.excluded]
        refused = {url for url, exc in fetch.problems if isinstance(exc, Forbidden)}
        if refused:  # it is there and not for us: no reason to tell those further out what we look for
            nearest = min(each.rank for each in self._gateways if each.url in refused)
            left = [each for each in left if each.rank <= nearest]
        lowest = min((each.rank for each in left), default=0)
        ordered = self._bench.order(each for each in left if each.rank == lowest)
        if fetch.current in ordered:  # it just delivered, and its connection is warm
            ordered.remove(fetch.current)
            ordered.insert(0, fetch.current)
        return ordered

    def _failed(self, fetch: Fetch, gateway: Gateway, exc: ParityError, *, has_progress: bool = False) -> None:
        fetch.problems.append((gateway.url, exc))
        fetch.tries[gateway.url] = fetch.tries.get(gateway.url, 0) + 1
        if fetch.current == gateway:
            fetch.current = None
        # A connection that breaks after it brought something is worth another try; a liar is not.
        if not (has_progress and isinstance(exc, Unreachable)) or fetch.tries[gateway.url] >= _MAX_TRIES:
            fetch.excluded.add(gateway.url)
        if not isinstance(exc, NotFound):
            self._bench.blame(gateway, at_least_s=exc.after_s if isinstance(exc, RetryLater) else 0.0)

    async def _open(self, fetch: Fetch) -> Opened:
        """Return the first good answer for what is wanted next; a gateway that is slow to begin is raced by the next.

        Raises:
            ParityError: None came; the verdict over every gateway.
        """
        while contenders := self._eligible(fetch):
            winner = await self._race(contenders, fetch)
            if winner is not None:
                return winner
        raise _verdict(fetch.cid, fetch.problems)

    async def _race(self, contenders: list[Gateway], fetch: Fetch) -> Opened | None:
        winner: Opened | None = None

        async def contend(gateway: Gateway, settled: anyio.Event) -> None:
            nonlocal winner
            try:
                opened = await self._reader.ask(gateway, fetch)
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

        try:
            async with anyio.create_task_group() as group:
                for gateway in contenders:
                    settled = anyio.Event()
                    group.start_soon(contend, gateway, settled)
                    with anyio.move_on_after(self._limits.hedge_s):
                        await settled.wait()
        except BaseException:
            if winner is not None:  # we were cancelled while the others ended: nobody else knows of this answer
                with anyio.CancelScope(shield=True):
                    await winner.response.aclose()
            raise
        return winner


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
