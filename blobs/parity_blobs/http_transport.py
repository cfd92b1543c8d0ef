"""HTTP/1.1 for httpx over asyncio, with connections that stay open and a parser in C.

httpx's own transport spends three quarters of a small request's time in locks, in searches through its pool and in a
parser in Python, and the more connections it keeps the longer each request takes. This one keeps its idle connections
on a stack for each origin.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from time import monotonic
from typing import NamedTuple, cast

import httptools
import httpx

__all__ = ["Connect", "KeepAliveTransport", "TakenOver"]

MAX_HEAD_BYTES = 65_536  # of a response
LARGE_CHUNK_BYTES = 1 << 16  # handed out as it is rather than copied into a larger one
WRITE_BYTES = 1 << 18  # of a large body at once: what the socket does not take is copied
HIGH_WATER_BYTES = 1 << 20  # of a body that nobody has read yet; the peer then waits

Origin = tuple[str, str, int]
Connect = Callable[[str, int], Awaitable[socket.socket]]  # host and port to a connected socket, non-blocking


class TakenOver(NamedTuple):
    """A connection in the middle of a response's body, in other hands.

    Attributes:
        sock: Blocking; whoever took it closes it.
        early: Bytes of the body that came before.
        left: How many more are to come on ``sock``.
    """

    sock: socket.socket
    early: bytes
    left: int


class KeepAliveTransport(httpx.AsyncBaseTransport):
    """Sends requests of ``httpx.AsyncClient``; needs asyncio.

    It follows no proxies and speaks no HTTP/2. Time limits are those of the request, as httpx names them. A request
    whose caller is cancelled, or whose answer is not read to its end, costs its connection.

    A response's extension ``take_over`` is a function of the bytes that a caller expects: it hands the body's
    connection over as a ``TakenOver`` to be read by other means, or returns None where that cannot be, as with TLS,
    with another length or without one. The response is to be closed all the same.

    Args:
        verify: TLS trust for ``https``; None trusts what the system does.
        max_connections: Open at once; further requests wait for one within the pool's time limit.
        idle_s: After which an unused connection is not used any more; below the time that servers keep theirs.
        connect: Opens the connection to a host and port, such as one that looks at the address first; its errors are
            passed on as they are. None lets asyncio do it.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext | None = None,
        max_connections: int = 64,
        idle_s: float = 60.0,
        connect: Connect | None = None,
    ) -> None:
        self._verify = verify
        self._idle_s = idle_s
        self._dial = connect
        self._room = asyncio.Semaphore(max_connections)
        self._idle: dict[Origin, list[_Connection]] = {}
        self._open: set[_Connection] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its answer once the headers are there.

        Raises:
            httpx.TransportError: As httpx's own transport does.
        """
        limits = request.extensions.get("timeout", {})
        origin = _origin(request.url)
        head = _head(request)
        await self._take_room(limits.get("pool"))
        connection: _Connection | None = None
        try:
            connection = self._reuse(origin) or await self._connect(origin, limits.get("connect"))
            await connection.send(head, request, limits.get("write"))
            await connection.wait_head(limits.get("read"))
        except BaseException:
            self._discard(connection)
            self._room.release()
            raise
        return httpx.Response(
            connection.status,
            headers=connection.headers,
            stream=_Body(self, connection, origin, limits.get("read")),
            extensions={"http_version": b"HTTP/1.1", "take_over": connection.take_over},
        )

    async def aclose(self) -> None:
        """Close every connection, also those in use."""
        for connection in list(self._open):
            self._discard(connection)
        self._idle.clear()

    def release(self, connection: _Connection, origin: Origin) -> None:
        """Take a connection back from a finished or given up request."""
        self._room.release()
        if connection.is_reusable and connection in self._open:
            connection.idle_since = monotonic()
            self._idle.setdefault(origin, []).append(connection)
        else:
            self._discard(connection)

    async def _take_room(self, limit_s: float | None) -> None:
        if not self._room.locked():
            await self._room.acquire()  # returns at once
            return
        try:
            async with asyncio.timeout(limit_s):
                await self._room.acquire()
        except TimeoutError as exc:
            raise httpx.PoolTimeout("no connection became free in time") from exc

    def _reuse(self, origin: Origin) -> _Connection | None:
        idle = self._idle.get(origin, [])
        oldest = monotonic() - self._idle_s
        while idle:
            connection = idle.pop()
            if connection.is_reusable and connection.idle_since > oldest:
                return connection
            self._discard(connection)
        return None

    async def _connect(self, origin: Origin, limit_s: float | None) -> _Connection:
        scheme, host, port = origin
        context = None
        if scheme == "https":
            context = self._verify = self._verify or httpx.create_ssl_context()
        try:
            async with asyncio.timeout(limit_s):
                name = host if context is not None else None
                loop = asyncio.get_running_loop()
                if self._dial is None:
                    _, connection = await loop.create_connection(
                        _Connection, host, port, ssl=context, server_hostname=name
                    )
                else:
                    sock = await self._dial(host, port)
                    try:
                        _, connection = await loop.create_connection(
                            _Connection, sock=sock, ssl=context, server_hostname=name
                        )
                    except BaseException:
                        sock.close()
                        raise
        except TimeoutError as exc:
            raise httpx.ConnectTimeout(f"no connection to {host}:{port} in time") from exc
        except OSError as exc:  # TLS's errors are OSErrors too
            raise httpx.ConnectError(str(exc) or type(exc).__name__) from exc
        self._open.add(connection)
        return connection

    def _discard(self, connection: _Connection | None) -> None:
        if connection is not None:
            self._open.discard(connection)
            connection.abort()


class _Body(httpx.AsyncByteStream):
    """A response's body; closing it gives the connection back."""

    def __init__(
        self, transport: KeepAliveTransport, connection: _Connection, origin: Origin, limit_s: float | None
    ) -> None:
        self._transport = transport
        self._connection = connection
        self._origin = origin
        self._limit_s = limit_s
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._connection.read(self._limit_s):
            yield chunk

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._transport.release(self._connection, self._origin)


