"""Waiting for something to change, without a timer for each who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from parity_protocol.clock import Clock
from parity_protocol.errors import Overloaded

__all__ = ["Followers", "end_of"]

T = TypeVar("T")

MAX_FOLLOWERS = 20_000  # requests that wait at once
REREAD_S = 1.0  # a follower looks again at least so often


class Followers:
    """Requests that wait for a named thing to change. ``tick`` MUST be called several times a second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: dict[str, dict[asyncio.Future[None], float]] = {}
        self._count = 0
        self._is_closing = False

    def __len__(self) -> int:
        return self._count

    async def until(
        self, name: str, read: Callable[[], Awaitable[T]], is_ready: Callable[[T], bool], *, wait_s: float
    ) -> T:
        """Return what ``read`` gives once it ``is_ready``, or as it is when ``wait_s`` has passed.

        The waiter is registered before each reading, so a change in between is not missed.

        Raises:
            Overloaded: Too many wait already.
        """
        deadline = self._clock.monotonic() + wait_s
        while True:
            until = min(deadline, self._clock.monotonic() + REREAD_S)
            future = self._register(name, until)
            try:
                found = await read()
                if is_ready(found) or self._is_closing or self._clock.monotonic() >= deadline:
                    return found
                await future
            finally:
                self._forget(name, future)

    def changed(self, name: str) -> None:
        """Wake everybody who waits for ``name``."""
        for future in self._waiting.get(name, ()):
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        """Answer everybody who waits, now and from now on: the market is about to stop."""
        self._is_closing = True
        for name in list(self._waiting):
            self.changed(name)

    def tick(self) -> None:
        """Wake those whose time has come."""
        now = self._clock.monotonic()
        for waiting in self._waiting.values():
            for future, until in waiting.items():
                if until <= now and not future.done():
                    future.set_result(None)

    def _register(self, name: str, until: float) -> asyncio.Future[None]:
        if self._count >= MAX_FOLLOWERS:
            raise Overloaded(f"{self._count} requests wait already", retry_after_s=1.0)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, {})[future] = until
        self._count += 1
        return future

    def _forget(self, name: str, future: asyncio.Future[None]) -> None:
        waiting = self._waiting[name]
        del waiting[future]
        self._count -= 1
        if not waiting:
            del self._waiting[name]


def end_of(task_id: str) -> str:
    """Return the name under which to wait for a task's end, and not for each step on its way."""
    return f"{task_id} end"
