"""Sharded UnixFS directories (HAMT): read strictly, never written.

A shard is a node of up to 256 places; a name's place at each level is the next byte of its murmur3 hash. Follows the
UnixFS specification with the one form that Kubo writes: murmur3-x64-64, fanout 256. Anything else is refused, and so is
a name that does not lie where its hash says: a reader that looks a name up must find what a reader that lists finds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from parity_blobs.cid import Cid
from parity_blobs.dag_pb import PbLink
from parity_protocol.errors import BadDocument

__all__ = ["FANOUT", "HASH_BYTES", "ShardLink", "murmur3_64", "name_hash", "read_shard"]

FANOUT = 256
HASH_MURMUR3 = 0x22  # of the multicodec table: murmur3-x64-64
HASH_BYTES = 8  # and so levels at most
_PREFIX_CHARS = 2  # hexadecimal digits of a place, before a name or alone
_BITFIELD_BYTES = FANOUT // 8

_C1, _C2 = 0x87C37B91114253D5, 0x4CF5AD432745937F
_MASK = (1 << 64) - 1


class ShardLink(NamedTuple):
    """A link of a shard.

    Attributes:
        place: 0 to 255.
        name: Of a directory entry; empty for a link to a shard below.
    """

    place: int
    name: str
    cid: Cid
    tsize: int


def murmur3_64(data: bytes) -> int:
    """Return the first 64 bits of MurmurHash3_x64_128 with seed 0 (Appleby, 2011)."""
    h1 = h2 = 0
    whole = len(data) & ~15
    for k1, k2 in struct.iter_unpack("<QQ", data[:whole]):
        h1 ^= _mix1(k1)
        h1 = ((_rotate(h1, 27) + h2) * 5 + 0x52DCE729) & _MASK
        h2 ^= _mix2(k2)
        h2 = ((_rotate(h2, 31) + h1) * 5 + 0x38495AB5) & _MASK
    tail = data[whole:]
    h2 ^= _mix2(int.from_bytes(tail[8:], "little"))
    h1 ^= _mix1(int.from_bytes(tail[:8], "little"))
    h1 ^= len(data)
    h2 ^= len(data)
    h1 = (h1 + h2) & _MASK
    h2 = (h2 + h1) & _MASK
    return (_finish(h1) + _finish(h2)) & _MASK


def name_hash(name: str) -> bytes:
    """Return the 8 bytes that say where a name lies, one a level."""
    return murmur3_64(name.encode()).to_bytes(HASH_BYTES, "big")


def read_shard(
    cid: Cid, bitfield: bytes, hash_code: int | None, fanout: int | None, links: Sequence[PbLink]
) -> tuple[ShardLink, ...]:
    """Return the links of a shard, which must be where its bit field says, in order.

    Args:
        bitfield: Big-endian, bit ``n`` for place ``n``.

    Raises:
        BadDocument: Another hash or fanout, or the links do not agree with the bit field.
    """
    if hash_code != HASH_MURMUR3:
        raise BadDocument(f"{cid}: a sharded directory must be hashed with murmur3-x64-64 (0x22), got {hash_code}")
    if fanout != FANOUT:
        raise BadDocument(f"{cid}: a sharded directory must have a fanout of {FANOUT}, got {fanout}")
    if len(bitfield) > _BITFIELD_BYTES:
        raise BadDocument(f"{cid}: a bit field of {len(bitfield)} bytes, expected at most {_BITFIELD_BYTES}")
    places = list(_set_bits(int.from_bytes(bitfield, "big")))
    if len(places) != len(links):
        raise BadDocument(f"{cid}: a shard with {len(links)} links and {len(places)} bits set")
    return tuple(_shard_link(cid, place, link) for place, link in zip(places, links, strict=True))


def _shard_link(cid: Cid, place: int, link: PbLink) -> ShardLink:
    prefix, name = link.name[:_PREFIX_CHARS], link.name[_PREFIX_CHARS:]
    if prefix != f"{place:02X}":
        raise BadDocument(f"{cid}: the link at place {place:02X} of a shard is named {link.name[:80]!r}")
    return ShardLink(place, name, link.cid, link.tsize)


def _set_bits(value: int) -> Iterator[int]:
    while value:
        lowest = value & -value
        yield lowest.bit_length() - 1
        value ^= lowest


def _rotate(value: int, count: int) -> int:
    return (value << count | value >> (64 - count)) & _MASK


def _mix1(k: int) -> int:
    return _rotate(k * _C1 & _MASK, 31) * _C2 & _MASK


def _mix2(k: int) -> int:
    return _rotate(k * _C2 & _MASK, 33) * _C1 & _MASK


def _finish(h: int) -> int:
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & _MASK
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
    return h ^ h >> 33
