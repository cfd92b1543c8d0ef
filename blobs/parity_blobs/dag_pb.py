"""DAG-PB, the protobuf of named links and opaque data, encoded canonically and decoded strictly.

Follows the IPLD DAG-PB specification: links before data on writing; on reading also the older order with data
first, but never mixed, never an unknown field, never a padded varint.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from parity_blobs.cid import Cid
from parity_blobs.varint import decode_varint, encode_varint
from parity_protocol.errors import BadCid, BadDocument

__all__ = ["PbLink", "PbNode", "decode_node", "encode_node"]

_LINKS = 0x12  # field 2, length-delimited
_DATA = 0x0A  # field 1, length-delimited
_LINK_HASH = 0x0A
_LINK_NAME = 0x12
_LINK_TSIZE = 0x18


class PbLink(NamedTuple):
    """A link to another node.

    Attributes:
        tsize: Bytes of all blocks below, duplicates counted each time, as the writer claims; never trusted.
    """

    cid: Cid
    name: str
    tsize: int


class PbNode(NamedTuple):
    """A node: its links in order, and its data (None when the field is absent)."""

    links: tuple[PbLink, ...]
    data: bytes | None


def encode_node(links: Iterable[PbLink], data: bytes | None) -> bytes:
    """Return the canonical bytes of a node, as `ipfs` writes them; ``links`` must be in their final order."""
    parts: list[bytes] = []
    for link in links:
        hash_bytes, name = bytes(link.cid), link.name.encode()
        body = b"".join(
            (
                b"\x0a",
                encode_varint(len(hash_bytes)),
                hash_bytes,
                b"\x12",
                encode_varint(len(name)),
                name,
                b"\x18",
                encode_varint(link.tsize),
            )
        )
        parts += (b"\x12", encode_varint(len(body)), body)
    if data is not None:
        parts += (b"\x0a", encode_varint(len(data)), data)
    return b"".join(parts)


def decode_node(block: bytes) -> PbNode:
    """Read a node.

    Raises:
        BadDocument: Not a DAG-PB node in the form described above, or a link's CID is not accepted here.
    """
    links: list[PbLink] = []
    data: bytes | None = None
    at, end = 0, len(block)
    links_closed = False
    while at < end:
        tag = block[at]
        start, stop = _span(block, at + 1, end)
        if tag == _LINKS:
            if links_closed:
                raise BadDocument("dag-pb: links on both sides of the data")
            links.append(_decode_link(block, start, stop))
        elif tag == _DATA:
            if data is not None:
                raise BadDocument("dag-pb: the data field comes twice")
            data = block[start:stop]
            links_closed = bool(links)
        else:
            raise BadDocument(f"dag-pb: unknown field tag 0x{tag:02x} at byte {at}")
        at = stop
    return PbNode(tuple(links), data)


def _decode_link(block: bytes, at: int, end: int) -> PbLink:
    cid: Cid | None = None
    name, tsize = "", 0
    last_tag = 0
    while at < end:
        tag = block[at]
        if tag <= last_tag:
            raise BadDocument(f"dag-pb: link field tag 0x{tag:02x} repeated or out of order at byte {at}")
        last_tag = tag
        if tag == _LINK_TSIZE:
            tsize, at = decode_varint(block, at + 1)
            if at > end:
                raise BadDocument("dag-pb: a link's size is cut off")
            continue
        start, stop = _span(block, at + 1, end)
        if tag == _LINK_HASH:
            try:
                cid = Cid.from_bytes(block[start:stop])
            except BadCid as exc:
                raise BadDocument(f"dag-pb: a link's CID: {exc.message}") from exc
        elif tag == _LINK_NAME:
            try:
                name = block[start:stop].decode()
            except UnicodeDecodeError as exc:
                raise BadDocument("dag-pb: a link's name is not UTF-8") from exc
        else:
            raise BadDocument(f"dag-pb: unknown link field tag 0x{tag:02x} at byte {at}")
        at = stop
    if cid is None:
        raise BadDocument("dag-pb: a link without a CID")
    return PbLink(cid, name, tsize)


def _span(block: bytes, at: int, end: int) -> tuple[int, int]:
    """Return start and end of the length-delimited field whose length varint is at ``at``."""
    length, start = decode_varint(block, at)
    if start + length > end:
        raise BadDocument(f"dag-pb: a field of {length} bytes is cut off at byte {start}")
    return start, start + length
