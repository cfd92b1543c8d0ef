"""A transfer that breaks goes on at the next gateway with the next block; who is asked when; and straight to a file."""

from __future__ import annotations

import fcntl
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from parity_blobs.base import BlobStore
from parity_blobs.car import car_header, car_section_prefix
from parity_blobs.cid import CODEC_DAG_PB, CODEC_RAW, HASH_IDENTITY, Block, Cid
from parity_blobs.dag_pb import PbLink
from parity_blobs.download import partial_path
from parity_blobs.export import iter_dag, iter_file
from parity_blobs.files import add_path
from parity_blobs.gateway import DEFAULT_FETCH_LIMITS, Gateway, TrustlessGateway
from parity_blobs.gateways import MAX_GATEWAYS, PUBLIC_RANK, parse_gateways, sources
from parity_blobs.http_transport import KeepAliveTransport
from parity_blobs.importer import CHUNK_BYTES, DEFAULT_OPTIONS, AddOptions
from parity_blobs.memory import MemoryBlobStore
from parity_blobs.plain import MIN_PLAIN_BYTES
from parity_blobs.testing import deterministic_bytes, in_pieces, write_tree
from parity_blobs.unixfs import encode_file_node
from parity_protocol.errors import (
    BadDocument,
    ConfigInvalid,
    Conflict,
    DigestMismatch,
    Forbidden,
    InvalidInput,
    NotFound,
    ParityError,
    TooLarge,
    Unavailable,
    Unreachable,
)
from parity_protocol.testing.clock import FakeClock

pytestmark = pytest.mark.anyio

SMALL = deterministic_bytes(500, 9 * CHUNK_BYTES + 17)
LARGE = deterministic_bytes(501, MIN_PLAIN_BYTES + 3 * CHUNK_BYTES + 5)
HURRIED = replace(DEFAULT_FETCH_LIMITS, hedge_s=0.01)

Damage = Callable[[str, bytes], bytes]  # from the form and the honest body to what is sent


@dataclass
class Site:
    """A gateway that has one DAG, and may damage or cut what it sends."""

    blocks: list[Block]
    has_car: bool = True
    has_file: bool = True
    has_ranges: bool = True
    damage: Damage | None = None
    cut_at: int | None = None  # bytes of each answer, after which the connection breaks
    status: int = 200

    def answer(self, request: httpx.Request) -> httpx.Response:
        held = {block.cid.key: block.data for block in self.blocks}
        cid = Cid.parse(request.url.path.rpartition("/")[2])
        form = request.url.params.get("format", "file")
        if self.status != 200:
            return httpx.Response(self.status, headers={"retry-after": "60"})
        if cid.key not in held:
            return httpx.Response(404)
        if (form == "car" and not self.has_car) or (form == "file" and not self.has_file):
            return httpx.Response(406)
        status, kind = 200, "application/octet-stream"
        if form == "raw":
            body = held[cid.key]
        elif form == "car":
            kind = "application/vnd.ipld.car; version=1"
            dag = iter_dag(cid, lambda each: held[each.key])
            body = car_header(cid) + b"".join(car_section_prefix(*_measured(block)) + block.data for block in dag)
        else:
            body = b"".join(iter_file(cid, lambda each: held[each.key], max_bytes=1 << 40))
            if self.has_ranges and (start := request.headers.get("range")):
                status, body = 206, body[int(start.removeprefix("bytes=").removesuffix("-")) :]
        if self.damage is not None:
            body = self.damage(form, body)
        return httpx.Response(status, stream=Body(body, self.cut_at), headers={"content-type": kind})


def _measured(block: Block) -> tuple[Cid, int]:
    return block.cid, len(block.data)


class Body(httpx.AsyncByteStream):
    def __init__(self, body: bytes, cut_at: int | None) -> None:
        self._body = body
        self._cut_at = cut_at

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in in_pieces(self._body[: self._cut_at], 50_001):
            yield piece
        if self._cut_at is not None and self._cut_at < len(self._body):
            raise httpx.ReadError("reset by peer")


