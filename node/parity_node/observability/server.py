"""``/metrics`` and ``/health`` on loopback: a few lines of HTTP/1.1 instead of a web framework in every idle node."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import anyio
from anyio.abc import SocketAttribute, SocketStream

__all__ = ["serve_health"]

MAX_REQUEST_BYTES = 8_192
REQUEST_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 16


async def serve_health(
    port: int,
    *,
    metrics: Callable[[], bytes],
    health: Callable[[], tuple[bool, Mapping[str, object]]],
    on_listening: Callable[[int], None] = lambda _: None,
) -> None:
    """Answer on ``127.0.0.1:port`` until cancelled.

    Args:
        health: Returns whether the node is ready, and what ``/health`` says.
        on_listening: Told of the port, which differs when ``port`` is 0.
    """
    limiter = anyio.CapacityLimiter(MAX_CONNECTIONS)

    async def answer(stream: SocketStream) -> None:
        async with stream:
            try:
                async with limiter:
                    with anyio.move_on_after(REQUEST_TIMEOUT_S):
                        await stream.send(_respond(await _request_line(stream), metrics, health))
            except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
                return

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    on_listening(listener.extra(SocketAttribute.local_port))  # noqa: S610 - anyio's typed attribute, not a query
    await listener.serve(answer)


async def _request_line(stream: SocketStream) -> str:
    data = b""
    while b"\r\n\r\n" not in data and len(data) <= MAX_REQUEST_BYTES:
        data += await stream.receive(2_048)
    return data.split(b"\r\n", 1)[0].decode("latin-1")


def _respond(
    request: str, metrics: Callable[[], bytes], health: Callable[[], tuple[bool, Mapping[str, object]]]
) -> bytes:
    method, _, rest = request.partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    if method not in ("GET", "HEAD"):
        status, kind, body = "405 Method Not Allowed", "text/plain", b"GET only\n"
    elif path == "/metrics":
        status, kind, body = "200 OK", "text/plain; version=0.0.4; charset=utf-8", metrics()
    elif path in ("/health", "/ready"):
        is_ready, document = health()
        status = "200 OK" if is_ready or path == "/health" else "503 Service Unavailable"
        kind, body = "application/json", json.dumps(document).encode() + b"\n"
    else:
        status, kind, body = "404 Not Found", "text/plain", b"/metrics, /health, /ready\n"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else body)
