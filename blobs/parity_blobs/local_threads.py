"""How the local store uses threads: an object's steps in order, reads some MiB ahead, and waits that are not abandoned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import anyio

from parity_blobs.local_read import Source
from parity_protocol.disk import is_full
from parity_protocol.errors import StorageFull, Unavailable

__all__ = ["Batches", "Worker", "settled", "submit", "translate_os", "wait"]

T = TypeVar("T")

_BATCH_BYTES = 2 << 20  # read and hashed in one go on a thread
_BATCH_ITEMS = 1024


class Batches(Generic[T]):
    """Advances an iterator on a thread, some MiB at a time.

    Args:
        begin: Opens the source and makes the iterator; runs with the first batch.
        weigh: Bytes of an item.
    """

    def __init__(self, begin: Callable[[], tuple[Source | None, Iterator[T]]], weigh: Callable[[T], int]) -> None:
        self._begin = begin
        self._weigh = weigh
        self._source: Source | None = None
        self._items: Iterator[T] | None = None
        self._problem: Exception | None = None

    def next(self) -> tuple[list[T], bool]:
        """Return the next items, and whether they are the last.

        Raises:
            Exception: What the iterator raised, after every item before it was returned.
        """
        if self._problem is not None:
            raise self._problem
        if self._items is None:
            self._source, self._items = self._begin()
        batch: list[T] = []
        weight = 0
        try:
            for item in self._items:
                batch.append(item)
                weight += self._weigh(item)
                if weight >= _BATCH_BYTES or len(batch) >= _BATCH_ITEMS:
                    return batch, False
        except Exception as exc:
            if not batch:
                raise
            self._problem = exc
            return batch, False
        return batch, True

    def close(self) -> None:
        """Close the source; idempotent, and only while ``next`` does not run."""
        if self._source is not None:
            self._source.close()
            self._source = None


class Worker:
    """Runs an object's steps on threads, one after the other, while the next bytes are awaited."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._running: Future[None] | None = None

    async def push(self, step: Callable[[list[T]], None], items: list[T]) -> None:
        """Wait for the step before, raise what it raised, and start this one."""
        if self._running is not None:
            await asyncio.wrap_future(self._running)
        self._running = submit(self._pool, lambda: step(items))

    async def last(self, step: Callable[[], T]) -> T:
        """Run the final step after all others and return what it returns."""
        if self._running is not None:
            await asyncio.wrap_future(self._running)
        self._running = None
        return await settled(submit(self._pool, step))

    async def settle(self) -> None:
        """Wait until no step runs, whatever it raised."""
        if self._running is not None:
            await wait(self._running)


def submit(pool: ThreadPoolExecutor, function: Callable[[], T]) -> Future[T]:
    """Run ``function`` on a thread; what the disk says comes back as our errors.

    Raises:
        Unavailable: The store is closed.
    """

    def run() -> T:
        try:
            return function()
        except OSError as exc:
            raise translate_os(exc) from exc

    try:
        return pool.submit(run)
    except RuntimeError as exc:
        raise Unavailable("the blob store is closed") from exc


async def settled(future: Future[T]) -> T:
    """Wait for a result that must not be abandoned half-way; bounded by one commit."""
    wrapped = asyncio.wrap_future(future)
    with anyio.CancelScope(shield=True):
        await asyncio.wait([wrapped])
    return wrapped.result()


async def wait(future: Future[T]) -> None:
    """Wait until ``future`` ended, however."""
    if not future.done():
        await asyncio.wait([asyncio.wrap_future(future)])


def translate_os(exc: OSError) -> Unavailable:
    """Return our error for the disk's."""
    if is_full(exc):
        return StorageFull("the disk is full")
    return Unavailable(f"the disk failed: {exc.strerror or exc}")
