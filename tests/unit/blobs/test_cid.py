"""The grammar of CIDs and varints: what parses, what is refused, and that text and bytes go round."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_blobs.cid import CODEC_DAG_PB, CODEC_RAW, HASH_IDENTITY, Cid
from parity_blobs.multibase import decode_base58, encode_base32, encode_base58
from parity_blobs.varint import MAX_VARINT, decode_varint, encode_varint
from parity_protocol.errors import BadCid, BadDocument

EMPTY_V0 = "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH"
EMPTY_RAW = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
SHA = hashlib.sha256(b"x").digest()


def v1(*parts: int | bytes) -> str:
    return "f" + b"".join(bytes((p,)) if isinstance(p, int) else p for p in parts).hex()


cids = st.one_of(
    st.builds(lambda digest: Cid(0, CODEC_DAG_PB, digest), st.binary(min_size=32, max_size=32)),
    st.builds(
        lambda codec, digest: Cid(1, codec, digest),
        st.sampled_from([CODEC_RAW, CODEC_DAG_PB]),
        st.binary(min_size=32, max_size=32),
    ),
    st.builds(lambda data: Cid(1, CODEC_RAW, data, HASH_IDENTITY), st.binary(max_size=128)),
)


@given(cids)
def test_text_and_bytes_go_round(cid: Cid) -> None:
    assert Cid.parse(str(cid)) == cid
    assert Cid.from_bytes(bytes(cid)) == cid


@given(cids, st.sampled_from("bfkz"))
def test_every_multibase_names_the_same_cid(cid: Cid, base: str) -> None:
    assert Cid.parse(cid.to_v1().encode(base)) == cid.to_v1()


def test_versions_of_one_node_share_their_key() -> None:
    cid = Cid.parse(EMPTY_V0)

    assert cid.to_v1() != cid
    assert cid.to_v1().key == cid.key
    assert str(cid.to_v1()) == "bafybeif7ztnhq65lumvvtr4ekcwd2ifwgm3awq4zfr3srh462rwyinlb4y"


def test_inline_content_never_shares_a_key_with_hashed_content() -> None:
    assert Cid(1, CODEC_RAW, SHA, HASH_IDENTITY).key != Cid(1, CODEC_RAW, SHA).key


def test_cid_of_no_bytes_is_the_known_one() -> None:
    assert str(Cid.of_block(b"")) == EMPTY_RAW


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Q",
        "b",
        " " + EMPTY_RAW,
        EMPTY_RAW + "\n",
        "/ipfs/" + EMPTY_RAW,
        EMPTY_RAW.upper(),
        EMPTY_RAW[:-1],
        EMPTY_RAW + "a",
        EMPTY_RAW[:-1] + "v",  # bits set past the end
        EMPTY_RAW + "=",
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvykü",
        EMPTY_V0[:-1],
        EMPTY_V0 + "1",
        "Qm" + "0" * 44,
        "Qm" + "1" * 44,
        "Qm" + "z" * 44,
        "z" + EMPTY_V0,  # version 0 inside a multibase
        "f" + "1220" + SHA.hex(),
        "m" + "AVUSIOOwxEKY",  # a base that is not accepted
        "x" * 100_000,
        "b" + "a" * 250,
        v1(1, CODEC_RAW, 0x12, 0x20, SHA[:31]),
        v1(1, CODEC_RAW, 0x12, 0x20, SHA, b"\0"),
        v1(1, CODEC_RAW, 0x12, 0x1F, SHA[:31]),
        v1(1, CODEC_RAW, 0x13, 0x40, SHA, SHA),  # sha2-512
        v1(1, CODEC_RAW, 0x11, 0x14, SHA[:20]),  # sha1
        v1(1, CODEC_RAW, 0xD5, 0x01, 0x10, SHA[:16]),  # md5
        v1(1, 0x71, 0x12, 0x20, SHA),  # dag-cbor
        v1(1, 0x72, 0x12, 0x20, SHA),  # libp2p-key
        v1(2, CODEC_RAW, 0x12, 0x20, SHA),
        v1(0, CODEC_DAG_PB, 0x12, 0x20, SHA),
        v1(0x81, 0x00, CODEC_RAW, 0x12, 0x20, SHA),  # a padded varint
        v1(1, 0xD5, 0x00, 0x12, 0x20, SHA),
        v1(1, CODEC_RAW, 0, 0x81, 0x01, b"i" * 129),  # inline, too long
        v1(1, CODEC_RAW, 0, 5, b"four"),
        "f0",
        "fzz",
        "f01 55",
        v1(1, CODEC_RAW, 0x12, 0x20, SHA).upper(),
        "k!",
        "\0",
        "\ud800",
    ],
)
def test_what_is_not_an_accepted_cid_is_refused(text: str) -> None:
    with pytest.raises(BadCid):
        Cid.parse(text)


@given(st.text(max_size=80))
def test_any_text_parses_or_is_refused_in_our_words(text: str) -> None:
    try:
        cid = Cid.parse(text)
    except BadCid:
        return
    assert cid.encode(text[0]) == text if cid.version else str(cid) == text


@given(st.binary(max_size=80))
def test_any_bytes_parse_or_are_refused_in_our_words(data: bytes) -> None:
    try:
        cid = Cid.from_bytes(data)
    except BadCid:
        return
    assert bytes(cid) == data


def test_largest_inline_content_is_accepted() -> None:
    cid = Cid(1, CODEC_RAW, b"i" * 128, HASH_IDENTITY)

    assert Cid.parse(str(cid)).inline == b"i" * 128


def test_wrong_parts_are_refused_when_a_cid_is_made() -> None:
    with pytest.raises(BadCid):
        Cid(0, CODEC_RAW, SHA)
    with pytest.raises(BadCid):
        Cid(1, CODEC_RAW, SHA[:31])
    with pytest.raises(BadCid):
        Cid(1, 0x71, SHA)


def test_known_base58_texts() -> None:
    assert encode_base58(b"\0\0Hello World!") == "112NEpo7TZRRrLZSi2U"
    assert decode_base58("112NEpo7TZRRrLZSi2U") == b"\0\0Hello World!"
    assert encode_base32(b"fooba") == "mzxw6ytb"


@given(st.integers(0, MAX_VARINT))
def test_varints_go_round_in_their_shortest_form(value: int) -> None:
    data = encode_varint(value)

    assert decode_varint(b"\xff" + data, 1) == (value, 1 + len(data))
    assert len(data) == max(1, (value.bit_length() + 6) // 7)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x00", b"\xff" * 9, b"\x80" * 8 + b"\x80\x01", b"\x81\x80\x00"])
def test_varints_cut_off_padded_or_too_long_are_refused(data: bytes) -> None:
    with pytest.raises(BadDocument):
        decode_varint(data)


@pytest.mark.parametrize("value", [-1, MAX_VARINT + 1])
def test_numbers_outside_a_varint_are_refused(value: int) -> None:
    with pytest.raises(BadDocument):
        encode_varint(value)
