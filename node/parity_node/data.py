"""Inputs of tasks: fetched by CID from the market's gateway, verified block by block, kept in the node's own store."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import anyio
import httpx

from parity_blobs.base import BlobStore
from parity_blobs.cid import Cid
from parity_blobs.files import export_path
from parity_blobs.gateway import Gateway, TrustlessGateway
from parity_blobs.gateways import sources
from parity_protocol.clock import Clock
from parity_protocol.errors import (
    BadCid,
    BadField,
    DigestMismatch,
    ExecutionFailed,
    FailureReason,
    InvalidInput,
    ParityError,
    PolicyDenied,
    StorageFull,
)
from parity_protocol.needs import CidInput, HttpsInput, ShardInput

__all__ = [
    "ByCid",
    "GatewayInputs",
    "HeaderAuth",
    "InputSource",
    "MarketInputs",
    "OpenStore",
    "SignHeaders",
    "reason_of",
]

SignHeaders = Callable[[str, str, str, bytes], Mapping[str, str]]
"""From method, path, query and body to the headers that sign a request."""

OpenStore = Callable[[], Awaitable[BlobStore]]


class ByCid(Protocol):
    """Where content comes from by its CID."""

    async def fetch(self, cid: str, target: Path, *, max_bytes: int) -> int:
        """Write verified content to ``target``, a file or a folder that does not exist yet; return its size in bytes.

        Raises:
            ExecutionFailed: It cannot be had; the reason says whose fault that is. After a ``digest_mismatch`` the
                message holds both hashes, and nothing is at ``target``.
        """
        ...


class InputSource(ByCid, Protocol):
    """Where executors get a task's inputs from."""

    async def bring(self, item: CidInput | HttpsInput | ShardInput, target: Path) -> int:
        """Put an input of any kind where a sandbox's user can read it, and return the bytes that were written.

        Args:
            target: Does not exist yet. A data set of the operator's becomes a symbolic link to it: mount it read-only,
                and change neither what it leads to nor its modes.

        Raises:
            ExecutionFailed: As ``fetch``.
        """
        ...


class HeaderAuth(httpx.Auth):
    """Signs each request to a gateway; the body of a read is empty.

    Args:
        sign: Such as ``HttpMarket.signed_headers``, which knows the market's public authority and the device key.
    """

    def __init__(self, sign: SignHeaders) -> None:
        self._sign = sign

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the signature headers."""
        path, _, query = request.url.raw_path.decode("ascii").partition("?")
        request.headers.update(self._sign(request.method, path, query, b""))
        yield request


class GatewayInputs:
    """Fetches by CID with a gateway and a store that the caller opened."""

    def __init__(self, gateway: TrustlessGateway, store: BlobStore) -> None:
        self._gateway = gateway
        self._store = store
        self._fetching: dict[Cid, anyio.Lock] = {}  # so that the parts of one session fetch their data once

    async def fetch(self, cid: str, target: Path, *, max_bytes: int) -> int:
        """See ``ByCid.fetch``."""
        try:
            root = Cid.parse(cid)
            await self._get(root, max_bytes + _dag_overhead(max_bytes))
            return (await export_path(self._store, root, target, max_bytes=max_bytes, is_durable=False)).size
        except ParityError as exc:
            raise ExecutionFailed(reason_of(exc), f"input {cid}: {exc.message}") from exc

    async def _get(self, root: Cid, max_bytes: int) -> None:
        lock = self._fetching.setdefault(root, anyio.Lock())
        try:
            async with lock:
                await self._gateway.fetch_into(root, self._store, max_bytes=max_bytes)
        finally:
            if not lock.locked():
                self._fetching.pop(root, None)


class MarketInputs:
    """Fetches by CID for a node: the market's gateway and the node's store, opened by the first input.

    So an idle node pays for neither. ``aclose`` when done; the store is its owner's to close.

    Args:
        url: The market's ``scheme://host[:port]``.
        sign: Signs requests as this node's.
        store: Opens the store, or returns the open one; such as ``DataCache.store``.
        tls: Trust for the market's certificate; None for the system's.
        gateways: Public gateways of the operator's, asked only for what the market has not got or cannot give now.
        kubo_api: Of the operator's own Kubo, asked after the market; empty for none.
        transport: Replaces the network; for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        sign: SignHeaders,
        store: OpenStore,
        clock: Clock,
        tls: ssl.SSLContext | None = None,
        gateways: Sequence[str] = (),
        kubo_api: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        market = Gateway(url, HeaderAuth(sign), tls=tls)
        self._sources = sources(market, gateways=gateways, kubo_api=kubo_api)
        self._store = store
        self._clock = clock
        self._transport = transport
        self._resources = AsyncExitStack()
        self._opened: GatewayInputs | None = None
        self._opening = anyio.Lock()

    async def fetch(self, cid: str, target: Path, *, max_bytes: int) -> int:
        """See ``ByCid.fetch``."""
        return await (await self._open()).fetch(cid, target, max_bytes=max_bytes)

    async def aclose(self) -> None:
        """Close the connections; idempotent."""
        with anyio.CancelScope(shield=True):
            self._opened = None
            await self._resources.aclose()

    async def _open(self) -> GatewayInputs:
        async with self._opening:
            if self._opened is None:
                try:
                    store = await self._store()
                except ParityError as exc:
                    raise ExecutionFailed(FailureReason.NODE_FAULT, f"the node's blob store: {exc.message}") from exc
                gateway = await self._resources.enter_async_context(
                    TrustlessGateway(self._sources, clock=self._clock, transport=self._transport)
                )
                self._opened = GatewayInputs(gateway, store)
            return self._opened


def _dag_overhead(max_bytes: int) -> int:
    """Return what the blocks of a file may take beside its content: about 50 bytes of link per 256 KiB, and folders."""
    return 65_536 + max_bytes // 256


def reason_of(error: ParityError) -> FailureReason:
    """Say whose fault it is that an input cannot be had."""
    if isinstance(error, DigestMismatch):
        return FailureReason.DIGEST_MISMATCH
    if isinstance(error, BadCid | BadField | PolicyDenied):  # the last: a host that is not public
        return FailureReason.SPEC_INVALID
    if isinstance(error, InvalidInput):  # too large, or not a document that a CID may name
        return FailureReason.DATA_INVALID
    if isinstance(error, StorageFull):
        return FailureReason.DISK_FULL
    return FailureReason.DATA_UNAVAILABLE
