"""A trial run: whether an executor works on this machine is tried, not guessed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from parity_protocol.capability import ExecutorState
from parity_protocol.clock import Clock

__all__ = ["Trial"]


class Trial:
    """Remembers how the trial run went; one that failed is made again when somebody asks a while later.

    Args:
        run: Makes it; asked by one caller at a time.
        retry_s: How long a failure counts, in seconds.
    """

    def __init__(self, run: Callable[[], Awaitable[ExecutorState]], *, clock: Clock, retry_s: float) -> None:
        self._run = run
        self._clock = clock
        self._retry_s = retry_s
        self._found: ExecutorState | None = None
        self._tried_at = 0.0  # Clock.monotonic()
        self._trying = anyio.Lock()

    async def outcome(self) -> ExecutorState:
        """Return how it went; the first caller waits for it, and those who come meanwhile with it."""
        async with self._trying:
            found = self._found
            if found is None or (not found.available and self._clock.monotonic() - self._tried_at >= self._retry_s):
                found = self._found = await self._run()
                self._tried_at = self._clock.monotonic()
            return found
