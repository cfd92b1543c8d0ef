"""The journal in one SQLite file: WAL, ``synchronous=FULL``, one writer, group commit."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import TypeVar

import structlog

from parity_node.disk import Ballast
from parity_node.store import migrations
from parity_node.store.base import ClaimIntent, Execution, IntentState, NodeStore, OutboxEntry, Phase, Snapshot
from parity_node.store.writer import GroupCommitWriter
from parity_protocol.errors import Internal

__all__ = ["SqliteNodeStore"]

BALLAST_BYTES = 16 << 20  # freed when the disk is full: SQLite needs room even to delete
NOTE_DELAY_S = 0.002
JTI_KEEP_S = 3_600  # a jti is remembered this long after its manifest expired

_COLUMNS = tuple(field.name for field in fields(Execution))
_CHANGEABLE = frozenset(_COLUMNS) - {"id", "task_id", "jti", "claim_id", "manifest", "manifest_hash"}
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM execution"  # noqa: S608 - names from our own dataclass
_INSERT = f"INSERT INTO execution ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608

T = TypeVar("T")

log = structlog.get_logger(__name__)


class SqliteNodeStore(NodeStore):
    """A ``NodeStore`` in the file ``path``.

    Args:
        ballast_bytes: Room that is kept to be given back when the disk is full; who owns the store calls
            ``ballast.fill`` again when there is room.

    Raises:
        Internal: The file is of a newer version, or WAL and full synchronisation cannot be had.
    """

    def __init__(self, path: Path, *, ballast_bytes: int = BALLAST_BYTES) -> None:
        self._path = path
        self.ballast = Ballast(path.with_name(path.name + ".ballast"), ballast_bytes)
        self._notes: dict[str, dict[str, object]] = {}  # by execution, later changes over earlier ones
        self._forgotten: list[str] = []
        self.ballast.fill()
        self._writer = GroupCommitWriter(self._connect, on_error=_log_failure, on_full=self.ballast.free)

    async def record_intents(self, executions: Sequence[Execution], *, now: int) -> list[ClaimIntent]:
        """Record claims that are about to be sent; see the port."""

        def operation(db: sqlite3.Connection) -> list[ClaimIntent]:
            db.execute("DELETE FROM seen WHERE expires_at < ?", (now - JTI_KEEP_S,))
            return [_record_one(db, execution) for execution in executions]

        return await self._write(operation)

    def note(self, execution_id: str, **changes: object) -> None:
        """Change fields of an execution soon; see the port."""
        unknown = changes.keys() - _CHANGEABLE
        if unknown or not changes:
            raise Internal(f"an execution has no changeable {', '.join(sorted(unknown)) or 'nothing'}")
        self._expect_flush()
        self._notes.setdefault(execution_id, {}).update(changes)

    def forget(self, execution_id: str) -> None:
        """Drop an execution; see the port."""
        self._expect_flush()
        self._notes.pop(execution_id, None)
        self._forgotten.append(execution_id)

    async def collect(self, entry: OutboxEntry, *, phase: Phase | None) -> None:
        """Queue a report and move its execution; see the port."""

        def operation(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO outbox (id, execution_id, body, is_final, result_path, result_cid) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                (entry.id, entry.execution_id, entry.body, entry.is_final, entry.result_path, entry.result_cid),
            )
            if phase is not None:
                db.execute("UPDATE execution SET phase = ? WHERE id = ?", (phase.value, entry.execution_id))

        await self._write(operation)

    async def settle(self, entry_ids: Sequence[str]) -> None:
        """Take answered reports from the queue; see the port."""

        def operation(db: sqlite3.Connection) -> None:
            for entry_id in entry_ids:
                db.execute(
                    "UPDATE execution SET phase = ? WHERE id = "
                    "(SELECT execution_id FROM outbox WHERE id = ? AND is_final = 1)",
                    (Phase.REPORTED.value, entry_id),
                )
                db.execute("DELETE FROM outbox WHERE id = ?", (entry_id,))

        await self._write(operation)

    async def load(self) -> Snapshot:
        """Return what is kept; see the port."""

        def operation(db: sqlite3.Connection) -> Snapshot:
            executions = tuple(_to_execution(row) for row in db.execute(f"{_SELECT} ORDER BY position"))
            rows = db.execute(
                "SELECT id, execution_id, body, is_final, result_path, result_cid, position FROM outbox ORDER BY position"
            )
            outbox = tuple(OutboxEntry(a, b, bytes(c), bool(d), e, f, g) for a, b, c, d, e, f, g in rows)
            return Snapshot(executions, outbox, dict(db.execute("SELECT key, value FROM pin").fetchall()))

        return await self._write(operation)

    async def pin(self, key: str, value: str) -> str:
        """Store a value once; see the port."""

        def operation(db: sqlite3.Connection) -> str:
            db.execute("INSERT INTO pin (key, value) VALUES (?, ?) ON CONFLICT (key) DO NOTHING", (key, value))
            return str(db.execute("SELECT value FROM pin WHERE key = ?", (key,)).fetchone()[0])

        return await self._write(operation)

    async def close(self) -> None:
        """Finish and close; see the port."""
        if not self._writer.is_closed:
            self._flush_notes()
        await self._writer.close()

    async def _write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``operation`` in one commit with everything noted before it."""
        return await self._writer.write(operation, before=self._take_notes())

    def _expect_flush(self) -> None:
        """Write what is noted within ``NOTE_DELAY_S``, or with the next durable write if that comes first.

        Each step of a short task would otherwise wake the writer, and make the durable write behind it wait for a
        commit of its own.
        """
        if self._writer.is_closed:
            raise Internal("the journal is closed")
        if not self._notes and not self._forgotten:
            asyncio.get_running_loop().call_later(NOTE_DELAY_S, self._flush_notes)

    def _flush_notes(self) -> None:
        operation = self._take_notes()
        if operation is not None:
            self._writer.post(operation)

    def _take_notes(self) -> Callable[[sqlite3.Connection], None] | None:
        notes, forgotten = self._notes, self._forgotten
        if not notes and not forgotten:
            return None
        self._notes, self._forgotten = {}, []

        def operation(db: sqlite3.Connection) -> None:
            for execution_id, changes in notes.items():
                assignments = ", ".join(f"{name} = ?" for name in changes)
                values = [_to_column(value) for value in changes.values()]
                sql = f"UPDATE execution SET {assignments} WHERE id = ?"  # noqa: S608 - names were checked in note
                db.execute(sql, (*values, execution_id))
            for execution_id in forgotten:
                db.execute("DELETE FROM outbox WHERE execution_id = ? AND is_final = 0", (execution_id,))
                db.execute("DELETE FROM execution WHERE id = ?", (execution_id,))

        return operation

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, timeout=10.0, cached_statements=256)
        self._path.chmod(0o600)
        if db.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
            raise Internal(f"{self._path}: SQLite cannot use a write-ahead log here")
        db.execute("PRAGMA synchronous=FULL")
        if db.execute("PRAGMA synchronous").fetchone() != (2,):
            raise Internal(f"{self._path}: SQLite does not synchronise fully")
        if sys.platform == "darwin":
            db.execute("PRAGMA fullfsync=ON")
        _migrate(db, self._path)
        return db


