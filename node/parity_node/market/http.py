"""The market over HTTP: one keep-alive client, requests signed by the device key, problem documents as our errors.

An answer that the protocol does not have is ``Unreachable``, never ``InvalidInput``: it comes from something in the
market's place, and a report that it "refused" is still worth its reward.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from secrets import token_urlsafe
from typing import TypeVar
from urllib.parse import urlsplit

import anyio
import httpx
from pydantic import BaseModel, ValidationError

from parity_blobs.http_transport import KeepAliveTransport
from parity_node.market.base import MarketClient, MarketDirectory
from parity_protocol.api import paths
from parity_protocol.api.leases import (
    ClaimsReply,
    ClaimsRequest,
    LogsRequest,
    PollReply,
    PollRequest,
    ReleaseRequest,
    RenewRequest,
    RenewsReply,
    ReportReply,
    ReportsRequest,
    StartRequest,
    WriteReply,
)
from parity_protocol.api.nodes import EnrolReply, EnrolRequest, Heartbeat, HeartbeatReply
from parity_protocol.api.problem import error_of_answer
from parity_protocol.api.storage import UploadReply
from parity_protocol.clock import Clock
from parity_protocol.errors import TooLarge, Unreachable
from parity_protocol.join import TrustedMarket, verify_market
from parity_protocol.signing.http_signatures import sign_request
from parity_protocol.signing.keys import Ed25519PrivateKey, node_id_of

__all__ = ["HttpMarket"]

MAX_REPLY_BYTES = 16 << 20
MAX_UPLOAD_BYTES = 1 << 30
CONNECT_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = 20.0  # added to the time that a long poll may wait
MAX_RETRY_AFTER_S = 300.0
MAX_CONNECTIONS = 16

M = TypeVar("M", bound=BaseModel)


class HttpMarket(MarketClient, MarketDirectory):
    """A market at ``url``.

    Args:
        url: ``scheme://host[:port]``; plain HTTP was refused off loopback when it was read.
        key: The node's device key, which signs every request.
        identity: Pinned thumbprint; None takes the market's word at first contact (loopback only).
        verify: TLS context; see ``parity_blobs.tls``.
        transport: For tests: an ASGI application instead of a network.
    """

    def __init__(
        self,
        url: str,
        *,
        key: Ed25519PrivateKey,
        clock: Clock,
        identity: str | None,
        verify: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self.tls = verify
        self._key = key
        self._keyid = node_id_of(key.public_key)
        self._clock = clock
        self._identity = identity
        self._authority = urlsplit(url).netloc
        self._client = httpx.AsyncClient(
            base_url=url,
            transport=transport or KeepAliveTransport(verify=verify, max_connections=MAX_CONNECTIONS),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(REPLY_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def trust(self) -> TrustedMarket:
        """Fetch and check the signed key set; see the port."""
        status, headers, body = await self._send("GET", paths.JWKS, b"", {})
        _raise_unless_ok(status, headers, body, self.url)
        found = verify_market(body, self._identity, now=self._clock.now())
        self._identity, self._authority = found.thumbprint, found.document.authority
        return found

    async def enrol(self, request: EnrolRequest) -> EnrolReply:
        """Introduce this node; see the port."""
        return await self._post(paths.ENROL, request, EnrolReply)

    async def heartbeat(self, request: Heartbeat) -> HeartbeatReply:
        """Say that the node lives; see the port."""
        return await self._post(paths.HEARTBEAT, request, HeartbeatReply)

    async def poll(self, request: PollRequest) -> PollReply:
        """Wait for manifests; see the port."""
        return await self._post(paths.LEASE_POLL, request, PollReply, timeout_s=request.wait_s + REPLY_TIMEOUT_S)

    async def claim(self, request: ClaimsRequest) -> ClaimsReply:
        """Claim leases; see the port."""
        reply = await self._post(paths.LEASE_CLAIMS, request, ClaimsReply)
        _as_many(len(request.claims), len(reply.claims))
        return reply

    async def renew(self, request: RenewRequest) -> RenewsReply:
        """Extend leases; see the port."""
        reply = await self._post(paths.LEASE_RENEW, request, RenewsReply)
        _as_many(len(request.renewals), len(reply.renewals))
        return reply

    async def start(self, request: StartRequest) -> WriteReply:
        """Say that executions have started; see the port."""
        return await self._post(paths.LEASE_START, request, WriteReply)

    async def release(self, request: ReleaseRequest) -> WriteReply:
        """Hand leases back; see the port."""
        return await self._post(paths.LEASE_RELEASE, request, WriteReply)

    async def report(self, request: ReportsRequest) -> ReportReply:
        """Deliver reports; see the port."""
        reply = await self._post(paths.REPORTS, request, ReportReply)
        _as_many(len(request.reports), len(reply.reports))
        return reply

    async def logs(self, request: LogsRequest) -> WriteReply:
        """Append to logs; see the port."""
        return await self._post(paths.LEASE_LOGS, request, WriteReply)

    async def upload(self, path: Path) -> UploadReply:
        """Store a result file; see the port. The body is held in memory once, since its digest is signed first."""
        size = (await anyio.Path(path).stat()).st_size
        if size > MAX_UPLOAD_BYTES:
            raise TooLarge(f"a result has at most {MAX_UPLOAD_BYTES} bytes, this one {size}")
        body = await anyio.Path(path).read_bytes()
        query = "visibility=private"
        headers = self.signed_headers("POST", paths.STORAGE_UPLOAD, query, body)
        headers["Content-Type"] = "application/octet-stream"
        timeout_s = REPLY_TIMEOUT_S + size / (64 << 10)  # a market slower than 64 KiB/s counts as away
        status, answer, data = await self._send(
            "POST", f"{paths.STORAGE_UPLOAD}?{query}", body, headers, timeout_s=timeout_s
        )
        _raise_unless_ok(status, answer, data, self.url)
        return _parse(UploadReply, data)

    async def _post(self, path: str, request: BaseModel, reply: type[M], *, timeout_s: float = REPLY_TIMEOUT_S) -> M:
        body = request.model_dump_json(by_alias=True).encode()
        headers = self.signed_headers("POST", path, "", body)
        headers["Content-Type"] = "application/json"
        status, answer, data = await self._send("POST", path, body, headers, timeout_s=timeout_s)
        _raise_unless_ok(status, answer, data, self.url)
        return _parse(reply, data)

    def signed_headers(self, method: str, path: str, query: str, body: bytes) -> dict[str, str]:
        """Return the headers that sign a request to this market, for readers of its gateway."""
        return sign_request(
            method,
            path,
            query,
            self._authority,
            body,
            key=self._key,
            keyid=self._keyid,
            now=self._clock.now(),
            nonce=token_urlsafe(18),
        )

    async def _send(
        self, method: str, target: str, body: bytes, headers: dict[str, str], *, timeout_s: float = REPLY_TIMEOUT_S
    ) -> tuple[int, Mapping[str, str], bytes]:
        request = self._client.build_request(
            method,
            target,
            content=body,
            headers={"Accept-Encoding": "identity", **headers},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
        )
        try:
            with anyio.fail_after(timeout_s + CONNECT_TIMEOUT_S):  # a byte a second never hits a read's time limit
                response = await self._client.send(request, stream=True)
                try:
                    data = await _capped(response)
                finally:
                    await response.aclose()
        except TimeoutError as exc:
            raise Unreachable(f"the market at {self.url} did not answer within {timeout_s:g} s") from exc
        except (httpx.TransportError, httpx.StreamError, httpx.DecodingError) as exc:
            raise Unreachable(f"the market at {self.url} does not answer: {str(exc) or type(exc).__name__}") from exc
        return response.status_code, response.headers, data


async def _capped(response: httpx.Response) -> bytes:
    """Read an answer as it came: compressed twice, two kilobytes become a gigabyte in one step of a decoder."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Unreachable(f"the market's answer is compressed ({encoding[:32]!r}), which nobody asked for")
    data = bytearray()
    async for chunk in response.aiter_bytes():  # which decodes nothing now
        data += chunk
        if len(data) > MAX_REPLY_BYTES:
            raise Unreachable(f"the market's answer is over {MAX_REPLY_BYTES} bytes")
    return bytes(data)


def _parse(model: type[M], data: bytes) -> M:
    try:
        return model.model_validate_json(data)
    except ValidationError as exc:
        raise Unreachable(f"the market's answer is not a {model.__name__}: {exc.error_count()} problems") from exc


def _as_many(sent: int, came: int) -> None:
    if sent != came:
        raise Unreachable(f"the market answered {came} of {sent} items")


def _raise_unless_ok(status: int, headers: Mapping[str, str], body: bytes, url: str) -> None:
    if not 200 <= status < 300:
        raise error_of_answer(
            status,
            body,
            sender=f"the market at {url}",
            retry_after=headers.get("retry-after", ""),
            max_retry_after_s=MAX_RETRY_AFTER_S,
        )
