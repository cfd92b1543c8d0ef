"""A transfer that breaks goes on at the next gateway with the next block, and large files travel as they are."""

from __future__ import annotations

import pytest

from parity_blobs.cid import CODEC_DAG_PB, Block, Cid
from parity_blobs.dag_pb import PbLink
from parity_blobs.importer import CHUNK_BYTES, AddOptions
from parity_blobs.memory import MemoryBlobStore
from parity_blobs.plain import MIN_PLAIN_BYTES
from parity_blobs.unixfs import encode_file_node
from parity_protocol.errors import (
    BadDocument,
    DigestMismatch,
    TooLarge,
)

from .sites import LARGE, SMALL, Damage, Net, Site, content, dag_of

pytestmark = pytest.mark.anyio


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