class Net:
    """Sites by host; notes who was asked for what."""

    def __init__(self, **sites: Site) -> None:
        self.sites = sites
        self.asked: list[tuple[str, str, str]] = []  # host, form, CID

    async def handle(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host.removesuffix(".example")
        form = request.url.params.get("format", "file")
        self.asked.append((host, form, request.url.path.rpartition("/")[2]))
        return self.sites[host].answer(request)

    def client(self, **options: Any) -> TrustlessGateway:
        return TrustlessGateway(
            [f"https://{host}.example" for host in self.sites], transport=httpx.MockTransport(self.handle), **options
        )

    def hosts(self) -> set[str]:
        return {host for host, _, _ in self.asked}


async def dag_of(data: bytes, options: AddOptions = DEFAULT_OPTIONS) -> list[Block]:
    source = MemoryBlobStore()
    return [block async for block in source.blocks(await source.put_bytes(data, options=options))]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def content(store: BlobStore, cid: Cid) -> bytes:
    return b"".join([piece async for piece in store.open(cid, max_bytes=1 << 30)])


# -- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cut_at", [0, 1, 60, 700, 900, 1000, CHUNK_BYTES, CHUNK_BYTES + 950, 5 * CHUNK_BYTES, 2_359_000]
)
@pytest.mark.parametrize("has_car", [True, False], ids=["car", "blocks"])
async def test_a_transfer_cut_anywhere_goes_on_with_the_next_block(cut_at: int, has_car: bool) -> None:
    blocks = await dag_of(SMALL)
    net = Net(broken=Site(blocks, cut_at=cut_at), good=Site(blocks, has_car=has_car))
    store = MemoryBlobStore()
    came: list[int] = []

    async with net.client() as gateway:
        await gateway.fetch_into(blocks[0].cid, store, progress=lambda done, _: came.append(done))

    assert await content(store, blocks[0].cid) == SMALL
    whole = max(0, cut_at - 1000) // (CHUNK_BYTES + 40)  # leaves that certainly came before the cut
    again = [cid for host, form, cid in net.asked if host == "good" and form == "raw"]
    assert not {str(block.cid) for block in blocks[1 : 1 + whole]} & set(again)
    assert came == sorted(came)
    assert came[-1] == len(SMALL)


async def test_a_connection_that_breaks_often_is_used_again_while_it_brings_something() -> None:
    blocks = await dag_of(SMALL)
    net = Net(only=Site(blocks, cut_at=4 * CHUNK_BYTES))
    store = MemoryBlobStore()

    async with net.client() as gateway:
        await gateway.fetch_into(blocks[0].cid, store)

    assert await content(store, blocks[0].cid) == SMALL


async def test_nothing_is_asked_twice_of_a_gateway_that_lied() -> None:
    blocks = await dag_of(SMALL)
    net = Net(
        liar=Site(blocks, damage=lambda form, body: body[: 3 * CHUNK_BYTES] + b"lie" + body[3 * CHUNK_BYTES + 3 :])
    )

    async with net.client() as gateway:
        with pytest.raises(DigestMismatch):
            await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())

    assert len(net.asked) == 1


async def test_content_that_is_wrong_in_itself_is_not_asked_of_others() -> None:
    leaf = Block(Cid.of_block(b"end"), b"end")
    blocks = [leaf]
    for _ in range(40):
        data = encode_file_node([PbLink(blocks[0].cid, "", 3)], [3])
        blocks.insert(0, Block(Cid.of_block(data, codec=CODEC_DAG_PB), data))
    net = Net(one=Site(blocks), two=Site(blocks))

    async with net.client() as gateway:
        with pytest.raises(TooLarge, match="deeper"):
            await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())

    assert net.hosts() == {"one"}


# -- large files as they are -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [AddOptions(1), AddOptions(0), AddOptions(0, raw_leaves=True)], ids=str)
async def test_a_large_file_is_fetched_as_plain_bytes(options: AddOptions) -> None:
    blocks = await dag_of(LARGE, options)
    net = Net(good=Site(blocks))
    store = MemoryBlobStore()

    async with net.client() as gateway:
        stat = await gateway.fetch_into(blocks[0].cid, store)

    assert await content(store, blocks[0].cid) == LARGE
    assert stat.blocks == len(blocks)
    assert [form for _, form, _ in net.asked] == ["car", "file"]


def lie_in_the_file(form: str, body: bytes) -> bytes:
    return body[:5_000_000] + b"lie" + body[5_000_003:] if form == "file" else body


