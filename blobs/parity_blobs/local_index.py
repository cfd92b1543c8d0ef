"""The local store's index: which objects and blocks are here, in SQLite (WAL, synced commits).

One thread writes. Operations that arrive together share one transaction and so one fsync; each runs in a savepoint of
its own, so that one that fails undoes only itself. Answers follow the commit.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from parity_protocol.errors import Internal, ParityError, StorageFull, Unavailable

__all__ = ["LocalIndex", "Transaction", "translate_sqlite"]

T = TypeVar("T")

_MAX_BATCH = 256  # operations in one commit
_BUSY_MS = 5000
_SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE object (
  id INTEGER PRIMARY KEY,
  digest BLOB NOT NULL,                -- of the root block
  codec INTEGER NOT NULL,
  kind TEXT NOT NULL,
  size INTEGER NOT NULL,               -- content bytes
  stored INTEGER NOT NULL,             -- bytes of different blocks
  blocks INTEGER NOT NULL,
  footprint INTEGER NOT NULL,          -- bytes that count against the store's limit
  in_file INTEGER NOT NULL,
  pinned INTEGER NOT NULL,
  used INTEGER NOT NULL,               -- unix microseconds; grows with every use: the smallest is evicted first
  UNIQUE (digest, codec)
) STRICT;
CREATE INDEX object_by_use ON object (pinned, used);
CREATE TABLE inline (object INTEGER PRIMARY KEY REFERENCES object ON DELETE CASCADE, data BLOB NOT NULL) STRICT;
CREATE TABLE block (
  digest BLOB NOT NULL,
  codec INTEGER NOT NULL,
  object INTEGER NOT NULL REFERENCES object ON DELETE CASCADE,
  at INTEGER NOT NULL,
  length INTEGER NOT NULL,
  PRIMARY KEY (digest, codec, object)
) STRICT, WITHOUT ROWID;
CREATE INDEX block_by_object ON block (object);
CREATE TABLE usage (bytes INTEGER NOT NULL, pinned INTEGER NOT NULL) STRICT;
INSERT INTO usage VALUES (0, 0);
CREATE TRIGGER object_added AFTER INSERT ON object BEGIN
  UPDATE usage SET bytes = bytes + NEW.footprint, pinned = pinned + NEW.footprint * NEW.pinned;
END;
CREATE TRIGGER object_removed AFTER DELETE ON object BEGIN
  UPDATE usage SET bytes = bytes - OLD.footprint, pinned = pinned - OLD.footprint * OLD.pinned;
END;
CREATE TRIGGER object_pinned AFTER UPDATE OF pinned ON object BEGIN
  UPDATE usage SET pinned = pinned + NEW.footprint * (NEW.pinned - OLD.pinned);
END;
"""


@dataclass
class Transaction:
    """What an operation works on.

    Attributes:
        on_commit: Called on the writer's thread after the commit, only if it succeeded; must not raise.
    """

    connection: sqlite3.Connection
    on_commit: list[Callable[[], None]] = field(default_factory=list)


