"""The market's store: operations in, committed answers out.

An operation is a plain function of a ``Tx`` that reads, decides and writes; it does no other I/O. Operations that
arrive together share one commit, so that a durable acknowledgement costs a fraction of an fsync.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias, TypeVar

from parity_market.store.statements import Command, Query

__all__ = ["MarketStore", "ReadTx", "Tx", "Value"]

T = TypeVar("T")
R = TypeVar("R")

Value: TypeAlias = "int | str | bytes | None"


class ReadTx(Protocol):
    """A snapshot. What it returns MUST all be of one moment."""

    def one(self, query: Query[R], /, **params: Value) -> R | None:
        """Return the first row, or None."""
        ...

    def all(self, query: Query[R], /, **params: Value) -> list[R]:
        """Return every row."""
        ...


class Tx(ReadTx, Protocol):
    """The writer's transaction. Nothing else writes while it is open."""

    def run(self, command: Command, /, **params: Value) -> int:
        """Execute and return the number of rows that it touched."""
        ...

    def insert(self, command: Command, row: tuple[object, ...], /) -> int:
        """Execute with a whole row in column order; return 0 when the command ignores a duplicate, else 1."""
        ...

    def insert_many(self, command: Command, rows: Iterable[tuple[object, ...]], /) -> None:
        """Execute once for each row in column order."""
        ...

    def after_commit(self, hook: Callable[[], None]) -> None:
        """Call ``hook`` on the event loop once this operation is durable; never if it is not."""
        ...


class MarketStore(Protocol):
    """Holds everything that the market must not lose.

    ``write`` MUST run operations one at a time, each in a savepoint: one that raises is undone alone and its exception
    is the caller's. It MUST return only after the commit is on disk. ``read`` MUST see every operation whose ``write``
    has returned. Both are to be called on the event loop that opened the store.
    """

    async def write(self, op: Callable[[Tx], T]) -> T:
        """Run ``op`` and return its value once it is durable.

        A caller that is cancelled while waiting does not undo the operation.

        Raises:
            Overloaded: Too many operations wait already.
            StorageFull: The disk is full; nothing of this batch was kept.
            Unavailable: The database failed, or the store is closed; nothing of this batch was kept.
        """
        ...

    async def read(self, op: Callable[[ReadTx], T]) -> T:
        """Run ``op`` on a snapshot; it should read at most a few hundred rows.

        Raises:
            Unavailable: The database failed, or the store is closed.
        """
        ...

    async def close(self) -> None:
        """Finish what was accepted, refuse what comes, and close. Idempotent."""
        ...