DAMAGES: dict[str, tuple[Damage, type[Exception]]] = {
    "lies": (lie_in_the_file, DigestMismatch),
    "shifts": (lambda form, body: b"x" + body if form == "file" else body, DigestMismatch),
    "stops early": (lambda form, body: body[:3_000_000] if form == "file" else body, BadDocument),
    "goes on": (lambda form, body: body + b"more" if form == "file" else body, BadDocument),
    "sends nothing": (lambda form, body: b"" if form == "file" else body, BadDocument),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_plain_file_that_is_not_right_is_not_believed(damage: str) -> None:
    blocks = await dag_of(LARGE)
    forge, error = DAMAGES[damage]
    store = MemoryBlobStore()

    async with Net(bad=Site(blocks, damage=forge)).client() as gateway:
        with pytest.raises(error):
            await gateway.fetch_into(blocks[0].cid, store)
    assert await store.stat(blocks[0].cid) is None
    async with Net(bad=Site(blocks, damage=forge), good=Site(blocks)).client() as gateway:
        await gateway.fetch_into(blocks[0].cid, store)

    assert await content(store, blocks[0].cid) == LARGE


async def test_a_lie_in_a_file_of_the_old_form_is_found_out_block_by_block() -> None:
    blocks = await dag_of(LARGE, AddOptions(0))
    store = MemoryBlobStore()

    async with Net(bad=Site(blocks, damage=lie_in_the_file)).client() as gateway:
        await gateway.fetch_into(blocks[0].cid, store)

    assert await content(store, blocks[0].cid) == LARGE


@pytest.mark.parametrize("has_ranges", [True, False])
async def test_a_cut_file_goes_on_where_it_broke(has_ranges: bool) -> None:
    blocks = await dag_of(LARGE)
    net = Net(broken=Site(blocks, cut_at=5_000_000), good=Site(blocks, has_ranges=has_ranges))
    store = MemoryBlobStore()

    async with net.client() as gateway:
        await gateway.fetch_into(blocks[0].cid, store)

    assert await content(store, blocks[0].cid) == LARGE
    assert ("good", "file", str(blocks[0].cid)) in net.asked
    assert (sum(host == "good" and form == "raw" for host, form, _ in net.asked) > 5) is not has_ranges


async def test_a_gateway_that_sends_no_files_sends_cars() -> None:
    blocks = await dag_of(LARGE)
    net = Net(trustless=Site(blocks, has_file=False))
    store = MemoryBlobStore()

    async with net.client() as gateway:
        await gateway.fetch_into(blocks[0].cid, store)
        await store.delete(blocks[0].cid)
        before = len(net.asked)
        await gateway.fetch_into(blocks[0].cid, store)

    assert await content(store, blocks[0].cid) == LARGE
    assert [form for _, form, _ in net.asked[before:]] == ["car"]  # it is remembered


async def test_a_file_that_repeats_itself_is_not_fetched_in_full() -> None:
    blocks = await dag_of(bytes(20 * MIN_PLAIN_BYTES))
    net = Net(good=Site(blocks))

    async with net.client() as gateway:
        stat = await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())

    assert stat.size == 20 * MIN_PLAIN_BYTES
    assert [form for _, form, _ in net.asked] == ["car"]


# -- who is asked ----------------------------------------------------------------------------------------------------


async def test_a_gateway_that_does_not_begin_is_raced_by_the_next() -> None:
    blocks = await dag_of(SMALL)
    net = Net(silent=Site(blocks), good=Site(blocks))

    async def handle(request: httpx.Request) -> httpx.Response:
        if request.url.host.startswith("silent"):
            await anyio.sleep_forever()
        return await net.handle(request)

    gateways = ["https://silent.example", "https://good.example"]
    async with TrustlessGateway(gateways, limits=HURRIED, transport=httpx.MockTransport(handle)) as gateway:
        with anyio.fail_after(5):
            await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())

    assert net.hosts() == {"good"}


async def test_an_answer_that_is_not_waited_for_any_more_is_closed() -> None:
    blocks = await dag_of(SMALL)
    net = Net(silent=Site(blocks), good=Site(blocks))
    outer, is_closed = anyio.CancelScope(), False

    class Noted(Body):
        async def aclose(self) -> None:
            nonlocal is_closed
            is_closed = True

    async def handle(request: httpx.Request) -> httpx.Response:
        if request.url.host.startswith("silent"):
            try:
                await anyio.sleep_forever()
            finally:  # the other one has won
                outer.cancel()
        found = await net.handle(request)
        return httpx.Response(200, stream=Noted(b"", None), headers=found.headers)

    gateways = ["https://silent.example", "https://good.example"]
    async with TrustlessGateway(gateways, limits=HURRIED, transport=httpx.MockTransport(handle)) as gateway:
        with outer, anyio.fail_after(5):
            await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())

    assert outer.cancelled_caught
    assert is_closed