def _record_one(db: sqlite3.Connection, execution: Execution) -> ClaimIntent:
    known = db.execute(f"{_SELECT} WHERE jti = ?", (execution.jti,)).fetchone()
    if known is not None:
        found = _to_execution(known)
        state = IntentState.RESUMED if found.phase is Phase.VERIFIED else IntentState.USED
        return ClaimIntent(state, found)
    if db.execute("SELECT 1 FROM seen WHERE jti = ?", (execution.jti,)).fetchone() is not None:
        return ClaimIntent(IntentState.USED, execution)
    db.execute("INSERT INTO seen (jti, expires_at) VALUES (?, ?)", (execution.jti, execution.jti_expires_at))
    # An amount may exceed SQLite's integers, so it is kept as text.
    row = replace(execution, reward=str(execution.reward))  # type: ignore[arg-type]
    db.execute(_INSERT, [_to_column(getattr(row, name)) for name in _COLUMNS])
    return ClaimIntent(IntentState.NEW, execution)


def _to_column(value: object) -> object:
    if isinstance(value, Phase):
        return value.value
    if isinstance(value, dict):
        return json.dumps(value)
    return value


_READERS: dict[str, Callable[[object], object]] = {
    "phase": lambda value: Phase(str(value)),
    "reward": lambda value: int(str(value)),
    "handle": lambda value: None if value is None else json.loads(str(value)),
}


def _to_execution(row: Sequence[object]) -> Execution:
    values = {
        name: _READERS[name](value) if name in _READERS else value for name, value in zip(_COLUMNS, row, strict=True)
    }
    return Execution(**values)  # type: ignore[arg-type]  # the columns are the dataclass's own fields


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    files = sorted(item.name for item in resources.files(migrations).iterdir() if item.name.endswith(".sql"))
    if version > len(files):
        raise Internal(f"{path} was written by a newer version of this program ({version}, this knows {len(files)})")
    for number, name in enumerate(files[version:], start=version + 1):
        db.execute("BEGIN IMMEDIATE")
        for statement in (resources.files(migrations) / name).read_text().split(";\n"):
            if statement.strip():
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")


def _log_failure(error: BaseException) -> None:
    log.error("journal_write_failed", error=str(error))
