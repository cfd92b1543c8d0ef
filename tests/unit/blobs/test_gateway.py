"""The trustless-gateway client against gateways that lie, stall, flood, redirect and vanish."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from parity_blobs.base import BlobStore
from parity_blobs.car import car_header, car_section_prefix
from parity_blobs.cid import CODEC_DAG_PB, Block, Cid
from parity_blobs.dag_pb import PbLink
from parity_blobs.export import iter_dag
from parity_blobs.gateway import DEFAULT_FETCH_LIMITS, Gateway, TrustlessGateway
from parity_blobs.importer import CHUNK_BYTES, AddOptions, cid_of_bytes
from parity_blobs.local import LocalBlobStore
from parity_blobs.memory import MemoryBlobStore
from parity_blobs.testing import deterministic_bytes, in_pieces
from parity_blobs.unixfs import encode_file_node
from parity_blobs.verify import DagLimits
from parity_protocol.errors import (
    BadDocument,
    ConfigInvalid,
    DigestMismatch,
    Forbidden,
    NotFound,
    ParityError,
    StorageFull,
    TooLarge,
    Unreachable,
)
from parity_protocol.testing.clock import FakeClock

pytestmark = pytest.mark.anyio

Handler = Callable[[httpx.Request], Awaitable[httpx.Response]]

DATA = deterministic_bytes(100, 4 * CHUNK_BYTES + 11)
CID = cid_of_bytes(DATA)
CAR_TYPE = "application/vnd.ipld.car; version=1"


async def dag() -> list[Block]:
    source = MemoryBlobStore()
    await source.put_bytes(DATA)
    return [block async for block in source.blocks(CID)]


def car_of(blocks: list[Block], root: Cid | None = None) -> bytes:
    sections = b"".join(car_section_prefix(cid, len(data)) + data for cid, data in blocks)
    return car_header(root or blocks[0].cid) + sections


class Body(httpx.AsyncByteStream):
    """A response body that comes piece by piece, and may do anything in between."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._pieces:
            yield piece


def answer(body: bytes, content_type: str = CAR_TYPE, **headers: str) -> httpx.Response:
    return httpx.Response(200, stream=Body(in_pieces(body)), headers={"content-type": content_type, **headers})


