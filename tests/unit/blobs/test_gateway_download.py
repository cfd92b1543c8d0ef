"""Content that goes straight to a file: taken up where it broke off, and never believed unread."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from parity_blobs.cid import CODEC_DAG_PB, CODEC_RAW, HASH_IDENTITY, Block, Cid
from parity_blobs.dag_pb import PbLink
from parity_blobs.download import partial_path
from parity_blobs.files import add_path
from parity_blobs.gateway import TrustlessGateway
from parity_blobs.importer import CHUNK_BYTES, AddOptions
from parity_blobs.memory import MemoryBlobStore
from parity_blobs.testing import deterministic_bytes, write_tree
from parity_blobs.unixfs import encode_file_node
from parity_protocol.errors import (
    Conflict,
    DigestMismatch,
    Forbidden,
    InvalidInput,
    NotFound,
    TooLarge,
    Unavailable,
    Unreachable,
)

from .sites import LARGE, SMALL, Net, Site, dag_of, names_in


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
