"""What one connection may take before it has asked for anything.

uvicorn waits for a request's head for as long as its sender likes, however long it grows: a few thousand connections
that never finish theirs are all there may be, and everybody else is told 503.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from parity_market.http_protocol import OneWriteProtocol

__all__ = ["HEAD_TIMEOUT_S", "MAX_HEAD_BYTES", "ConnectionLimits", "limited"]

HEAD_TIMEOUT_S = 10.0  # from a connection's start, or a request's first byte, to the end of the request's head
MAX_HEAD_BYTES = 65_536  # a read that ends a head may bring a little more


class ConnectionLimits:
    """Counts open connections by address.

    Args:
        max_connections: Open at once. One address has at most half of them, so that it cannot lock out the others.
    """

    def __init__(self, max_connections: int) -> None:
        self._max = max_connections
        self._share = max(max_connections // 2, 1)
        self._open: Counter[str] = Counter()
        self._total = 0

    def take(self, address: str) -> bool:
        """Count a connection more; False when there are too many, and nothing was counted."""
        if self._total >= self._max or self._open[address] >= self._share:
            if not self._open[address]:
                del self._open[address]
            return False
        self._open[address] += 1
        self._total += 1
        return True

    def give_back(self, address: str) -> None:
        """Count a connection less."""
        self._total -= 1
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


class _Limited(OneWriteProtocol):
    """One connection: refused when there are too many, ended when a request's head is too slow or too long."""

    limits: ConnectionLimits
    head_timeout_s = HEAD_TIMEOUT_S

    _counted: str | None = None
    _in_head = True
    _head_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin a connection."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if not self.limits.take(address):
            transport.abort()
            return
        self._counted = address
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End it."""
        self._head_is_whole()
        if self._counted is not None:
            self.limits.give_back(self._counted)
            self._counted = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too long.")

    def on_message_begin(self) -> None:
        """A request's first byte has come."""
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """A request's head is whole."""
        self._head_is_whole()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._head_is_whole()
        self._in_head = True
        self._deadline = self.loop.call_later(self.head_timeout_s, self._give_up)

    def _head_is_whole(self) -> None:
        self._in_head, self._head_bytes = False, 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


def limited(limits: ConnectionLimits, *, head_timeout_s: float = HEAD_TIMEOUT_S) -> type[OneWriteProtocol]:
    """Return uvicorn's protocol under ``limits``."""
    return type("LimitedProtocol", (_Limited,), {"limits": limits, "head_timeout_s": head_timeout_s})
