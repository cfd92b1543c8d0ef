"""Large downloads on real sockets: what a gateway may do on the way from its socket to the disk past the event loop."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest

from parity_blobs import bulk, gateway_read, importer
from parity_blobs.cid import Block, Cid
from parity_blobs.download import partial_path
from parity_blobs.gateway import DEFAULT_FETCH_LIMITS, FetchLimits, TrustlessGateway
from parity_blobs.importer import CHUNK_BYTES, AddOptions
from parity_blobs.memory import MemoryBlobStore
from parity_blobs.plain import MIN_PLAIN_BYTES
from parity_blobs.testing import deterministic_bytes
from parity_protocol.errors import BadDocument, DigestMismatch, ParityError, StorageFull, TooLarge, Unreachable

pytestmark = pytest.mark.anyio

Writer = asyncio.StreamWriter
Send = Callable[[Writer, bytes], Awaitable[None]]

DATA = deterministic_bytes(700, MIN_PLAIN_BYTES + 9 * CHUNK_BYTES + 5)
CUT_AT = 3_000_000
WHOLE = CUT_AT // CHUNK_BYTES * CHUNK_BYTES  # bytes of the leaves before the cut
FORMS = [AddOptions(1), AddOptions(0)]
PATIENCE_S = 20.0


async def honest(writer: Writer, body: bytes) -> None:
    await send(writer, body)


async def send(writer: Writer, body: bytes, *, length: int | None = None, status: int = 206) -> None:
    length = len(body) if length is None else length
    writer.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n" % (status, length) + body)
    await writer.drain()


@dataclass
class Site:
    """A gateway of one DAG; ``send_file`` says how it sends the plain bytes."""

    blocks: list[Block]
    send_file: Send = honest
    url: str = ""
    starts: list[int] = field(default_factory=list)  # of the requests for plain bytes
    writers: list[Writer] = field(default_factory=list)
    tasks: set[asyncio.Task[None] | None] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.writers.append(writer)
        self.tasks.add(asyncio.current_task())
        held = {str(block.cid): block.data for block in self.blocks}
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                path = urlsplit(head.split(" ")[1])
                cid = path.path.rpartition("/")[2]
                if "format=raw" in path.query:
                    raw = next(data for name, data in held.items() if name.lower() == cid)
                    await send(writer, raw, status=200)
                elif path.query:
                    writer.write(b"HTTP/1.1 406 No\r\nContent-Length: 0\r\n\r\n")
                else:
                    start = int(head.split("range: bytes=")[1].split("-")[0]) if "range: " in head else 0
                    self.starts.append(start)
                    await self.send_file(writer, DATA[start:])
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def sites(*found: Site) -> AsyncIterator[list[str]]:
    servers = [await asyncio.start_server(site.serve, "127.0.0.1", 0, limit=1 << 16) for site in found]
    for site, server in zip(found, servers, strict=True):
        site.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield [site.url for site in found]
    finally:
        for server in servers:
            server.close()
        for writer in (each for site in found for each in site.writers):
            writer.transport.abort()
        await asyncio.wait([task for site in found for task in site.tasks if task], timeout=PATIENCE_S)


@pytest.fixture
async def blocks() -> list[Block]:
    return await dag_of(AddOptions(1))


async def dag_of(options: AddOptions) -> list[Block]:
    source = MemoryBlobStore()
    return [block async for block in source.blocks(await source.put_bytes(DATA, options=options))]


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bulk.Bulk]:
    """Note every connection that was taken over."""
    found: list[bulk.Bulk] = []

    class Noted(bulk.Bulk):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)  # type: ignore[arg-type]  # passed on as they came
            found.append(self)

    monkeypatch.setattr(gateway_read, "Bulk", Noted)
    return found


async def fetch(
    site: Site | Sequence[str],
    target: Path,
    *,
    cid: Cid,
    limits: FetchLimits = DEFAULT_FETCH_LIMITS,
    progress: gateway_read.Progress | None = None,
) -> None:
    urls = [site.url] if isinstance(site, Site) else site
    async with TrustlessGateway(urls, limits=limits) as gateway:
        with anyio.fail_after(PATIENCE_S):
            await gateway.fetch_to(cid, target, max_bytes=len(DATA), progress=progress)


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith(("blob-bulk", "blob-download"))]


@pytest.mark.parametrize("options", FORMS, ids=str)
async def test_a_large_file_goes_past_the_event_loop(
    tmp_path: Path, options: AddOptions, taken: list[bulk.Bulk]
) -> None:
    blocks = await dag_of(options)
    site = Site(blocks)
    came: list[tuple[int, int | None]] = []

    async with sites(site), TrustlessGateway([site.url]) as gateway:
        stat = await gateway.fetch_to(
            blocks[0].cid, tmp_path / "out", max_bytes=len(DATA), progress=lambda *now: came.append(now)
        )

    assert (tmp_path / "out").read_bytes() == DATA
    assert len(taken) == 1
    assert (stat.size, stat.blocks, stat.stored) == (len(DATA), len(blocks), sum(len(each.data) for each in blocks))
    assert came[0] == (0, len(DATA))
    assert [done for done, _ in came[1:]] == [*range(CHUNK_BYTES, len(DATA), CHUNK_BYTES), len(DATA)]
    assert threads() == []


async def test_nodes_between_the_root_and_the_leaves_are_taken_in_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[bulk.Bulk]
) -> None:
    monkeypatch.setattr(importer, "MAX_LINKS", 5)  # 42 leaves below 9 nodes below 2
    blocks = await dag_of(AddOptions(1))
    site = Site(blocks)

    async with sites(site), TrustlessGateway([site.url]) as gateway:
        stat = await gateway.fetch_to(blocks[0].cid, tmp_path / "out", max_bytes=len(DATA))

    assert (tmp_path / "out").read_bytes() == DATA
    assert len(taken) == 1
    assert stat.blocks == len(blocks) == 42 + 9 + 2 + 1


async def lie(writer: Writer, body: bytes) -> None:
    await send(writer, body[: CUT_AT + 1] + bytes((body[CUT_AT + 1] ^ 1,)) + body[CUT_AT + 2 :])


async def test_one_wrong_bit_ends_it_and_is_never_written(
    tmp_path: Path, blocks: list[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, bytes]] = []
    original = bulk.write_at

    def noted(fd: int, parts: Sequence[bytes | memoryview], at: int) -> None:
        written.append((at, b"".join(parts)))
        original(fd, parts, at)

    monkeypatch.setattr(bulk, "write_at", noted)
    site = Site(blocks, lie)

    async with sites(site):
        with pytest.raises(DigestMismatch):
            await fetch(site, tmp_path / "out", cid=blocks[0].cid)

    assert b"".join(data for _, data in sorted(written)) == DATA[:WHOLE]
    assert names_in(tmp_path) == []


async def test_after_a_lie_the_next_gateway_goes_on_with_that_leaf(tmp_path: Path, blocks: list[Block]) -> None:
    liar, other = Site(blocks, lie), Site(blocks)

    async with sites(liar, other) as urls:
        await fetch(urls, tmp_path / "out", cid=blocks[0].cid)

    assert (tmp_path / "out").read_bytes() == DATA
    assert other.starts == [WHOLE]


async def test_a_lie_in_the_old_form_is_found_out_block_by_block(tmp_path: Path) -> None:
    blocks = await dag_of(AddOptions(0))
    site = Site(blocks, lie)

    async with sites(site):
        await fetch(site, tmp_path / "out", cid=blocks[0].cid)

    assert (tmp_path / "out").read_bytes() == DATA


async def cut(writer: Writer, body: bytes) -> None:
    await send(writer, body[:CUT_AT], length=len(body))
    writer.close()


async def reset(writer: Writer, body: bytes) -> None:
    await send(writer, body[:CUT_AT], length=len(body))
    await asyncio.sleep(0.1)  # what was sent would be thrown away too
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize("break_off", [cut, reset])
async def test_a_broken_download_goes_on_with_the_first_leaf_that_is_missing(
    tmp_path: Path, blocks: list[Block], break_off: Send
) -> None:
    site, target = Site(blocks, break_off), tmp_path / "out"

    async with sites(site):
        with pytest.raises(Unreachable):
            await fetch(site, target, cid=blocks[0].cid)
        kept = partial_path(target).read_bytes()
        site.send_file = honest
        await fetch(site, target, cid=blocks[0].cid)

    assert DATA.startswith(kept)
    assert site.starts[:3] == [0, WHOLE, 2 * WHOLE]  # a connection that brought something is worth another try
    assert len(kept) == 3 * WHOLE
    assert site.starts[-1] == len(kept)
    assert target.read_bytes() == DATA


async def too_short(writer: Writer, body: bytes) -> None:
    await send(writer, body[:CUT_AT])


async def too_long(writer: Writer, body: bytes) -> None:
    await send(writer, body + b"more")


@pytest.mark.parametrize("send_file", [too_short, too_long])
async def test_another_length_than_the_file_has_is_refused(
    tmp_path: Path, blocks: list[Block], send_file: Send, taken: list[bulk.Bulk]
) -> None:
    site = Site(blocks, send_file)

    async with sites(site):
        with pytest.raises(BadDocument):
            await fetch(site, tmp_path / "out", cid=blocks[0].cid)

    assert taken == []
    assert names_in(tmp_path) == []


async def test_more_than_is_accepted_is_not_asked_for(tmp_path: Path, blocks: list[Block]) -> None:
    site = Site(blocks)

    async with sites(site), TrustlessGateway([site.url]) as gateway:
        with pytest.raises(TooLarge):
            await gateway.fetch_to(blocks[0].cid, tmp_path / "out", max_bytes=len(DATA) - 1)

    assert site.starts == []


async def silent(writer: Writer, body: bytes) -> None:
    await send(writer, body[:CUT_AT], length=len(body))
    await writer.wait_closed()


async def drops(writer: Writer, body: bytes) -> None:
    await send(writer, body[:CUT_AT], length=len(body))
    for at in range(CUT_AT, len(body), 10):
        writer.write(body[at : at + 10])
        await writer.drain()
        await asyncio.sleep(0.02)


async def steady(writer: Writer, body: bytes) -> None:
    await send(writer, b"", length=len(body))
    for at in range(0, len(body), 50_000):
        writer.write(body[at : at + 50_000])
        await writer.drain()
        await asyncio.sleep(0.02)


SLOW: dict[str, tuple[Send, FetchLimits, str]] = {
    "nothing comes any more": (silent, replace(DEFAULT_FETCH_LIMITS, stall_s=0.3), "nothing came for 0.3 s"),
    "a few bytes at a time": (drops, replace(DEFAULT_FETCH_LIMITS, rate_window_s=0.3), "slower than 16384 bytes"),
    "never done": (steady, replace(DEFAULT_FETCH_LIMITS, total_s=0.5), "not done after 0.5 s"),
}


@pytest.mark.parametrize("how", SLOW)
async def test_a_slow_gateway_is_given_up(
    tmp_path: Path, blocks: list[Block], how: str, taken: list[bulk.Bulk]
) -> None:
    send_file, limits, message = SLOW[how]
    site, target = Site(blocks, send_file), tmp_path / "out"

    async with sites(site):
        with pytest.raises(Unreachable, match=message):
            await fetch(site, target, cid=blocks[0].cid, limits=limits)
        kept = partial_path(target).read_bytes()
        site.send_file = honest
        await fetch(site, target, cid=blocks[0].cid, limits=limits)

    assert kept
    assert DATA.startswith(kept)
    assert target.read_bytes() == DATA
    assert taken
    assert threads() == []


async def test_a_cancelled_download_ends_at_once_and_keeps_what_is_right(tmp_path: Path, blocks: list[Block]) -> None:
    site, target = Site(blocks, silent), tmp_path / "out"

    async with sites(site):
        async with TrustlessGateway([site.url]) as gateway:
            with anyio.fail_after(PATIENCE_S), anyio.CancelScope() as scope:
                await gateway.fetch_to(
                    blocks[0].cid,
                    target,
                    max_bytes=len(DATA),
                    progress=lambda done, _: scope.cancel() if done == WHOLE else None,
                )
        assert scope.cancelled_caught
        assert threads() == []
        assert partial_path(target).read_bytes() == DATA[:WHOLE]
        assert not target.exists()

        site.send_file = honest
        await fetch(site, target, cid=blocks[0].cid)

    assert site.starts == [0, WHOLE]
    assert target.read_bytes() == DATA


async def test_a_full_disk_is_not_the_gateways_fault(
    tmp_path: Path, blocks: list[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, parts: Sequence[bytes | memoryview], at: int) -> None:
        if at >= WHOLE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(fd, parts, at)

    original = bulk.write_at
    site, target = Site(blocks), tmp_path / "out"

    async with sites(site), TrustlessGateway([site.url]) as gateway:
        with monkeypatch.context() as patched:
            patched.setattr(bulk, "write_at", full)
            with pytest.raises(StorageFull):
                await gateway.fetch_to(blocks[0].cid, target, max_bytes=len(DATA))
        assert [each.failures for each in gateway.health()] == [0]
        assert partial_path(target).read_bytes() == DATA[:WHOLE]
        await gateway.fetch_to(blocks[0].cid, target, max_bytes=len(DATA))

    assert target.read_bytes() == DATA
    assert site.starts == [0, WHOLE]


async def chunked(writer: Writer, body: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
    await writer.drain()


async def test_what_comes_in_chunks_goes_the_long_way(
    tmp_path: Path, blocks: list[Block], taken: list[bulk.Bulk]
) -> None:
    site = Site(blocks, chunked)

    async with sites(site):
        await fetch(site, tmp_path / "out", cid=blocks[0].cid)

    assert (tmp_path / "out").read_bytes() == DATA
    assert taken == []


async def test_a_target_that_fails_leaves_the_error_of_its_own(tmp_path: Path, blocks: list[Block]) -> None:
    site = Site(blocks)

    def refuse(done: int, _: int | None) -> None:
        if done == WHOLE:
            raise RuntimeError("the caller's own")

    async with sites(site):
        with pytest.raises(RuntimeError, match="the caller's own") as failed:
            await fetch(site, tmp_path / "out", cid=blocks[0].cid, progress=refuse)

    assert not isinstance(failed.value, ParityError)
    assert threads() == []


async def test_the_kernel_holds_more_for_the_peer_and_hands_out_the_first_byte_at_once() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), PATIENCE_S) as peer,
    ):
        ours, _ = listener.accept()
        with ours:
            ours.settimeout(PATIENCE_S)
            before = ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            bulk.make_room(ours)
            peer.send(b"x")

            assert ours.recv(2) == b"x"
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > before
