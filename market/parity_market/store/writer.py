"""Group commit: operations that arrive together share one transaction and one fsync.

Operations run on the event loop itself and only the COMMIT runs in a thread. Python code runs one thread at a time
anyway, and a thread that calls SQLite gives the interpreter up at every statement and then waits up to the switch
interval (5 ms) to get it back; on a busy loop that would cost more than the operations. A batch ends after 512
operations or 2 ms; where a commit is slow it may last twice as long as the last one took, up to 10 ms, so that the disk
does not decide how many operations a second there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from sqlalchemy.engine.interfaces import Dialect

from parity_market.store.base import Tx, Value
from parity_market.store.statements import Command, Query
from parity_protocol.errors import Overloaded, ParityError, StorageFull, Unavailable

__all__ = ["Connection", "SqlReadTx", "SqlTx", "Writer", "translated"]

T = TypeVar("T")
R = TypeVar("R")

MAX_BATCH_OPS = 512
MIN_BATCH_S = 0.002  # of running operations before their commit
MAX_BATCH_S = 0.010
MAX_WAITING = 10_000  # operations; beyond it callers are told to come back
RETRY_AFTER_S = 1.0


class Cursor(Protocol):
    """The driver's cursor, as PEP 249 has it."""

    @property
    def rowcount(self) -> int:
        """Rows that the last statement touched."""
        ...

    def execute(self, text: str, parameters: Any = ..., /) -> Any:
        """Run one statement."""
        ...

    def executemany(self, text: str, parameters: Iterable[Any], /) -> Any:
        """Run one statement for each set of parameters."""
        ...

    def fetchone(self) -> Any:
        """Return the next row or None."""
        ...

    def fetchall(self) -> list[Any]:
        """Return the remaining rows."""
        ...


