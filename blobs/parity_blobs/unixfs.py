"""UnixFS v1: what a block means as a piece of a file, or as a directory.

Read strictly: sizes a node claims must add up, names must be usable in a path, and symbolic links are refused by
name. Sharded directories are read (``hamt``) and never written. Nodes come only from blocks whose hash was checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from parity_blobs.cid import CODEC_RAW, Cid
from parity_blobs.dag_pb import PbLink, decode_node, encode_node
from parity_blobs.hamt import ShardLink, read_shard
from parity_blobs.varint import decode_varint, encode_varint
from parity_protocol.errors import BadDocument

__all__ = [
    "Kind",
    "Node",
    "checked_name",
    "encode_directory",
    "encode_file_node",
    "encode_leaf",
    "leaf_frame",
    "read_node",
]

MAX_NAME_BYTES = 255  # of one path segment, as file systems allow

_SHORT_BYTES = 16_384  # of a node that is remembered for a while; one with 174 links has 8 KiB

_TYPE_RAW, _TYPE_DIRECTORY, _TYPE_FILE, _TYPE_SHARD = 0, 1, 2, 5
_REFUSED_TYPES = {3: "metadata nodes", 4: "symbolic links"}

_F_TYPE, _F_DATA, _F_FILESIZE, _F_BLOCKSIZES, _F_HASH, _F_FANOUT, _F_MODE, _F_MTIME = (
    0x08,
    0x12,
    0x18,
    0x20,
    0x28,
    0x30,
    0x38,
    0x42,
)


class Kind(StrEnum):
    """What a node is to people."""

    FILE = "file"
    DIRECTORY = "directory"


@dataclass(frozen=True, slots=True)
class Node:
    """One block, understood.

    Attributes:
        data: Content bytes that stand before the content of the links; empty for a directory.
        size: Content bytes here and below as the node claims, 0 for a directory; true only once
            every child's own size was compared with ``sizes``.
        sizes: For a file, the claimed content bytes of each link, all at least 1; empty for a directory.
        shard: For a part of a sharded directory, what its links mean; None for everything else. That a name lies
            where its hash says is not checked here, since a block does not know its level.
    """

    kind: Kind
    data: bytes
    size: int
    links: tuple[PbLink, ...]
    sizes: tuple[int, ...]
    shard: tuple[ShardLink, ...] | None = None


class _Message(NamedTuple):
    type: int
    data: bytes
    filesize: int | None
    blocksizes: tuple[int, ...]
    hash_code: int | None
    fanout: int | None


def read_node(cid: Cid, block: bytes) -> Node:
    """Return what a checked block means.

    Raises:
        BadDocument: Not UnixFS as described above, or of a kind that is refused here.
    """
    if cid.codec == CODEC_RAW:
        return Node(Kind.FILE, block, len(block), (), ())
    return _read_short(cid, block) if len(block) <= _SHORT_BYTES else _read(cid, block)


def checked_name(name: str) -> str:
    """Return ``name`` if it can be one segment of a path.

    Raises:
        BadDocument: Empty, ``.``, ``..``, over 255 bytes, not UTF-8, or with a slash or NUL.
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError as exc:
        raise BadDocument(f"a file name must be valid Unicode, got {name[:80]!r}") from exc
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(encoded) > MAX_NAME_BYTES:
        raise BadDocument(f"not usable as a file name: {name[:80]!r}")
    return name


def encode_leaf(data: bytes) -> bytes:
    """Return the dag-pb block of one chunk of a file."""
    before, after = leaf_frame(len(data))
    return b"".join((before, data, after))


def leaf_frame(size: int) -> tuple[bytes, bytes]:
    """Return what stands before and after ``size`` bytes of content in their dag-pb block."""
    length = encode_varint(size)
    before, after = (b"\x08\x02\x12" + length, b"\x18" + length) if size else (b"\x08\x02", b"\x18\x00")
    return b"\x0a" + encode_varint(len(before) + size + len(after)) + before, after


def encode_file_node(links: Sequence[PbLink], sizes: Sequence[int]) -> bytes:
    """Return the dag-pb block that joins pieces of a file.

    Args:
        sizes: Content bytes below each link, in the order of ``links``.
    """
    message = b"".join((b"\x08\x02\x18", encode_varint(sum(sizes)), *(b"\x20" + encode_varint(size) for size in sizes)))
    return encode_node(links, message)


