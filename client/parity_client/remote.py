"""What a server elsewhere says of a file, before an order names it."""

from __future__ import annotations

import httpx

from parity_protocol.errors import Unreachable

__all__ = ["content_length"]

TIMEOUT_S = 15.0
MAX_REDIRECTS = 5


async def content_length(url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> int | None:
    """Return the bytes that a URL's content has, or None when its server does not say.

    Args:
        url: By https; every hop must be.
        transport: In place of the network, for tests.

    Raises:
        Unreachable: There is no answer.
    """
    try:
        async with httpx.AsyncClient(
            timeout=TIMEOUT_S, transport=transport, headers={"Accept-Encoding": "identity"}
        ) as http:
            for _ in range(MAX_REDIRECTS):
                reply = await http.head(url)
                if not reply.is_redirect or reply.next_request is None:
                    break
                if reply.next_request.url.scheme != "https":
                    return None
                url = str(reply.next_request.url)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise Unreachable(f"{httpx.URL(url).host if '://' in url else url}: {exc}") from exc
    length = reply.headers.get("content-length", "")
    return int(length) if reply.is_success and length.isascii() and length.isdigit() and len(length) < 16 else None