async def test_strangers_are_not_asked_while_our_own_may_still_answer() -> None:
    blocks = await dag_of(SMALL)
    net = Net(market=Site(blocks), stranger=Site(blocks))
    slow = anyio.Event()

    async def handle(request: httpx.Request) -> httpx.Response:
        if request.url.host.startswith("market"):
            with anyio.move_on_after(0.1):  # ten times the time after which a peer would be raced
                await slow.wait()
        return await net.handle(request)

    gateways = [Gateway("https://market.example"), *parse_gateways(["https://stranger.example"])]
    async with TrustlessGateway(gateways, limits=HURRIED, transport=httpx.MockTransport(handle)) as gateway:
        await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())
        assert net.hosts() == {"market"}

        net.sites["market"].status = 404
        await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())
        assert net.asked[-1][0] == "stranger"


async def test_strangers_do_not_hear_of_what_our_own_refuses() -> None:
    blocks = await dag_of(SMALL)
    net = Net(market=Site(blocks, status=403), peer=Site([]), stranger=Site(blocks))
    own = [Gateway("https://market.example"), Gateway("https://peer.example")]
    found = [*own, *parse_gateways(["https://stranger.example"])]

    async with TrustlessGateway(found, transport=httpx.MockTransport(net.handle)) as gateway:
        with pytest.raises(Forbidden):
            await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())

    assert net.hosts() == {"market", "peer"}


async def test_the_first_rank_is_asked_again_after_a_stranger_helped() -> None:
    blocks = await dag_of(SMALL)
    net = Net(market=Site(blocks, status=503), stranger=Site(blocks))
    gateways = [Gateway("https://market.example"), Gateway("https://stranger.example", rank=PUBLIC_RANK)]
    clock = FakeClock()

    async with TrustlessGateway(gateways, clock=clock, transport=httpx.MockTransport(net.handle)) as gateway:
        await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())
        net.sites["market"].status = 200
        net.asked.clear()
        await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())

    assert net.hosts() == {"market"}


async def test_a_gateway_that_asks_for_time_gets_it() -> None:
    blocks = await dag_of(SMALL)
    net = Net(busy=Site(blocks, status=429), good=Site(blocks))
    clock = FakeClock()

    async with net.client(clock=clock) as gateway:
        await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())
        busy, good = gateway.health()

        assert busy.benched_s == pytest.approx(60)
        assert good.benched_s == 0
        await clock.advance(timedelta(seconds=59))
        net.asked.clear()
        await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())
        assert net.hosts() == {"good"}


async def test_a_flapping_gateway_comes_after_a_steady_one() -> None:
    blocks = await dag_of(SMALL)
    flapping = Site(blocks)
    net = Net(flapping=flapping, steady=Site(blocks))
    clock = FakeClock()

    async with net.client(clock=clock) as gateway:
        for turn in range(12):
            flapping.status = 500 if turn % 2 else 200
            await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())
            await clock.advance(timedelta(seconds=400))  # every bench is over
        flapping.status = 200
        net.asked.clear()
        await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())
        scores = [each.score for each in gateway.health()]

    assert net.hosts() == {"steady"}
    assert scores[0] < 0.7 < scores[1]


async def test_a_bench_grows_and_ends() -> None:
    blocks = await dag_of(SMALL)
    net = Net(down=Site(blocks, status=500))
    clock = FakeClock()
    pauses = []

    async with net.client(clock=clock) as gateway:
        for _ in range(12):
            with pytest.raises(Unreachable):
                await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())
            pauses.append(gateway.health()[0].benched_s)

    assert pauses[:4] == [2, 4, 8, 16]
    assert max(pauses) == pauses[-1] == 300


async def test_time_that_our_own_disk_takes_is_not_the_gateways() -> None:
    blocks = await dag_of(SMALL)
    clock = FakeClock()
    net = Net(good=Site(blocks))

    async with net.client(clock=clock) as gateway:
        got = 0
        async for block in gateway.stream(blocks[0].cid):
            got += len(block.data)
            await clock.advance(timedelta(seconds=100))

    assert got > len(SMALL)


