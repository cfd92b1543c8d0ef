"""Room to run tasks in: numbered, each held by one execution at a time."""

from __future__ import annotations

import heapq

from parity_node.waiting import Signal

__all__ = ["Slots"]


class Slots:
    """``count`` slots, numbered from 0; the lowest free number is given first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count))
        self._next_extra = count
        self._freed = Signal()

    @property
    def free(self) -> int:
        """How many are free."""
        return len(self._free)

    def take(self) -> int:
        """Take a slot.

        Recovered executions may outnumber the slots after their number was lowered: they get numbers above the last.
        """
        if self._free:
            return heapq.heappop(self._free)
        self._next_extra += 1
        return self._next_extra - 1

    def release(self, slot: int) -> None:
        """Give a slot back."""
        if slot < self.count:
            heapq.heappush(self._free, slot)
            self._freed.set()

    async def wait_free(self) -> int:
        """Return how many are free as soon as one is."""
        while not self._free:
            await self._freed.wait()
        return len(self._free)
