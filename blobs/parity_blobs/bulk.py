"""A large file from a socket to the disk on two threads: one receives, one hashes and writes what hashed right.

Through the event loop a byte costs more than its hash: a new object for each piece, a copy to join the pieces, and a
dozen Python calls for each. Here four buffers go round, and every call that touches bytes releases the interpreter. A
buffer holds several leaves, since each hand-over wakes a thread, and the kernel is asked to hold some megabytes of what
the peer sends meanwhile, so that nobody waits for anybody.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from itertools import accumulate
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from parity_blobs.http_transport import TakenOver
from parity_blobs.plain import Leaf
from parity_blobs.verify import CheckedLeaf
from parity_protocol.errors import Unreachable

__all__ = ["MIN_BULK_BYTES", "Bulk", "Pace", "make_room", "write_at"]

MIN_BULK_BYTES = 4 << 20  # below it two threads are not worth starting

_BUFFERS = 4
_BUFFER_BYTES = 1 << 20  # of each, or a leaf if that is larger; fits a processor's second-level cache
_AHEAD_BYTES = 1 << 24  # that the peer may send while the buffers are full; the kernel may allow less
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


class _Came(NamedTuple):
    """Leaves that were received, each with its content.

    Attributes:
        buffer: What they lie in, if nothing else will be received into it before it is free again; else None.
    """

    leaves: Sequence[tuple[Leaf, memoryview]]
    buffer: memoryview | None


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
        self._full: SimpleQueue[_Came | Exception] = SimpleQueue()
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
        make_room(self._sock)
        size = max(_BUFFER_BYTES, *(leaf.size for leaf in self._leaves))
        for _ in range(_BUFFERS):
            self._free.put(memoryview(bytearray(size)))
        self._pool.submit(self._receive_all, _batches(self._leaves, size), tick)
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

    def _receive_all(self, batches: Iterator[Sequence[Leaf]], tick_s: float) -> None:
        try:
            for batch in batches:
                buffer = self._free.get()
                if buffer is None or self._is_stopped:
                    break
                self._fill(buffer, batch, tick_s)
        except Exception as exc:  # noqa: BLE001 - raised by the other thread, after every leaf before it
            self._full.put(exc)
        else:
            self._full.put(Unreachable(f"{self._pace.url}: given up"))

    def _fill(self, buffer: memoryview, batch: Sequence[Leaf], tick_s: float) -> None:
        """Receive some leaves; each is handed over as soon as it is here, whatever becomes of the next."""
        ends = list(accumulate(leaf.size for leaf in batch))
        came = start = done = 0
        while done < len(batch):
            came += self._receive(buffer[came : ends[-1]], tick_s)
            ready: list[tuple[Leaf, memoryview]] = []
            while done < len(batch) and ends[done] <= came:
                ready.append((batch[done], buffer[start : ends[done]]))
                start, done = ends[done], done + 1
            if ready:
                self._full.put(_Came(ready, buffer if done == len(batch) else None))

    def _receive(self, room: memoryview, tick_s: float) -> int:
        """Fill ``room`` or as much of it as comes without a pause; return how many bytes came, at least one."""
        if count := min(len(room), len(self._early)):
            room[:count], self._early = self._early[:count], self._early[count:]
            self._pace.count(count)
            return count
        silent_s = 0.0
        while True:
            with self._pace.waiting():
                try:
                    count = self._sock.recv_into(room, 0, socket.MSG_WAITALL)
                except BlockingIOError:
                    silent_s += tick_s
                    if silent_s < self._pace.stall_s:
                        continue
                    raise Unreachable(f"{self._pace.url}: nothing came for {self._pace.stall_s:g} s") from None
                except OSError as exc:
                    raise Unreachable(f"{self._pace.url}: {exc.strerror or exc}") from exc
            if not count:
                raise Unreachable(f"{self._pace.url}: the connection was closed without a whole answer")
            self._pace.count(count)
            return count

    def _keep(self) -> None:
        left = len(self._leaves)
        try:
            while left:
                came = self._full.get()
                if isinstance(came, Exception):
                    raise came
                for leaf, content in came.leaves:
                    if self._is_stopped:
                        return
                    checked = CheckedLeaf.of(leaf.cid, content)
                    write_at(self._fd, [content], self._at)
                    self._at += leaf.size
                    self.written.append(checked)
                left -= len(came.leaves)
                if came.buffer is not None:
                    self._free.put(came.buffer)
        finally:
            self._halt()


def make_room(sock: socket.socket) -> None:
    """Let the peer send on while nobody receives.

    By way of the low-water mark, which makes Linux enlarge the buffer behind it at once, within its own limit for a
    connection. Asking for a buffer's size would end the kernel's own adjustment, under a limit that is often lower.
    """
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _AHEAD_BYTES)
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


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


def _batches(leaves: Sequence[Leaf], max_bytes: int) -> Iterator[Sequence[Leaf]]:
    """Cut ``leaves`` into runs of at most ``max_bytes`` of content; none of them is larger itself."""
    first = size = 0
    for at, leaf in enumerate(leaves):
        if size + leaf.size > max_bytes:
            yield leaves[first:at]
            first, size = at, 0
        size += leaf.size
    yield leaves[first:]
