"""CARv1: a stream of blocks with their CIDs, read and written without I/O.

Reading is strict: one header in canonical DAG-CBOR, sections of bounded size, nothing after them. It checks the form
only; ``verify.DagVerifier`` checks what the blocks are.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from parity_blobs.cid import Block, Cid
from parity_blobs.varint import decode_varint, encode_varint
from parity_protocol.errors import BadCid, BadDocument, TooLarge

__all__ = ["CAR_MEDIA_TYPE", "CarReader", "car_header", "car_section_prefix", "write_car"]

CAR_MEDIA_TYPE = "application/vnd.ipld.car; version=1; order=dfs; dups=n"

_MAX_ROOTS = 16
_MAX_HEADER_BYTES = 4096
_MAX_CID_BYTES = 136
_MAX_PREFIX_BYTES = 9  # of a section's length varint

_MAP_ROOTS = b"\xa2\x65roots"  # a map of two; its first key in canonical order
_VERSION_1 = b"\x67version\x01"
_PRAGMA_V2 = b"\xa1\x67version\x02"
_TAG_CID = b"\xd8\x2a"


def car_header(*roots: Cid) -> bytes:
    """Return the header section; its length depends only on the number and the versions of ``roots``."""
    body = bytearray(_MAP_ROOTS)
    body += _cbor_head(4, len(roots))
    for root in roots:
        link = b"\0" + bytes(root)  # the multibase identity prefix that DAG-CBOR asks for
        body += _TAG_CID + _cbor_head(2, len(link)) + link
    body += _VERSION_1
    return encode_varint(len(body)) + bytes(body)


def car_section_prefix(cid: Cid, length: int) -> bytes:
    """Return what stands before a block of ``length`` bytes: section length and CID."""
    name = bytes(cid)
    return encode_varint(len(name) + length) + name


async def write_car(root: Cid, blocks: AsyncIterable[Block]) -> AsyncIterator[bytes]:
    """Yield a CARv1 with one root, piece by piece, as ``blocks`` come."""
    yield car_header(root)
    async for cid, data in blocks:
        yield car_section_prefix(cid, len(data))
        yield data


class CarReader:
    """Cuts a CARv1 stream into blocks.

    Attributes:
        roots: The header's roots; None until the header was read.
    """

    def __init__(self, *, max_block_bytes: int = 2 << 20) -> None:
        self._max_block_bytes = max_block_bytes
        self._buffer = bytearray()
        self.roots: tuple[Cid, ...] | None = None

    def feed(self, data: bytes) -> list[Block]:
        """Take the next bytes of the stream and return the blocks they complete.

        Raises:
            BadDocument: Not a CARv1.
            TooLarge: A block is over ``max_block_bytes``.
        """
        self._buffer += data
        buffer, at, out = self._buffer, 0, list[Block]()
        while (span := self._next_span(at)) is not None:
            start, end = span
            if self.roots is None:
                self.roots = _read_header(bytes(buffer[start:end]))
            else:
                out.append(self._block(start, end))
            at = end
        if at:
            del buffer[:at]
        return out

    def finish(self) -> None:
        """End the stream.

        Raises:
            BadDocument: It ends in the middle of a section, or before the header.
        """
        if self._buffer or self.roots is None:
            raise BadDocument(f"CAR: cut off, {len(self._buffer)} bytes of an unfinished section")

    def _next_span(self, at: int) -> tuple[int, int] | None:
        """Return start and end of the section at ``at`` once all of it is here."""
        head = bytes(self._buffer[at : at + _MAX_PREFIX_BYTES])
        if len(head) < _MAX_PREFIX_BYTES and all(byte >= 0x80 for byte in head):
            return None  # the length itself is not complete
        length, used = decode_varint(head)
        if self.roots is None:
            if length > _MAX_HEADER_BYTES:
                raise BadDocument(f"CAR: a header of {length} bytes, at most {_MAX_HEADER_BYTES} are accepted")
        elif length > self._max_block_bytes + _MAX_CID_BYTES:
            raise TooLarge(f"CAR: a section of {length} bytes, at most {self._max_block_bytes} are accepted")
        if length == 0:
            raise BadDocument("CAR: an empty section")
        start = at + used
        return (start, start + length) if start + length <= len(self._buffer) else None

    def _block(self, start: int, end: int) -> Block:
        head = bytes(self._buffer[start : min(start + _MAX_CID_BYTES, end)])
        try:
            cid, used = Cid.read(head, 0)
        except BadCid as exc:
            raise BadDocument(f"CAR: a section's CID: {exc.message}") from exc
        with memoryview(self._buffer) as view:
            return Block(cid, bytes(view[start + used : end]))


def _read_header(body: bytes) -> tuple[Cid, ...]:
    if body == _PRAGMA_V2:
        raise BadDocument("CAR: this is a version 2, whose index cannot be streamed; version 1 is needed")
    if not body.startswith(_MAP_ROOTS) or not body.endswith(_VERSION_1):
        raise BadDocument("CAR: not a version 1 header")
    at, end = len(_MAP_ROOTS), len(body) - len(_VERSION_1)
    count, at = _cbor_read(body, at, 4)
    if not 1 <= count <= _MAX_ROOTS:
        raise BadDocument(f"CAR: {count} roots, expected 1 to {_MAX_ROOTS}")
    roots = []
    for _ in range(count):
        if body[at : at + 2] != _TAG_CID:
            raise BadDocument("CAR: a root that is not a CID")
        length, at = _cbor_read(body, at + 2, 2)
        if at + length > end or body[at : at + 1] != b"\0":
            raise BadDocument("CAR: a root that is cut off")
        try:
            roots.append(Cid.from_bytes(body[at + 1 : at + length]))
        except BadCid as exc:
            raise BadDocument(f"CAR: a root: {exc.message}") from exc
        at += length
    if at != end:
        raise BadDocument("CAR: unknown fields in the header")
    return tuple(roots)


def _cbor_head(major: int, value: int) -> bytes:
    """Return the head of a CBOR item of fewer than 256 elements, in its shortest form."""
    return bytes((major << 5 | value,)) if value < 24 else bytes((major << 5 | 24, value))


def _cbor_read(body: bytes, at: int, major: int) -> tuple[int, int]:
    head = body[at : at + 2]
    if head and head[0] >> 5 == major:
        if head[0] & 31 < 24:
            return head[0] & 31, at + 1
        if head[0] & 31 == 24 and len(head) == 2 and head[1] >= 24:
            return head[1], at + 2
    raise BadDocument("CAR: the header is not canonical DAG-CBOR")
