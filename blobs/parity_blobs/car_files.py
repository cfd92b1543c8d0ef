"""A file or a folder as one CARv1 file, and a CAR stream back into blocks: how a folder travels as one body.

The blocks stand in the order in which an import makes them, children before parents, each once; the header names the
root. Whoever reads it takes them with ``Order.ANY``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from parity_blobs.base import BlobStat, BlobStore
from parity_blobs.car import CarReader, car_header, car_section_prefix
from parity_blobs.cid import Block, Cid
from parity_blobs.files import import_path
from parity_blobs.importer import Imported, cid_of_bytes
from parity_blobs.verify import DEFAULT_LIMITS, DagLimits, Order
from parity_protocol.errors import BadDocument, TooLarge

__all__ = ["CAR_TYPE", "Packed", "pack_car", "put_car", "reading_car", "weight_of"]

CAR_TYPE = "application/vnd.ipld.car"

_BUFFER_BYTES = 1 << 20
_PLACEHOLDER = car_header(cid_of_bytes(b""))  # as long as that of every other root of CID version 1


@dataclass(frozen=True, slots=True)
class Packed:
    """What ``pack_car`` made.

    Attributes:
        root: Of the file or folder.
        size: Content bytes of all files together.
        stored: Bytes of the different blocks.
        length: Bytes of the CAR.
        sha256: Digest of the CAR.
    """

    root: Cid
    size: int
    stored: int
    length: int
    sha256: bytes


def pack_car(path: Path, target: Path, *, hidden: bool = True, max_bytes: int | None = None) -> Packed:
    """Write a file or a folder as a CAR to ``target``, which must not exist; blocking, so call it on a thread.

    Args:
        hidden: Take files whose names start with a dot.
        max_bytes: Most bytes of the CAR; None is no limit but the disk's.

    Raises:
        TooLarge: It is over ``max_bytes``, or has too many files.
        ParityError: As ``parity_blobs.files.import_path``.
        OSError: The disk does not take it. Nothing is left at ``target`` after any error.
    """
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w+b", buffering=_BUFFER_BYTES) as file:
            root, size, stored, length = _write(file, import_path(path, hidden=hidden), max_bytes)
            header = car_header(root)
            assert len(header) == len(_PLACEHOLDER)
            file.seek(0)
            file.write(header)
            file.seek(0)
            digest = sha256()
            while piece := file.read(_BUFFER_BYTES):
                digest.update(piece)
        return Packed(root, size, stored, length, digest.digest())
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _write(file: BinaryIO, items: Iterator[Block | Imported], max_bytes: int | None) -> tuple[Cid, int, int, int]:
    """Write the blocks after room for the header; return root, content bytes, bytes of blocks and bytes written."""
    seen: set[tuple[int, int, bytes]] = set()
    length, stored = file.write(_PLACEHOLDER), 0
    for item in items:
        if isinstance(item, Imported):
            return item.cid, item.size, stored, length
        if item.cid.key not in seen:
            seen.add(item.cid.key)
            stored += len(item.data)
            length += file.write(car_section_prefix(item.cid, len(item.data))) + file.write(item.data)
        if max_bytes is not None and length > max_bytes:
            raise TooLarge(f"more than {max_bytes} bytes of blocks")
    raise AssertionError("an import ends with its root")


@asynccontextmanager
async def reading_car(
    pieces: AsyncIterable[bytes], *, max_block_bytes: int = DEFAULT_LIMITS.max_block_bytes
) -> AsyncGenerator[tuple[Cid, AsyncGenerator[Block]]]:
    """Read a CAR's header; give its one root and the generator of its blocks, of which only the form is checked.

    Raises:
        BadDocument: Not a CAR of one root, or cut off.
        TooLarge: A block is over ``max_block_bytes``.
    """
    reader, stream = CarReader(max_block_bytes=max_block_bytes), aiter(pieces)
    first: list[Block] = []
    while reader.roots is None:
        try:
            first = reader.feed(await anext(stream))
        except StopAsyncIteration:
            raise BadDocument("CAR: cut off before the end of its header") from None
    if len(reader.roots) != 1:
        raise BadDocument(f"CAR: {len(reader.roots)} roots, expected 1")

    async def blocks() -> AsyncGenerator[Block]:
        for block in first:
            yield block
        async for piece in stream:
            for block in reader.feed(piece):
                yield block
        reader.finish()

    generator = blocks()
    try:
        yield reader.roots[0], generator
    finally:
        await generator.aclose()


def weight_of(stat: BlobStat | Packed) -> int:
    """Return what a folder counts for: its files, or its blocks where names outweigh them.

    Otherwise a folder of empty files with long names would be free, and one of many equal files cheap to send and dear
    to write out.
    """
    return max(stat.size, stat.stored)


async def put_car(
    store: BlobStore, pieces: AsyncIterable[bytes], *, limits: DagLimits = DEFAULT_LIMITS, pin: bool = False
) -> BlobStat:
    """Store the DAG of a CAR stream in any order; each block is verified, and every link must be there.

    Raises:
        ParityError: As ``reading_car`` and ``BlobStore.put_blocks``. Nothing is stored then.
    """
    async with reading_car(pieces, max_block_bytes=limits.max_block_bytes) as (root, blocks):
        return await store.put_blocks(root, blocks, limits=limits, order=Order.ANY, pin=pin)