def test_the_operators_gateways_are_strangers_and_each_mistake_is_named() -> None:
    found = parse_gateways(["https://a.example", "https://b.example/x", "https://a.example"])

    assert [(each.url, each.rank) for each in found] == [
        ("https://a.example", PUBLIC_RANK),
        ("https://b.example/x", PUBLIC_RANK),
    ]
    with pytest.raises(ConfigInvalid) as caught:
        parse_gateways(["http://a.example", "nonsense"])
    assert str(caught.value).count("RUNNER_IPFS_GATEWAYS") == 2
    with pytest.raises(ConfigInvalid, match="at most 16"):
        parse_gateways([f"https://{number}.example" for number in range(MAX_GATEWAYS + 1)])


async def test_market_then_own_kubo_then_strangers() -> None:
    blocks = await dag_of(SMALL[:1000])
    market = Gateway("https://market.example")
    found = sources(market, gateways=["https://stranger.example"], kubo_api="/ip4/127.0.0.1/tcp/5001")
    net = Net(market=Site([]), stranger=Site(blocks))
    asked: list[tuple[str, str]] = []

    async def handle(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, str(request.url.copy_with(query=None))))
        if request.url.port == 5001:
            return httpx.Response(500, json={"Message": "block was not found locally"})
        return await net.handle(request)

    async with TrustlessGateway(found, transport=httpx.MockTransport(handle)) as gateway:
        await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())

    path = f"/ipfs/{blocks[0].cid}"
    assert asked == [
        ("GET", f"https://market.example{path}"),
        ("POST", "http://127.0.0.1:5001/api/v0/block/get"),
        ("GET", f"https://stranger.example{path}"),
    ]
    assert sources(market) == [market]
    assert sources(market, kubo_api="unix:/run/api.sock") == [market]


async def test_a_pinned_certificate_is_one_gateways_own() -> None:
    pinned = ssl.create_default_context()

    async with TrustlessGateway([Gateway("https://market.example", tls=pinned), "https://b.example"]) as gateway:
        own, others = (gateway._http.client(tls)._transport for tls in (pinned, None))

    assert own is not others
    assert isinstance(own, KeepAliveTransport)
    assert isinstance(others, KeepAliveTransport)
    assert own._verify is pinned
    assert others._verify is None  # what the system trusts


async def test_nobody_but_the_operators_gateways_is_ever_asked() -> None:
    blocks = await dag_of(SMALL)
    net = Net(ours=Site(blocks, status=404))

    async def handle(request: httpx.Request) -> httpx.Response:
        answer = await net.handle(request)
        lures = {
            "location": f"https://evil.example/ipfs/{blocks[0].cid}",
            "link": '<https://evil.example>; rel="canonical"',
            "x-ipfs-path": "/ipns/evil.example",
            "alt-svc": 'h2="evil.example:443"',
        }
        answer.headers.update(lures)
        return answer

    for status in (200, 301, 307, 404, 500):
        net.sites["ours"].status = status
        async with TrustlessGateway(["https://ours.example"], transport=httpx.MockTransport(handle)) as gateway:
            with suppress(ParityError):
                await gateway.fetch_into(blocks[0].cid, MemoryBlobStore())

    assert net.hosts() == {"ours"}


# -- straight to a file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [AddOptions(1), AddOptions(0)], ids=str)
@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, len(SMALL), len(LARGE)])
async def test_a_file_comes_out_as_it_went_in(tmp_path: Path, size: int, options: AddOptions) -> None:
    data = deterministic_bytes(502, size)
    blocks = await dag_of(data, options)
    came: list[tuple[int, int | None]] = []

    async with Net(good=Site(blocks)).client() as gateway:
        stat = await gateway.fetch_to(
            blocks[0].cid, tmp_path / "out", max_bytes=size, progress=lambda *now: came.append(now)
        )

    assert (tmp_path / "out").read_bytes() == data
    assert (stat.size, stat.blocks) == (size, len(blocks))
    assert came[-1] == (size, size)
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize(("data", "forms"), [(SMALL, ["raw", "car"]), (LARGE, ["raw", "file"])], ids=["small", "large"])
async def test_a_download_begins_with_the_root_alone(tmp_path: Path, data: bytes, forms: list[str]) -> None:
    blocks = await dag_of(data)
    net = Net(good=Site(blocks))

    async with net.client() as gateway:
        await gateway.fetch_to(blocks[0].cid, tmp_path / "out", max_bytes=len(data))

    assert (tmp_path / "out").read_bytes() == data
    assert [form for _, form, _ in net.asked] == forms


