"""Requests to one market: signed where a session is given, bounded in time and size, problem documents as our errors."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import random
from secrets import token_urlsafe
from typing import TypeVar
from urllib.parse import quote, urlencode, urlsplit

import anyio
import httpx
from pydantic import BaseModel, ValidationError

from parity_blobs.http_exchange import CONNECT_TIMEOUT_S, exchange
from parity_blobs.http_transport import KeepAliveTransport
from parity_client.session import Session
from parity_protocol import strict_json
from parity_protocol.api.problem import error_of_answer
from parity_protocol.clock import Clock
from parity_protocol.errors import BadDocument, InvalidInput, Unavailable, Unreachable
from parity_protocol.signing.http_signatures import sign_request

__all__ = ["MarketHttp", "Retry", "Upload", "parse_reply", "retrying"]

MAX_REPLY_BYTES = 32 << 20
OUT_OF_RANGE = 416  # is the caller's to judge: it asked for the rest of a file
MAX_REFUSAL_BYTES = 64 << 10
MAX_REPLY_VALUES = 2_000_000  # a page of 200 tasks with their specs
REPLY_TIMEOUT_S = 20.0  # added to the time that a request asks the market to wait
MAX_RETRY_AFTER_S = 60.0
MAX_CONNECTIONS = 64

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how long a request that may succeed later is repeated.

    Attributes:
        attempts: In all.
        first_s: Longest pause before the second attempt; doubled for each further one. Pauses have full jitter.
        most_s: Longest pause.
        total_s: No attempt starts later than this after the first.
    """

    attempts: int = 5
    first_s: float = 0.25
    most_s: float = 5.0
    total_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Upload:
    """A body that is streamed: its digest was taken in a first pass, ``open`` starts the second."""

    size: int
    sha256: bytes
    open: Callable[[], AsyncIterator[bytes]]
    content_type: str = "application/octet-stream"