class Net:
    """Gateways by host name; notes every request."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.hosts: dict[str, Handler] = {}

    async def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return await self.hosts[request.url.host](request)

    def serve(self, host: str, response: Callable[[], httpx.Response]) -> str:
        async def handler(request: httpx.Request) -> httpx.Response:
            return response()

        self.hosts[host] = handler
        return f"https://{host}"

    def honest(self, host: str, blocks: list[Block], *, has_car: bool = True) -> str:
        """Serve a DAG as a gateway should: any of its blocks, or a CAR of all below it."""
        held = {block.cid.key: block.data for block in blocks}

        async def handler(request: httpx.Request) -> httpx.Response:
            cid = Cid.parse(request.url.path.rpartition("/")[2])
            if cid.key not in held:
                return httpx.Response(404)
            if request.url.params["format"] == "raw":
                return answer(held[cid.key], "application/vnd.ipld.raw")
            if not has_car:
                return httpx.Response(406)
            return answer(car_of(list(iter_dag(cid, lambda each: held[each.key])), cid))

        self.hosts[host] = handler
        return f"https://{host}"

    def client(self, *gateways: Gateway | str, **options: Any) -> TrustlessGateway:
        return TrustlessGateway(gateways, transport=httpx.MockTransport(self.handle), **options)

    def asked(self) -> list[str]:
        return [request.url.host for request in self.requests]


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalBlobStore]:
    async with LocalBlobStore(tmp_path / "store", max_bytes=1 << 26) as opened:
        yield opened
        assert list((tmp_path / "store" / "tmp").iterdir()) == []  # after every test, however it ended


async def fetched(store: BlobStore, cid: Cid = CID) -> bytes:
    return b"".join([piece async for piece in store.open(cid, max_bytes=1 << 30)])


async def test_a_car_is_fetched_verified_and_kept(net: Net, store: LocalBlobStore) -> None:
    blocks = await dag()
    url = net.serve("good.example", lambda: answer(car_of(blocks)))

    async with net.client(url + "/base/") as gateway:
        stat = await gateway.fetch_into(CID, store, pin=True)

    assert (stat.size, stat.is_pinned) == (len(DATA), True)
    assert await fetched(store) == DATA
    (request,) = net.requests
    assert request.url == f"https://good.example/base/ipfs/{CID}?format=car&dag-scope=all"
    assert "order=dfs" in request.headers["accept"]
    assert request.headers["accept-encoding"] == "identity"


async def test_what_is_here_already_is_not_fetched(net: Net, store: LocalBlobStore) -> None:
    await store.put_bytes(DATA)

    async with net.client("https://unused.example") as gateway:
        stat = await gateway.fetch_into(CID, store, pin=True)
        with pytest.raises(TooLarge):
            await gateway.fetch_into(CID, store, max_bytes=100)

    assert stat.is_pinned
    assert net.requests == []


async def test_a_raw_cid_is_one_plain_request(net: Net, store: LocalBlobStore) -> None:
    cid = cid_of_bytes(b"one block")
    url = net.serve("good.example", lambda: answer(b"one block", "application/vnd.ipld.raw"))

    async with net.client(url) as gateway:
        await gateway.fetch_into(cid, store)

    assert [str(request.url) for request in net.requests] == [f"https://good.example/ipfs/{cid}?format=raw"]


@pytest.mark.parametrize("refusal", [400, 406, 501, "html"])
async def test_a_gateway_without_cars_is_asked_block_by_block(
    net: Net, store: LocalBlobStore, refusal: int | str
) -> None:
    held = {str(block.cid): block.data for block in await dag()}

    async def raw_only(request: httpx.Request) -> httpx.Response:
        if request.url.params["format"] == "car":
            return answer(b"<html>", "text/html") if refusal == "html" else httpx.Response(int(refusal))
        return answer(held[request.url.path.removeprefix("/ipfs/")], "application/vnd.ipld.raw")

    net.hosts["raw.example"] = raw_only

    async with net.client("https://raw.example") as gateway:
        await gateway.fetch_into(CID, store)

    assert await fetched(store) == DATA
    assert len(net.requests) == 1 + len(held)


def lying(blocks: list[Block]) -> bytes:
    return car_of([*blocks[:3], Block(blocks[3].cid, b"lie" + blocks[3].data[3:]), *blocks[4:]])


def other_root(blocks: list[Block]) -> bytes:
    return car_of([Block(cid_of_bytes(b"?"), b"?")])


ATTACKS: dict[str, tuple[Callable[[list[Block]], bytes], type[ParityError]]] = {
    "lies about one block": (lying, DigestMismatch),
    "lies about the root": (lambda b: car_of([Block(b[0].cid, b[0].data[:-1] + b"x"), *b[1:]]), DigestMismatch),
    "stops after some blocks": (lambda b: car_of(b[:3]), BadDocument),
    "stops inside a block": (lambda b: car_of(b)[:-10], BadDocument),
    "sends nothing": (lambda b: b"", BadDocument),
    "sends a block too many": (lambda b: car_of([*b, Block(cid_of_bytes(b"?"), b"?")]), BadDocument),
    "sends a block twice": (lambda b: car_of([*b, b[-1]]), BadDocument),
    "reorders": (lambda b: car_of([b[0], b[2], b[1], *b[3:]]), BadDocument),
    "sends another root": (other_root, BadDocument),
    "names another root": (lambda b: car_of(b, cid_of_bytes(b"?")), BadDocument),
    "changes a codec": (
        lambda b: car_of([b[0], Block(Cid(1, CODEC_DAG_PB, b[1].cid.digest), b[1].data), *b[2:]]),
        BadDocument,
    ),
    "sends noise": (lambda b: deterministic_bytes(7, 5000), BadDocument),
    "sends zeros": (lambda b: bytes(5000), BadDocument),
    "adds bytes at the end": (lambda b: car_of(b) + b"\x01", BadDocument),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_hostile_gateway_is_refused_and_the_next_one_asked(
    net: Net, store: LocalBlobStore, attack: str
) -> None:
    blocks = await dag()
    forge, error = ATTACKS[attack]
    bad = net.serve("bad.example", lambda: answer(forge(blocks)))
    good = net.honest("good.example", blocks)

    async with net.client(bad) as alone:
        with pytest.raises(error):
            await alone.fetch_into(CID, store)
    assert await store.stat(CID) is None
    async with net.client(bad, good) as both:
        await both.fetch_into(CID, store)

    assert await fetched(store) == DATA


async def test_a_lie_is_reported_with_both_hashes(net: Net, store: LocalBlobStore) -> None:
    cid = cid_of_bytes(b"expected")
    url = net.serve("bad.example", lambda: answer(b"something else"))

    async with net.client(url) as gateway:
        with pytest.raises(DigestMismatch) as caught:
            await gateway.fetch_into(cid, store)

    assert cid.digest.hex() in caught.value.message
    assert cid_of_bytes(b"something else").digest.hex() in caught.value.message


def deep(levels: int) -> list[Block]:
    blocks = [Block(cid_of_bytes(b"end"), b"end")]
    for _ in range(levels):
        data = encode_file_node([PbLink(blocks[-1].cid, "", 3)], [3])
        blocks.append(Block(Cid.of_block(data, codec=CODEC_DAG_PB), data))
    return blocks[::-1]


async def test_a_deep_dag_is_refused(net: Net, store: LocalBlobStore) -> None:
    blocks = deep(40)
    url = net.serve("deep.example", lambda: answer(car_of(blocks)))

    async with net.client(url) as gateway:
        with pytest.raises(TooLarge, match="deeper than 32"):
            await gateway.fetch_into(blocks[0].cid, store)


async def test_a_repeating_dag_costs_its_blocks_only(net: Net, store: LocalBlobStore) -> None:
    blocks = [Block(cid_of_bytes(b"x"), b"x")]
    for level in range(31):
        data = encode_file_node([PbLink(blocks[-1].cid, "", 1)] * 2, [2**level] * 2)
        blocks.append(Block(Cid.of_block(data, codec=CODEC_DAG_PB), data))
    url = net.serve("bomb.example", lambda: answer(car_of(blocks[::-1])))

    async with net.client(url) as gateway:
        stat = await gateway.fetch_into(blocks[-1].cid, store)

    assert (stat.size, stat.blocks) == (2**31, 32)
    with pytest.raises(TooLarge):
        await anext(store.open(stat.cid, max_bytes=1000))


@pytest.mark.parametrize(
    "dag_limits", [DagLimits(max_bytes=CHUNK_BYTES), DagLimits(max_blocks=3), DagLimits(max_links=2)], ids=str
)
async def test_content_over_a_cap_is_refused(net: Net, store: LocalBlobStore, dag_limits: DagLimits) -> None:
    blocks = await dag()
    url = net.serve("good.example", lambda: answer(car_of(blocks)))

    async with net.client(url, limits=replace(DEFAULT_FETCH_LIMITS, dag=dag_limits)) as gateway:
        with pytest.raises(TooLarge):
            await gateway.fetch_into(CID, store)


async def test_the_callers_cap_is_of_content_and_only_lowers_the_limit(net: Net, store: LocalBlobStore) -> None:
    blocks = await dag()
    url = net.serve("good.example", lambda: answer(car_of(blocks)))
    strict = replace(DEFAULT_FETCH_LIMITS, dag=DagLimits(max_bytes=len(DATA)))

    async with net.client(url, limits=strict) as gateway:
        with pytest.raises(TooLarge):  # the nodes above the content come on top
            await gateway.fetch_into(CID, store, max_bytes=1 << 30)
    async with net.client(url) as gateway:
        for too_few in (100, len(DATA) - 1):
            with pytest.raises(TooLarge):
                await gateway.fetch_into(CID, store, max_bytes=too_few)
            assert await store.stat(CID) is None
        await gateway.fetch_into(CID, store, max_bytes=len(DATA))


async def test_content_that_repeats_itself_counts_each_time(net: Net, store: LocalBlobStore) -> None:
    source = MemoryBlobStore()
    cid = await source.put_bytes(bytes(100 * CHUNK_BYTES))
    blocks = [block async for block in source.blocks(cid)]
    url = net.serve("zeros.example", lambda: answer(car_of(blocks)))

    async with net.client(url) as gateway:
        with pytest.raises(TooLarge, match=f"has {100 * CHUNK_BYTES} bytes"):
            await gateway.fetch_into(cid, store, max_bytes=99 * CHUNK_BYTES, pin=True)

    assert await store.stat(cid) is None


async def test_an_endless_section_is_refused_early(net: Net, store: LocalBlobStore) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield car_header(CID) + car_section_prefix(CID, 2 << 20)
        while True:
            sent += 1 << 16
            yield bytes(1 << 16)

    headers = {"content-type": CAR_TYPE}
    net.serve("endless.example", lambda: httpx.Response(200, stream=Body(endless()), headers=headers))

    async with net.client("https://endless.example") as gateway:
        with pytest.raises((BadDocument, DigestMismatch)):
            await gateway.fetch_into(CID, store)

    assert sent <= 4 << 20


async def test_an_endless_raw_block_is_refused_early(net: Net, store: LocalBlobStore) -> None:
    cid, sent = cid_of_bytes(b"x"), 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 16
            yield bytes(1 << 16)

    net.serve("endless.example", lambda: httpx.Response(200, stream=Body(endless())))

    async with net.client("https://endless.example") as gateway:
        with pytest.raises(BadDocument, match="more than"):
            await gateway.fetch_into(cid, store)

    assert sent <= 3 << 20


async def test_a_trickle_is_given_up(net: Net, store: LocalBlobStore) -> None:
    clock, blocks = FakeClock(), await dag()

    async def trickle() -> AsyncIterator[bytes]:
        car = car_of(blocks)
        for at in range(0, len(car), 1000):
            await clock.advance(timedelta(seconds=1))  # 1000 bytes a second, 16384 are asked for
            yield car[at : at + 1000]

    net.serve("slow.example", lambda: httpx.Response(200, stream=Body(trickle()), headers={"content-type": CAR_TYPE}))
    start = clock.monotonic()

    async with net.client("https://slow.example", clock=clock) as gateway:
        with pytest.raises(Unreachable, match="slower than 16384 bytes"):
            await gateway.fetch_into(CID, store)

    assert clock.monotonic() - start < 20


async def test_the_total_time_is_bounded(net: Net, store: LocalBlobStore) -> None:
    clock, blocks = FakeClock(), await dag()

    async def steady() -> AsyncIterator[bytes]:
        async for piece in in_pieces(car_of(blocks)):
            await clock.advance(timedelta(seconds=1))
            yield piece

    net.serve("slow.example", lambda: httpx.Response(200, stream=Body(steady()), headers={"content-type": CAR_TYPE}))
    limits = replace(DEFAULT_FETCH_LIMITS, total_s=5.0)

    async with net.client("https://slow.example", clock=clock, limits=limits) as gateway:
        with pytest.raises(Unreachable, match="not done after 5 s"):
            await gateway.fetch_into(CID, store)


@pytest.mark.parametrize("problem", [httpx.ConnectError("refused"), httpx.ReadTimeout("stalled")], ids=str)
async def test_a_gateway_that_fails_is_translated(net: Net, store: LocalBlobStore, problem: Exception) -> None:
    async def broken(request: httpx.Request) -> httpx.Response:
        raise problem

    net.hosts["down.example"] = broken

    async with net.client("https://down.example") as gateway:
        with pytest.raises(Unreachable, match=type(problem).__name__) as caught:
            await gateway.fetch_into(CID, store)

    assert caught.value.retryable


async def test_a_connection_lost_half_way_is_translated(net: Net, store: LocalBlobStore) -> None:
    blocks = await dag()

    async def half() -> AsyncIterator[bytes]:
        yield car_of(blocks)[: 2 * CHUNK_BYTES]
        raise httpx.ReadError("reset by peer")

    net.serve("flaky.example", lambda: httpx.Response(200, stream=Body(half()), headers={"content-type": CAR_TYPE}))
    good = net.honest("good.example", blocks)

    async with net.client("https://flaky.example", good) as gateway:
        await gateway.fetch_into(CID, store)

    assert await fetched(store) == DATA


async def test_headers_that_never_end_are_given_up(net: Net, store: LocalBlobStore) -> None:
    async def silent(request: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    net.hosts["silent.example"] = silent

    async with net.client("https://silent.example", limits=replace(DEFAULT_FETCH_LIMITS, headers_s=0.01)) as gateway:
        with pytest.raises(Unreachable, match="TimeoutError"):
            await gateway.fetch_into(CID, store)


async def test_a_kubos_complaint_that_never_ends_is_given_up(net: Net, store: LocalBlobStore) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'{"Message":"'
        await anyio.sleep_forever()

    url = net.serve("kubo.example", lambda: httpx.Response(500, stream=Body(endless())))
    limits = replace(DEFAULT_FETCH_LIMITS, headers_s=0.01)

    async with net.client(Gateway(url, is_kubo_rpc=True), limits=limits) as gateway:
        with anyio.fail_after(10), pytest.raises(Unreachable, match="got 500"):
            await gateway.fetch_into(CID, store)


async def test_one_block_that_fails_ends_the_others(net: Net, store: LocalBlobStore) -> None:
    blocks = await dag()
    held = {str(block.cid): block.data for block in blocks}

    async def partly(request: httpx.Request) -> httpx.Response:
        name = request.url.path.removeprefix("/ipfs/")
        if request.url.params["format"] == "car":
            return httpx.Response(406)
        if name == str(blocks[2].cid):
            return answer(b"lie")
        if name == str(blocks[3].cid):
            await anyio.sleep_forever()
        return answer(held[name]) if name != str(blocks[1].cid) else httpx.Response(500)

    net.hosts["partly.example"] = partly

    async with net.client("https://partly.example") as gateway:
        with pytest.raises(Unreachable, match="got 500"):
            await gateway.fetch_into(CID, store)


async def test_a_redirect_is_not_followed(net: Net, store: LocalBlobStore) -> None:
    moved = httpx.Response(302, headers={"location": "https://elsewhere.example/"})
    net.serve("moved.example", lambda: moved)

    async with net.client("https://moved.example") as gateway:
        with pytest.raises(Unreachable, match="got 302"):
            await gateway.fetch_into(CID, store)

    assert net.asked() == ["moved.example"]


async def test_a_compressed_response_is_refused(net: Net, store: LocalBlobStore) -> None:
    blocks = await dag()
    url = net.serve("zip.example", lambda: answer(car_of(blocks), **{"content-encoding": "gzip"}))

    async with net.client(url) as gateway:
        with pytest.raises(BadDocument, match="compressed"):
            await gateway.fetch_into(CID, store)


async def test_not_found_anywhere_is_not_found(net: Net, store: LocalBlobStore) -> None:
    urls = [net.serve(f"{name}.example", lambda: httpx.Response(404)) for name in ("a", "b")]

    async with net.client(*urls) as gateway:
        with pytest.raises(NotFound, match="on no gateway"):
            await gateway.fetch_into(CID, store)

    assert net.asked() == ["a.example", "b.example"]


async def test_a_refusal_says_forbidden(net: Net, store: LocalBlobStore) -> None:
    url = net.serve("market.example", lambda: httpx.Response(403))

    async with net.client(url) as gateway:
        with pytest.raises(Forbidden):
            await gateway.fetch_into(CID, store)


async def test_a_bad_gateway_is_benched_and_comes_back(net: Net, store: LocalBlobStore) -> None:
    clock, cids = FakeClock(), [cid_of_bytes(bytes((number,))) for number in range(4)]
    contents = {str(cid): bytes((number,)) for number, cid in enumerate(cids)}
    is_broken = True

    async def first(request: httpx.Request) -> httpx.Response:
        return httpx.Response(500) if is_broken else await second(request)

    async def second(request: httpx.Request) -> httpx.Response:
        return answer(contents[request.url.path.removeprefix("/ipfs/")])

    net.hosts |= {"first.example": first, "second.example": second}

    async with net.client("https://first.example", "https://second.example", clock=clock) as gateway:
        await gateway.fetch_into(cids[0], store)
        await gateway.fetch_into(cids[1], store)
        assert net.asked() == ["first.example", "second.example", "second.example"]

        is_broken = False
        await clock.advance(timedelta(seconds=3))
        await gateway.fetch_into(cids[2], store)
        assert net.asked()[3:] == ["first.example"]


async def test_a_benched_gateway_is_still_the_last_resort(net: Net, store: LocalBlobStore) -> None:
    answers = [httpx.Response(500), answer(b"late")]
    url = net.serve("only.example", lambda: answers.pop(0))
    cid = cid_of_bytes(b"late")

    async with net.client(url, clock=FakeClock()) as gateway:
        with pytest.raises(Unreachable):
            await gateway.fetch_into(cid, store)
        await gateway.fetch_into(cid, store)

    assert await fetched(store, cid) == b"late"


async def test_requests_are_signed_for_their_own_gateway_only(net: Net, store: LocalBlobStore) -> None:
    class Sign(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
            request.headers["authorization"] = base64.b64encode(request.url.host.encode()).decode()
            yield request

    blocks = await dag()
    market = net.serve("market.example", lambda: httpx.Response(404))
    public = net.serve("public.example", lambda: answer(car_of(blocks)))

    async with net.client(Gateway(market, Sign()), public) as gateway:
        await gateway.fetch_into(CID, store)

    first, second = net.requests
    assert first.headers["authorization"] == base64.b64encode(b"market.example").decode()
    assert "authorization" not in second.headers


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")

    async with TrustlessGateway(["https://gateway.example"]) as gateway:
        assert not gateway._http.client().trust_env
        assert gateway._http.client()._mounts == {}


async def test_a_full_store_stops_at_once(net: Net, tmp_path: Path) -> None:
    blocks = await dag()
    urls = [net.serve(f"{name}.example", lambda: answer(car_of(blocks))) for name in ("a", "b")]

    async with net.client(*urls) as gateway:
        with pytest.raises(StorageFull):
            await gateway.fetch_into(CID, MemoryBlobStore(max_bytes=1000))

    assert net.asked() == ["a.example"]


@pytest.mark.parametrize(
    "url",
    [
        "http://gateway.example",
        "ftp://gateway.example",
        "gateway.example",
        "",
        "https://",
        "https://user:secret@gateway.example",
        "https://gateway.example/?format=raw",
        "https://gateway.example/#x",
        "http://127.0.0.1.example",
        "http://10.0.0.1",
        "https://" + "x" * 3000,
        "https://[::1",
    ],
)
def test_addresses_that_are_not_safe_are_refused(url: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        TrustlessGateway([url])

    assert "secret" not in str(caught.value)


async def test_plain_http_is_fine_on_loopback() -> None:
    for url in ("http://127.0.0.1:8080", "http://[::1]:8080", "http://localhost:8080/base"):
        async with TrustlessGateway([url]):
            pass


def test_no_gateway_at_all_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="at least one"):
        TrustlessGateway([])


async def test_version_0_content_is_fetched_too(net: Net, store: LocalBlobStore) -> None:
    source = MemoryBlobStore()
    cid = await source.put_bytes(DATA, options=AddOptions(0))
    blocks = [block async for block in source.blocks(cid)]
    url = net.serve("good.example", lambda: answer(car_of(blocks)))

    async with net.client(url) as gateway:
        await gateway.fetch_into(cid, store)

    assert await fetched(store, cid) == DATA