class Connection(Protocol):
    """A driver's connection in autocommit mode: transactions are opened and ended by statements."""

    def cursor(self) -> Cursor:
        """Return a new cursor."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class SqlReadTx:
    """Reads on one connection."""

    def __init__(self, cursor: Cursor, dialect: Dialect) -> None:
        self._cursor = cursor
        self._dialect = dialect

    def one(self, query: Query[R], /, **params: Value) -> R | None:
        """Return the first row, or None."""
        prepared = query.prepared(self._dialect)
        self._cursor.execute(prepared.text, prepared.arguments(params))
        found = self._cursor.fetchone()
        if found is None:
            return None
        if prepared.results:
            values = list(found)
            for index, convert in prepared.results:
                values[index] = convert(values[index])
            return query.make(values)
        return query.make(found)

    def all(self, query: Query[R], /, **params: Value) -> list[R]:
        """Return every row."""
        prepared = query.prepared(self._dialect)
        self._cursor.execute(prepared.text, prepared.arguments(params))
        found = self._cursor.fetchall()
        if not prepared.results:
            return [query.make(row) for row in found]
        made = []
        for row in found:
            values = list(row)
            for index, convert in prepared.results:
                values[index] = convert(values[index])
            made.append(query.make(values))
        return made


class SqlTx(SqlReadTx):
    """Reads and writes of one operation."""

    def __init__(self, cursor: Cursor, dialect: Dialect) -> None:
        super().__init__(cursor, dialect)
        self.hooks: list[Callable[[], None]] = []

    def run(self, command: Command, /, **params: Value) -> int:
        """Execute and return the number of rows that it touched."""
        prepared = command.prepared(self._dialect)
        self._cursor.execute(prepared.text, prepared.arguments(params))
        return self._cursor.rowcount

    def insert(self, command: Command, row: tuple[object, ...], /) -> int:
        """Execute with a whole row in column order."""
        prepared = command.prepared(self._dialect)
        self._cursor.execute(prepared.text, prepared.positional(row))
        return self._cursor.rowcount

    def insert_many(self, command: Command, rows: Iterable[tuple[object, ...]], /) -> None:
        """Execute once for each row in column order."""
        prepared = command.prepared(self._dialect)
        self._cursor.executemany(prepared.text, [prepared.positional(row) for row in rows])

    def after_commit(self, hook: Callable[[], None]) -> None:
        """Call ``hook`` on the event loop once this operation is durable."""
        self.hooks.append(hook)


class _Waiting:
    __slots__ = ("future", "hooks", "op", "value")

    def __init__(self, op: Callable[[Tx], Any], future: asyncio.Future[Any]) -> None:
        self.op = op
        self.future = future
        self.value: Any = None
        self.hooks: list[Callable[[], None]] = []


class Writer:
    """Owns the one connection that writes.

    Args:
        connection: In autocommit mode; used by nobody else.
        begin: Opens the transaction of a batch (``BEGIN IMMEDIATE`` on SQLite).
        on_hook_error: Told of an exception in a hook; the operation is durable all the same.
    """

    def __init__(
        self,
        connection: Connection,
        dialect: Dialect,
        *,
        begin: str,
        on_hook_error: Callable[[BaseException], None],
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._connection = connection
        self._cursor = connection.cursor()
        self._dialect = dialect
        self._begin = begin
        self._on_hook_error = on_hook_error
        self._max_waiting = max_waiting
        self._queue: deque[_Waiting] = deque()
        self._busy = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="market-commit")
        self.commits = 0
        self.commit_s = 0.0  # of the last commit, fsync included
        self.operations = 0

    async def write(self, op: Callable[[Tx], T]) -> T:
        """Run ``op`` in the next batch and return its value once that is on disk."""
        if self._closed:
            raise Unavailable("the store is closed")
        if len(self._queue) >= self._max_waiting:
            raise Overloaded(f"{len(self._queue)} operations wait already", retry_after_s=RETRY_AFTER_S)
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.append(_Waiting(op, future))
        if not self._busy:
            self._busy = True
            self._idle.clear()
            # One turn of the loop later, so that everything which is ready now shares the commit.
            self._loop.call_soon(self._run_batch)
        return await future

    async def close(self) -> None:
        """Commit what was accepted, then close the connection."""
        self._closed = True
        await self._idle.wait()
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        self._connection.close()

    # -- one batch -------------------------------------------------------------------------------------------------

    def _run_batch(self) -> None:
        done: list[_Waiting] = []
        try:
            self._cursor.execute(self._begin)
            self._run_operations(done)
        except Exception as exc:  # noqa: BLE001  # a process edge: whatever the driver raised, nobody may be left waiting
            self._undo()
            if not done:  # not even begun: those who wait now would fail the same way
                done.extend(self._queue)
                self._queue.clear()
            self._end_batch([(waiting, translated(exc)) for waiting in done])
            return
        committing = self._thread.submit(self._commit)
        committing.add_done_callback(
            lambda future: self._loop.call_soon_threadsafe(self._committed, done, future.exception())
        )

    def _commit(self) -> None:
        started = time.perf_counter()
        self._cursor.execute("COMMIT")
        self.commit_s = time.perf_counter() - started

    def _run_operations(self, done: list[_Waiting]) -> None:
        until = time.perf_counter() + min(max(MIN_BATCH_S, 2 * self.commit_s), MAX_BATCH_S)
        execute = self._cursor.execute
        while self._queue and len(done) < MAX_BATCH_OPS:
            waiting = self._queue.popleft()
            done.append(waiting)
            tx = SqlTx(self._cursor, self._dialect)
            execute("SAVEPOINT op")
            try:
                waiting.value = waiting.op(tx)
            except Exception as exc:  # an operation's exception belongs to its caller
                if isinstance(self._connection, sqlite3.Connection) and not self._connection.in_transaction:
                    raise  # SQLite rolled everything back (disk full, I/O error): the whole batch is lost
                execute("ROLLBACK TO op")
                execute("RELEASE op")
                done.pop()
                _fail(waiting.future, translated(exc))
            else:
                execute("RELEASE op")
                waiting.hooks = tx.hooks
            if time.perf_counter() >= until:
                break

    def _committed(self, done: list[_Waiting], error: BaseException | None) -> None:
        if error is not None:
            self._undo()
            self._end_batch([(waiting, translated(error)) for waiting in done])
            return
        self.commits += 1
        self.operations += len(done)
        for waiting in done:
            for hook in waiting.hooks:
                try:
                    hook()
                except Exception as exc:  # noqa: BLE001  # a waker that fails must not hide that the work is durable
                    self._on_hook_error(exc)
        self._end_batch([(waiting, None) for waiting in done])

    def _end_batch(self, outcomes: list[tuple[_Waiting, BaseException | None]]) -> None:
        for waiting, error in outcomes:
            if error is not None:
                _fail(waiting.future, error)
            elif not waiting.future.done():
                waiting.future.set_result(waiting.value)
        if self._queue:
            self._loop.call_soon(self._run_batch)
        else:
            self._busy = False
            self._idle.set()

    def _undo(self) -> None:
        with contextlib.suppress(Exception):  # there may be no transaction left
            self._cursor.execute("ROLLBACK")


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def translated(exc: BaseException) -> BaseException:
    """Return our error for a driver's; an operation's own exceptions stay as they are."""
    if isinstance(exc, ParityError) or not isinstance(exc, sqlite3.Error):
        return exc
    name = getattr(exc, "sqlite_errorname", "")
    error: Unavailable
    if name == "SQLITE_FULL":
        error = StorageFull("the market's database cannot grow: the disk is full")
    else:
        error = Unavailable(f"the market's database failed ({name or type(exc).__name__})", retry_after_s=RETRY_AFTER_S)
    error.__cause__ = exc
    return error
