"""Blocks on their way into the local store: in memory while they are few, then one CARv1 file.

The file is a real CARv1, so that an operator can read a store with any IPFS tool. Its header is written first with a
placeholder of the same length and set to the root at the end, because an import knows its root last.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from parity_blobs.car import car_header, car_section_prefix
from parity_blobs.cid import CODEC_DAG_PB, HASH_SHA2_256, Block, Cid

__all__ = ["INLINE_BYTES", "BlockRow", "Sealed", "Spool", "fsync_file", "fsync_folder"]

INLINE_BYTES = 64 << 10  # objects up to this size live inside the index: below it SQLite beats a file of its own

BlockRow = tuple[bytes, int, int, int]  # digest, codec, position in file or inline data, length


@dataclass(frozen=True, slots=True)
class Sealed:
    """A complete object that waits for its place.

    Attributes:
        inline: Its blocks back to back, when there is no file.
        path: The synced temporary file, when there is one.
        footprint: Bytes it takes.
    """

    rows: list[BlockRow]
    inline: bytes | None
    path: Path | None
    footprint: int


class Spool:
    """Collects the blocks of one object. Not thread-safe: one call at a time.

    Args:
        path: Where the temporary file goes, if one is needed.
        reserve: Called with the number of bytes about to be written; raises when there is no room.
        version: CID version of the root, should the root be a node above others.
    """

    def __init__(self, path: Path, reserve: Callable[[int], None], *, version: int) -> None:
        self._path = path
        self._reserve = reserve
        self._placeholder = Cid.of_block(b"", codec=CODEC_DAG_PB, version=version)
        self._held: list[Block] = []
        self._held_bytes = 0
        self._file: int | None = None
        self._end = 0
        self._header = b""
        self._rows: dict[tuple[int, int, bytes], BlockRow] = {}

    def add(self, blocks: Iterable[Block]) -> None:
        """Keep blocks whose hash was checked or made here; one that is here already is skipped.

        Raises:
            StorageFull: ``reserve`` says so.
            OSError: The disk says so.
        """
        for block in blocks:
            if block.cid.key in self._rows or block.cid.hash_code != HASH_SHA2_256:
                continue
            self._reserve(len(block.data))
            self._rows[block.cid.key] = (block.cid.digest, block.cid.codec, 0, len(block.data))
            self._held.append(block)
            self._held_bytes += len(block.data)
        # A single block may turn out to be the root, whose CID has a length of its own: the file starts with the second.
        if self._held_bytes > INLINE_BYTES and len(self._rows) > 1:
            self._write_held(self._placeholder)

    def seal(self, root: Cid) -> Sealed:
        """End the object: everything is written, the header is right, the file is synced.

        Raises:
            OSError: The disk says so.
        """
        if self._file is None and self._held_bytes <= INLINE_BYTES:
            rows, at = [], 0
            for cid, data in self._held:
                rows.append((cid.digest, cid.codec, at, len(data)))
                at += len(data)
            return Sealed(rows, b"".join(data for _, data in self._held), None, at)
        self._write_held(root)
        header = car_header(root)
        if len(header) != len(self._header):
            raise AssertionError(f"CAR header of {len(header)} bytes where {len(self._header)} were left for it")
        file = self._open_file(root)
        os.pwrite(file, header, 0)
        fsync_file(file)
        os.close(file)
        self._file = None
        return Sealed(list(self._rows.values()), None, self._path, self._end)

    def discard(self) -> None:
        """Forget everything and remove the temporary file; idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._path.unlink(missing_ok=True)

    def _open_file(self, root: Cid) -> int:
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._header = car_header(root)
            os.write(self._file, self._header)
            self._end = len(self._header)
        return self._file

    def _write_held(self, root: Cid) -> None:
        file = self._open_file(root)
        parts: list[bytes] = []
        for cid, data in self._held:
            prefix = car_section_prefix(cid, len(data))
            self._rows[cid.key] = (cid.digest, cid.codec, self._end + len(prefix), len(data))
            self._end += len(prefix) + len(data)
            parts += (prefix, data)
        self._held.clear()
        self._held_bytes = 0
        _write_all(file, parts)


def fsync_file(file: int) -> None:
    """Put a file's content on the disk's medium, on every platform."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # fsync alone stops at the drive's cache there
    else:
        os.fsync(file)


def fsync_folder(path: Path) -> None:
    """Make renames in a folder durable."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_all(file: int, parts: list[bytes]) -> None:
    """Write everything; a short write, as at a quota's edge, goes on or raises."""
    at = 0
    while at < len(parts):
        batch = parts[at : at + 512]  # below every platform's IOV_MAX
        at += 512
        wanted = sum(map(len, batch))
        written = os.writev(file, batch)
        if written < wanted:
            rest = memoryview(b"".join(batch))[written:]
            while rest:
                rest = rest[os.write(file, rest) :]
