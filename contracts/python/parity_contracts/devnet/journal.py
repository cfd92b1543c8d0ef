"""The append-only file that makes the chain survive ``kill -9``.

A record is ``length u32 | crc32 u32 | kind u8 | body``, big-endian. The first one names the chain by its genesis hash;
the rest are transactions as they were accepted and blocks as they were sealed. A block names its transactions by
hash: replaying the file gives the same blocks bit for bit, and transactions no block names are pending again.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from parity_protocol.errors import ConfigInvalid, StorageFull

__all__ = ["BlockRecord", "Journal", "TxRecord"]

log = structlog.get_logger(__name__)

_FRAME = struct.Struct(">II")  # body length with the kind, crc32 of both
_BLOCK = struct.Struct(">Q32s")  # timestamp, block hash; transaction hashes follow
_MAX_RECORD_BYTES = 1 << 20
_KIND_GENESIS, _KIND_TX, _KIND_BLOCK = b"G", b"T", b"B"


@dataclass(frozen=True, slots=True)
class TxRecord:
    """A transaction that was accepted: its raw bytes."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """A block that was sealed. ``timestamp`` is Unix seconds; ``transactions`` are hashes in their order."""

    timestamp: int
    block_hash: bytes
    transactions: tuple[bytes, ...]


class Journal:
    """One open journal. ``append`` and ``sync`` may be called from different threads.

    Raises:
        ConfigInvalid: The file belongs to another chain, or is damaged before its end.
    """

    def __init__(self, path: Path, genesis_hash: bytes) -> None:
        self._path = path
        self._genesis = genesis_hash
        self._lock = threading.Lock()
        self._file = path.open("a+b", buffering=0)  # a buffer would not know of the writes beside it
        os.chmod(path, 0o600)  # noqa: PTH101  (the open file's own path, in the same breath)
        self._synced = 0  # bytes known to be on disk
        self._end = 0

    def replay(self) -> Iterator[TxRecord | BlockRecord]:
        """Yield every whole record and cut off a torn end, so that new records follow the last whole one.

        Must be run to its end before anything is appended.
        """
        at = 0
        self._file.seek(0)
        size = os.fstat(self._file.fileno()).st_size
        first = True
        while at < size:
            payload = self._read_record(at)
            if payload is None:
                self._cut(at, size)
                break
            at += _FRAME.size + len(payload)
            if first:
                first = False
                if payload != _KIND_GENESIS + self._genesis:
                    raise ConfigInvalid(
                        [f"{self._path} is the journal of another chain (genesis 0x{payload[1:33].hex()})"]
                    )
            elif payload[:1] == _KIND_TX:
                yield TxRecord(payload[1:])
            else:
                yield _block_record(payload[1:])
        self._end = self._synced = at
        if at == 0:
            self._append(_KIND_GENESIS, self._genesis)
            self.sync()

    def append_tx(self, raw: bytes) -> int:
        """Write an accepted transaction; durable once ``sync`` has covered the returned position."""
        return self._append(_KIND_TX, raw)

    def append_block(self, record: BlockRecord) -> int:
        """Write a sealed block; durable once ``sync`` has covered the returned position."""
        body = _BLOCK.pack(record.timestamp, record.block_hash) + b"".join(record.transactions)
        return self._append(_KIND_BLOCK, body)

    def sync(self, position: int | None = None) -> int:
        """Make everything up to ``position`` (None: everything) durable. Blocks for one fsync at most.

        Returns:
            The position up to which everything is on disk.

        Raises:
            StorageFull: The disk did not take it.
        """
        with self._lock:
            end = self._end
            if (end if position is None else position) <= self._synced:
                return self._synced
        try:
            os.fsync(self._file.fileno())
        except OSError as exc:
            raise StorageFull(f"the chain's journal could not be written: {exc}") from exc
        with self._lock:
            self._synced = max(self._synced, end)
            return self._synced

    def close(self) -> None:
        """Make everything durable and close the file."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def _append(self, kind: bytes, body: bytes) -> int:
        payload = kind + body
        record = _FRAME.pack(len(payload), zlib.crc32(payload)) + payload
        with self._lock:
            try:
                written = 0
                while written < len(record):
                    written += os.write(self._file.fileno(), record[written:])
            except OSError as exc:
                os.ftruncate(self._file.fileno(), self._end)  # half a record would hide all that follows it
                raise StorageFull(f"the chain's journal could not be written: {exc}") from exc
            self._end += len(record)
            return self._end

    def _read_record(self, at: int) -> bytes | None:
        self._file.seek(at)
        frame = self._file.read(_FRAME.size)
        if len(frame) < _FRAME.size:
            return None
        length, crc = _FRAME.unpack(frame)
        if not 1 <= length <= _MAX_RECORD_BYTES:
            return None
        payload = self._file.read(length)
        if len(payload) < length or zlib.crc32(payload) != crc or not _well_formed(payload):
            return None
        return payload

    def _cut(self, at: int, size: int) -> None:
        """Drop a torn end. What was never acknowledged may go; damage in the middle may not.

        A crash leaves whole records and then at most one part of a write. If whole records follow the bad one, then
        the disk or somebody's editor changed acknowledged bytes, and cutting would lose money.
        """
        self._file.seek(at)
        frame = self._file.read(_FRAME.size)
        if len(frame) == _FRAME.size:
            after = at + _FRAME.size + _FRAME.unpack(frame)[0]
            if after < size and self._read_record(after) is not None:
                raise ConfigInvalid(
                    [f"{self._path} is damaged at byte {at}: restore it from a copy, or remove the data folder"]
                )
        log.warning("chain_journal_torn_end_cut", kept_bytes=at, cut_bytes=size - at)
        os.ftruncate(self._file.fileno(), at)
        os.fsync(self._file.fileno())


def _well_formed(payload: bytes) -> bool:
    kind, body = payload[:1], payload[1:]
    if kind == _KIND_BLOCK:
        return len(body) >= _BLOCK.size and (len(body) - _BLOCK.size) % 32 == 0
    return kind in (_KIND_TX, _KIND_GENESIS)


def _block_record(body: bytes) -> BlockRecord:
    timestamp, block_hash = _BLOCK.unpack_from(body)
    hashes = tuple(body[at : at + 32] for at in range(_BLOCK.size, len(body), 32))
    return BlockRecord(timestamp, block_hash, hashes)
