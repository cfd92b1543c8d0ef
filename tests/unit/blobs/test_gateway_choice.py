"""Which gateway is asked, when, and after whom: our own first, strangers last, the slow and the wrong benched."""

from __future__ import annotations

import ssl
from contextlib import suppress
from datetime import timedelta

import anyio
import httpx
import pytest

from parity_blobs.gateway import Gateway, TrustlessGateway
from parity_blobs.gateways import MAX_GATEWAYS, PUBLIC_RANK, parse_gateways, sources
from parity_blobs.http_transport import KeepAliveTransport
from parity_blobs.memory import MemoryBlobStore
from parity_protocol.errors import (
    ConfigInvalid,
    Forbidden,
    ParityError,
    Unreachable,
)
from parity_protocol.testing.clock import FakeClock

from .sites import HURRIED, SMALL, Body, Net, Site, dag_of


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
