"""The verifier and the CAR reader under attack: every lie ends in an error, and never in a complete DAG."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_blobs.car import CarReader, car_header, car_section_prefix, write_car
from parity_blobs.cid import CODEC_DAG_PB, CODEC_RAW, HASH_IDENTITY, Block, Cid
from parity_blobs.dag_pb import PbLink
from parity_blobs.export import iter_dag, iter_file, list_directory, measure_dag, resolve_path, split_path
from parity_blobs.importer import CHUNK_BYTES, DEFAULT_OPTIONS, AddOptions, Entry, FileImporter, build_directory
from parity_blobs.testing import deterministic_bytes
from parity_blobs.unixfs import Kind, encode_directory, encode_file_node, encode_leaf
from parity_blobs.verify import DEFAULT_LIMITS, CheckedLeaf, DagLimits, DagVerifier, Order, check_block
from parity_protocol.errors import (
    BadCid,
    BadDocument,
    DigestMismatch,
    InvalidInput,
    NotFound,
    ParityError,
    TooLarge,
)

CAR_CASES = json.loads((Path(__file__).parents[2] / "vectors" / "unixfs" / "car.json").read_text())["cases"]
FILE = deterministic_bytes(50, 3 * CHUNK_BYTES + 9)


def node(links: list[PbLink], sizes: list[int]) -> Block:
    data = encode_file_node(links, sizes)
    return Block(Cid.of_block(data, codec=CODEC_DAG_PB), data)


def leaf(data: bytes) -> Block:
    return Block(Cid.of_block(data), data)


def folder(**entries: Block) -> Block:
    data = encode_directory([PbLink(block.cid, name, len(block.data)) for name, block in sorted(entries.items())])
    return Block(Cid.of_block(data, codec=CODEC_DAG_PB), data)


def link(block: Block) -> PbLink:
    return PbLink(block.cid, "", len(block.data))


def file_dag(data: bytes = FILE, options: AddOptions = DEFAULT_OPTIONS) -> list[Block]:
    """Return the blocks of a file, depth first."""
    importer = FileImporter(options)
    blocks = importer.feed(data)
    done = importer.finish()
    held = {block.cid: block.data for block in (*blocks, *done.blocks)}
    return list(iter_dag(done.cid, held.__getitem__))


def verify(blocks: list[Block], order: Order = Order.DFS, limits: DagLimits = DEFAULT_LIMITS) -> DagVerifier:
    verifier = DagVerifier(blocks[0].cid, limits, order=order)
    for block in blocks:
        verifier.add(block)
    return verifier


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("options", [AddOptions(0), AddOptions(1), AddOptions(0, raw_leaves=True)])
def test_a_whole_file_is_accepted(order: Order, options: AddOptions) -> None:
    blocks = file_dag(FILE, options)

    done = verify(blocks, order).finish()

    assert (done.kind, done.size, done.blocks) == (Kind.FILE, len(FILE), len(blocks))
    assert done.stored == sum(len(block.data) for block in blocks)


@pytest.mark.parametrize("order", Order)
def test_every_missing_block_is_noticed(order: Order) -> None:
    blocks = file_dag()
    for gone in range(1, len(blocks)):
        with pytest.raises(BadDocument):
            verify(blocks[:gone] + blocks[gone + 1 :], order).finish()


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("flipped", range(5))
def test_a_changed_bit_is_refused_with_both_hashes(order: Order, flipped: int) -> None:
    blocks = file_dag()
    cid, data = blocks[flipped]
    blocks[flipped] = Block(cid, bytes((data[0] ^ 1,)) + data[1:])

    with pytest.raises(
        DigestMismatch, match=f"{cid.digest.hex()}.*got sha2-256|{cid.digest.hex()}, got [0-9a-f]{{64}}"
    ):
        verify([Block(blocks[0].cid, blocks[0].data), *blocks[1:]], order)


@pytest.mark.parametrize("order", Order)
def test_a_block_nobody_links_to_is_refused(order: Order) -> None:
    blocks = file_dag()

    for at in range(1, len(blocks) + 1):
        with pytest.raises(BadDocument):
            verify([*blocks[:at], leaf(b"extra"), *blocks[at:]], order).finish()


@pytest.mark.parametrize("order", Order)
def test_a_block_that_comes_twice_is_refused(order: Order) -> None:
    blocks = file_dag()

    with pytest.raises(BadDocument):
        verify([*blocks, blocks[-1]], order)


def test_depth_first_refuses_another_order_at_once() -> None:
    blocks = file_dag()
    verifier = DagVerifier(blocks[0].cid)
    verifier.add(blocks[0])

    with pytest.raises(BadDocument, match="expected block"):
        verifier.add(blocks[2])


@given(st.randoms(use_true_random=False))
def test_tolerant_orders_accept_what_they_promise(random: Any) -> None:
    head, *rest = file_dag(deterministic_bytes(51, 5 * CHUNK_BYTES))
    random.shuffle(rest)

    assert verify([head, *rest], Order.PARENTS_FIRST).finish().size == 5 * CHUNK_BYTES
    everything = DagVerifier(head.cid, order=Order.ANY)
    for block in random.sample([head, *rest], len(rest) + 1):
        everything.add(block)
    assert everything.finish().size == 5 * CHUNK_BYTES


def test_children_before_their_parent_are_refused_when_parents_come_first() -> None:
    blocks = file_dag()
    verifier = DagVerifier(blocks[0].cid, order=Order.PARENTS_FIRST)

    with pytest.raises(BadDocument, match="not asked for"):
        verifier.add(blocks[1])


@pytest.mark.parametrize("order", Order)
def test_repeated_content_is_sent_once_and_counted_each_time(order: Order) -> None:
    blocks = file_dag(bytes(200 * CHUNK_BYTES))

    done = verify(blocks, order).finish()

    assert done.size == 200 * CHUNK_BYTES
    assert done.blocks == len(blocks) == 4  # one leaf, two nodes of different length, one root


def test_the_wrong_codec_for_the_same_bytes_is_refused() -> None:
    blocks = file_dag(FILE, AddOptions(0))
    blocks[1] = Block(Cid(1, CODEC_RAW, blocks[1].cid.digest), blocks[1].data)

    with pytest.raises(BadDocument, match="expected block"):
        verify(blocks)


def test_sizes_that_do_not_add_up_are_refused() -> None:
    short = leaf(b"four")
    root = node([link(short)], [5])

    with pytest.raises(BadDocument, match="claims 5 bytes"):
        verify([root, short]).finish()


def test_a_directory_inside_a_file_is_refused() -> None:
    inner = folder()
    root = node([link(inner)], [1])

    with pytest.raises(BadDocument, match="directory as its piece"):
        verify([root, inner]).finish()


def chain(length: int) -> list[Block]:
    blocks = [leaf(b"end")]
    for _ in range(length):
        blocks.append(node([link(blocks[-1])], [3]))
    return blocks[::-1]


@pytest.mark.parametrize("order", Order)
def test_a_chain_at_the_depth_limit_passes_and_one_link_more_does_not(order: Order) -> None:
    verify(chain(10), order, DagLimits(max_depth=10)).finish()

    with pytest.raises(TooLarge, match="deeper than 10"):
        verify(chain(11), order, DagLimits(max_depth=10)).finish()


@pytest.mark.parametrize("order", [Order.PARENTS_FIRST, Order.ANY])
def test_depth_cannot_be_hidden_behind_short_ways(order: Order) -> None:
    links = chain(12)
    top = folder(**{f"n{number:02}": block for number, block in enumerate(links)})  # each is one step from the root

    with pytest.raises(TooLarge, match="deeper than 10"):
        verify([top, *links], order, DagLimits(max_depth=10)).finish()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (DagLimits(max_bytes=len(FILE)), "bytes of blocks"),
        (DagLimits(max_blocks=4), "more than 4 blocks"),
        (DagLimits(max_links=3), "more than 3 links"),
        (DagLimits(max_block_bytes=CHUNK_BYTES - 1), f"has {CHUNK_BYTES} bytes"),
    ],
)
def test_every_budget_is_kept(limits: DagLimits, words: str) -> None:
    with pytest.raises(TooLarge, match=words):
        verify(file_dag(), limits=limits)


def bomb(levels: int) -> list[Block]:
    """Return a file that doubles with each level and yet has one block a level."""
    blocks, size = [leaf(b"x")], 1
    for _ in range(levels):
        blocks.append(node([link(blocks[-1])] * 2, [size] * 2))
        size *= 2
    return blocks[::-1]


def test_a_doubling_dag_costs_its_blocks_only() -> None:
    blocks = bomb(30)

    assert verify(blocks).finish().size == 2**30
    held = {block.cid: block.data for block in blocks}
    with pytest.raises(TooLarge, match="at most 1000"):
        next(iter_file(blocks[0].cid, held.__getitem__, max_bytes=1000))


def test_content_inside_links_needs_no_block() -> None:
    inside = Cid(1, CODEC_RAW, b"inline", HASH_IDENTITY)
    tail = leaf(b" and hashed")
    root = node([PbLink(inside, "", 6), link(tail)], [6, 11])

    done = verify([root, tail]).finish()

    assert (done.size, done.blocks) == (17, 2)
    held = {root.cid: root.data, tail.cid: tail.data}
    assert b"".join(iter_file(root.cid, held.__getitem__, max_bytes=17)) == b"inline and hashed"
    assert measure_dag(root.cid, held.__getitem__, lambda cid: len(held[cid])) == (Kind.FILE, 17, done.stored, 2)


def test_a_block_for_content_inside_a_link_is_refused() -> None:
    inside = Cid(1, CODEC_RAW, b"inline", HASH_IDENTITY)
    root = node([PbLink(inside, "", 6)], [6])

    with pytest.raises(BadDocument, match="holds its content itself"):
        verify([root, Block(inside, b"inline")])


def test_an_inline_root_is_complete_and_one_with_links_is_refused() -> None:
    assert DagVerifier(Cid(1, CODEC_RAW, b"inline", HASH_IDENTITY)).finish().size == 6

    with pytest.raises(BadCid, match="links in itself"):
        DagVerifier(Cid(1, CODEC_DAG_PB, node([link(leaf(b"x"))], [1]).data, HASH_IDENTITY))


def test_a_malformed_inline_node_is_refused() -> None:
    inside = Cid(1, CODEC_DAG_PB, b"garbage", HASH_IDENTITY)
    root = node([PbLink(inside, "", 1)], [1])

    with pytest.raises(BadDocument):
        verify([root])


def test_wanted_names_what_is_missing_without_repeats() -> None:
    blocks = file_dag(bytes(3 * CHUNK_BYTES))
    for order in (Order.DFS, Order.PARENTS_FIRST):
        verifier = DagVerifier(blocks[0].cid, order=order)

        assert verifier.wanted(8) == [blocks[0].cid]
        verifier.add(blocks[0])
        assert verifier.wanted(8) == [blocks[1].cid]
        assert not verifier.is_complete
        verifier.add(blocks[1])
        assert verifier.wanted(8) == []
        assert verifier.is_complete


def test_check_block_compares_the_hash_and_nothing_else() -> None:
    check_block(Cid.of_block(b"a", codec=CODEC_DAG_PB), b"a")
    with pytest.raises(DigestMismatch):
        check_block(Cid.of_block(b"a"), b"b")


# -- paths and listings ----------------------------------------------------------------------------------------------


def test_paths_lead_through_folders() -> None:
    file = leaf(b"content")
    inner = folder(file=file)
    outer = folder(inner=inner, other=leaf(b"?"))
    held = {block.cid: block.data for block in (file, inner, outer)}
    root, segments = split_path(f"/ipfs/{outer.cid}/inner/file/")

    assert resolve_path(root, segments, held.__getitem__) == file.cid
    assert [entry.name for entry in list_directory(outer.cid, held.__getitem__)] == ["inner", "other"]
    with pytest.raises(NotFound, match="no 'gone'"):
        resolve_path(root, ("inner", "gone"), held.__getitem__)
    with pytest.raises(InvalidInput, match="is a file"):
        resolve_path(root, ("inner", "file", "below"), held.__getitem__)
    with pytest.raises(InvalidInput, match="is a directory"):
        next(iter_file(inner.cid, held.__getitem__, max_bytes=10))


@pytest.mark.parametrize("rest", ["/..", "/a//b", "/.", "/a/../b", "/" + "n" * 300, "/x" * 65])
def test_paths_that_leave_the_content_are_refused(rest: str) -> None:
    with pytest.raises((BadDocument, TooLarge)):
        split_path(str(leaf(b"").cid) + rest)


def test_a_reader_that_is_lied_to_about_sizes_stops() -> None:
    short = leaf(b"four")
    root = node([link(short), link(short)], [4, 5])
    held = {short.cid: short.data, root.cid: root.data}

    with pytest.raises(BadDocument, match="not a file of 5 bytes"):
        list(iter_file(root.cid, held.__getitem__, max_bytes=100))


# -- CAR -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CAR_CASES, ids=lambda case: case["flags"])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_car_from_kubo_is_read_verified_and_written_back_the_same(case: dict[str, Any], step: int) -> None:
    car = bytes.fromhex(case["car_hex"])
    reader = CarReader()
    blocks = [block for at in range(0, len(car), step) for block in reader.feed(car[at : at + step])]
    reader.finish()

    assert reader.roots == (Cid.parse(case["root"]),)
    assert verify(blocks).finish().kind is Kind.DIRECTORY
    held = {block.cid.key: block.data for block in blocks}
    ours = list(iter_dag(blocks[0].cid, lambda cid: held[cid.key]))
    assert car == car_header(blocks[0].cid) + b"".join(car_section_prefix(c, len(d)) + d for c, d in ours)


async def collect(blocks: list[Block]) -> bytes:
    async def source() -> Any:
        for block in blocks:
            yield block

    return b"".join([piece async for piece in write_car(blocks[0].cid, source())])


@pytest.mark.anyio
async def test_a_car_goes_round() -> None:
    blocks = file_dag()
    reader = CarReader()

    assert reader.feed(await collect(blocks)) == blocks
    reader.finish()


@pytest.mark.anyio
async def test_a_car_cut_off_anywhere_is_noticed() -> None:
    car = await collect(file_dag(b"small" * 20))
    header = len(car_header(Cid.of_block(b"")))

    for end in [*range(header), *range(header + 1, len(car))]:
        reader = CarReader()
        reader.feed(car[:end])
        with pytest.raises(BadDocument, match="cut off"):
            reader.finish()


def read_all(car: bytes) -> CarReader:
    reader = CarReader()
    reader.feed(car)
    reader.finish()
    return reader


ROOT = Cid.of_block(b"")
HEADER = car_header(ROOT)


@pytest.mark.parametrize(
    "car",
    [
        b"\x00",
        b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80",
        b"\x85\x00" + b"x" * 5,  # padded length
        b"\xff\xff\x7f",  # a header of 2 MiB
        b"\x05hello",
        HEADER.replace(b"version\x01", b"version\x02"),
        HEADER.replace(b"roots", b"Roots"),
        HEADER.replace(b"\xd8\x2a", b"\xd8\x2b"),
        HEADER.replace(b"\x58\x25\x00", b"\x58\x25\x01"),
        HEADER.replace(b"\x81\xd8", b"\x80\xd8"),
        HEADER.replace(b"\x81\xd8", b"\x82\xd8"),
        HEADER.replace(bytes(ROOT)[:3], b"\x01\x71\x12"),
        HEADER + b"\x00",
        HEADER + b"\x04\x01\x55\x12\x20",
        HEADER + b"\x03abc",
    ],
)
def test_malformed_cars_are_refused(car: bytes) -> None:
    with pytest.raises(BadDocument):
        read_all(car + bytes(20))


def test_a_section_over_the_cap_is_refused_before_it_arrives() -> None:
    reader = CarReader(max_block_bytes=1000)

    with pytest.raises(TooLarge, match="at most 1000"):
        reader.feed(HEADER + car_section_prefix(ROOT, 2000))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_car_or_refused_in_our_words(data: bytes) -> None:
    try:
        reader = read_all(data)
    except ParityError:
        return
    assert reader.roots


@pytest.mark.parametrize("make", [encode_leaf, bytes])
def test_tsize_counts_blocks_and_size_counts_content(make: Callable[[bytes], bytes]) -> None:
    options = AddOptions(1, raw_leaves=make is bytes)
    importer = FileImporter(options)
    importer.feed(b"hello")
    done = importer.finish()

    assert done.size == 5
    assert done.tsize == len(make(b"hello"))
    parent = build_directory([Entry("a", done.cid, done.tsize)])
    assert parent.tsize == done.tsize + len(parent.blocks[0].data)


def test_a_car_of_version_2_is_refused_by_name() -> None:
    pragma = bytes.fromhex("0aa16776657273696f6e02")

    with pytest.raises(BadDocument, match="version 2"):
        CarReader().feed(pragma + bytes(40) + car_header(Cid.of_block(b"x")))


# -- leaves whose bytes are elsewhere --------------------------------------------------------------------------------

FORMS = [AddOptions(1), AddOptions(0)]


def contents_of(blocks: list[Block]) -> list[bytes]:
    size = CHUNK_BYTES
    return [FILE[at * size : (at + 1) * size] for at in range(len(blocks) - 1)]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_leaves_without_their_bytes_make_the_same_dag(options: AddOptions) -> None:
    blocks = file_dag(options=options)
    whole, bare = DagVerifier(blocks[0].cid), DagVerifier(blocks[0].cid)
    bare.add(blocks[0])

    for block in blocks:
        whole.add(block)
    for block, content in zip(blocks[1:], contents_of(blocks), strict=True):
        bare.add_leaf(CheckedLeaf.of(block.cid, memoryview(content)))

    assert bare.finish() == whole.finish()
    assert bare.progress == whole.progress == (len(FILE), len(FILE))


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("content", [FILE[: CHUNK_BYTES - 1], FILE[1 : CHUNK_BYTES + 1], b""], ids=len)
def test_a_leaf_that_is_not_what_its_cid_names_is_refused(options: AddOptions, content: bytes) -> None:
    with pytest.raises(DigestMismatch):
        CheckedLeaf.of(file_dag(options=options)[1].cid, memoryview(content))


def test_a_cid_that_holds_its_block_has_no_leaf() -> None:
    with pytest.raises(DigestMismatch):
        CheckedLeaf.of(Cid(1, CODEC_RAW, b"in the name", HASH_IDENTITY), memoryview(b"in the name"))


def test_a_leaf_out_of_turn_is_refused() -> None:
    blocks = file_dag()
    dag = DagVerifier(blocks[0].cid)
    dag.add(blocks[0])

    with pytest.raises(BadDocument, match="expected block"):
        dag.add_leaf(CheckedLeaf.of(blocks[2].cid, memoryview(blocks[2].data)))


@pytest.mark.parametrize(
    "limits",
    [DagLimits(max_block_bytes=CHUNK_BYTES - 1), DagLimits(max_bytes=CHUNK_BYTES), DagLimits(max_blocks=1)],
    ids=["block", "bytes", "blocks"],
)
def test_leaves_count_towards_the_limits(limits: DagLimits) -> None:
    blocks = file_dag()
    dag = DagVerifier(blocks[0].cid, limits)
    dag.add(blocks[0])

    with pytest.raises(TooLarge):
        dag.add_leaf(CheckedLeaf.of(blocks[1].cid, memoryview(blocks[1].data)))


def test_a_leaf_of_another_size_than_its_node_claims_is_found_out() -> None:
    piece = leaf(b"twelve bytes")
    root = node([link(piece)], [11])
    dag = DagVerifier(root.cid)
    dag.add(root)
    dag.add_leaf(CheckedLeaf.of(piece.cid, memoryview(piece.data)))

    with pytest.raises(BadDocument, match="claims 11 bytes"):
        dag.finish()
