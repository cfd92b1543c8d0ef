"""The HTTP transport against servers that behave, and servers that do not."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from parity_blobs.http_transport import MAX_HEAD_BYTES, WRITE_BYTES, KeepAliveTransport
from parity_market.keys import CERTIFICATE, CERTIFICATE_KEY, make_certificate
from parity_protocol.clock import SystemClock

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """A server whose every connection follows a script."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def peer(talk: Talk) -> AsyncIterator[Peer]:
    made = Peer(talk)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()


@asynccontextmanager
async def client(peer: Peer, *, max_connections: int = 4, timeout_s: float = 5.0) -> AsyncIterator[httpx.AsyncClient]:
    transport = KeepAliveTransport(max_connections=max_connections)
    async with httpx.AsyncClient(base_url=peer.url, transport=transport, timeout=timeout_s, trust_env=False) as made:
        yield made


async def request_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read a request's head and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head, await reader.readexactly(int(line.split(b":")[1]))
    body = b""
    if b"transfer-encoding: chunked" in head.lower():
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    return head, body


def answers(answer: bytes, *, times: int = 100) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(times):
            await request_of(reader)
            writer.write(answer)

    return talk


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        _, body = await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()


async def test_requests_after_one_another_share_a_connection() -> None:
    async with peer(echo) as server, client(server) as http:
        bodies = [(await http.post("/", content=text)).content for text in (b"one", b"", b"three")]

    assert bodies == [b"one", b"", b"three"]
    assert server.connections == 1


async def test_requests_at_once_take_no_more_connections_than_allowed() -> None:
    async with peer(echo) as server, client(server, max_connections=3) as http:
        found = await asyncio.gather(*(http.post("/", content=b"%d" % number) for number in range(30)))

    assert [reply.content for reply in found] == [b"%d" % number for number in range(30)]
    assert server.connections <= 3


async def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    async with peer(answers(OK, times=1)) as server, client(server) as http:
        for _ in range(3):
            assert (await http.get("/")).content == b"ok"
            await asyncio.sleep(0.05)  # the end of the connection arrives

    assert server.connections == 3


async def test_a_large_body_arrives_whole_however_slowly_it_is_read() -> None:
    body = bytes(range(256)) * 40_000  # over the high-water mark

    async with peer(echo) as server, client(server) as http, http.stream("POST", "/", content=body) as reply:
        got = b""
        async for piece in reply.aiter_raw():
            got += piece
            await asyncio.sleep(0)

    assert got == body


@pytest.mark.parametrize("size", [1, WRITE_BYTES, WRITE_BYTES + 1, 9 * WRITE_BYTES + 7])
async def test_an_upload_of_any_size_arrives_whole_at_a_server_that_takes_its_time(size: int) -> None:
    body, came = bytes(range(251)) * (size // 251 + 1), []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        came.append((await request_of(reader))[1])
        writer.write(OK)

    async with peer(talk) as server, client(server) as http:
        answer = await http.put("/", content=body[:size])

    assert answer.content == b"ok"
    assert came == [body[:size]]


async def test_a_streamed_body_is_sent_in_chunks() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one "
        yield b""
        yield b"two"

    async with peer(echo) as server, client(server) as http:
        assert (await http.post("/", content=pieces())).content == b"one two"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    ],
    ids=["chunked", "hints first", "close"],
)
async def test_other_forms_of_an_answer_are_read(answer: bytes) -> None:
    async with peer(answers(answer)) as server, client(server) as http:
        assert [(await http.get("/")).content for _ in range(2)] == [b"ok", b"ok"]


async def test_a_body_without_length_ends_with_the_connection() -> None:
    async with peer(answers(b"HTTP/1.1 200 OK\r\n\r\nok", times=1)) as server, client(server) as http:
        assert (await http.get("/")).content == b"ok"


async def test_the_answer_to_head_has_no_body() -> None:
    async with peer(answers(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")) as server, client(server) as http:
        reply = await http.head("/")

    assert (reply.headers["content-length"], reply.content) == ("9", b"")


async def test_an_early_refusal_ends_an_upload() -> None:
    refused = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(refused)
        await writer.drain()
        await asyncio.sleep(5)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65_536

    async with peer(talk) as server, client(server) as http:
        assert (await http.post("/", content=endless())).status_code == 413


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (2 * MAX_HEAD_BYTES),
    ],
    ids=["nothing", "not HTTP", "too short", "half a chunk", "upgrade", "endless headers"],
)
async def test_a_broken_answer_is_a_transport_error(answer: bytes) -> None:
    async with peer(answers(answer, times=1)) as server, client(server) as http:
        with pytest.raises(httpx.TransportError):
            await http.get("/")


