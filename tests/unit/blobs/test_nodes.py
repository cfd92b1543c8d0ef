"""DAG-PB and UnixFS: canonical writing, strict reading."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_blobs.cid import CODEC_DAG_PB, Cid
from parity_blobs.dag_pb import PbLink, PbNode, decode_node, encode_node
from parity_blobs.unixfs import Kind, encode_directory, encode_file_node, encode_leaf, read_node
from parity_blobs.varint import MAX_VARINT
from parity_protocol.errors import BadDocument

CID = Cid.of_block(b"x")
LINK = PbLink(CID, "name", 7)
NODE = Cid.of_block(b"", codec=CODEC_DAG_PB)

links = st.builds(
    PbLink,
    st.binary(max_size=8).map(Cid.of_block),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.integers(0, MAX_VARINT),
)


def field(tag: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes((tag, len(body))) + body


def unixfs(message: bytes, *linked: PbLink) -> bytes:
    return encode_node(linked, message)


@given(st.lists(links, max_size=5), st.none() | st.binary(max_size=200))
def test_nodes_go_round(linked: list[PbLink], data: bytes | None) -> None:
    assert decode_node(encode_node(linked, data)) == PbNode(tuple(linked), data)


@given(st.binary(max_size=120))
def test_any_bytes_are_a_node_or_refused_in_our_words(data: bytes) -> None:
    try:
        node = decode_node(data)
    except BadDocument:
        return
    assert decode_node(encode_node(node.links, node.data)) == node


@given(st.binary(max_size=64))
def test_any_message_is_understood_or_refused_in_our_words(message: bytes) -> None:
    try:
        read_node(NODE, unixfs(message))
    except BadDocument:
        pass


def test_data_before_links_is_read_too() -> None:
    one = encode_node([LINK], None)

    assert decode_node(field(0x0A, b"data") + one) == PbNode((LINK,), b"data")


@pytest.mark.parametrize(
    "block",
    [
        field(0x0A, b"a") + field(0x0A, b"b"),  # data twice
        encode_node([LINK], b"d") + encode_node([LINK], None),  # links on both sides
        field(0x1A, b"?"),  # unknown field
        b"\x08\x01",  # a varint where bytes belong
        b"\x0a\x05abc",  # cut off
        b"\x0a",
        b"\x0a\x81\x00a",  # padded length
        field(0x12, b""),  # a link without a CID
        field(0x12, field(0x12, b"n")),
        field(0x12, field(0x0A, b"\x12\x20short")),
        field(0x12, field(0x0A, bytes(CID)) + field(0x0A, bytes(CID))),
        field(0x12, field(0x12, b"n") + field(0x0A, bytes(CID))),  # out of order
        field(0x12, field(0x0A, bytes(CID)) + field(0x12, b"\xff\xfe")),  # not UTF-8
        field(0x12, field(0x0A, bytes(CID)) + b"\x18"),
        field(0x12, field(0x0A, bytes(CID)) + b"\x18\x80"),
        field(0x12, field(0x0A, bytes(CID)) + b"\x20\x01"),
    ],
)
def test_malformed_nodes_are_refused(block: bytes) -> None:
    with pytest.raises(BadDocument):
        decode_node(block)


def test_a_leaf_is_its_content() -> None:
    node = read_node(NODE, encode_leaf(b"hello"))

    assert (node.kind, node.data, node.size, node.links) == (Kind.FILE, b"hello", 5, ())


def test_an_empty_leaf_is_what_ipfs_writes() -> None:
    assert encode_leaf(b"") == bytes.fromhex("0a0408021800")


def test_leaves_of_the_old_raw_type_are_read() -> None:
    assert read_node(NODE, unixfs(b"\x08\x00\x12\x02hi\x18\x02")).data == b"hi"


def test_mode_and_time_are_ignored() -> None:
    assert read_node(NODE, unixfs(b"\x08\x02\x12\x02hi\x18\x02\x38\xa4\x03\x42\x02\x08\x05")).data == b"hi"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x08\x04\x12\x01a", "symbolic"),
        (b"\x08\x03", "metadata"),
        (b"\x08\x09", "type 9"),
        (b"", "no type"),
        (b"\x18\x00", "no type"),
        (b"\x08\x02\x08\x02", "repeated"),
        (b"\x08\x02\x18\x00\x12\x00", "out of order"),
        (b"\x08\x02\x12\x05ab", "cut off"),
        (b"\x08\x02\x12\x02ab\x18\x03", "claims 3"),
        (b"\x08\x02\x20\x05", "0 links but 1"),
        (b"\x08\x01\x12\x01a", "directory with file content"),
        (b"\x08\x02\x48\x00", "unknown field"),
    ],
)
def test_messages_that_are_refused_say_why(message: bytes, words: str) -> None:
    with pytest.raises(BadDocument, match=words):
        read_node(NODE, unixfs(message))


def test_a_node_without_unixfs_data_is_refused() -> None:
    with pytest.raises(BadDocument, match="without UnixFS"):
        read_node(NODE, encode_node([LINK], None))


def test_a_link_to_an_empty_piece_is_refused() -> None:
    with pytest.raises(BadDocument, match="empty piece"):
        read_node(NODE, encode_file_node([LINK], [0]))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0b", "n" * 256, "é" * 128])
def test_directory_entries_that_could_not_be_files_are_refused(name: str) -> None:
    with pytest.raises(BadDocument, match="file name"):
        read_node(NODE, encode_directory([PbLink(CID, name, 1)]))


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(BadDocument, match="one name"):
        read_node(NODE, encode_directory([LINK, LINK]))
