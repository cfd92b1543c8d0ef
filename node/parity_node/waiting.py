"""Waiting for one of several things, in the time of the injected clock."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import Unavailable

__all__ = ["Backoff", "Comeback", "Signal", "event_within", "within"]

T = TypeVar("T")


class Signal:
    """An event that can be raised again and again; waiting takes it down."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake the waiter, or let the next wait return at once."""
        self._event.set()

    async def wait(self) -> None:
        """Return when it was set since the last wait."""
        await self._event.wait()
        self._event = anyio.Event()

    async def wait_within(self, clock: Clock, seconds: float) -> bool:
        """Wait at most ``seconds``; return whether it was set."""
        if await event_within(self._event, clock, seconds):
            self._event = anyio.Event()
            return True
        return False


class Comeback:
    """Several loops pause between tries at one peer; when one of them gets through, the others need not wait longer."""

    def __init__(self) -> None:
        self._is_away = False
        self._wakes: list[Callable[[], None]] = []

    def wakes(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` at the first answer after a failure."""
        self._wakes.append(wake)

    def failed(self) -> None:
        """Note that the peer did not answer."""
        self._is_away = True

    def answered(self) -> None:
        """Note that it did."""
        if self._is_away:
            self._is_away = False
            for wake in self._wakes:
                wake()


class Backoff:
    """Full jitter (Brooker, "Exponential Backoff And Jitter", 2015): uniform in 0 … min(cap, base · 2ⁿ).

    Args:
        base_s: First upper bound.
        cap_s: Largest upper bound.
        rng: Source of the jitter; give a seeded one to tests.
    """

    def __init__(self, base_s: float, cap_s: float, *, rng: random.Random | None = None) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._failures = 0

    def after(self, error: BaseException | None = None) -> float:
        """Return how long to wait after one more failure; a peer's Retry-After is a lower bound."""
        bound = min(self._cap_s, self._base_s * 2 ** min(self._failures, 32))
        self._failures += 1
        wait_s = self._rng.uniform(0, bound)
        asked = error.retry_after_s if isinstance(error, Unavailable) else None
        return wait_s if asked is None else asked + wait_s

    def reset(self) -> None:
        """Start again after a success."""
        self._failures = 0


async def event_within(event: anyio.Event, clock: Clock, seconds: float) -> bool:
    """Wait for ``event`` at most ``seconds`` of ``clock``; return whether it was set."""
    if event.is_set():
        return True
    if isinstance(clock, SystemClock):  # whose time is the event loop's: a timer costs less than a task
        with anyio.move_on_after(seconds):
            await event.wait()
        return event.is_set()
    async with anyio.create_task_group() as group:

        async def time_out() -> None:
            await clock.sleep(seconds)
            group.cancel_scope.cancel()

        group.start_soon(time_out)
        await event.wait()
        group.cancel_scope.cancel()
    return event.is_set()


async def within(clock: Clock, seconds: float, call: Callable[[], Awaitable[T]]) -> T:
    """Return what ``call`` returns.

    Raises:
        TimeoutError: It took longer than ``seconds`` of ``clock`` and was cancelled.
    """
    if isinstance(clock, SystemClock):
        with anyio.fail_after(seconds):
            return await call()
    found: list[T] = []
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def time_out() -> None:
            await clock.sleep(seconds)
            group.cancel_scope.cancel()

        group.start_soon(time_out)
        try:
            found.append(await call())
        except Exception as exc:  # noqa: BLE001 - raised again below: a task group would wrap it
            failures.append(exc)
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not found:
        raise TimeoutError(f"took longer than {seconds:g} s")
    return found[0]
