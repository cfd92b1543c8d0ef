from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import httpx
import pytest

from parity_blobs.gateway import Gateway, TrustlessGateway
from parity_blobs.importer import cid_of_bytes
from parity_blobs.memory import MemoryBlobStore
from parity_node.cache import DataCache, Uses
from parity_node.data import GatewayInputs, HeaderAuth, MarketInputs
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.signing.http_signatures import parse_signature, sign_request, verify_request
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_ed25519

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = deterministic_ed25519("node")
DATA = b"a,b,label\n1,2,0\n"
CID = str(cid_of_bytes(DATA))


def sign(method: str, path: str, query: str, body: bytes) -> dict[str, str]:
    return sign_request(method, path, query, "market.test", body, key=KEY, keyid="node", now=NOW, nonce="n" * 16)


def serving(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.MockTransport:
    return httpx.MockTransport(answer)


def content(data: bytes) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: httpx.Response(200, stream=httpx.ByteStream(data))


async def fetch(
    answer: Callable[[httpx.Request], httpx.Response], target: Path, *, max_bytes: int = 1_000, cid: str = CID
) -> int:
    gateway = TrustlessGateway(
        [Gateway("https://market.test", HeaderAuth(sign))], transport=serving(answer), clock=FakeClock()
    )
    async with gateway:
        return await GatewayInputs(gateway, MemoryBlobStore(max_bytes=1 << 20)).fetch(cid, target, max_bytes=max_bytes)


async def test_verified_content_is_written(tmp_path):
    size = await fetch(content(DATA), tmp_path / "x")

    assert size == len(DATA)
    assert (tmp_path / "x").read_bytes() == DATA


async def test_each_request_is_signed_by_the_device_key(tmp_path):
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(DATA))

    await fetch(answer, tmp_path / "x")

    (request,) = seen
    path, _, query = request.url.raw_path.decode().partition("?")
    assert path == f"/ipfs/{CID}"
    signature = parse_signature(request.headers)
    verify_request("GET", path, query, "market.test", b"", signature, key=KEY.public_key, now=NOW)


async def test_other_bytes_are_refused_with_both_hashes(tmp_path):
    forged = DATA.replace(b"0\n", b"1\n")

    with pytest.raises(ExecutionFailed) as caught:
        await fetch(content(forged), tmp_path / "x")

    assert caught.value.reason is FailureReason.DIGEST_MISMATCH
    assert hashlib.sha256(DATA).hexdigest() in caught.value.message
    assert hashlib.sha256(forged).hexdigest() in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, FailureReason.DATA_UNAVAILABLE),
        (403, FailureReason.DATA_UNAVAILABLE),
        (500, FailureReason.DATA_UNAVAILABLE),
        (302, FailureReason.DATA_UNAVAILABLE),
    ],
)
async def test_what_the_market_does_not_give_is_nobodys_fault_here(tmp_path, status, reason):
    with pytest.raises(ExecutionFailed) as caught:
        await fetch(lambda request: httpx.Response(status), tmp_path / "x")

    assert caught.value.reason is reason


async def test_a_market_that_is_away_makes_data_unavailable(tmp_path):
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(ExecutionFailed) as caught:
        await fetch(answer, tmp_path / "x")

    assert caught.value.reason is FailureReason.DATA_UNAVAILABLE


async def test_content_over_what_the_spec_allows_is_the_tasks_fault(tmp_path):
    with pytest.raises(ExecutionFailed) as caught:
        await fetch(content(DATA), tmp_path / "x", max_bytes=5)

    assert caught.value.reason is FailureReason.DATA_INVALID
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cid", ["", "not a cid", "/ipfs/" + CID, "Qm" + "1" * 44])
async def test_a_name_that_is_no_cid_is_the_specs_fault(tmp_path, cid):
    with pytest.raises(ExecutionFailed) as caught:
        await fetch(content(DATA), tmp_path / "x", cid=cid)

    assert caught.value.reason is FailureReason.SPEC_INVALID


async def test_the_store_is_opened_by_the_first_input_and_used_by_the_next(tmp_path):
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(DATA))

    folder, clock = tmp_path / "cache", FakeClock()
    cache = DataCache(folder, max_bytes=1 << 20, floor_bytes=0, clock=clock, uses=Uses())
    inputs = MarketInputs("https://market.test", sign=sign, store=cache.store, clock=clock, transport=serving(answer))
    assert not folder.exists()

    await inputs.fetch(CID, tmp_path / "x", max_bytes=1_000)
    await inputs.fetch(CID, tmp_path / "y", max_bytes=1_000)
    await inputs.aclose()
    await inputs.aclose()
    await cache.aclose()

    assert len(requests) == 1
    assert (tmp_path / "y").read_bytes() == DATA


async def test_content_that_two_tasks_need_at_once_is_fetched_once(tmp_path):
    requests: list[httpx.Request] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        await anyio.lowlevel.checkpoint()
        return httpx.Response(200, stream=httpx.ByteStream(DATA))

    gateway = TrustlessGateway(["https://market.test"], transport=httpx.MockTransport(answer), clock=FakeClock())
    async with gateway:
        inputs = GatewayInputs(gateway, MemoryBlobStore(max_bytes=1 << 20))
        async with anyio.create_task_group() as group:
            for name in ("x", "y", "z"):
                group.start_soon(partial(inputs.fetch, CID, tmp_path / name, max_bytes=1_000))

    assert len(requests) == 1
    assert [(tmp_path / name).read_bytes() for name in ("x", "y", "z")] == [DATA] * 3


async def test_a_stranger_is_asked_only_for_what_the_market_has_not_got_and_gets_no_signature(tmp_path):
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if request.url.host == "market.test":
            return httpx.Response(404)
        return httpx.Response(200, stream=httpx.ByteStream(DATA))

    cache = DataCache(tmp_path / "cache", max_bytes=1 << 20, floor_bytes=0, clock=FakeClock(), uses=Uses())
    inputs = MarketInputs(
        "https://market.test",
        sign=sign,
        store=cache.store,
        clock=FakeClock(),
        gateways=("https://stranger.test",),
        transport=serving(answer),
    )

    await inputs.fetch(CID, tmp_path / "x", max_bytes=1_000)
    await inputs.aclose()
    await cache.aclose()

    assert (tmp_path / "x").read_bytes() == DATA
    assert [request.url.host for request in asked] == ["market.test", "stranger.test"]
    assert ["signature" in request.headers for request in asked] == [True, False]
