"""The trustless-gateway client: fetches a DAG over HTTP and believes nothing but hashes.

Follows the IPFS Trustless Gateway specification: a CAR in depth-first order, or block by block from a gateway that has
no CARs. The store that receives the blocks verifies each of them; this module bounds time, rate and bytes, and goes to
the next gateway when one fails.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import anyio
import httpx

from parity_blobs.base import BlobStat, BlobStore
from parity_blobs.car import CAR_MEDIA_TYPE, CarReader
from parity_blobs.cid import CODEC_RAW, Block, Cid
from parity_blobs.http_transport import KeepAliveTransport
from parity_blobs.verify import DEFAULT_LIMITS, DagLimits, DagVerifier, Order
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import (
    BadDocument,
    ConfigInvalid,
    DigestMismatch,
    Forbidden,
    NotFound,
    ParityError,
    StorageFull,
    TooLarge,
    Unreachable,
)

__all__ = ["DEFAULT_FETCH_LIMITS", "FetchLimits", "Gateway", "TrustlessGateway"]

_RAW_MEDIA_TYPE = "application/vnd.ipld.raw"
_CAR_TYPE = "application/vnd.ipld.car"
_SECTION_OVERHEAD_BYTES = 64  # of a CAR around each block: length and CID, generously
_DAG_OVERHEAD_BYTES = 65_536  # of nodes above the content, besides an eighth of it
_PARALLEL_BLOCKS = 8
_BENCH_S = 2.0  # after the first failure in a row, doubled by each further one
_MAX_BENCH_S = 300.0
_MAX_URL = 2048


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where blocks come from; set by the operator, never by a task.

    Attributes:
        url: What ``/ipfs/{cid}`` is appended to. ``https``, or ``http`` on loopback.
        auth: Signs requests to this gateway, and to no other.
    """

    url: str
    auth: httpx.Auth | None = None


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What one attempt at one gateway may take.

    Attributes:
        dag: Of the content; ``fetch_into``'s ``max_bytes`` lowers its bytes.
        connect_s: Until the connection stands.
        headers_s: Until the response begins.
        stall_s: Between two pieces of the response.
        total_s: In all.
        min_rate: Bytes a second on average, looked at after ``rate_grace_s``.
    """

    dag: DagLimits = DEFAULT_LIMITS
    connect_s: float = 10.0
    headers_s: float = 30.0
    stall_s: float = 20.0
    total_s: float = 3600.0
    min_rate: float = 4096.0
    rate_grace_s: float = 15.0


DEFAULT_FETCH_LIMITS = FetchLimits()


@dataclass
class _Health:
    failures: int = 0
    benched_until: float = 0.0


class _NoCar(Exception):
    """This gateway does not serve CARs."""


class TrustlessGateway:
    """Fetches content into a store from the first gateway that delivers it whole.

    Use it as ``async with TrustlessGateway([...]) as gateway``. Redirects are not followed and the environment's
    proxies are not used: either would send a signed request to somebody it was not meant for.

    Args:
        gateways: In order of preference. One that failed is tried last for a while.
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
        problems = [problem for each in self._gateways if (problem := _url_problem(each.url))]
        if problems or not self._gateways:
            raise ConfigInvalid(problems or ["gateways: expected at least one address, got none"])
        self._clock = clock or SystemClock()
        self._limits = limits
        self._health = {each.url: _Health() for each in self._gateways}
        self._http = httpx.AsyncClient(
            verify=verify,
            transport=transport or _transport(verify),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(limits.stall_s, connect=limits.connect_s),
            # Compression would let a few bytes become many before the first hash is checked.
            headers={"accept-encoding": "identity", "user-agent": "parity-node"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        with anyio.CancelScope(shield=True):
            await self._http.aclose()

    async def fetch_into(
        self, cid: Cid, store: BlobStore, *, max_bytes: int | None = None, pin: bool = False
    ) -> BlobStat:
        """Make sure that ``store`` holds all of ``cid``.

        Args:
            max_bytes: Content bytes accepted, as a manifest states them (the blocks around them may take an eighth
                more); None leaves it to the limits.

        Raises:
            NotFound: No gateway has it.
            DigestMismatch: No gateway delivered, and one sent bytes that do not match.
            BadDocument: As before, and one sent something else than what was asked for.
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
        dag = self._limits.dag
        if max_bytes is not None:
            dag = replace(dag, max_bytes=min(dag.max_bytes, max_bytes + max_bytes // 8 + _DAG_OVERHEAD_BYTES))
        problems: list[tuple[str, ParityError]] = []
        for gateway in self._ordered():
            try:
                stat = await self._fetch(gateway, cid, store, dag, pin=pin)
            except StorageFull:  # our own limit: another gateway cannot help
                raise
            except ParityError as exc:
                problems.append((gateway.url, exc))
                if not isinstance(exc, NotFound):
                    self._bench(gateway)
            else:
                self._health[gateway.url] = _Health()
                try:
                    _check_size(stat, max_bytes)
                except TooLarge:  # repeated blocks: few bytes to store, many to read
                    await store.pin(cid, keep=False)
                    await store.delete(cid)
                    raise
                return stat
        raise _verdict(cid, problems)

    # -- one gateway ---------------------------------------------------------------------------------------------

    async def _fetch(self, gateway: Gateway, cid: Cid, store: BlobStore, dag: DagLimits, *, pin: bool) -> BlobStat:
        meter = _Meter(self._clock, self._limits, gateway.url)
        if cid.codec != CODEC_RAW:
            try:
                async with aclosing(self._car(gateway, cid, dag, meter)) as blocks:
                    return await store.put_blocks(cid, blocks, limits=dag, pin=pin)
            except _NoCar:
                pass
        async with aclosing(self._one_by_one(gateway, cid, dag, meter)) as blocks:
            return await store.put_blocks(cid, blocks, limits=dag, order=Order.PARENTS_FIRST, pin=pin)

    async def _car(self, gateway: Gateway, cid: Cid, dag: DagLimits, meter: _Meter) -> AsyncGenerator[Block]:
        """Yield the blocks of a CAR in the order they come; the store checks them."""
        async with self._get(gateway, cid, "format=car&dag-scope=all", CAR_MEDIA_TYPE) as response:
            if response.status_code in (400, 406, 415, 501):
                raise _NoCar
            _check_status(response)
            if response.headers.get("content-type", "").partition(";")[0].strip().lower() != _CAR_TYPE:
                raise _NoCar
            reader = CarReader(max_block_bytes=dag.max_block_bytes)
            budget = dag.max_bytes + _SECTION_OVERHEAD_BYTES * dag.max_blocks
            async for piece in meter.watch(response, budget):
                for block in reader.feed(piece):
                    yield block
                if reader.roots is not None and [root.key for root in reader.roots] != [cid.key]:
                    raise BadDocument(f"{gateway.url}: a CAR of {reader.roots[0]} instead of {cid}")
            reader.finish()

    async def _one_by_one(self, gateway: Gateway, cid: Cid, dag: DagLimits, meter: _Meter) -> AsyncGenerator[Block]:
        """Yield blocks fetched one at a time, some in parallel, parents before children."""
        verifier = DagVerifier(cid, dag, order=Order.PARENTS_FIRST)
        while wanted := verifier.wanted(_PARALLEL_BLOCKS):
            found = await self._several(gateway, wanted, dag.max_block_bytes, meter)
            for block in found:
                verifier.add(block)
                yield block

    async def _several(self, gateway: Gateway, cids: list[Cid], max_bytes: int, meter: _Meter) -> list[Block]:
        """Fetch some blocks at once; the first failure ends the others."""
        found: dict[Cid, bytes] = {}
        problems: list[ParityError] = []

        async def fetch(cid: Cid) -> None:
            try:
                found[cid] = await self._raw(gateway, cid, max_bytes, meter)
            except ParityError as exc:
                problems.append(exc)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for cid in cids:
                group.start_soon(fetch, cid)
        if problems:
            raise problems[0]
        return [Block(cid, found[cid]) for cid in cids]

    async def _raw(self, gateway: Gateway, cid: Cid, max_bytes: int, meter: _Meter) -> bytes:
        async with self._get(gateway, cid, "format=raw", _RAW_MEDIA_TYPE) as response:
            _check_status(response)
            return b"".join([piece async for piece in meter.watch(response, max_bytes)])

    @asynccontextmanager
    async def _get(self, gateway: Gateway, cid: Cid, query: str, accept: str) -> AsyncGenerator[httpx.Response]:
        url = f"{gateway.url.rstrip('/')}/ipfs/{cid}?{query}"
        try:
            request = self._http.build_request("GET", url, headers={"accept": accept})
            with anyio.fail_after(self._limits.headers_s):  # a header line a second would never hit a read timeout
                response = await self._http.send(request, stream=True, auth=gateway.auth)
            try:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise BadDocument(f"{gateway.url}: a compressed response")
                yield response
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError) as exc:
            raise Unreachable(f"{gateway.url}: {type(exc).__name__} {exc}".rstrip()) from exc

    # -- health --------------------------------------------------------------------------------------------------

    def _ordered(self) -> list[Gateway]:
        now = self._clock.monotonic()
        return sorted(self._gateways, key=lambda each: max(self._health[each.url].benched_until - now, 0.0))

    def _bench(self, gateway: Gateway) -> None:
        health = self._health[gateway.url]
        health.failures += 1
        pause = min(_BENCH_S * 2.0 ** (health.failures - 1), _MAX_BENCH_S)
        health.benched_until = self._clock.monotonic() + pause


class _Meter:
    """Bounds one attempt: total time, average rate, and the bytes of each response."""

    def __init__(self, clock: Clock, limits: FetchLimits, url: str) -> None:
        self._clock = clock
        self._limits = limits
        self._url = url
        self._start = clock.monotonic()
        self._received = 0

    async def watch(self, response: httpx.Response, max_bytes: int) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            BadDocument: More than ``max_bytes`` came.
            Unreachable: Too slow, or over the total time.
        """
        came = 0
        async for piece in response.aiter_raw():
            came += len(piece)
            self._received += len(piece)
            if came > max_bytes:
                raise BadDocument(f"{self._url}: more than {max_bytes} bytes came")
            elapsed = self._clock.monotonic() - self._start
            if elapsed > self._limits.total_s:
                raise Unreachable(f"{self._url}: not done after {self._limits.total_s:g} s")
            if elapsed > self._limits.rate_grace_s and self._received < self._limits.min_rate * elapsed:
                raise Unreachable(f"{self._url}: slower than {self._limits.min_rate:g} bytes a second")
            yield piece


def _check_size(stat: BlobStat, max_bytes: int | None) -> None:
    if max_bytes is not None and stat.size > max_bytes:
        raise TooLarge(f"{stat.cid} has {stat.size} bytes, at most {max_bytes} are accepted")


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    url = str(response.request.url.copy_with(query=None))
    if status in (404, 410):
        raise NotFound(f"{url}: {status}")
    if status in (401, 403):
        raise Forbidden(f"{url}: {status}")
    raise Unreachable(f"{url}: expected status 200, got {status}")


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


def _url_problem(text: str) -> str:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError):
        return f"gateways: expected an address such as https://example.org, got {text[:80]!r}"
    if url.userinfo:
        return "gateways: expected an address without user and password; sign requests with `auth` instead"
    if len(text) > _MAX_URL or not url.host or url.query or url.fragment:
        return f"gateways: expected scheme, host and path only, got {text[:80]!r}"
    if url.scheme == "https" or (url.scheme == "http" and _is_loopback(url.host)):
        return ""
    return f"gateways: expected https (http only on loopback), got {text[:80]!r}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _transport(verify: ssl.SSLContext | bool) -> httpx.AsyncBaseTransport | None:  # noqa: FBT001 - as httpx spells it
    """Return our own transport, except where TLS is not to be verified: httpx knows how to do that."""
    if verify is False:
        return None
    return KeepAliveTransport(verify=verify if isinstance(verify, ssl.SSLContext) else None)
