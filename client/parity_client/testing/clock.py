"""A clock for tests that nobody has to wait for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

__all__ = ["JumpClock"]


class JumpClock:
    """A clock whose sleepers do not wait: sleeping moves the time. ``slept`` has every sleep, seconds."""

    def __init__(self, start: datetime | None = None) -> None:
        self._start = start or datetime(2026, 1, 1, tzinfo=UTC)
        self._elapsed = 0.0
        self.slept: list[float] = []

    def now(self) -> datetime:
        """Return the time, UTC."""
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Return the seconds since the start."""
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """Move the time, once others had their turn."""
        await asyncio.sleep(0)
        self.slept.append(seconds)
        self.advance(max(0.0, seconds))

    def advance(self, seconds: float) -> None:
        """Move the time."""
        self._elapsed += seconds
