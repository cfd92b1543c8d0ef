"""One thread that owns the connection and commits what arrives together at once.

An operation is a function run in its own SAVEPOINT of an explicit batch: one that fails rolls back alone. Replies
follow the COMMIT, so that an acknowledgement means durable.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from parity_protocol.errors import Internal, ParityError, StorageFull

__all__ = ["GroupCommitWriter"]

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], Any]

MAX_BATCH = 512  # operations in one commit
_FULL_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})


@dataclass(slots=True)
class _Job:
    operation: Operation
    loop: asyncio.AbstractEventLoop | None
    future: asyncio.Future[Any] | None
    value: Any = None
    error: BaseException | None = None


class GroupCommitWriter:
    """Runs operations in order on one connection.

    Args:
        connect: Opens the connection; called in the writer's thread.
        on_error: Told of a failed operation that nobody waits for.
        on_full: Called in the writer's thread when the disk is full; True when it made room and a retry is worth it.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        *,
        on_error: Callable[[BaseException], None],
        on_full: Callable[[], bool] = lambda: False,
    ) -> None:
        self._connect = connect
        self._on_error = on_error
        self._on_full = on_full
        self._queue: queue.SimpleQueue[list[_Job] | None] = queue.SimpleQueue()
        self._opened: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self.is_closed = False
        self._thread.start()
        failure = self._opened.get()
        if failure is not None:
            raise failure

    async def write(self, operation: Callable[[sqlite3.Connection], T], *, before: Operation | None = None) -> T:
        """Run ``operation`` and return its value after the commit.

        Cancelling the caller does not take the operation back.

        Args:
            before: Runs just before, in a savepoint of its own and in the same commit.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        first = [_Job(before, None, None)] if before is not None else []
        self._put([*first, _Job(operation, loop, future)])
        return await future

    def post(self, operation: Operation) -> None:
        """Run ``operation`` in its turn without waiting."""
        self._put([_Job(operation, None, None)])

    async def close(self) -> None:
        """Finish what is queued, then close the connection; idempotent."""
        if not self.is_closed:
            self.is_closed = True
            self._queue.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _put(self, jobs: list[_Job]) -> None:
        if self.is_closed:
            raise Internal("the journal is closed")
        self._queue.put(jobs)

    def _run(self) -> None:
        try:
            connection = self._connect()
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that is waiting in the constructor
            self._opened.put(exc)
            return
        self._opened.put(None)
        is_open = True
        while is_open:
            batch: list[_Job] = []
            jobs = self._queue.get()
            while jobs is not None:
                batch += jobs
                if len(batch) >= MAX_BATCH or self._queue.empty():
                    break
                jobs = self._queue.get()
            is_open = jobs is not None
            self._commit(connection, batch)
        connection.close()

    def _commit(self, connection: sqlite3.Connection, batch: list[_Job]) -> None:
        if not batch:
            return
        failure = self._try_commit(connection, batch)
        if isinstance(failure, StorageFull) and self._on_full():
            failure = self._try_commit(connection, batch)
        for job in batch:
            if failure is not None:
                job.error = failure
            self._deliver(job)

    def _try_commit(self, connection: sqlite3.Connection, batch: list[_Job]) -> BaseException | None:
        """Run the batch in one transaction; return what broke all of it, or None."""
        try:
            connection.execute("BEGIN IMMEDIATE")
            for job in batch:
                self._run_one(connection, job)
            connection.execute("COMMIT")
        except sqlite3.Error as exc:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            return _translate(exc)
        return None

    def _run_one(self, connection: sqlite3.Connection, job: _Job) -> None:
        job.value, job.error = None, None
        connection.execute("SAVEPOINT job")
        try:
            job.value = job.operation(connection)
        except sqlite3.Error as exc:
            if isinstance(_translate(exc), StorageFull):
                raise  # the whole batch is lost; SQLite may have rolled it back already
            job.error = _translate(exc)
        except ParityError as exc:
            job.error = exc
        except Exception as exc:  # noqa: BLE001 - the caller gets it; the thread must go on
            job.error = Internal(f"a journal operation failed: {exc!r}")
            job.error.__cause__ = exc
        if job.error is not None:
            connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")

    def _deliver(self, job: _Job) -> None:
        if job.loop is None or job.future is None:
            if job.error is not None:
                self._on_error(job.error)
            return
        try:
            job.loop.call_soon_threadsafe(_resolve, job.future, job.value, job.error)
        except RuntimeError:  # the loop is closed: nobody is waiting any more
            return


def _resolve(future: asyncio.Future[Any], value: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


def _translate(exc: sqlite3.Error) -> ParityError:
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    if code in _FULL_CODES or "disk is full" in str(exc):
        error: ParityError = StorageFull(f"the journal cannot be written: {exc}")
    else:
        error = Internal(f"the journal failed: {exc}")
    error.__cause__ = exc
    return error
