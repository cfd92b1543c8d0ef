"""Reading from the local store: find an object, and check each block's hash before it is handed out."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from parity_blobs.cid import CODEC_DAG_PB, CODEC_RAW, Cid
from parity_blobs.verify import check_block
from parity_protocol.errors import DigestMismatch, NotFound, Unavailable

__all__ = ["Source", "StoredObject", "locate", "pack_path", "roots_around"]

_BY_ROOT = """SELECT o.id, o.digest, o.codec, o.kind, o.size, o.stored, o.blocks, o.in_file, o.pinned
FROM object o WHERE o.digest = ? AND o.codec = ?"""
_BY_BLOCK = """SELECT o.id, o.digest, o.codec, o.kind, o.size, o.stored, o.blocks, o.in_file, o.pinned
FROM block b JOIN object o ON o.id = b.object WHERE b.digest = ? AND b.codec = ? LIMIT 1"""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A row of the index."""

    id: int
    digest: bytes
    codec: int
    kind: str
    size: int
    stored: int
    blocks: int
    in_file: int  # 0 or 1
    pinned: int  # 0 or 1


def pack_path(packs: Path, digest: bytes, codec: int) -> Path:
    """Return where the file of an object lies."""
    return packs / digest[-1:].hex() / f"{codec:02x}-{digest.hex()}.car"


def locate(connection: sqlite3.Connection, cid: Cid) -> StoredObject | None:
    """Find the object whose root ``cid`` is, or any object that contains it.

    A node asked for by its raw CID is served as bytes; raw bytes asked for as a node are not, because nobody checked
    that what they would link to is here.
    """
    codecs = (CODEC_RAW, CODEC_DAG_PB) if cid.codec == CODEC_RAW else (CODEC_DAG_PB,)
    for query in (_BY_ROOT, _BY_BLOCK):
        for codec in codecs:
            row = connection.execute(query, (cid.digest, codec)).fetchone()
            if row is not None:
                return StoredObject(*row)
    return None


def roots_around(connection: sqlite3.Connection, cid: Cid, limit: int) -> list[Cid]:
    """Return the roots, as CIDs of version 1, of up to ``limit`` objects that contain a block."""
    query = "SELECT o.digest, o.codec FROM block b JOIN object o ON o.id = b.object WHERE b.digest = ? AND b.codec = ? LIMIT ?"
    rows = connection.execute(query, (cid.digest, cid.codec, limit)).fetchall()
    return [Cid(1, codec, digest) for digest, codec in rows]


class Source:
    """One object, held open: deleting it meanwhile does not disturb a reader. Not thread-safe: one call at a time.

    Args:
        on_rot: Called with the object when a block does not match its hash.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        packs: Path,
        cid: Cid,
        *,
        on_rot: Callable[[StoredObject], None],
        only_this_block: bool = False,
    ) -> None:
        self._file: int | None = None
        self._inline = b""
        self._on_rot = on_rot
        connection.execute("BEGIN")  # one snapshot: the object, its blocks and its bytes belong together
        try:
            found = locate(connection, cid)
            if found is None:
                raise NotFound(f"{cid} is not in this store")
            self.object = found
            query = "SELECT codec, digest, at, length FROM block WHERE object = ?"
            values: tuple[int | bytes, ...] = (found.id,)
            if only_this_block:
                query, values = query + " AND digest = ?", (found.id, cid.digest)
            self._rows = {
                (codec, digest): (at, length) for codec, digest, at, length in connection.execute(query, values)
            }
            if not found.in_file:
                (self._inline,) = connection.execute("SELECT data FROM inline WHERE object = ?", (found.id,)).fetchone()
        finally:
            connection.execute("ROLLBACK")
        if found.in_file:
            try:
                self._file = os.open(pack_path(packs, found.digest, found.codec), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as exc:  # somebody removed the file under the index
                on_rot(found)
                raise NotFound(f"{cid} is not in this store any more") from exc

    def length_of(self, cid: Cid) -> int:
        """Return the length of a block in bytes without reading it.

        Raises:
            NotFound: The object does not contain it.
        """
        return self._row(cid)[1]

    def get_block(self, cid: Cid) -> bytes:
        """Return a block whose hash was checked just now.

        Raises:
            DigestMismatch: It has rotted; the object was set aside.
            NotFound: The object does not contain it.
            Unavailable: The disk failed.
        """
        at, length = self._row(cid)
        if self._file is None:
            data = self._inline[at : at + length]
        else:
            try:
                data = os.pread(self._file, length, at)
            except OSError as exc:
                raise Unavailable(f"block {cid} cannot be read: {exc.strerror}") from exc
        try:
            check_block(cid, data)
        except DigestMismatch:
            self._on_rot(self.object)
            raise
        return data

    def close(self) -> None:
        """Let the file go; idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _row(self, cid: Cid) -> tuple[int, int]:
        row = self._rows.get((cid.codec, cid.digest))
        if row is None and cid.codec == CODEC_RAW:
            row = self._rows.get((CODEC_DAG_PB, cid.digest))
        if row is None:
            raise NotFound(f"block {cid} is not in this store")
        return row
