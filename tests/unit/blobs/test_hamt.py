"""Sharded directories: what honest ones mean, and every way a hostile one can lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_blobs.cid import CODEC_DAG_PB, Block, Cid
from parity_blobs.dag_pb import PbLink, encode_node
from parity_blobs.export import list_directory, resolve_path
from parity_blobs.files import export_path, list_folder, resolve_in
from parity_blobs.hamt import murmur3_64, name_hash
from parity_blobs.importer import cid_of_bytes
from parity_blobs.memory import MemoryBlobStore
from parity_blobs.unixfs import Kind, encode_directory, read_node
from parity_blobs.varint import encode_varint
from parity_blobs.verify import DagVerifier, Order
from parity_protocol.errors import BadDocument, InvalidInput, NotFound

pytestmark = pytest.mark.anyio

FILE = Block(cid_of_bytes(b"content"), b"content")
LEAF = PbLink(FILE.cid, "", 7)
NAMES = [f"file {number:04}" for number in range(700)]  # two levels nearly everywhere


def message(places: list[int], *, hash_code: int = 0x22, fanout: int = 256) -> bytes:
    bits = sum(1 << place for place in places)
    field = bits.to_bytes((bits.bit_length() + 7) // 8, "big")
    ends = b"\x28" + encode_varint(hash_code) + b"\x30" + encode_varint(fanout)
    return b"\x08\x05\x12" + encode_varint(len(field)) + field + ends


def node(data: bytes, links: list[PbLink]) -> Block:
    block = encode_node(links, data)
    return Block(Cid.of_block(block, codec=CODEC_DAG_PB), block)


def shard_of(names: list[str], level: int = 0) -> list[Block]:
    """Return the blocks of an honest shard, its own first, as the specification builds it."""
    by_place: dict[int, list[str]] = {}
    for name in names:
        by_place.setdefault(name_hash(name)[level], []).append(name)
    links, below = [], []
    for place in sorted(by_place):
        here = by_place[place]
        if len(here) == 1:
            links.append(PbLink(FILE.cid, f"{place:02X}{here[0]}", 7))
        else:
            blocks = shard_of(here, level + 1)
            below += blocks
            links.append(PbLink(blocks[0].cid, f"{place:02X}", sum(len(each.data) for each in blocks)))
    return [node(message(sorted(by_place)), links), *below]


def verify(blocks: list[Block]) -> Kind:
    walk = DagVerifier(blocks[0].cid, order=Order.ANY)
    for block in {each.cid: each for each in [*blocks, FILE]}.values():
        walk.add(block)
    return walk.finish().kind


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("hello", 0xCBD8A7B341BD9B02),
        ("hello, world", 0x342FAC623A5EBC8E),
        ("19 Jan 2038 at 3:14:07 AM", 0xB89E5988B737AFFC),
        ("The quick brown fox jumps over the lazy dog.", 0xCD99481F9EE902C9),
    ],
)
def test_murmur3_gives_the_published_values(text: str, expected: int) -> None:
    assert murmur3_64(text.encode()) == expected


def test_a_sharded_folder_is_a_folder_of_all_its_names() -> None:
    blocks = shard_of(NAMES)
    held = {block.cid: block.data for block in blocks}

    entries = list_directory(blocks[0].cid, held.__getitem__)

    assert verify(blocks) is Kind.DIRECTORY
    assert len(blocks) > 100
    assert [entry.name for entry in entries] == NAMES
    assert {entry.cid for entry in entries} == {FILE.cid}


def test_a_path_reads_only_the_shards_on_its_way() -> None:
    blocks = shard_of(NAMES)
    held = {block.cid: block.data for block in blocks}
    read: list[Cid] = []

    def get_block(cid: Cid) -> bytes:
        read.append(cid)
        return held[cid]

    assert resolve_path(blocks[0].cid, (NAMES[5],), get_block) == FILE.cid
    assert len(read) <= 3
    for absent in ("file 9999", "00", ""):
        with pytest.raises(NotFound):
            resolve_path(blocks[0].cid, (absent,), held.__getitem__)


async def test_a_sharded_folder_goes_into_a_store_and_out_to_a_folder(tmp_path: Path) -> None:
    blocks = shard_of(NAMES)
    outer = node(encode_directory([])[2:], [PbLink(blocks[0].cid, "wide", 1)])
    store = MemoryBlobStore()

    async def send() -> object:
        for block in [outer, *blocks, FILE]:
            yield block

    stat = await store.put_blocks(outer.cid, send(), order=Order.ANY)  # type: ignore[arg-type]  # an async generator
    await export_path(store, outer.cid, tmp_path / "out", max_bytes=stat.size)

    assert stat.size == 7 * len(NAMES)
    assert sorted(path.name for path in (tmp_path / "out" / "wide").iterdir()) == NAMES
    assert [entry.name for entry in await list_folder(store, blocks[0].cid)] == NAMES
    assert await resolve_in(store, outer.cid, ("wide", NAMES[0])) == FILE.cid
    with pytest.raises(InvalidInput, match="is a file"):
        await resolve_in(store, outer.cid, ("wide", NAMES[0], "below"))


@settings(max_examples=30)
@given(st.sets(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30)))
def test_any_names_go_round(names: set[str]) -> None:
    blocks = shard_of(sorted(names - {".", ".."}))
    held = {block.cid: block.data for block in blocks}

    entries = list_directory(blocks[0].cid, held.__getitem__)

    assert {entry.name for entry in entries} == names - {".", ".."}
    assert all(resolve_path(blocks[0].cid, (entry.name,), held.__getitem__) == entry.cid for entry in entries)


def place_of(name: str) -> int:
    return name_hash(name)[0]


def misplaced() -> list[Block]:
    wrong = (place_of("a") + 1) % 256
    return [node(message([wrong]), [LEAF._replace(name=f"{wrong:02X}a")])]


def misplaced_below() -> list[Block]:
    place, wrong = place_of("a"), (name_hash("a")[1] + 1) % 256
    below = node(message([wrong]), [LEAF._replace(name=f"{wrong:02X}a")])
    return [node(message([place]), [PbLink(below.cid, f"{place:02X}", 1)]), below]


def one_shard_at_two_places() -> list[Block]:
    below = shard_of(["a"], 1)
    places = sorted((place_of("a"), (place_of("a") + 1) % 256))
    return [node(message(places), [PbLink(below[0].cid, f"{place:02X}", 1) for place in places]), *below]


def an_inner_shard_as_a_folder() -> list[Block]:
    below = shard_of(["a"], 1)
    return [node(encode_directory([])[2:], [PbLink(below[0].cid, "folder", 1)]), *below]


def an_empty_shard_below() -> list[Block]:
    below = node(message([]), [])
    return [node(message([7]), [PbLink(below.cid, "07", 1)]), below]


def a_file_where_a_shard_belongs() -> list[Block]:
    return [node(message([7]), [LEAF._replace(name="07")])]


def a_plain_folder_where_a_shard_belongs() -> list[Block]:
    below = node(encode_directory([])[2:], [LEAF._replace(name="x")])
    return [node(message([7]), [PbLink(below.cid, "07", 1)]), below]


def too_many_levels() -> list[Block]:
    hashed = name_hash("a")
    blocks = [node(message([9]), [LEAF._replace(name="09a")])]
    for level in range(7, -1, -1):
        blocks.insert(0, node(message([hashed[level]]), [PbLink(blocks[0].cid, f"{hashed[level]:02X}", 1)]))
    return blocks


LIES = [
    misplaced,
    misplaced_below,
    one_shard_at_two_places,
    an_inner_shard_as_a_folder,
    an_empty_shard_below,
    a_file_where_a_shard_belongs,
    a_plain_folder_where_a_shard_belongs,
    too_many_levels,
]


@pytest.mark.parametrize("lie", LIES)
def test_a_sharded_folder_that_lies_is_refused(lie: object) -> None:
    assert callable(lie)
    with pytest.raises(BadDocument):
        verify(lie())


@pytest.mark.parametrize("lie", [each for each in LIES if each is not an_inner_shard_as_a_folder])
def test_a_listing_does_not_believe_it_either(lie: object) -> None:
    assert callable(lie)
    blocks = lie()
    held = {block.cid: block.data for block in [*blocks, FILE]}

    with pytest.raises(BadDocument):
        list_directory(blocks[0].cid, held.__getitem__)


A_PLACE = place_of("a")


@pytest.mark.parametrize(
    ("data", "links", "words"),
    [
        (message([A_PLACE], fanout=16), ["a"], "fanout of 256, got 16"),
        (message([A_PLACE], fanout=1 << 40), ["a"], "fanout of 256"),
        (message([A_PLACE], hash_code=0x12), ["a"], "murmur3"),
        (b"\x08\x05", [], "murmur3"),
        (b"\x08\x05\x28\x22", [], "fanout"),
        (message([A_PLACE]), [], "0 links and 1 bits"),
        (message([]), ["a"], "1 links and 0 bits"),
        (message([A_PLACE]), ["a", "a"], "2 links and 1 bits"),
        (b"\x08\x05\x12\x21" + bytes(33) + b"\x28\x22\x30\x80\x02", [], "33 bytes"),
        (b"\x08\x05\x20\x05\x28\x22\x30\x80\x02", [], "file content"),
        (b"\x08\x05\x18\x05\x28\x22\x30\x80\x02", [], "file content"),
        (b"\x08\x01\x28\x22\x30\x80\x02", [], "unknown field"),
        (message([A_PLACE]), ["../etc"], "not usable"),
        (message([A_PLACE]), [".."], "not usable"),
    ],
)
def test_a_shard_that_is_not_in_order_says_why(data: bytes, links: list[str], words: str) -> None:
    block = node(data, [LEAF._replace(name=f"{A_PLACE:02X}{name}") for name in links])

    with pytest.raises(BadDocument, match=words):
        read_node(*block)


def test_links_out_of_order_or_in_small_letters_are_refused() -> None:
    names = sorted(("a", "b"), key=place_of)
    links = [LEAF._replace(name=f"{place_of(name):02X}{name}") for name in names]
    places = [place_of(name) for name in names]

    read_node(*node(message(places), links))
    for wrong in (links[::-1], [link._replace(name=link.name[:2].lower() + link.name[2:]) for link in links]):
        with pytest.raises(BadDocument, match="place"):
            read_node(*node(message(places), wrong))


def test_one_shard_may_serve_two_folders() -> None:
    blocks = shard_of(NAMES)
    root = blocks[0].cid

    assert verify([node(encode_directory([])[2:], [PbLink(root, "a", 1), PbLink(root, "b", 1)]), *blocks])