def encode_directory(links: Sequence[PbLink]) -> bytes:
    """Return the dag-pb block of a directory; ``links`` are sorted by the bytes of their names."""
    return encode_node(links, b"\x08\x01")


@lru_cache(maxsize=32)  # a file's nodes are read by whoever lays it out, by the verifier and by who writes it
def _read_short(cid: Cid, block: bytes) -> Node:
    return _read(cid, block)


def _read(cid: Cid, block: bytes) -> Node:
    links, message_bytes = decode_node(block)
    if message_bytes is None:
        raise BadDocument(f"{cid}: a dag-pb node without UnixFS data")
    message = _decode_message(message_bytes)
    if message.type == _TYPE_DIRECTORY:
        return _read_directory(cid, message, links)
    if message.type == _TYPE_SHARD:
        return _read_shard(cid, message, links)
    if message.type not in (_TYPE_RAW, _TYPE_FILE):
        raise BadDocument(f"{cid}: {_REFUSED_TYPES.get(message.type, f'UnixFS type {message.type}')} are not supported")
    if len(message.blocksizes) != len(links):
        raise BadDocument(f"{cid}: {len(links)} links but {len(message.blocksizes)} block sizes")
    # Without this an exponential graph of empty leaves would cost visits but never a byte of any budget.
    if 0 in message.blocksizes:
        raise BadDocument(f"{cid}: a link to an empty piece of a file")
    size = len(message.data) + sum(message.blocksizes)
    if message.filesize is not None and message.filesize != size:
        raise BadDocument(f"{cid}: claims {message.filesize} bytes, its parts make {size}")
    return Node(Kind.FILE, message.data, size, links, message.blocksizes)


def _read_directory(cid: Cid, message: _Message, links: tuple[PbLink, ...]) -> Node:
    if message.data or message.blocksizes:
        raise BadDocument(f"{cid}: a directory with file content")
    names = {checked_name(link.name) for link in links}
    if len(names) != len(links):
        raise BadDocument(f"{cid}: a directory with two entries of one name")
    return Node(Kind.DIRECTORY, b"", 0, links, ())


def _read_shard(cid: Cid, message: _Message, links: tuple[PbLink, ...]) -> Node:
    if message.filesize is not None or message.blocksizes:
        raise BadDocument(f"{cid}: a sharded directory with file content")
    shard = read_shard(cid, message.data, message.hash_code, message.fanout, links)
    for link in shard:
        if link.name:
            checked_name(link.name)
    return Node(Kind.DIRECTORY, b"", 0, links, (), shard)


def _decode_message(message: bytes) -> _Message:
    """Read the UnixFS protobuf: type first, then the other fields in ascending order."""
    kind: int | None = None
    data = b""
    filesize = hash_code = fanout = None
    sizes: list[int] = []
    at, end, last_tag = 0, len(message), 0
    while at < end:
        tag = message[at]
        if tag < last_tag or (tag == last_tag and tag != _F_BLOCKSIZES):
            raise BadDocument(f"UnixFS: field tag 0x{tag:02x} repeated or out of order")
        last_tag = tag
        value, at = decode_varint(message, at + 1)
        if tag == _F_TYPE:
            kind = value
        elif tag == _F_FILESIZE:
            filesize = value
        elif tag == _F_BLOCKSIZES:
            sizes.append(value)
        elif tag in (_F_DATA, _F_MTIME):
            if at + value > end:
                raise BadDocument("UnixFS: a field is cut off")
            if tag == _F_DATA:
                data = message[at : at + value]
            at += value
        elif tag == _F_HASH and kind == _TYPE_SHARD:
            hash_code = value
        elif tag == _F_FANOUT and kind == _TYPE_SHARD:
            fanout = value
        elif tag != _F_MODE:
            raise BadDocument(f"UnixFS: unknown field tag 0x{tag:02x}")
    if kind is None:
        raise BadDocument("UnixFS: no type")
    return _Message(kind, data, filesize, tuple(sizes), hash_code, fanout)
