"""The one source of time. Everything that waits or expires takes a ``Clock``, so that tests need not sleep."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Tells and passes time.

    ``now`` MUST be UTC. ``monotonic`` MUST go on while the machine is suspended where the system can tell
    (CLOCK_BOOTTIME): a laptop that slept has lost its lease. ``sleep`` MUST be a cancellation point.
    """

    def now(self) -> datetime:
        """Return the current time, UTC, time-zone aware."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait at least ``seconds``."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """Return the current time, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds since boot, time asleep included where the system counts it."""
        if hasattr(time, "CLOCK_BOOTTIME"):
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait at least ``seconds``."""
        await asyncio.sleep(seconds)
