"""How slow a peer may be: the one judge of every transfer over HTTP, whoever chose the address."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Protocol

import httpx

from parity_protocol.clock import Clock
from parity_protocol.errors import BadDocument, Unreachable

__all__ = ["Meter", "PaceLimits"]


class PaceLimits(Protocol):
    """What ``Meter`` holds a peer to; ``FetchLimits`` and ``HttpsLimits`` are some."""

    @property
    def stall_s(self) -> float:
        """Between two pieces."""
        ...

    @property
    def total_s(self) -> float:
        """In all."""
        ...

    @property
    def min_rate(self) -> float:
        """Bytes a second over each window; time in which nobody waits for the peer does not count."""
        ...

    @property
    def rate_window_s(self) -> float:
        """Seconds of waiting in a window."""
        ...


class Meter:
    """Bounds one attempt: total time, rate over a window, and the bytes of each response.

    Not bound to a thread, but to one at a time.

    Args:
        url: Of the peer, as messages name it.
        began: Of the total time, on ``clock``'s monotonic scale; None is now.
    """

    def __init__(self, clock: Clock, limits: PaceLimits, url: str, *, began: float | None = None) -> None:
        self._clock = clock
        self._limits = limits
        self.url = url
        self.stall_s = limits.stall_s
        self._began = clock.monotonic() if began is None else began
        self._waiters = 0
        self._since = self._waited = self._window_start = 0.0
        self._received = self._window_received = 0

    async def watch(self, response: httpx.Response, max_bytes: int | None) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Args:
            max_bytes: Most that may come; None leaves counting to the caller.

        Raises:
            BadDocument: More than ``max_bytes`` came.
            Unreachable: Too slow, over the total time, or cut off.
        """
        came = 0
        pieces = response.aiter_raw()
        while True:
            with self.waiting():
                try:
                    piece = await anext(pieces, None)
                except (httpx.HTTPError, httpx.StreamError) as exc:
                    raise Unreachable(f"{self.url}: {type(exc).__name__} {exc}".rstrip()) from exc
            if piece is None:
                return
            came += len(piece)
            if max_bytes is not None and came > max_bytes:
                raise BadDocument(f"{self.url}: more than {max_bytes} bytes came")
            self.count(len(piece))
            yield piece

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside; waiting for several answers at once counts once."""
        if self._waiters == 0:
            self._since = self._clock.monotonic()
        self._waiters += 1
        try:
            yield
        finally:
            self._waiters -= 1
            now = self._clock.monotonic()
            self._waited += now - self._since
            self._since = now

    def count(self, size: int) -> None:
        """Note bytes that came.

        Raises:
            Unreachable: Too slow, or over the total time.
        """
        now = self._clock.monotonic()
        self._received += size
        if now - self._began > self._limits.total_s:
            raise Unreachable(f"{self.url}: not done after {self._limits.total_s:g} s")
        window = self._waited - self._window_start
        if window < self._limits.rate_window_s:
            return
        if self._received - self._window_received < self._limits.min_rate * window:
            raise Unreachable(f"{self.url}: slower than {self._limits.min_rate:g} bytes a second")
        self._window_start, self._window_received = self._waited, self._received
