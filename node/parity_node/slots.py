"""Room to run tasks in: numbered, each held by one execution at a time."""

from __future__ import annotations

from itertools import count as count_up

import anyio

from parity_node.waiting import event_within
from parity_protocol.clock import Clock

__all__ = ["Slots"]

MAX_SPARE = 64


class Slots:
    """Room for ``count`` tasks that run; an execution's number is the lowest that nobody holds, from 0.

    An execution whose process has ended keeps its number, which is its user too, until its result is durable and its
    folder gone, but another may run meanwhile: up to ``count`` more numbers (64 at most) are there for those that are
    *ending*. When these are held up too, by a full disk for example, nothing new begins. A slot that is spoken for by a
    claim on its way, or by a lease that waits for it, is *reserved*.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._most = count + min(count, MAX_SPARE)  # numbers in all
        self._taken: set[int] = set()
        self._ending: set[int] = set()
        self._changed = anyio.Event()
        self.reserved = 0

    @property
    def free(self) -> int:
        """How many tasks may begin now."""
        running = len(self._taken) - len(self._ending)
        return max(0, min(self.count - running, self._most - len(self._taken)))

    @property
    def open(self) -> int:
        """How many tasks may be asked for: free, and not reserved."""
        return max(0, self.free - self.reserved)

    def reserve(self, count: int) -> None:
        """Set slots aside for claims on their way; ``unreserve`` must follow."""
        self.reserved += count

    def unreserve(self, count: int) -> None:
        """Give reservations back."""
        self.reserved -= count
        self.wake()

    def take(self, preferred: int | None = None) -> int:
        """Take a slot.

        Recovered executions may outnumber the slots after their number was lowered: they get numbers above the last.

        Args:
            preferred: The one that a recovered execution had; taken if nobody has it, since its number is its user too.
        """
        number = next(number for number in count_up() if number not in self._taken)
        if preferred is not None and 0 <= preferred < self._most and preferred not in self._taken:
            number = preferred
        self._taken.add(number)
        return number

    def end(self, slot: int) -> None:
        """Note that the task in ``slot`` has ended; what is left is to make its result durable."""
        self._ending.add(slot)
        self.wake()

    def release(self, slot: int) -> None:
        """Give a slot back."""
        self._ending.discard(slot)
        self._taken.discard(slot)
        self.wake()

    def beyond(self, more: int) -> int:
        """Return how many more leases may be claimed when ``more`` than there are slots may wait for one."""
        return max(0, self.free + more - self.reserved)

    async def changed(self) -> None:
        """Return at the next change, or when somebody wakes who waits here."""
        await self._changed.wait()

    async def changed_within(self, clock: Clock, seconds: float) -> None:
        """Return then, or after ``seconds`` of ``clock``."""
        await event_within(self._changed, clock, seconds)

    def wake(self) -> None:
        """Let everybody who waits look again."""
        self._changed.set()
        self._changed = anyio.Event()