async def test_a_broken_download_is_taken_up_where_it_stands(tmp_path: Path) -> None:
    blocks = await dag_of(LARGE)
    target = tmp_path / "out"
    async with Net(broken=Site(blocks, cut_at=3_000_000)).client() as gateway:
        with pytest.raises(Unreachable):
            await gateway.fetch_to(blocks[0].cid, target, max_bytes=len(LARGE))
    left = partial_path(target).read_bytes()
    kept = len(left)
    starts: list[str] = []
    net = Net(good=Site(blocks))

    async def handle(request: httpx.Request) -> httpx.Response:
        starts.append(request.headers.get("range", ""))
        return await net.handle(request)

    async with TrustlessGateway(["https://good.example"], transport=httpx.MockTransport(handle)) as gateway:
        await gateway.fetch_to(blocks[0].cid, target, max_bytes=len(LARGE))

    assert kept >= 2_500_000
    assert LARGE.startswith(left)
    assert target.read_bytes() == LARGE
    assert starts[-1] == f"bytes={kept}-"
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("kept", [0, 1, 700_000, CHUNK_BYTES, 2 * CHUNK_BYTES + 9], ids=str)
@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.parametrize("options", [AddOptions(1), AddOptions(0)], ids=str)
async def test_what_a_broken_download_left_is_not_believed(
    tmp_path: Path,
    kept: int,
    is_right: bool,
    options: AddOptions,
) -> None:
    blocks = await dag_of(SMALL, options)
    left = SMALL[:kept] if is_right else deterministic_bytes(503, kept)
    partial_path(tmp_path / "out").write_bytes(left)
    net = Net(good=Site(blocks))

    async with net.client() as gateway:
        await gateway.fetch_to(blocks[0].cid, tmp_path / "out", max_bytes=len(SMALL))

    assert (tmp_path / "out").read_bytes() == SMALL
    assert names_in(tmp_path) == ["out"]


async def test_rubbish_in_place_of_a_broken_download_costs_a_request_not_the_speed(tmp_path: Path) -> None:
    blocks = await dag_of(LARGE)
    partial_path(tmp_path / "out").write_bytes(deterministic_bytes(506, 5_000_000))
    net = Net(good=Site(blocks))

    async with net.client() as gateway:
        await gateway.fetch_to(blocks[0].cid, tmp_path / "out", max_bytes=len(LARGE))

    assert (tmp_path / "out").read_bytes() == LARGE
    assert [form for _, form, _ in net.asked] == ["raw", "raw", "file"]  # the root, one leaf, the rest


async def test_a_finished_download_that_was_not_named_needs_only_its_nodes(tmp_path: Path) -> None:
    blocks = await dag_of(SMALL)
    partial_path(tmp_path / "out").write_bytes(SMALL)
    net = Net(good=Site(blocks))

    async with net.client() as gateway:
        await gateway.fetch_to(blocks[0].cid, tmp_path / "out", max_bytes=len(SMALL))

    assert (tmp_path / "out").read_bytes() == SMALL
    assert net.asked == [("good", "raw", str(blocks[0].cid))]


async def test_content_that_repeats_itself_is_written_in_full(tmp_path: Path) -> None:
    data = (bytes(3 * CHUNK_BYTES) + deterministic_bytes(504, CHUNK_BYTES)) * 3 + b"end"
    blocks = await dag_of(data)

    async with Net(good=Site(blocks)).client() as gateway:
        await gateway.fetch_to(blocks[0].cid, tmp_path / "out", max_bytes=len(data))

    assert (tmp_path / "out").read_bytes() == data
    assert names_in(tmp_path) == ["out"]


async def test_nodes_that_repeat_are_copied_not_walked(tmp_path: Path) -> None:
    blocks = [Block(Cid.of_block(b"x"), b"x")]
    for level in range(24):
        data = encode_file_node([PbLink(blocks[0].cid, "", 1)] * 2, [2**level] * 2)
        blocks.insert(0, Block(Cid.of_block(data, codec=CODEC_DAG_PB), data))

    async with Net(good=Site(blocks)).client() as gateway:
        with pytest.raises(TooLarge):
            await gateway.fetch_to(blocks[0].cid, tmp_path / "out", max_bytes=1 << 23)
        await gateway.fetch_to(blocks[0].cid, tmp_path / "out", max_bytes=1 << 24)

    assert (tmp_path / "out").read_bytes() == b"x" * (1 << 24)


