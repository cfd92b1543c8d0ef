"""A clock that moves only when it is told to."""

from __future__ import annotations

import asyncio
import heapq
from datetime import UTC, datetime, timedelta
from itertools import count

__all__ = ["FakeClock"]

_SETTLE_ROUNDS = 50  # loop turns given to woken tasks before time moves on


class FakeClock:
    """A ``Clock`` for tests: ``await clock.advance(timedelta)`` wakes every sleeper whose time has come, in order.

    Args:
        start: First value of ``now()``; must carry its zone.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0
        self._wall_offset = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    def now(self) -> datetime:
        """Return the fake time, UTC."""
        return self._start + timedelta(seconds=self._elapsed + self._wall_offset)

    def monotonic(self) -> float:
        """Return the fake seconds since the start."""
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """Wait until ``advance`` has passed ``seconds``."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), future))
        await future

    def jump_wall(self, delta: timedelta) -> None:
        """Move the wall clock only, as a wrong or corrected system clock does."""
        self._wall_offset += delta.total_seconds()

    async def advance(self, delta: timedelta) -> None:
        """Pass ``delta``, stopping at each sleeper on the way so that it acts at its own time."""
        end = self._elapsed + delta.total_seconds()
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, future = heapq.heappop(self._sleepers)
            self._elapsed = max(self._elapsed, due)
            if not future.done():
                future.set_result(None)
            await self._settle()
        self._elapsed = end  # nobody waits for a time up to here: nothing is left to settle

    async def _settle(self) -> None:
        for _ in range(_SETTLE_ROUNDS):
            await asyncio.sleep(0)
