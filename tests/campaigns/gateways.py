"""A12: eight kinds of faulty gateway, fifty files from each: no wrong byte is accepted, and the next gateway helps soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import parse_qs, urlsplit

from benchmarks.figures import Aim, Figure
from parity_blobs.car import car_header, car_section_prefix
from parity_blobs.cid import CODEC_DAG_PB, CODEC_RAW, Block, Cid
from parity_blobs.export import iter_dag, iter_file
from parity_blobs.gateway import TrustlessGateway
from parity_blobs.importer import AddOptions
from parity_blobs.memory import MemoryBlobStore
from parity_blobs.plain import MIN_PLAIN_BYTES
from parity_blobs.testing import deterministic_bytes
from parity_protocol.errors import ParityError

__all__ = ["FAILOVER_S", "KINDS", "Met", "meet", "run"]

FAILOVER_S = 10.0
FULL, QUICK = 50, 10
SIZES = (0, 1, 5_000, 100_000, 262_144, 262_145, 700_000, 1_500_000)
AT_ONCE = 2  # fetches of each kind, but the slow ones all: what is measured is no queue for this processor
PACE_S = 0.25  # between the drops of a slow one

Writer = asyncio.StreamWriter


@dataclass(frozen=True)
class Sample:
    """A file, its root and its blocks."""

    data: bytes
    root: Cid
    blocks: list[Block]


@dataclass
class Met:
    """What came of the files that met one kind of gateway.

    Attributes:
        wrong: Files whose bytes were not theirs.
        missing: Files that did not come, though an honest gateway had them.
        alone: Of those fetches that had only the faulty gateway, how many ended without an error.
        slowest_s: Longest fetch.
        asked: Requests that the faulty gateway got.
    """

    wrong: int = 0
    missing: int = 0
    alone: int = 0
    slowest_s: float = 0.0
    asked: int = 0


# -- what they send --------------------------------------------------------------------------------------------------


def flip(blocks: list[Block], body: bytes) -> bytes:
    """Change one byte in the middle; of nothing make something."""
    at = len(body) // 2
    return body[:at] + bytes((body[at] ^ 1,)) + body[at + 1 :] if body else b"\0"


def truncate(blocks: list[Block], body: bytes) -> bytes:
    """End early, with a length that agrees."""
    return body[: len(body) * 2 // 3] if body else b"\1"


def reorder(blocks: list[Block], body: bytes) -> bytes:
    """Send the right blocks in the wrong order."""
    if not blocks:
        return body[::-1] if body[::-1] != body else body + b"\2"
    return _car(blocks[0].cid, [*blocks[:1], *blocks[:0:-1]]) if len(blocks) > 2 else _car(blocks[0].cid, blocks * 2)


def add(blocks: list[Block], body: bytes) -> bytes:
    """Send one block, or some bytes, too many."""
    extra = Block(Cid.of_block(b"extra"), b"extra")
    return body + car_section_prefix(extra.cid, 5) + extra.data


def recode(blocks: list[Block], body: bytes) -> bytes:
    """Name blocks by another codec than the links do."""
    if not blocks:
        return b"\x0a" + body
    other = {CODEC_RAW: CODEC_DAG_PB, CODEC_DAG_PB: CODEC_RAW}
    return _car(blocks[0].cid, [Block(Cid(1, other[cid.codec], cid.digest), data) for cid, data in blocks])


async def at_once(writer: Writer, body: bytes) -> None:
    """Send all of it."""
    await _send(writer, 200, body)


async def drop_by_drop(writer: Writer, body: bytes) -> None:
    """Keep the connection alive with a few bytes at a time, as long as anybody listens."""
    writer.write(_head(200, len(body) + 1_000_000))
    for at in range(0, 1_000_000, 10):
        writer.write(body[at : at + 10] or b"\0")
        await writer.drain()
        await asyncio.sleep(PACE_S)


async def for_ever(writer: Writer, body: bytes) -> None:
    """Send what is right, and then never stop."""
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/vnd.ipld.car\r\n\r\n" + body)
    while True:
        writer.write(bytes(1 << 16))
        await writer.drain()


async def elsewhere(writer: Writer, body: bytes) -> None:
    """Point to another place, or say that it is broken, in turn."""
    if len(body) % 2:
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
    else:
        await _send(writer, 500, b"broken")


def _same(blocks: list[Block], body: bytes) -> bytes:
    return body


KINDS: dict[str, tuple[Callable[[list[Block], bytes], bytes], Callable[[Writer, bytes], object]]] = {
    "lying": (flip, at_once),
    "truncating": (truncate, at_once),
    "reordering": (reorder, at_once),
    "extra blocks": (add, at_once),
    "wrong codec": (recode, at_once),
    "slow loris": (_same, drop_by_drop),
    "endless": (_same, for_ever),
    "redirecting or 500": (_same, elsewhere),
}


# -- the campaign ----------------------------------------------------------------------------------------------------


async def run(*, quick: bool) -> list[Figure]:
    """Run the campaign."""
    count = QUICK if quick else FULL
    began = time.perf_counter()
    found = await meet(count)
    took = time.perf_counter() - began
    slowest = max(found, key=lambda kind: found[kind].slowest_s)
    note = f"{len(KINDS)} kinds × {count} files, each alone and beside an honest gateway"
    total = sum(met.alone for met in found.values())
    return [
        Figure(
            "A12 files with wrong bytes", sum(met.wrong for met in found.values()), "files", Aim(0, "at most"), note
        ),
        Figure("A12 files that did not come", sum(met.missing for met in found.values()), "files", Aim(0, "at most")),
        Figure("A12 accepted from a faulty one alone", total, "files", Aim(0, "at most")),
        Figure("A12 slowest failover", found[slowest].slowest_s, "s", Aim(FAILOVER_S, "at most"), slowest),
        Figure("A12 campaign", took, "s", Aim(20, "at most")),
    ]


async def meet(count: int) -> dict[str, Met]:
    """Let ``count`` files meet every kind of faulty gateway, all kinds at once."""
    samples = [await _sample(number) for number in range(count)]
    found = {kind: Met() for kind in KINDS}
    async with asyncio.TaskGroup() as group:
        for kind, met in found.items():
            group.create_task(_meet_one(kind, samples, met))
    return found


async def _meet_one(kind: str, samples: list[Sample], met: Met) -> None:
    forge, send = KINDS[kind]
    async with _site(samples, _same, at_once) as (honest, _), _site(samples, forge, send) as (faulty, asked):
        room = asyncio.Semaphore(2 * len(samples) if send is drop_by_drop else AT_ONCE)

        async def fetch(sample: Sample, gateways: list[str]) -> bool:
            store = MemoryBlobStore()
            try:
                async with TrustlessGateway(gateways) as gateway:  # a new one: no earlier failure is remembered
                    await gateway.fetch_into(sample.root, store)
            except ParityError:
                return False
            data = b"".join([piece async for piece in store.open(sample.root, max_bytes=1 << 30)])
            met.wrong += sha256(data).digest() != sha256(sample.data).digest()
            return True

        async def beside(sample: Sample) -> None:
            async with room:
                began = time.perf_counter()
                met.missing += not await fetch(sample, [faulty, honest])
                met.slowest_s = max(met.slowest_s, time.perf_counter() - began)

        async def alone(sample: Sample) -> None:
            async with room:
                met.alone += await fetch(sample, [faulty])

        async with asyncio.TaskGroup() as group:
            for sample in samples:
                group.create_task(beside(sample))
                group.create_task(alone(sample))
        met.asked = len(asked)


async def _sample(number: int) -> Sample:
    size = MIN_PLAIN_BYTES + 100_000 if number % 25 == 24 else SIZES[number % len(SIZES)]
    data = deterministic_bytes(600 + number, size + number)
    source = MemoryBlobStore()
    root = await source.put_bytes(data, options=AddOptions(number % 2))
    return Sample(data, root, [block async for block in source.blocks(root)])


@asynccontextmanager
async def _site(
    samples: list[Sample], forge: Callable[[list[Block], bytes], bytes], send: Callable[[Writer, bytes], object]
) -> AsyncIterator[tuple[str, list[str]]]:
    """Serve all samples as a gateway on loopback; yield its address and the requests it gets."""
    held = {block.cid.key: block.data for sample in samples for block in sample.blocks}
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: Writer) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):  # the loop's end
            while True:
                target = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
                asked.append(target)
                blocks, body = _honest(held, target)
                sent = send(writer, forge(blocks, body))
                assert asyncio.iscoroutine(sent)
                await sent
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()


def _honest(held: dict[tuple[int, int, bytes], bytes], target: str) -> tuple[list[Block], bytes]:
    """Return the blocks, for a CAR, and the body that a good gateway would send."""
    url = urlsplit(target)
    cid = Cid.parse(url.path.rpartition("/")[2])
    form = parse_qs(url.query).get("format", [""])[0]
    if form == "raw":
        return [], held[cid.key]
    if form == "car":
        blocks = list(iter_dag(cid, lambda each: held[each.key]))
        return blocks, _car(cid, blocks)
    return [], b"".join(iter_file(cid, lambda each: held[each.key], max_bytes=1 << 30))


def _car(root: Cid, blocks: list[Block]) -> bytes:
    return car_header(root) + b"".join(car_section_prefix(cid, len(data)) + data for cid, data in blocks)


def _head(status: int, length: int) -> bytes:
    kind = "application/vnd.ipld.car; version=1"
    return f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n".encode()


async def _send(writer: Writer, status: int, body: bytes) -> None:
    writer.write(_head(status, len(body)))
    writer.write(body)
    await writer.drain()