async def test_what_nobody_asked_for_costs_the_connection() -> None:
    async with peer(answers(OK + OK)) as server, client(server) as http:
        assert [(await http.get("/")).content for _ in range(3)] == [b"ok"] * 3

    assert server.connections == 3


async def test_a_silent_server_times_out() -> None:
    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with peer(talk) as server, client(server, timeout_s=0.05) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.get("/")


async def test_waiting_for_a_connection_times_out() -> None:
    async def talk(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with peer(talk) as server, client(server, max_connections=1) as http:
        held = asyncio.create_task(http.get("/"))
        await asyncio.sleep(0.05)
        with pytest.raises(httpx.PoolTimeout):
            await http.get("/", timeout=httpx.Timeout(5.0, pool=0.05))
        held.cancel()


async def test_nobody_there_is_a_connect_error() -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()

    async with httpx.AsyncClient(transport=KeepAliveTransport()) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get(f"http://127.0.0.1:{port}/")


async def test_a_cancelled_request_costs_its_connection_and_frees_its_place() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await request_of(reader)
            if b"/hang" not in head:
                writer.write(OK)

    async with peer(talk) as server, client(server, max_connections=1) as http:
        hanging = asyncio.create_task(http.get("/hang"))
        await asyncio.sleep(0.05)
        hanging.cancel()
        await asyncio.wait([hanging])

        assert (await http.get("/")).content == b"ok"
        assert server.connections == 2


async def test_a_line_break_in_a_header_is_never_sent() -> None:
    async with peer(echo) as server, client(server) as http:
        with pytest.raises(httpx.LocalProtocolError):
            await http.get("/", headers={"x": "a\r\nHost: elsewhere"})


# -- a body in other hands -------------------------------------------------------------------------------------------


async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the first request in two parts, others at once."""
    await request_of(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
    await asyncio.sleep(0.05)
    writer.write(b"-last")
    await reader.read(1)


async def test_a_body_can_be_read_by_other_means() -> None:
    async with peer(slowly) as server, client(server, max_connections=1) as http:
        async with http.stream("GET", "/") as answer:
            taken = answer.extensions["take_over"](10)
            with taken.sock:
                rest = await asyncio.to_thread(taken.sock.recv, taken.left, socket.MSG_WAITALL)
        async with http.stream("GET", "/") as answer:  # the place is free again, on another connection
            assert await answer.aread() == b"first-last"

    assert taken.early + rest == b"first-last"
    assert server.connections == 2


@pytest.mark.parametrize("size", [0, 9, 11])
async def test_a_body_of_another_length_stays(size: int) -> None:
    async with peer(slowly) as server, client(server) as http, http.stream("GET", "/") as answer:
        assert answer.extensions["take_over"](size) is None
        assert await answer.aread() == b"first-last"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",  # it is here already
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok",
    ],
    ids=["whole", "chunked", "no length"],
)
async def test_a_body_that_is_no_plain_stream_stays(answer: bytes) -> None:
    async with peer(answers(answer, times=1)) as server, client(server) as http, http.stream("GET", "/") as came:
        assert came.extensions["take_over"](2) is None
        assert await came.aread() == b"ok"


async def test_a_body_under_tls_stays(tmp_path: Path) -> None:
    make_certificate(tmp_path, "https://127.0.0.1", now=SystemClock().now())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / CERTIFICATE, tmp_path / CERTIFICATE_KEY)
    trust = ssl.create_default_context(cafile=str(tmp_path / CERTIFICATE))
    server = await asyncio.start_server(Peer(slowly).serve, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    transport = KeepAliveTransport(verify=trust)
    async with httpx.AsyncClient(transport=transport) as http, http.stream("GET", url) as answer:
        assert answer.extensions["take_over"](10) is None
        assert await answer.aread() == b"first-last"
    server.close()
