"""The egress proxy with real sockets. Only what counts as public is widened: to loopback, where the test's servers are."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from parity_node.executors.egress import EgressProxy
from parity_node.executors.egress.proxy import HEAD_S, MAX_CONNECTIONS
from parity_node.executors.egress.relay import IDLE_S
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.needs import Egress
from parity_protocol.testing.clock import FakeClock

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 ready\r\n")
    await reader.read(1)


class Web:
    """An HTTP server that answers every request with what it received."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        body = await reader.readexactly(length)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ngot " + body)


@asynccontextmanager
async def serve(talk: Talk) -> AsyncIterator[int]:
    """Serve on loopback and give the port."""

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(run, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class Zone:
    """A resolver: each name's answers in turn, the last one for ever."""

    def __init__(self, **names: Sequence[Sequence[str]]) -> None:
        self.names = {name.replace("_", "."): list(answers) for name, answers in names.items()}

    async def __call__(self, host: str, _port: int) -> Sequence[str]:
        answers = self.names.get(host, [["127.0.0.1"]])
        return answers.pop(0) if len(answers) > 1 else answers[0]


class Task:
    """A task's side: the proxy's address, and what its log says."""

    def __init__(self, proxy: EgressProxy, log: list[str], address: tuple[str, int]) -> None:
        self.proxy = proxy
        self.log = log
        self._address = address
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self._address)
        self._writers.append(writer)
        return reader, writer

    async def hang_up(self) -> None:
        """Close every connection of the test's and let the loop finish with them."""
        for writer in self._writers:
            writer.close()
        for _ in range(3):
            await asyncio.sleep(0)

    async def tunnel(self, authority: str) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the first line of the answer to a CONNECT, and the streams."""
        reader, writer = await self.open()
        writer.write(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        return head.split(b"\r\n")[0], reader, writer

    async def says(self, request: bytes) -> bytes:
        """Return the whole answer to ``request``."""
        reader, writer = await self.open()
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer


@asynccontextmanager
async def task_with(
    tmp_path: Path,
    *domains: str,
    max_bytes: int = 1 << 20,
    zone: Zone | None = None,
    clock: Clock | None = None,
    allow: Callable[[str], bool] | None = lambda address: address == "127.0.0.1",
) -> AsyncIterator[Task]:
    log: list[str] = []
    proxy = EgressProxy(
        Egress(domains=domains, max_bytes=max_bytes),
        folder=tmp_path,
        on_refusal=log.append,
        execution_id="e1",
        clock=clock or SystemClock(),
        resolver=zone or Zone(),
        allow=allow,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    proxy.attach(listener)
    task = Task(proxy, log, listener.getsockname())
    try:
        yield task
    finally:
        await task.hang_up()
        await proxy.aclose()


async def test_a_granted_host_is_reached_by_a_tunnel(tmp_path: Path) -> None:
    async with serve(echo) as port, task_with(tmp_path, f"example.org:{port}") as task:
        status, reader, writer = await task.tunnel(f"example.org:{port}")
        writer.write(b"hello")
        answer = await reader.readexactly(5)
        writer.write_eof()
        rest = await reader.read()

    assert (status, answer, rest) == (b"HTTP/1.1 200 Connection established", b"hello", b"")
    assert task.proxy.bytes_used == 10
    assert task.log == []


async def test_a_server_that_speaks_first_is_heard(tmp_path: Path) -> None:
    async with serve(greet) as port, task_with(tmp_path, f"example.org:{port}") as task:
        _, reader, writer = await task.tunnel(f"example.org:{port}")

        assert await asyncio.wait_for(reader.readline(), 10) == b"220 ready\r\n"
        writer.close()


@pytest.mark.parametrize(
    "authority", ["example.net:{port}", "example.org:1", "www.example.org:{port}", "example.org:443"]
)
async def test_what_was_not_granted_is_refused_and_named(tmp_path: Path, authority: str) -> None:
    async with serve(echo) as port, task_with(tmp_path, f"example.org:{port}") as task:
        wanted = authority.format(port=port)
        answer = await task.says(f"CONNECT {wanted} HTTP/1.1\r\n\r\n".encode())

    host = wanted.partition(":")[0]
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert f"E-EGRESS {host}: ".encode() in answer
    assert b"granted: example.org" in answer
    assert [line.split(":")[0] for line in task.log] == [f"E-EGRESS {host}"]


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", "169.254.169.254", "2130706433"])
async def test_an_address_is_never_reached(tmp_path: Path, address: str) -> None:
    async with serve(echo) as port, task_with(tmp_path, f"*.example.org:{port}") as task:
        answer = await task.says(f"CONNECT {address}:{port} HTTP/1.1\r\n\r\n".encode())

    assert b"X-Parity-Rule: egress.address\r\n" in answer


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "64:ff9b::a9fe:a9fe"])
async def test_a_granted_name_at_a_private_address_is_refused(tmp_path: Path, address: str) -> None:
    zone = Zone(example_org=[["1.1.1.1", address]])
    async with serve(echo) as port, task_with(tmp_path, f"example.org:{port}", zone=zone, allow=None) as task:
        answer = await task.says(f"CONNECT example.org:{port} HTTP/1.1\r\n\r\n".encode())

    assert b"X-Parity-Rule: egress.private\r\n" in answer
    assert task.log == [
        f"E-EGRESS example.org: example.org is at {address}, which is not a public address (egress.private)"
    ]


async def test_a_name_that_moves_between_two_lookups_reaches_nothing_private(tmp_path: Path) -> None:
    zone = Zone(example_org=[["127.0.0.1"], ["10.0.0.1"]])
    async with serve(echo) as port, task_with(tmp_path, f"example.org:{port}", zone=zone) as task:
        first, _, writer = await task.tunnel(f"example.org:{port}")
        writer.close()
        second = await task.says(f"CONNECT example.org:{port} HTTP/1.1\r\n\r\n".encode())

    assert first.startswith(b"HTTP/1.1 200 ")
    assert b"egress.private" in second


async def test_a_host_that_does_not_answer_is_a_bad_gateway(tmp_path: Path) -> None:
    async with serve(echo) as port:
        pass
    async with task_with(tmp_path, f"example.org:{port}") as task:
        answer = await task.says(f"CONNECT example.org:{port} HTTP/1.1\r\n\r\n".encode())

    assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert "egress.unreachable" in task.log[0]


async def test_both_directions_together_stay_below_the_byte_cap(tmp_path: Path) -> None:
    async with serve(echo) as port, task_with(tmp_path, f"example.org:{port}", max_bytes=100_000) as task:
        _, reader, writer = await task.tunnel(f"example.org:{port}")
        writer.write(b"x" * 80_000)
        got = await asyncio.wait_for(reader.read(), 10)
        later = await task.says(f"CONNECT example.org:{port} HTTP/1.1\r\n\r\n".encode())

    assert len(got) <= 20_000
    assert task.proxy.bytes_used == 100_000
    assert b"egress.max_bytes" in later
    assert task.log[0].startswith("E-EGRESS example.org: the task's 100000 bytes of network")


async def test_the_byte_cap_holds_across_a_restart(tmp_path: Path) -> None:
    async with serve(echo) as port:
        async with task_with(tmp_path, f"example.org:{port}", max_bytes=1_000) as task:
            _, reader, writer = await task.tunnel(f"example.org:{port}")
            writer.write(b"x" * 400)
            await reader.readexactly(400)
        async with task_with(tmp_path, f"example.org:{port}", max_bytes=1_000) as task:
            assert task.proxy.bytes_used == 800
            _, reader, writer = await task.tunnel(f"example.org:{port}")
            writer.write(b"x" * 400)
            await asyncio.wait_for(reader.read(), 10)

    assert task.proxy.bytes_used == 1_000


def hello(name: str | None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    sent = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name).do_handshake()
    return sent.read()


async def test_tls_for_the_granted_host_passes_in_whatever_pieces_it_comes(tmp_path: Path) -> None:
    data = hello("example.org")
    async with serve(echo) as port, task_with(tmp_path, f"example.org:{port}") as task:
        _, reader, writer = await task.tunnel(f"example.org:{port}")
        for at in range(0, len(data), 50):
            writer.write(data[at : at + 50])
            await writer.drain()
            await asyncio.sleep(0)

        assert await asyncio.wait_for(reader.readexactly(len(data)), 10) == data
        writer.close()


async def test_a_front_for_another_host_is_refused_before_a_byte_goes_out(tmp_path: Path) -> None:
    async with serve(echo) as port, task_with(tmp_path, f"example.org:{port}") as task:
        _, reader, writer = await task.tunnel(f"example.org:{port}")
        writer.write(hello("hidden.example"))
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()

    assert answer == bytes.fromhex("15030300020231")  # TLS alert: access denied
    assert task.proxy.bytes_used == 0
    assert "egress.server_name" in task.log[0]


async def test_a_plain_request_reaches_a_host_whose_port_was_granted(tmp_path: Path) -> None:
    web = Web()
    async with serve(web.talk) as port, task_with(tmp_path, f"example.org:{port}") as task:
        answer = await task.says(
            f"POST http://example.org:{port}/p HTTP/1.1\r\nHost: hidden.example\r\nContent-Length: 4\r\n\r\nbody".encode()
        )

    assert answer.endswith(b"\r\n\r\ngot body")
    assert web.heads[0].startswith(b"POST /p HTTP/1.1\r\nHost: example.org:")
    assert b"hidden" not in web.heads[0]


async def test_a_second_request_behind_the_first_goes_nowhere(tmp_path: Path) -> None:
    received = bytearray()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        await writer.drain()
        try:
            received.extend(await asyncio.wait_for(reader.read(), 0.2))
        except TimeoutError:
            return

    async with serve(keep) as port, task_with(tmp_path, f"example.org:{port}") as task:
        one = f"GET http://example.org:{port}/1 HTTP/1.1\r\n\r\n".encode()
        await task.says(one + b"GET /2 HTTP/1.1\r\nHost: hidden.example\r\n\r\n")

    assert b"hidden" not in received


async def test_plain_http_without_its_port_in_the_grant_is_refused(tmp_path: Path) -> None:
    async with task_with(tmp_path, "example.org") as task:
        answer = await task.says(b"GET http://example.org/ HTTP/1.1\r\n\r\n")

    assert b"egress.domains" in answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", b"400"),
        (b"X: " + b"a" * 20_000, b"431"),
        (b"\x05\x01\x00\r\n\r\n", b"400"),
    ],
)
async def test_what_is_no_proxy_request_is_answered_and_closed(
    tmp_path: Path, request_bytes: bytes, status: bytes
) -> None:
    async with task_with(tmp_path, "example.org") as task:
        answer = await task.says(request_bytes)

    assert answer.split(b" ")[1] == status


async def test_a_silent_tunnel_is_closed(tmp_path: Path) -> None:
    clock = FakeClock()
    async with serve(echo) as port, task_with(tmp_path, f"example.org:{port}", clock=clock) as task:
        _, reader, writer = await task.tunnel(f"example.org:{port}")
        await clock.advance(timedelta(seconds=IDLE_S + 1))

        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_more_connections_than_allowed_wait_for_a_free_place(tmp_path: Path) -> None:
    async with serve(echo) as port, task_with(tmp_path, f"example.org:{port}") as task:
        held = [await task.tunnel(f"example.org:{port}") for _ in range(MAX_CONNECTIONS)]
        waiting = asyncio.create_task(task.tunnel(f"example.org:{port}"))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        held[0][2].close()
        status, _, _ = await asyncio.wait_for(waiting, 10)

    assert not done
    assert status.startswith(b"HTTP/1.1 200 ")


async def test_closing_the_proxy_ends_its_connections(tmp_path: Path) -> None:
    async with serve(echo) as port, task_with(tmp_path, f"example.org:{port}") as task:
        _, reader, writer = await task.tunnel(f"example.org:{port}")
        await task.proxy.aclose()
        await task.proxy.aclose()

        assert await asyncio.wait_for(reader.read(), 10) == b""
        with pytest.raises(ConnectionError):
            await task.open()
        writer.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
async def test_a_proxy_that_was_closed_leaves_no_descriptor(tmp_path: Path) -> None:
    async with serve(echo) as port:
        before = descriptors()
        async with task_with(tmp_path, f"example.org:{port}") as task:
            task.proxy.hand_over()
            for _ in range(20):
                _, reader, writer = await task.tunnel(f"example.org:{port}")
                writer.write(b"x")
                await reader.readexactly(1)
                await task.says(b"GET / HTTP/1.1\r\n\r\n")
            during = descriptors()
        async with asyncio.timeout(10):
            while descriptors() > before:  # noqa: ASYNC110 - the echo server's side of each
                await asyncio.sleep(0.01)

    assert during > before + 40


async def test_a_task_that_says_nothing_holds_a_connection_for_a_bounded_time(tmp_path: Path) -> None:
    clock = FakeClock()
    async with task_with(tmp_path, "example.org", clock=clock) as task:
        reader, writer = await task.open()
        writer.write(b"CONNECT example.org")
        for _ in range(10):
            await asyncio.sleep(0.01)
        await clock.advance(timedelta(seconds=HEAD_S + 1))

        assert b"no request within" in await asyncio.wait_for(reader.read(), 10)


async def test_the_nodes_own_proxy_settings_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serve(echo) as port, task_with(tmp_path, f"example.org:{port}") as task:
        status, _, writer = await task.tunnel(f"example.org:{port}")
        writer.close()

    assert status.startswith(b"HTTP/1.1 200 ")
