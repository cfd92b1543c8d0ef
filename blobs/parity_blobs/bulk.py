"""A large file from a socket to the disk on two threads: one receives, one hashes and writes what hashed right.

Through the event loop a byte costs more than its hash: a new object for each piece, a copy to join the pieces, and a
dozen Python calls for each. Here four buffers go round, and every call that touches bytes releases the interpreter.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from queue import SimpleQueue
from typing import Protocol

from parity_blobs.http_transport import TakenOver
from parity_blobs.plain import Leaf
from parity_blobs.verify import CheckedLeaf
from parity_protocol.errors import Unreachable

__all__ = ["MIN_BULK_BYTES", "Bulk", "Pace", "write_at"]

MIN_BULK_BYTES = 4 << 20  # below it two threads are not worth starting

_BUFFERS = 4  # each as large as the largest leaf
_TICK_S = 0.25  # after which a wait for bytes looks up
_NEWS_S = 0.15  # between two looks of the event loop at what was written; each takes the interpreter from the threads
_IOV_MAX = 512  # below every platform's


class Pace(Protocol):
    """Bounds how slow a peer may be; ``meter.Meter``."""

    url: str
    stall_s: float

    def waiting(self) -> AbstractContextManager[None]:
        """Count the time inside."""
        ...

    def count(self, size: int) -> None:
        """Note bytes that came.

        Raises:
            Unreachable: Too slow.
        """
        ...


class Bulk:
    """Leaves that come on a connection which was taken over, in their order, and nothing else.

    Nothing is written that did not hash right, and nothing after the first leaf that did not.

    Args:
        room: The file, and the position in it where the first leaf's content goes.
        pace: Used by one of the threads, and meanwhile by nobody else.

    Attributes:
        written: Leaves that are in the file and that nobody has looked at yet; the caller takes them from the left.
    """

    def __init__(self, taken: TakenOver, leaves: Sequence[Leaf], room: tuple[int, int], pace: Pace) -> None:
        self._sock = taken.sock
        self._early = memoryview(taken.early)
        self._leaves = leaves
        self._fd, self._at = room
        self._pace = pace
        self.written: deque[CheckedLeaf] = deque()
        self._is_stopped = False
        self._free: SimpleQueue[memoryview | None] = SimpleQueue()
        self._full: SimpleQueue[memoryview | Exception] = SimpleQueue()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="blob-bulk")
        self._keeping: asyncio.Future[None] | None = None

    async def news(self) -> AsyncIterator[deque[CheckedLeaf]]:
        """Start, and yield ``written`` some times a second; the last time when nothing will follow.

        Raises:
            DigestMismatch: The leaf after those that were written is not what it should be.
            Unreachable: Too slow, or cut off.
            OSError: The disk failed.
        """
        tick = min(_TICK_S, self._pace.stall_s)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(tick), int(tick % 1 * 1e6)))
        size = max(leaf.size for leaf in self._leaves)
        for _ in range(_BUFFERS):
            self._free.put(memoryview(bytearray(size)))
        self._pool.submit(self._receive, tick)
        keeping = self._keeping = asyncio.wrap_future(self._pool.submit(self._keep))
        is_over = False
        while not is_over:
            done, _ = await asyncio.wait([keeping], timeout=_NEWS_S)
            is_over = bool(done)  # before what was written is looked at
            yield self.written
        keeping.result()

    async def stop(self) -> None:
        """End it, wherever it is, and return when nothing is written any more; idempotent.

        Waits for one write at most, since the socket is shut first.
        """
        self._halt()
        if self._keeping is not None:
            await asyncio.wait([self._keeping])
            self._keeping.exception()  # told already, or nobody's any more
        self._pool.shutdown()  # the other thread has nothing left to wait for
        self._sock.close()

    def _halt(self) -> None:
        self._is_stopped = True
        self._free.put(None)
        with suppress(OSError):  # the peer was faster
            self._sock.shutdown(socket.SHUT_RDWR)

    # -- on threads ------------------------------------------------------------------------------------------------

    def _receive(self, tick_s: float) -> None:
        try:
            for leaf in self._leaves:
                buffer = self._free.get()
                if buffer is None:
                    break
                self._fill(buffer[: leaf.size], tick_s)
                self._full.put(buffer)
        except Exception as exc:  # noqa: BLE001 - raised by the other thread, after every leaf before it
            self._full.put(exc)
        else:
            self._full.put(Unreachable(f"{self._pace.url}: given up"))

    def _fill(self, rest: memoryview, tick_s: float) -> None:
        """Receive until ``rest`` is full."""
        if early := len(rest[: len(self._early)]):
            rest[:early], self._early = self._early[:early], self._early[early:]
            self._pace.count(early)
            rest = rest[early:]
        silent_s = 0.0
        while rest:
            count = 0
            with self._pace.waiting():
                try:
                    count = self._sock.recv_into(rest, 0, socket.MSG_WAITALL)
                except BlockingIOError:
                    silent_s += tick_s
                except OSError as exc:
                    raise Unreachable(f"{self._pace.url}: {exc.strerror or exc}") from exc
                else:
                    silent_s = 0.0
            if silent_s >= self._pace.stall_s:
                raise Unreachable(f"{self._pace.url}: nothing came for {self._pace.stall_s:g} s")
            if not silent_s and not count:
                raise Unreachable(f"{self._pace.url}: the connection was closed without a whole answer")
            if count:
                self._pace.count(count)
                rest = rest[count:]

    def _keep(self) -> None:
        try:
            for leaf in self._leaves:
                buffer = self._full.get()
                if isinstance(buffer, Exception):
                    raise buffer
                if self._is_stopped:
                    return
                content = buffer[: leaf.size]
                checked = CheckedLeaf.of(leaf.cid, content)
                write_at(self._fd, [content], self._at)
                self._at += leaf.size
                self.written.append(checked)
                self._free.put(buffer)
        finally:
            self._halt()


def write_at(fd: int, parts: Sequence[bytes | memoryview], at: int) -> None:
    """Write everything; a short write, as at a quota's edge, goes on or raises."""
    for start in range(0, len(parts), _IOV_MAX):
        batch = parts[start : start + _IOV_MAX]
        wanted = sum(map(len, batch))
        done = os.pwritev(fd, batch, at)
        if done < wanted:
            rest = memoryview(b"".join(batch))[done:]
            while rest:
                count = os.pwrite(fd, rest, at + done)
                done, rest = done + count, rest[count:]
        at += wanted
