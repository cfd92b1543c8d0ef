"""The market over HTTP: one keep-alive client, requests signed by the device key, problem documents as our errors.

An answer that the protocol does not have is ``Unreachable``, never ``InvalidInput``: it comes from something in the
market's place, and a report that it "refused" is still worth its reward.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path
from secrets import token_urlsafe
from typing import TypeVar
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx
from pydantic import BaseModel, ValidationError

from parity_blobs.car_files import CAR_TYPE
from parity_blobs.http_exchange import CONNECT_TIMEOUT_S, exchange
from parity_blobs.http_transport import KeepAliveTransport
from parity_node.market.base import PACKED_SUFFIX, MarketClient, MarketDirectory
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
from parity_protocol.errors import InvalidInput, TooLarge, Unreachable
from parity_protocol.join import TrustedMarket, verify_market
from parity_protocol.signing.http_signatures import sign_request
from parity_protocol.signing.keys import Ed25519PrivateKey, node_id_of

__all__ = ["HttpMarket"]

MAX_REPLY_BYTES = 16 << 20
MAX_UPLOAD_BYTES = 1 << 30
REPLY_TIMEOUT_S = 20.0  # added to the time that a long poll may wait
MAX_RETRY_AFTER_S = 300.0
MAX_CONNECTIONS = 16
_PIECE_BYTES = 1 << 20

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
        self._transport = transport or KeepAliveTransport(verify=verify, max_connections=MAX_CONNECTIONS)
        self._client = httpx.AsyncClient(  # makes requests; the transport sends them
            base_url=url,
            transport=self._transport,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(REPLY_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def trust(self) -> TrustedMarket:
        """Fetch and check the signed key set; see the port."""
        answer = await self._send("GET", paths.JWKS, b"", {})
        found = verify_market(answer, self._identity, now=self._clock.now())
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
        """Store a result; see the port. It is read twice, since its digest is signed before the first byte is sent."""
        size, digest = await anyio.to_thread.run_sync(_measure, path)
        query = "visibility=private"
        headers = self.signed_headers("POST", paths.STORAGE_UPLOAD, query, b"", body_sha256=digest)
        headers["Content-Type"] = CAR_TYPE if path.suffix == PACKED_SUFFIX else "application/octet-stream"
        headers["Content-Length"] = str(size)
        timeout_s = REPLY_TIMEOUT_S + size / (64 << 10)  # a market slower than 64 KiB/s counts as away
        target = f"{paths.STORAGE_UPLOAD}?{query}"
        answer = await self._send("POST", target, _pieces(path, size), headers, timeout_s=timeout_s)
        return _parse(UploadReply, answer)

    async def get(
        self,
        path: str,
        query: str = "",
        *,
        timeout_s: float = REPLY_TIMEOUT_S,
        max_bytes: int = MAX_REPLY_BYTES,
        sink: Callable[[bytes], object] | None = None,
    ) -> bytes:
        """Return what a signed GET answers; nothing with a ``sink``, which takes it piece by piece.

        Raises:
            ParityError: As the market refused it, or ``Unreachable``.
        """
        target = f"{path}?{query}" if query else path
        headers = self.signed_headers("GET", path, query, b"")
        return await self._send("GET", target, b"", headers, timeout_s=timeout_s, max_bytes=max_bytes, sink=sink)

    async def put(
        self,
        path: str,
        query: str,
        body: bytes,
        *,
        timeout_s: float = REPLY_TIMEOUT_S,
        body_sha256: bytes | None = None,
    ) -> bytes:
        """Return what a signed PUT of bytes answers; raises as ``get``.

        Args:
            body_sha256: Of a caller who knows it: a large body is not hashed again.
        """
        target = f"{path}?{query}" if query else path
        headers = self.signed_headers("PUT", path, query, body, body_sha256=body_sha256)
        headers["Content-Type"] = "application/octet-stream"
        return await self._send("PUT", target, body, headers, timeout_s=timeout_s)

    async def _post(self, path: str, request: BaseModel, reply: type[M], *, timeout_s: float = REPLY_TIMEOUT_S) -> M:
        body = request.model_dump_json(by_alias=True).encode()
        headers = self.signed_headers("POST", path, "", body)
        headers["Content-Type"] = "application/json"
        answer = await self._send("POST", path, body, headers, timeout_s=timeout_s)
        return _parse(reply, answer)

    def signed_headers(
        self, method: str, path: str, query: str, body: bytes, *, body_sha256: bytes | None = None
    ) -> dict[str, str]:
        """Return the headers that sign a request to this market, for readers of its gateway.

        Args:
            body_sha256: Of a body that is streamed; ``body`` is then not looked at.
        """
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
            body_sha256=body_sha256,
        )

    async def _send(
        self,
        method: str,
        target: str,
        body: bytes | AsyncIterator[bytes],
        headers: dict[str, str],
        *,
        timeout_s: float = REPLY_TIMEOUT_S,
        max_bytes: int = MAX_REPLY_BYTES,
        sink: Callable[[bytes], object] | None = None,
    ) -> bytes:
        request = self._client.build_request(
            method,
            target,
            content=body,
            headers={"Accept-Encoding": "identity", **headers},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
        )
        peer = f"the market at {self.url}"
        try:
            answer = await exchange(
                self._transport, request, limit_s=timeout_s, max_bytes=max_bytes, peer=peer, sink=sink
            )
        except InvalidInput as exc:
            raise Unreachable(exc.message) from exc
        if not 200 <= answer.status < 300:
            raise error_of_answer(
                answer.status,
                answer.body,
                sender=peer,
                retry_after=answer.headers.get("retry-after", ""),
                max_retry_after_s=MAX_RETRY_AFTER_S,
            )
        return answer.body


def _parse(model: type[M], data: bytes) -> M:
    try:
        return model.model_validate_json(data)
    except ValidationError as exc:
        raise Unreachable(f"the market's answer is not a {model.__name__}: {exc.error_count()} problems") from exc


def _measure(path: Path) -> tuple[int, bytes]:
    """Return a file's size in bytes and its sha256.

    Raises:
        TooLarge: No market takes so much.
    """
    size, digest = 0, sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            size += len(piece)
            if size > MAX_UPLOAD_BYTES:
                raise TooLarge(f"a result has at most {MAX_UPLOAD_BYTES} bytes, this one more")
            digest.update(piece)
    return size, digest.digest()


async def _pieces(path: Path, size: int) -> AsyncIterator[bytes]:
    """Yield a file's first ``size`` bytes; the market compares their digest with the signed one."""
    async with await anyio.open_file(path, "rb") as file:
        while size and (piece := await file.read(min(_PIECE_BYTES, size))):
            size -= len(piece)
            yield piece


def _as_many(sent: int, came: int) -> None:
    if sent != came:
        raise Unreachable(f"the market answered {came} of {sent} items")