async def test_content_inside_a_link_is_written(tmp_path: Path) -> None:
    inline = Cid(1, CODEC_RAW, b"in the name", HASH_IDENTITY)
    leaf = Block(Cid.of_block(b" and not"), b" and not")
    data = encode_file_node([PbLink(inline, "", 11), PbLink(leaf.cid, "", 8)], [11, 8])
    root = Block(Cid.of_block(data, codec=CODEC_DAG_PB), data)

    async with Net(good=Site([root, leaf])).client() as gateway:
        await gateway.fetch_to(root.cid, tmp_path / "out", max_bytes=19)
        await gateway.fetch_to(inline, tmp_path / "inline", max_bytes=11)

    assert (tmp_path / "out").read_bytes() == b"in the name and not"
    assert (tmp_path / "inline").read_bytes() == b"in the name"


async def test_a_folder_comes_out_as_a_folder(tmp_path: Path) -> None:
    tree = {"entries": {"a": {"seed": 1, "size": 10}, "sub": {"entries": {"b": {"seed": 2, "size": 300_000}}}}}
    write_tree(tree, tmp_path / "tree")
    source = MemoryBlobStore()
    stat = await add_path(source, tmp_path / "tree")
    blocks = [block async for block in source.blocks(stat.cid)]

    async with Net(good=Site(blocks)).client() as gateway:
        await gateway.fetch_to(stat.cid, tmp_path / "out", max_bytes=stat.size)

    assert (tmp_path / "out" / "sub" / "b").read_bytes() == deterministic_bytes(2, 300_000)
    assert names_in(tmp_path) == ["out", "tree"]


@pytest.mark.parametrize(
    ("site", "error"),
    [
        (lambda blocks: Site(blocks, damage=lambda form, body: body[:-1] + b"!"), DigestMismatch),
        (lambda blocks: Site([]), NotFound),
        (lambda blocks: Site(blocks, status=403), Forbidden),
    ],
)
async def test_a_download_that_fails_for_good_leaves_nothing(
    tmp_path: Path, site: Callable[[list[Block]], Site], error: type[Exception]
) -> None:
    blocks = await dag_of(deterministic_bytes(505, 100))

    async with Net(bad=site(blocks)).client() as gateway:
        with pytest.raises(error):
            await gateway.fetch_to(blocks[0].cid, tmp_path / "out", max_bytes=1 << 20)

    assert names_in(tmp_path) == []


async def test_a_target_that_exists_is_not_touched(tmp_path: Path) -> None:
    blocks = await dag_of(SMALL)
    (tmp_path / "out").write_bytes(b"mine")
    net = Net(good=Site(blocks))

    async with net.client() as gateway:
        with pytest.raises(InvalidInput, match="exists already"):
            await gateway.fetch_to(blocks[0].cid, tmp_path / "out", max_bytes=len(SMALL))

    assert (tmp_path / "out").read_bytes() == b"mine"
    assert net.asked == []


async def test_two_downloads_to_one_place_do_not_mix(tmp_path: Path) -> None:
    blocks = await dag_of(SMALL)
    other = os.open(partial_path(tmp_path / "out"), os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)

    async with Net(good=Site(blocks)).client() as gateway:
        with pytest.raises(Conflict, match="another process"):
            await gateway.fetch_to(blocks[0].cid, tmp_path / "out", max_bytes=len(SMALL))

    os.close(other)


async def test_a_link_planted_in_place_of_the_partial_file_is_not_followed(tmp_path: Path) -> None:
    blocks = await dag_of(SMALL)
    (tmp_path / "victim").write_bytes(b"precious")
    partial_path(tmp_path / "out").symlink_to(tmp_path / "victim")

    async with Net(good=Site(blocks)).client() as gateway:
        with pytest.raises(Unavailable, match="disk failed"):
            await gateway.fetch_to(blocks[0].cid, tmp_path / "out", max_bytes=len(SMALL))

    assert (tmp_path / "victim").read_bytes() == b"precious"