class MarketHttp:
    """One market's HTTP interface; keeps connections open until ``aclose``.

    Args:
        url: ``scheme://host[:port]``, as a join string gives it.
        verify: TLS trust; None is for plain HTTP.
        transport: Replaces the network; for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        verify: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self.authority = urlsplit(url).netloc  # replaced by what the market's signed document says
        self._clock = clock
        self._transport = transport or KeepAliveTransport(verify=verify, max_connections=MAX_CONNECTIONS)
        self._client = httpx.AsyncClient(  # makes requests; the transport sends them
            base_url=url,
            transport=self._transport,
            trust_env=False,  # a proxy from the environment would see, and could hold back, signed requests
            follow_redirects=False,
            timeout=httpx.Timeout(REPLY_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            headers={"user-agent": "parity-client", "accept-encoding": "identity"},
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: BaseModel | Upload | None = None,
        session: Session | None = None,
        wait_s: float = 0.0,
    ) -> bytes:
        """Make one attempt and return the body of a 2xx answer.

        Args:
            wait_s: How long the market was asked to wait, which the time limit allows for.

        Raises:
            Unreachable: No answer in time.
            TooLarge: The answer is over 32 MiB.
            BadDocument: It is compressed.
            ParityError: What the market raised.
        """
        target = f"{path}?{urlencode(query, quote_via=quote)}" if query else path
        headers: dict[str, str] = {}
        limit_s = wait_s + REPLY_TIMEOUT_S
        if isinstance(body, Upload):
            content: bytes | AsyncIterator[bytes] = body.open()
            headers = {"content-type": body.content_type, "content-length": str(body.size)}
            limit_s += body.size / (64 << 10)  # a market slower than 64 KiB/s counts as away
        elif body is not None:
            content = body.model_dump_json(by_alias=True).encode()
            headers["content-type"] = "application/json"
        else:
            content = b""
        timeout = httpx.Timeout(limit_s, connect=CONNECT_TIMEOUT_S)
        request = self._client.build_request(method, target, content=content, headers=headers, timeout=timeout)
        if session is not None:
            request.headers.update(self.signature(request, session, body=content, upload=body))
        peer = f"the market at {self.url}"
        answer = await exchange(self._transport, request, limit_s=limit_s, max_bytes=MAX_REPLY_BYTES, peer=peer)
        if not 200 <= answer.status < 300:
            raise error_of_answer(
                answer.status,
                answer.body,
                sender=peer,
                retry_after=answer.headers.get("retry-after", ""),
                max_retry_after_s=MAX_RETRY_AFTER_S,
            )
        return answer.body

    @asynccontextmanager
    async def opened(
        self, path: str, *, session: Session, headers: Mapping[str, str]
    ) -> AsyncGenerator[httpx.Response]:
        """Make one attempt at a GET whose answer is too long for memory; give it while its body is still to come.

        Args:
            headers: Added to the request.

        Raises:
            Unreachable: No answer in time, or the connection broke while its body was read.
            BadDocument: It is compressed.
            ParityError: What the market raised.
        """
        peer = f"the market at {self.url}"
        timeout = httpx.Timeout(REPLY_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        request = self._client.build_request("GET", path, headers=headers, timeout=timeout)
        request.headers.update(self.signature(request, session))
        try:
            with anyio.fail_after(REPLY_TIMEOUT_S + CONNECT_TIMEOUT_S):
                answer = await self._transport.handle_async_request(request)
            try:
                if answer.headers.get("content-encoding", "identity") != "identity":
                    raise BadDocument(f"the answer of {peer} is compressed, which nobody asked for")
                if answer.status_code >= 400 and answer.status_code != OUT_OF_RANGE:
                    raise error_of_answer(
                        answer.status_code,
                        await _short(answer),
                        sender=peer,
                        retry_after=answer.headers.get("retry-after", ""),
                        max_retry_after_s=MAX_RETRY_AFTER_S,
                    )
                yield answer
            finally:
                with anyio.CancelScope(shield=True):
                    await answer.aclose()
        except TimeoutError as exc:
            raise Unreachable(f"{peer} did not answer in time") from exc
        except (httpx.TransportError, httpx.StreamError, httpx.DecodingError) as exc:
            raise Unreachable(f"{peer} does not answer: {str(exc) or type(exc).__name__}") from exc

    def signature(
        self, request: httpx.Request, session: Session, *, body: object = b"", upload: object = None
    ) -> dict[str, str]:
        """Return the headers that sign a request as it will be sent."""
        path, _, query = request.url.raw_path.decode("ascii").partition("?")
        return sign_request(
            request.method,
            path,
            query,
            self.authority,
            body if isinstance(body, bytes) else b"",
            key=session.key,
            keyid=session.id,
            now=self._clock.now(),
            nonce=token_urlsafe(18),
            body_sha256=upload.sha256 if isinstance(upload, Upload) else None,
        )


async def _short(answer: httpx.Response) -> bytes:
    """Return the body of a refusal, or its beginning; nobody writes a long one."""
    body = bytearray()
    assert isinstance(answer.stream, httpx.AsyncByteStream)
    with anyio.fail_after(REPLY_TIMEOUT_S):
        async for piece in answer.stream:
            body += piece
            if len(body) > MAX_REFUSAL_BYTES:
                break
    return bytes(body[:MAX_REFUSAL_BYTES])


async def retrying(
    attempt: Callable[[], Awaitable[T]],
    *,
    clock: Clock,
    policy: Retry,
    jitter: Callable[[], float] = random,
) -> T:
    """Return what ``attempt`` returns, repeating it while its errors say that it may succeed later.

    Args:
        jitter: Uniform in [0, 1).

    Raises:
        ParityError: The last attempt's.
    """
    started = clock.monotonic()
    for number in range(1, policy.attempts + 1):
        try:
            return await attempt()
        except Unavailable as exc:
            pause = min(policy.most_s, policy.first_s * 2.0 ** (number - 1)) * jitter()
            if exc.retry_after_s is not None:
                pause = max(pause, exc.retry_after_s)
            if number == policy.attempts or clock.monotonic() - started + pause > policy.total_s:
                raise
        await clock.sleep(pause)
    raise AssertionError("a policy has at least one attempt")


def parse_reply(model: type[M], data: bytes) -> M:
    """Read an answer of the market.

    Raises:
        BadDocument: It is something else.
    """
    try:
        strict_json.loads(data, max_bytes=MAX_REPLY_BYTES, max_values=MAX_REPLY_VALUES)
        return model.model_validate_json(data)
    except (InvalidInput, ValidationError) as exc:
        raise BadDocument(f"the market's answer is not a {model.__name__}: {str(exc)[:200]}") from exc