class _Connection(asyncio.Protocol):
    """One connection and the response that is coming in on it; also its parser's callbacks."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None  # of whoever waits for bytes or for room to write
        self._can_write = True
        self._is_paused = False
        self._error: Exception | None = None
        self._is_lost = False
        self.idle_since = 0.0
        self._begin(is_head=False)
        self._is_complete = True

    def _begin(self, *, is_head: bool) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._is_head_request = is_head
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._has_head = False
        self._is_delimited = False  # by a length or by chunks, not by the connection's end
        self._is_complete = False
        self._keeps_alive = False
        self._left: int | None = None  # of a body with a length: its bytes need no parser
        self._chunks: deque[bytes] = deque()
        self._buffered = 0

    @property
    def is_reusable(self) -> bool:
        """Whether another request can be sent on it."""
        return self._is_complete and not self._is_lost and self._error is None and self._keeps_alive

    def abort(self) -> None:
        """Close it now."""
        self._is_lost = True
        if self._transport is not None:
            self._transport.abort()

    # -- a request -------------------------------------------------------------------------------------------------

    async def send(self, head: bytes, request: httpx.Request, limit_s: float | None) -> None:
        """Write a request. An answer that comes before its end ends the writing."""
        self._begin(is_head=request.method == "HEAD")
        is_chunked = "transfer-encoding" in request.headers
        assert isinstance(request.stream, httpx.AsyncByteStream)
        pending = head
        async for piece in request.stream:
            if not piece:
                continue
            framed = b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece
            for part in _parts(pending, framed):
                self._write(part)
                while not self._can_write and not self._has_head and not self._is_lost:
                    await self._wait(limit_s, httpx.WriteTimeout)
                if self._has_head:
                    self._keeps_alive = False
                    return
            pending = b""
        if is_chunked:
            pending += b"0\r\n\r\n"
        if pending:
            self._write(pending)

    def _write(self, data: bytes | memoryview) -> None:
        if self._is_lost and not self._has_head:
            raise httpx.WriteError("the connection was closed while the request was sent") from self._error
        if self._transport is not None:
            self._transport.write(data)

    async def wait_head(self, limit_s: float | None) -> None:
        """Return when status and headers are there."""
        while not self._has_head:
            self._raise_if_broken()
            await self._wait(limit_s, httpx.ReadTimeout)

    async def read(self, limit_s: float | None) -> bytes:
        """Return the next bytes of the body; empty at its end."""
        while not self._chunks:
            if self._is_complete:
                return b""
            self._raise_if_broken()
            await self._wait(limit_s, httpx.ReadTimeout)
        if len(self._chunks) == 1 or len(self._chunks[0]) >= LARGE_CHUNK_BYTES:
            data = self._chunks.popleft()
        else:
            data = b"".join(self._chunks)
            self._chunks.clear()
        self._buffered -= len(data)
        if self._is_paused and self._transport is not None and not self._is_lost:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    def take_over(self, size: int) -> TakenOver | None:
        """See ``KeepAliveTransport``; from here on this connection is good for nothing but to be closed."""
        transport = self._transport
        if transport is None or self._is_complete or self._is_lost or self._error is not None:
            return None
        if self._left is None or self._buffered + self._left != size or transport.get_extra_info("sslcontext"):
            return None
        if not self._is_paused:
            self._is_paused = True
            transport.pause_reading()
        early = b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        sock.settimeout(None)
        return TakenOver(sock, early, self._left)

    def _raise_if_broken(self) -> None:
        if self._error is not None:
            raise self._error
        if self._is_lost:
            raise httpx.RemoteProtocolError("the server closed the connection without a whole answer")

    async def _wait(self, limit_s: float | None, timed_out: type[httpx.TimeoutException]) -> None:
        waiter = self._waiter = self._loop.create_future()
        timer = None if limit_s is None else self._loop.call_later(limit_s, _expire, waiter, timed_out)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by name

    def data_received(self, data: bytes) -> None:
        if self._is_complete:  # nobody asked for anything
            self.abort()
            return
        if not self._has_head:
            self._head_bytes += len(data)
        try:
            if self._left:
                self._take_plain(data)
            else:
                self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._fail(httpx.RemoteProtocolError(f"not an HTTP/1.1 answer: {exc}"))
        if not self._has_head and self._head_bytes > MAX_HEAD_BYTES:
            self._fail(httpx.RemoteProtocolError(f"the answer's headers are over {MAX_HEAD_BYTES} bytes"))
        if self._buffered > HIGH_WATER_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def _take_plain(self, data: bytes) -> None:
        """Take bytes of a body whose length is known as they are; the parser would copy each."""
        assert self._left is not None
        if len(data) > self._left:  # a second answer to one request
            data = data[: self._left]
            self._keeps_alive = False
        self.on_body(data)
        if not self._left:
            self._is_complete = True

    def eof_received(self) -> None:
        if self._has_head and not self._is_complete and not self._is_delimited:
            self._is_complete = True
        self._is_lost = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and self._has_head and not self._is_complete and not self._is_delimited:
            self._is_complete = True
        self._is_lost = True
        if exc is not None and self._error is None and not self._is_complete:
            self._error = httpx.ReadError(str(exc) or type(exc).__name__)
        self._wake()

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        self._wake()

    def _fail(self, error: Exception) -> None:
        self._error = error
        self.abort()

    # -- the parser's callbacks; what comes after the end of the answer is nobody's ------------------------------------

    def on_message_begin(self) -> None:
        if self._is_complete:  # a second answer to one request
            self._keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_complete:
            return
        self.headers.append((name, value))
        lower = name.lower()
        if lower in (b"content-length", b"transfer-encoding"):
            self._is_delimited = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._is_complete:
            return
        if status < 200:  # 100, 103: the answer itself is still to come
            self.headers = []
            self._is_delimited = False
            return
        self.status = status
        self._has_head = True
        self._is_delimited = self._is_delimited or status in (204, 304)
        self._keeps_alive = self._parser.should_keep_alive()
        lengths = [value for name, value in self.headers if name.lower() in (b"content-length", b"transfer-encoding")]
        if len(lengths) == 1 and lengths[0].isdigit():  # the parser has refused what is ambiguous
            self._left = int(lengths[0])
        if self._is_head_request:  # the parser would wait for the body that the length announces
            self._is_complete = True
            self._keeps_alive = False

    def on_body(self, body: bytes) -> None:
        if self._is_complete:
            return
        self._chunks.append(body)
        self._buffered += len(body)
        if self._left is not None:
            self._left -= len(body)

    def on_message_complete(self) -> None:
        if self._has_head:
            self._is_complete = True


def _expire(waiter: asyncio.Future[None], error: type[httpx.TimeoutException]) -> None:
    if not waiter.done():
        waiter.set_exception(error("no answer in time" if error is httpx.ReadTimeout else "the peer takes no more"))


def _origin(url: httpx.URL) -> Origin:
    scheme = url.scheme
    if scheme not in ("http", "https"):
        raise httpx.UnsupportedProtocol(f"expected http or https, got {scheme!r}")
    return scheme, url.raw_host.decode("ascii"), url.port or (443 if scheme == "https" else 80)


def _head(request: httpx.Request) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%b: %b" % pair for pair in request.headers.raw]
    head = b"\r\n".join(lines)
    if head.count(b"\r") != len(lines) - 1 or head.count(b"\n") != len(lines) - 1 or b"\0" in head:
        raise httpx.LocalProtocolError("the request's line or headers hold a line break or NUL")
    return head + b"\r\n\r\n"


def _parts(head: bytes, body: bytes) -> Iterator[bytes | memoryview]:
    """Yield what to write: together where that is one packet, else views, of which a socket takes what it can."""
    if len(body) <= WRITE_BYTES:
        yield head + body
        return
    if head:
        yield head
    view = memoryview(body)
    for begin in range(0, len(view), WRITE_BYTES):
        yield view[begin : begin + WRITE_BYTES]
