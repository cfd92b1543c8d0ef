"""Bytes by an https URL that somebody else chose, such as a presigned one: exactly those whose digest was signed.

The host has to be public and the connection goes to the checked address; there are no redirects, no proxies and no
compression. A transfer that breaks off goes on where it was, if the server can: the digest decides at the end anyhow.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import sha256
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import urlsplit

import anyio
import httpx

from parity_blobs.http_transport import Connect, KeepAliveTransport
from parity_blobs.meter import Meter
from parity_blobs.public_address import connect_public, parse_https_url
from parity_blobs.tls import system_context
from parity_protocol.clock import Clock
from parity_protocol.errors import (
    BadDocument,
    BadField,
    DigestMismatch,
    Forbidden,
    NotFound,
    TooLarge,
    Unreachable,
)

__all__ = ["DEFAULT_HTTPS_LIMITS", "HttpsFetcher", "HttpsLimits", "HttpsSource"]


class HttpsSource(Protocol):
    """What is to be fetched; ``parity_protocol.needs.HttpsInput`` is one."""

    @property
    def url(self) -> str:
        """Where it is."""
        ...

    @property
    def sha256(self) -> str:
        """64 hex digits."""
        ...

    @property
    def size(self) -> int:
        """Bytes, exactly."""
        ...


@dataclass(frozen=True, slots=True)
class HttpsLimits:
    """What one fetch may take.

    Attributes:
        connect_s: Until the connection stands, with its name looked up.
        headers_s: Until the response begins.
        stall_s: Between two pieces.
        total_s: In all, with every try.
        min_rate: Bytes a second over each ``rate_window_s`` of waiting; time that our own disk takes does not count.
        tries: In a row that bring nothing.
        max_tries: In all.
        pause_s: Between two tries, doubled by each that brought nothing.
    """

    connect_s: float = 15.0
    headers_s: float = 30.0
    stall_s: float = 20.0
    total_s: float = 3600.0
    min_rate: float = 4096.0
    rate_window_s: float = 15.0
    tries: int = 3
    max_tries: int = 20
    pause_s: float = 0.5


DEFAULT_HTTPS_LIMITS = HttpsLimits()


@dataclass
class _Transfer:
    """One fetch over all its tries."""

    source: HttpsSource
    name: str  # the URL without its query, which may be a secret
    began: float
    received: int = 0
    validator: str = ""  # what tells this version of the content from another


class HttpsFetcher:
    """Fetches content from strangers' servers. Use it as ``async with HttpsFetcher(clock=clock) as fetcher``.

    Args:
        connect: Replaces the guarded connection; for tests.
        verify: TLS trust; None is the system's.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        limits: HttpsLimits = DEFAULT_HTTPS_LIMITS,
        connect: Connect = connect_public,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self._clock = clock
        self._limits = limits
        self._http = httpx.AsyncClient(
            transport=KeepAliveTransport(verify=verify or system_context(), max_connections=16, connect=connect),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(limits.stall_s, connect=limits.connect_s),
            # Compression would let a few bytes become many before the digest is known.
            headers={"accept-encoding": "identity", "user-agent": "parity-node", "accept": "*/*"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        with anyio.CancelScope(shield=True):
            await self._http.aclose()

    async def stream(self, source: HttpsSource) -> AsyncGenerator[bytes]:
        """Yield the content in order. It is right only if the generator ends by itself: the digest is checked last.

        Raises:
            BadField: The URL is not of the plain kind, or cannot be sent as it is.
            PolicyDenied: Its host is not public.
            NotFound: The server does not have it, or not any more.
            Forbidden: The server does not give it, as with a presigned URL that has expired.
            TooLarge: It is larger than ``source.size``.
            BadDocument: It is shorter, compressed, or the server sends the client elsewhere.
            DigestMismatch: It is something else; the message names both digests.
            Unreachable: It did not come, or too slowly.
        """
        parse_https_url(source.url)
        parts = urlsplit(source.url)
        transfer = _Transfer(source, f"https://{parts.netloc}{parts.path}", self._clock.monotonic())
        digest = sha256()
        idle, tries = 0, 0
        while True:
            before = transfer.received
            tries += 1
            try:
                async with AsyncExitStack() as stack:
                    response = await self._open(transfer, stack)
                    async for piece in self._body(transfer, response):
                        digest.update(piece)
                        yield piece
                break
            except Unreachable:
                idle = 0 if transfer.received > before else idle + 1
                if idle >= self._limits.tries or tries >= self._limits.max_tries or self._is_late(transfer):
                    raise
            await self._clock.sleep(self._limits.pause_s * 2.0**idle)
        if digest.hexdigest() != source.sha256:
            raise DigestMismatch(f"{transfer.name}: expected sha256 {source.sha256}, got {digest.hexdigest()}")

    async def _open(self, transfer: _Transfer, stack: AsyncExitStack) -> httpx.Response:
        """Send the request for what is missing and return the response, whose headers are acceptable."""
        headers = {}
        if transfer.received:
            headers["range"] = f"bytes={transfer.received}-"
            if transfer.validator:
                headers["if-range"] = transfer.validator
        request = self._request(transfer.source.url, headers)
        try:
            with anyio.fail_after(self._limits.connect_s + self._limits.headers_s):
                response = await self._http.send(request, stream=True)
        except (httpx.HTTPError, httpx.StreamError, TimeoutError) as exc:
            raise Unreachable(f"{transfer.name}: {type(exc).__name__} {exc}".rstrip()) from exc
        stack.push_async_callback(response.aclose)
        self._check_head(transfer, response)
        return response

    def _request(self, url: str, headers: dict[str, str]) -> httpx.Request:
        try:
            request = self._http.build_request("GET", url, headers=headers)
        except httpx.InvalidURL as exc:
            raise BadField(f"the URL cannot be used: {exc}", field="url") from exc
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if "?" in url else "")
        # A presigned URL is signed as it is written; another spelling of the same would be refused.
        if request.url.raw_path.decode("ascii") != target:
            raise BadField("the URL holds characters that have to be percent-encoded", field="url")
        return request

    def _check_head(self, transfer: _Transfer, response: httpx.Response) -> None:
        status, name, size = response.status_code, transfer.name, transfer.source.size
        if status in (404, 410):
            raise NotFound(f"{name}: status {status}")
        if status in (401, 403):
            raise Forbidden(f"{name}: status {status}; a presigned URL may have expired")
        if 300 <= status < 400:
            raise BadDocument(f"{name}: status {status}; redirects are not followed")
        if status == 416:
            raise BadDocument(f"{name}: the server has fewer than the {size} bytes that the spec states")
        if status not in (200, 206) or (status == 206 and not transfer.received):
            raise Unreachable(f"{name}: expected status 200, got {status}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise BadDocument(f"{name}: a compressed response")
        left = size
        if status == 206:
            wanted = f"bytes {transfer.received}-{size - 1}/{size}"
            if response.headers.get("content-range", "").strip() != wanted:
                raise BadDocument(f"{name}: expected the range {wanted!r}")
            left -= transfer.received
        length = response.headers.get("content-length")
        if length is not None and length != str(left):
            kind = TooLarge if length.isdigit() and int(length) > left else BadDocument
            raise kind(f"{name} has {length[:20]} bytes, the spec states {left}")
        if not transfer.received:
            etag = response.headers.get("etag", "")
            transfer.validator = etag if etag.startswith('"') and len(etag) < 256 else ""

    async def _body(self, transfer: _Transfer, response: httpx.Response) -> AsyncGenerator[bytes]:
        """Yield what was not received before: a server that cannot go on sends it all again."""
        skip = transfer.received if response.status_code == 200 else 0
        size, name = transfer.source.size, transfer.name
        meter = Meter(self._clock, self._limits, name, began=transfer.began)
        async for piece in meter.watch(response, max_bytes=None):
            skipped = min(skip, len(piece))
            skip -= skipped
            rest = piece[skipped:] if skipped else piece
            if transfer.received + len(rest) > size:
                raise TooLarge(f"{name}: more than the {size} bytes that the spec states")
            if rest:
                transfer.received += len(rest)
                yield rest
        if transfer.received < size:
            raise Unreachable(f"{name}: it ended after {transfer.received} of {size} bytes")

    def _is_late(self, transfer: _Transfer) -> bool:
        return self._clock.monotonic() - transfer.began > self._limits.total_s
