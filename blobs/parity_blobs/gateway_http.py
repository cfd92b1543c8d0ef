"""One gateway over HTTP: a request, what its status means, and how long and how much its answer may be.

Speaks the IPFS Trustless Gateway specification, or the RPC of a Kubo that the operator named. Nothing here believes
what comes: hashing is the caller's.
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

import anyio
import httpx

from parity_blobs.car import CAR_MEDIA_TYPE
from parity_blobs.cid import Cid
from parity_blobs.http_transport import KeepAliveTransport
from parity_blobs.meter import Meter
from parity_blobs.verify import DEFAULT_LIMITS, DagLimits
from parity_protocol.clock import Clock
from parity_protocol.errors import BadDocument, Forbidden, NotFound, Unreachable

__all__ = [
    "DEFAULT_FETCH_LIMITS",
    "FetchLimits",
    "Form",
    "Gateway",
    "GatewayHttp",
    "NotInThisForm",
    "RetryLater",
    "url_problem",
]

Form = Literal["raw", "car", "file"]

_RAW_MEDIA_TYPE = "application/vnd.ipld.raw"
_CAR_TYPE = "application/vnd.ipld.car"
_NO_CAR_STATUS = (400, 406, 415, 501)
_MAX_URL = 2048
_MAX_RETRY_AFTER_S = 300.0
_MAX_ERROR_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where blocks come from; set by the operator, never by a task.

    Attributes:
        url: What ``/ipfs/{cid}`` is appended to. ``https``, or ``http`` on loopback.
        auth: Signs requests to this gateway, and to no other.
        rank: Gateways of a higher rank are asked only after every one of a lower rank has failed or has not got the
            content, and are never raced with them: what a stranger is asked for, a stranger knows. They are not asked
            at all when one of a lower rank has it and refuses it to us.
        is_kubo_rpc: It is the RPC address of the operator's own Kubo (``/api/v0``), not a gateway.
        tls: Trust for this gateway alone, such as a context with the market's pinned certificate; None for the
            client's.
    """

    url: str
    auth: httpx.Auth | None = None
    rank: int = 0
    is_kubo_rpc: bool = False
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What one attempt at one gateway may take.

    Attributes:
        dag: Of the content; ``fetch_into``'s ``max_bytes`` lowers its bytes.
        connect_s: Until the connection stands.
        headers_s: Until the response begins.
        hedge_s: After which the next gateway of the same rank is asked too; whoever begins to answer first is read.
        stall_s: Between two pieces of the response.
        total_s: In all.
        min_rate: Bytes a second over each ``rate_window_s`` of waiting; time that our own disk takes does not count.
    """

    dag: DagLimits = DEFAULT_LIMITS
    connect_s: float = 5.0
    headers_s: float = 10.0
    hedge_s: float = 0.75
    stall_s: float = 5.0
    total_s: float = 3600.0
    min_rate: float = 16_384.0
    rate_window_s: float = 4.0


DEFAULT_FETCH_LIMITS = FetchLimits()


class NotInThisForm(Exception):
    """This gateway does not serve CARs, or not plain files."""


class RetryLater(Unreachable):
    """The gateway asks to be left alone for a while."""

    def __init__(self, message: str, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


class GatewayHttp:
    """Sends requests to gateways. Redirects are not followed and the environment's proxies are not used."""

    def __init__(
        self,
        clock: Clock,
        limits: FetchLimits,
        *,
        verify: ssl.SSLContext | bool,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self._clock = clock
        self._limits = limits
        self._verify = verify
        self._transport = transport
        self._clients: dict[ssl.SSLContext | None, httpx.AsyncClient] = {}

    async def aclose(self) -> None:
        """Close the connections."""
        while self._clients:
            _, client = self._clients.popitem()
            await client.aclose()

    def client(self, tls: ssl.SSLContext | None = None) -> httpx.AsyncClient:
        """Return the client for gateways with this trust, which keeps their connections."""
        found = self._clients.get(tls)
        if found is None:
            verify = self._verify if tls is None else tls
            found = self._clients[tls] = httpx.AsyncClient(
                verify=verify,
                transport=self._transport or _transport(verify),
                trust_env=False,
                follow_redirects=False,
                timeout=httpx.Timeout(self._limits.stall_s, connect=self._limits.connect_s),
                # Compression would let a few bytes become many before the first hash is checked.
                headers={"accept-encoding": "identity", "user-agent": "parity-node"},
            )
        return found

    def meter(self, gateway: Gateway) -> Meter:
        """Return what bounds one attempt at ``gateway``."""
        return Meter(self._clock, self._limits, gateway.url)

    async def open(self, gateway: Gateway, cid: Cid, form: Form, *, start: int = 0) -> httpx.Response:
        """Ask for content and return once a good answer begins; the caller closes it.

        Args:
            form: ``raw`` is one block, ``car`` all below it, ``file`` the plain bytes of a file.
            start: Of a file: the first byte that is wanted.

        Raises:
            NotInThisForm: Not as a CAR, or not as a file.
            NotFound: Not there.
            Forbidden: Not for us.
            Unreachable: No good answer in time; a ``RetryLater`` says when.
            BadDocument: A compressed answer.
        """
        try:
            client = self.client(gateway.tls)
            request = self._request(client, gateway, cid, form, start)
            with anyio.fail_after(self._limits.headers_s):  # a header line a second would never hit a read timeout
                response = await client.send(request, stream=True, auth=gateway.auth)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError) as exc:
            raise Unreachable(f"{gateway.url}: {type(exc).__name__} {exc}".rstrip()) from exc
        try:
            await self._check(gateway, response, form, start)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await response.aclose()
            raise
        return response

    async def block(self, gateway: Gateway, cid: Cid, max_bytes: int, meter: Meter) -> bytes:
        """Return what a gateway sends as one block.

        Raises:
            ParityError: As ``open`` and ``Meter.watch``.
        """
        with meter.waiting():
            response = await self.open(gateway, cid, "raw")
        try:
            return b"".join([piece async for piece in meter.watch(response, max_bytes)])
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()

    def _request(self, client: httpx.AsyncClient, gateway: Gateway, cid: Cid, form: Form, start: int) -> httpx.Request:
        base = gateway.url.rstrip("/")
        if gateway.is_kubo_rpc:
            wait_ms = int(self._limits.headers_s * 900)  # it says so itself, before we hang up
            command = {"car": "dag/export?progress=false&", "raw": "block/get?", "file": f"cat?offset={start}&"}[form]
            limit = "" if form == "file" else f"&timeout={wait_ms}ms"
            return client.build_request("POST", f"{base}/api/v0/{command}arg={cid}{limit}")
        if form == "file":
            headers = {"range": f"bytes={start}-"} if start else {}
            return client.build_request("GET", f"{base}/ipfs/{cid}", headers={"accept": "*/*", **headers})
        query, accept = (
            ("format=car&dag-scope=all", CAR_MEDIA_TYPE) if form == "car" else ("format=raw", _RAW_MEDIA_TYPE)
        )
        return client.build_request("GET", f"{base}/ipfs/{cid}?{query}", headers={"accept": accept})

    async def _check(self, gateway: Gateway, response: httpx.Response, form: Form, start: int) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise BadDocument(f"{gateway.url}: a compressed response")
        status = response.status_code
        url = str(response.request.url.copy_with(query=None))
        if gateway.is_kubo_rpc and status == 500:
            said = b""
            with anyio.move_on_after(self._limits.headers_s):
                said = await _beginning(response)
            if b"not find" in said or b"not found" in said or b"deadline exceeded" in said:
                raise NotFound(f"{url}: {status}")
        if form == "file" and status not in (200, 206, 429, 503):  # a gateway may well serve blocks only
            raise NotInThisForm
        if form == "file" and status == 200 and start and not gateway.is_kubo_rpc:  # it knows no ranges
            raise NotInThisForm
        if form == "car" and status in _NO_CAR_STATUS:
            raise NotInThisForm
        if status in (404, 410):
            raise NotFound(f"{url}: {status}")
        if status in (401, 403):
            raise Forbidden(f"{url}: {status}")
        if status in (429, 503):
            raise RetryLater(f"{url}: expected status 200, got {status}", self._retry_after_s(response))
        if status != 200 and form != "file":
            raise Unreachable(f"{url}: expected status 200, got {status}")
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if form == "car" and kind != _CAR_TYPE and not gateway.is_kubo_rpc:
            raise NotInThisForm

    def _retry_after_s(self, response: httpx.Response) -> float:
        text = response.headers.get("retry-after", "")
        try:
            after = float(text) if text.isdigit() else (parsedate_to_datetime(text) - self._clock.now()).total_seconds()
        except (TypeError, ValueError):
            return 0.0
        return min(max(after, 0.0), _MAX_RETRY_AFTER_S)


def url_problem(text: str) -> str:
    """Return what is wrong with a gateway's address; empty when nothing is."""
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


async def _beginning(response: httpx.Response) -> bytes:
    said = b""
    try:
        async for piece in response.aiter_raw():
            said += piece
            if len(said) >= _MAX_ERROR_BYTES:
                break
    except (httpx.HTTPError, httpx.StreamError):
        pass  # the status alone says it failed
    return said[:_MAX_ERROR_BYTES]


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
