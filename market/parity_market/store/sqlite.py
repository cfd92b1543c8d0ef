"""SQLite in WAL mode, durable at every acknowledged write."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.engine.interfaces import Dialect

from parity_market.store.base import ReadTx, Tx
from parity_market.store.migrate import upgrade_sqlite
from parity_market.store.writer import SqlReadTx, Writer, translated
from parity_protocol.errors import ConfigInvalid, Unavailable

__all__ = ["SqliteStore", "open_sqlite"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

BUSY_TIMEOUT_MS = 1_000  # the event loop waits with it, so a person's long transaction must not stop the leases
CACHE_KIB = 16_384
CHECKPOINT_PAGES = 2_000  # 8 MiB of WAL before it is written back
STATEMENT_CACHE = 256  # prepared statements per connection


class SqliteStore:
    """A ``MarketStore`` in one file. Made by ``open_sqlite``."""

    def __init__(self, writer: Writer, reader: sqlite3.Connection, dialect: Dialect, lock: int) -> None:
        self.writer = writer
        self._reader = reader
        self._cursor = reader.cursor()
        self._tx = SqlReadTx(self._cursor, dialect)
        self._lock = lock
        self._closed = False

    async def write(self, op: Callable[[Tx], T]) -> T:
        """Run ``op`` and return its value once it is durable."""
        return await self.writer.write(op)

    async def read(self, op: Callable[[ReadTx], T]) -> T:
        """Run ``op`` on a snapshot of what is committed."""
        if self._closed:
            raise Unavailable("the store is closed")
        try:
            self._cursor.execute("BEGIN")
            try:
                return op(self._tx)
            finally:
                self._cursor.execute("COMMIT")
        except sqlite3.Error as exc:
            raise translated(exc) from exc

    async def close(self) -> None:
        """Commit what was accepted, refuse what comes, and close."""
        if self._closed:
            return
        self._closed = True
        await self.writer.close()
        self._reader.close()
        os.close(self._lock)


async def open_sqlite(path: Path) -> SqliteStore:
    """Open or create the market's database; one process at a time may.

    Args:
        path: The file; its folder exists.

    Raises:
        ConfigInvalid: It is no database of ours, or the file system cannot do what durability needs.
    """
    with contextlib.ExitStack() as undo:
        lock = _lock(path)
        undo.callback(os.close, lock)
        upgrade_sqlite(path)
        dialect = sqlite_dialect.dialect(paramstyle="qmark")
        reader = _connect(path, read_only=True)
        undo.callback(reader.close)
        writer = Writer(
            _connect(path),
            dialect,
            begin="BEGIN IMMEDIATE",
            on_hook_error=lambda exc: log.error("after_commit_failed", exc_info=exc),
        )
        undo.pop_all()
        return SqliteStore(writer, reader, dialect, lock)


def _lock(path: Path) -> int:
    """Keep every other market off this database; the system drops the lock when the process ends, however it ends."""
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise ConfigInvalid([f"{path} is in use by another market process"]) from exc
    return descriptor


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    # Used from the loop's thread and, for COMMIT, from one other, never by both at once.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=STATEMENT_CACHE)
    settings = [
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "foreign_keys = ON",
        f"cache_size = -{CACHE_KIB}",
        "temp_store = MEMORY",
        f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
        "trusted_schema = OFF",
    ]
    if sys.platform == "darwin":
        settings.append("fullfsync = ON")  # fsync there does not reach the platters
    try:
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        for setting in settings:
            connection.execute(f"PRAGMA {setting}")
        connection.execute("PRAGMA synchronous = FULL")
        durable = connection.execute("PRAGMA synchronous").fetchone()[0]
        if read_only:
            connection.execute("PRAGMA query_only = ON")
    except sqlite3.DatabaseError as exc:
        connection.close()
        raise ConfigInvalid([f"{path} is not a database that the market can use: {exc}"]) from exc
    if mode != "wal" or durable != 2:
        connection.close()
        raise ConfigInvalid([f"{path}: expected WAL and synchronous = FULL (2), got {mode} and {durable}"])
    return connection
