"""Inputs by https from servers that behave, break off, lie, redirect or point inwards; over real TLS on loopback."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from parity_blobs.https_fetch import DEFAULT_HTTPS_LIMITS, HttpsFetcher, HttpsLimits
from parity_blobs.public_address import connect_public
from parity_market.keys import CERTIFICATE, CERTIFICATE_KEY, make_certificate
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import (
    BadDocument,
    BadField,
    DigestMismatch,
    Forbidden,
    NotFound,
    ParityError,
    PolicyDenied,
    TooLarge,
    Unreachable,
)
from parity_protocol.needs import HttpsInput
from parity_protocol.testing.clock import FakeClock

CONTENT = bytes(range(256)) * 4_000
HOST = "data.example.org"
CLOCK = SystemClock()
LIMITS = replace(DEFAULT_HTTPS_LIMITS, pause_s=0.01, stall_s=0.5, tries=2, max_tries=6)


@dataclass
class Request:
    target: str
    headers: dict[str, str]

    @property
    def first(self) -> int:
        """Where the asked range begins."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(found[1]) if found else 0


Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers with what the test gave; remembers what was asked."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.requests: list[Request] = []
        self.port = 0
        self.names: list[str | None] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            fields = (line.partition(":") for line in head[1:] if line)
            self.requests.append(
                Request(head[0].split()[1], {name.lower(): value.strip() for name, _, value in fields})
            )
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            await answer(self.requests[-1], writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()


@dataclass
class Place:
    server: Server
    fetcher: HttpsFetcher

    def source(self, content: bytes = CONTENT, **changed: object) -> HttpsInput:
        fields = {"url": f"https://{HOST}:{self.server.port}/b/train.csv?X-Amz-Signature=a%2Fb&x=1", **changed}
        return HttpsInput(**{"sha256": sha256(content).hexdigest(), "size": len(content), **fields})  # type: ignore[arg-type]

    async def fetch(self, source: HttpsInput | None = None) -> bytes:
        return b"".join([piece async for piece in self.fetcher.stream(source or self.source())])


@asynccontextmanager
async def serving(
    tmp_path: Path, *answers: Answer, clock: Clock = CLOCK, limits: HttpsLimits = LIMITS
) -> AsyncIterator[Place]:
    make_certificate(tmp_path, f"https://{HOST}", now=SystemClock().now())
    chain, key = tmp_path / CERTIFICATE, tmp_path / CERTIFICATE_KEY
    server = Server(*answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    context.sni_callback = lambda _socket, name, _context: server.names.append(name)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    server.port = listening.sockets[0].getsockname()[1]

    async def resolve(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1"]

    async def connect(host: str, port: int):
        return await connect_public(host, port, resolver=resolve, allow=lambda address: address == "127.0.0.1")

    trust = ssl.create_default_context(cafile=str(chain))
    try:
        async with HttpsFetcher(clock=clock, limits=limits, connect=connect, verify=trust) as fetcher:
            yield Place(server, fetcher)
    finally:
        listening.close()


def whole(content: bytes = CONTENT, *, extra: str = "") -> Answer:
    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n{extra}\r\n".encode() + content)

    return answer


def cut(after: int, *, etag: str = '"v1"') -> Answer:
    """Send the asked range, but only ``after`` bytes of it."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        first = request.first
        writer.write(_head(first, etag) + CONTENT[first : first + after])

    return answer


def ranged(etag: str = '"v1"') -> Answer:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(request.first, etag) + CONTENT[request.first :])

    return answer


def _head(first: int, etag: str) -> bytes:
    size = len(CONTENT)
    head = "206 Partial Content" if first else "200 OK"
    span = f"Content-Range: bytes {first}-{size - 1}/{size}\r\n" if first else ""
    return f"HTTP/1.1 {head}\r\nContent-Length: {size - first}\r\nETag: {etag}\r\n{span}\r\n".encode()


def status(text: str, extra: str = "") -> Answer:
    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {text}\r\nContent-Length: 0\r\n{extra}\r\n".encode())

    return answer


async def too_much(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(64):
        writer.write(b"x" * 65_536)
        await writer.drain()


async def silent(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx")
    await writer.drain()
    await asyncio.sleep(2)


async def test_content_comes_as_it_was_signed(tmp_path: Path) -> None:
    async with serving(tmp_path, whole()) as place:
        assert await place.fetch() == CONTENT

    (request,) = place.server.requests
    assert request.target == "/b/train.csv?X-Amz-Signature=a%2Fb&x=1"
    assert request.headers["host"] == f"{HOST}:{place.server.port}"
    assert request.headers["accept-encoding"] == "identity"
    assert place.server.names == [HOST]


async def test_a_transfer_that_breaks_off_goes_on_where_it_was(tmp_path: Path) -> None:
    async with serving(tmp_path, cut(300_000), cut(1), cut(400_000), ranged()) as place:
        assert await place.fetch() == CONTENT

    assert [request.first for request in place.server.requests] == [0, 300_000, 300_001, 700_001]
    assert place.server.requests[1].headers["if-range"] == '"v1"'


async def test_a_server_without_ranges_sends_it_again(tmp_path: Path) -> None:
    async with serving(tmp_path, cut(300_000), whole()) as place:
        assert await place.fetch() == CONTENT


async def test_a_trickle_after_a_good_start_is_given_up(tmp_path: Path) -> None:
    clock, taken = FakeClock(), asyncio.Event()

    async def trickle(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(0, '"v1"') + CONTENT[:500_000])
        for at in range(500_000, len(CONTENT), 100):
            await taken.wait()  # the fetcher waits for more
            taken.clear()
            await clock.advance(timedelta(seconds=1))
            writer.write(CONTENT[at : at + 100])
            await writer.drain()

    async with serving(tmp_path, trickle, clock=clock, limits=replace(LIMITS, max_tries=1)) as place:

        async def read() -> None:
            async for _ in place.fetcher.stream(place.source()):
                taken.set()

        with pytest.raises(Unreachable, match="slower than 4096 bytes"):
            await read()

    assert clock.monotonic() < 40  # the good start is no credit for minutes that follow


async def test_time_that_our_own_disk_takes_is_not_the_servers(tmp_path: Path) -> None:
    clock, got = FakeClock(), 0

    async with serving(tmp_path, whole(), clock=clock) as place:
        async for piece in place.fetcher.stream(place.source()):
            got += len(piece)
            await clock.advance(timedelta(seconds=100))

    assert got == len(CONTENT)


async def test_content_that_changed_in_between_is_refused_by_its_digest(tmp_path: Path) -> None:
    async with serving(tmp_path, cut(300_000), whole(CONTENT[::-1])) as place:
        with pytest.raises(DigestMismatch):
            await place.fetch()


async def test_a_wrong_digest_names_both_and_no_secret(tmp_path: Path) -> None:
    other = CONTENT[:-1] + b"!"

    async with serving(tmp_path, whole(other)) as place:
        with pytest.raises(DigestMismatch) as caught:
            await place.fetch()

    assert sha256(CONTENT).hexdigest() in caught.value.message
    assert sha256(other).hexdigest() in caught.value.message
    assert "X-Amz-Signature" not in caught.value.message


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (whole(CONTENT + b"x"), TooLarge),
        (whole(CONTENT[:-1]), BadDocument),
        (too_much, TooLarge),
        (whole(extra="Content-Encoding: gzip\r\n"), BadDocument),
        (status("302 Found", "Location: https://169.254.169.254/\r\n"), BadDocument),
        (status("404 Not Found"), NotFound),
        (status("403 Forbidden"), Forbidden),
        (status("503 Busy"), Unreachable),
        (status("206 Partial Content"), Unreachable),
        (silent, Unreachable),
    ],
    ids=["longer", "shorter", "unannounced", "gzip", "redirect", "404", "403", "503", "range unasked", "silent"],
)
async def test_an_answer_that_is_not_the_content_is_refused(
    tmp_path: Path, answer: Answer, error: type[ParityError]
) -> None:
    async with serving(tmp_path, answer) as place:
        with pytest.raises(error) as caught:
            await place.fetch(place.source(b"x" * 10) if answer is silent else None)

    assert type(caught.value) is error
    assert "X-Amz-Signature" not in caught.value.message


async def test_a_range_that_is_another_than_asked_for_is_refused(tmp_path: Path) -> None:
    async def shifted(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(5, '"v1"') + CONTENT[5:])

    async with serving(tmp_path, cut(300_000), shifted) as place:
        with pytest.raises(BadDocument, match="expected the range"):
            await place.fetch()


async def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, whole()) as place:
        with pytest.raises(Unreachable):
            await place.fetch(place.source(url=f"https://other.example.org:{place.server.port}/x"))

    assert not place.server.requests


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1/x", "https://[::1]/x", "https://169.254.169.254/latest/meta-data", "https://10.0.0.1/"]
)
async def test_an_address_that_is_not_public_is_never_connected_to(url: str) -> None:
    source = HttpsInput(url=url, sha256="0" * 64, size=1)

    async with HttpsFetcher(clock=SystemClock()) as fetcher:
        with pytest.raises(PolicyDenied):
            _ = [piece async for piece in fetcher.stream(source)]


@pytest.mark.parametrize("url", ["https://user@example.org/", "https://example.org/ä", "https://example.org/#x"])
async def test_a_url_of_another_kind_is_refused(url: str) -> None:
    source = HttpsInput(url=url, sha256="0" * 64, size=1)

    async with HttpsFetcher(clock=SystemClock()) as fetcher:
        with pytest.raises(BadField):
            _ = [piece async for piece in fetcher.stream(source)]
