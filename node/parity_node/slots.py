"""Room to run tasks in: numbered, each held by one execution at a time."""

from __future__ import annotations

import heapq

import anyio

__all__ = ["Slots"]


class Slots:
    """``count`` slots, numbered from 0; the lowest free number is given first.

    An execution whose process has ended keeps its slot until its result is durable. Such a slot is *ending*: new work
    may be asked for, since the slot will be free before the claim is answered. A slot that is spoken for by a claim on
    its way is *reserved*.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count))
        self._next_extra = count
        self._changed = anyio.Event()
        self._ending: set[int] = set()
        self.reserved = 0

    @property
    def free(self) -> int:
        """How many are free."""
        return len(self._free)

    @property
    def open(self) -> int:
        """How many work may be asked for: free or ending, and not reserved."""
        return max(0, len(self._free) + len(self._ending) - self.reserved)

    def reserve(self, count: int) -> None:
        """Set slots aside for claims on their way; ``unreserve`` must follow."""
        self.reserved += count

    def unreserve(self, count: int) -> None:
        """Give reservations back."""
        self.reserved -= count
        self._wake()

    def take(self, preferred: int | None = None) -> int:
        """Take a slot.

        Recovered executions may outnumber the slots after their number was lowered: they get numbers above the last.

        Args:
            preferred: The one that a recovered execution had; taken if it is free, since its number is its user too.
        """
        if preferred in self._free:
            self._free.remove(preferred)
            heapq.heapify(self._free)
            return preferred
        if self._free:
            return heapq.heappop(self._free)
        self._next_extra += 1
        return self._next_extra - 1

    def end(self, slot: int) -> None:
        """Note that the task in ``slot`` has ended; what is left is to make its result durable."""
        if slot < self.count:
            self._ending.add(slot)
            self._wake()

    def release(self, slot: int) -> None:
        """Give a slot back."""
        if slot < self.count:
            self._ending.discard(slot)
            heapq.heappush(self._free, slot)
            self._wake()

    async def wait_open(self) -> int:
        """Return how many are open as soon as one is."""
        while not self.open:
            await self._changed.wait()
        return self.open

    async def wait_free(self) -> None:
        """Return as soon as one is free."""
        while not self._free:
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
