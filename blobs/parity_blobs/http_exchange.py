"""One request and its whole answer, bounded in time and size: what the API clients of node and submitter share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import anyio
import httpx

from parity_protocol.errors import BadDocument, TooLarge, Unreachable

__all__ = ["CONNECT_TIMEOUT_S", "Answer", "exchange"]

CONNECT_TIMEOUT_S = 5.0


class Answer(NamedTuple):
    """An HTTP answer that was read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def exchange(
    transport: httpx.AsyncBaseTransport,
    request: httpx.Request,
    *,
    limit_s: float,
    max_bytes: int,
    peer: str,
    sink: Callable[[bytes], object] | None = None,
) -> Answer:
    """Send ``request`` and read its answer, whatever its status.

    It goes to the transport itself: what a client adds (cookies, redirects, authentication, hooks) is not wanted between
    our own programs, and looking for cookies alone takes as long as the parsing of a small answer.

    Args:
        request: Should ask for ``Accept-Encoding: identity``: nothing is decompressed here.
        limit_s: For all of it, in seconds, besides ``CONNECT_TIMEOUT_S`` to connect.
        max_bytes: Most that the answer's body may have.
        peer: Who is asked, for people, such as ``the market at https://market.example``.
        sink: Takes the body of a success piece by piece, which the answer then has not; to join a large one costs more
            than to hash it. What came before an error stays with it.

    Raises:
        Unreachable: No answer in time.
        TooLarge: The answer is over ``max_bytes``.
        BadDocument: It is compressed.
    """
    try:
        with anyio.fail_after(limit_s + CONNECT_TIMEOUT_S):  # a byte a second never hits a read's time limit
            response = await transport.handle_async_request(request)
            try:
                body = await _capped(response, max_bytes, peer, sink if response.is_success else None)
            finally:
                await response.aclose()
    except TimeoutError as exc:
        raise Unreachable(f"{peer} did not answer within {limit_s:g} s") from exc
    except (httpx.TransportError, httpx.StreamError, httpx.DecodingError) as exc:
        raise Unreachable(f"{peer} does not answer: {str(exc) or type(exc).__name__}") from exc
    return Answer(response.status_code, response.headers, body)


async def _capped(response: httpx.Response, max_bytes: int, peer: str, sink: Callable[[bytes], object] | None) -> bytes:
    """Read an answer as it came: compressed twice, two kilobytes become a gigabyte in one step of a decoder."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise BadDocument(f"the answer of {peer} is compressed ({encoding[:32]!r}), which nobody asked for")
    pieces: list[bytes] = []
    size = 0
    assert isinstance(response.stream, httpx.AsyncByteStream)
    take = pieces.append if sink is None else sink
    async for chunk in response.stream:
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge(f"the answer of {peer} is over {max_bytes} bytes")
        take(chunk)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