class LocalIndex:
    """Opens and serves the index file. ``submit`` may be called from any thread; readers are one per thread.

    Args:
        now: Returns unix seconds; called on any thread.
    """

    def __init__(self, path: Path, *, now: Callable[[], float]) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[tuple[Callable[[Transaction], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._writer = self._connect()
        self._create()
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._readers_lock = threading.Lock()
        self._touched: dict[int, int] = {}  # object id to its latest use, not written yet
        self._touched_lock = threading.Lock()
        self._now = now
        self._last_use = int(self._writer.execute("SELECT coalesce(max(used), 0) FROM object").fetchone()[0])
        self._last_use_lock = threading.Lock()
        self._closing = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="blob-index", daemon=True)
        self._thread.start()

    def submit(self, operation: Callable[[Transaction], T]) -> Future[T]:
        """Run ``operation`` on the writer's connection; the future ends after the commit, or with what it raised.

        Raises:
            Unavailable: The index is closed.
        """
        future: Future[T] = Future()
        with self._closing:
            if self._is_closed:
                raise Unavailable("the blob store is closed")
            self._queue.put((operation, future))
        return future

    def reader(self) -> sqlite3.Connection:
        """Return this thread's read-only connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            connection.execute("PRAGMA query_only = 1")
            self._local.connection = connection
            with self._readers_lock:
                self._readers.append(connection)
        return connection

    def touch(self, object_id: int) -> None:
        """Note a use for the eviction order; written with the next commit, and lost in a crash, which is harmless."""
        with self._touched_lock:
            self._touched[object_id] = self.next_use()

    def next_use(self) -> int:
        """Return the time in unix microseconds, and always more than at any use before, wherever the clock went."""
        with self._last_use_lock:
            self._last_use = max(self._last_use + 1, int(self._now() * 1e6))
            return self._last_use

    def close(self) -> None:
        """Finish what was submitted and close; idempotent. Readers must be idle."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
            self._queue.put(None)
        self._thread.join()
        with self._readers_lock:
            for connection in self._readers:
                connection.close()
            self._readers.clear()
        self._writer.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, timeout=_BUSY_MS / 1000, cached_statements=64
        )
        try:
            for pragma in ("synchronous = FULL", "fullfsync = 1", "foreign_keys = 1"):
                connection.execute(f"PRAGMA {pragma}")
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.Error as exc:
            connection.close()
            raise translate_sqlite(exc) from exc
        if mode != "wal":
            connection.close()
            raise Internal(f"the blob index needs SQLite's WAL mode, got {mode!r}")
        return connection

    def _create(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._writer.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
        elif version != _SCHEMA_VERSION:
            raise Internal(f"the blob index has version {version}, this program knows {_SCHEMA_VERSION}")

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch = [self._queue.get()]
            with suppress(queue.Empty):
                while len(batch) < _MAX_BATCH:
                    batch.append(self._queue.get_nowait())
            is_open = None not in batch
            self._commit([each for each in batch if each is not None])

    def _commit(self, batch: list[tuple[Callable[[Transaction], Any], Future[Any]]]) -> None:
        replies: list[Callable[[], None]] = []
        connection = self._writer
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._flush_touched(connection)
            for operation, future in batch:
                if future.set_running_or_notify_cancel():
                    self._run_one(connection, operation, future, replies)
            connection.execute("COMMIT")
        except sqlite3.Error as exc:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            problem = translate_sqlite(exc)
            for _, future in batch:
                if not future.done() and (future.running() or future.set_running_or_notify_cancel()):
                    future.set_exception(problem)
            return
        for reply in replies:
            reply()

    @staticmethod
    def _run_one(
        connection: sqlite3.Connection,
        operation: Callable[[Transaction], T],
        future: Future[T],
        replies: list[Callable[[], None]],
    ) -> None:
        transaction = Transaction(connection)
        connection.execute("SAVEPOINT operation")
        try:
            result = operation(transaction)
        except Exception as exc:  # noqa: BLE001 - handed to the caller, whatever it is
            problem = translate_sqlite(exc) if isinstance(exc, sqlite3.Error) else exc
            connection.execute("ROLLBACK TO operation")
            connection.execute("RELEASE operation")
            replies.append(lambda: future.set_exception(problem))
            return
        connection.execute("RELEASE operation")
        replies.extend(transaction.on_commit)
        replies.append(lambda: future.set_result(result))

    def _flush_touched(self, connection: sqlite3.Connection) -> None:
        with self._touched_lock:
            touched, self._touched = self._touched, {}
        connection.executemany(
            "UPDATE object SET used = ? WHERE id = ?", [(use, each) for each, use in touched.items()]
        )


def translate_sqlite(exc: sqlite3.Error) -> ParityError:
    """Return our error for SQLite's; it keeps the cause."""
    full = getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    found: ParityError = (
        StorageFull("the blob index cannot grow") if full else Internal(f"the blob index failed: {exc}")
    )
    found.__cause__ = exc
    return found
