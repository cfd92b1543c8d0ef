"""What the market may miss without harm: that executions have started, and what they print."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio
import structlog

from parity_node.executors.base import Executor, Handle
from parity_node.market.base import MarketClient
from parity_node.store.base import NodeStore
from parity_node.waiting import Signal, within
from parity_protocol.api.leases import MAX_BATCH, MAX_LOG_CHUNK_BYTES, LogChunk, LogsRequest, StartItem, StartRequest
from parity_protocol.clock import Clock
from parity_protocol.errors import ParityError

__all__ = ["LogFeed", "LogShipper", "StartNotices"]

COALESCE_S = 0.02  # starts that come within it share a message; a task that ends within it needs none
LOG_INTERVAL_S = 0.5
CALL_TIMEOUT_S = 10.0
FINAL_LOG_TIMEOUT_S = 3.0  # for what a task printed last; its report does not wait longer
MAX_LOG_BYTES = 4 << 20  # shipped per execution

_CHUNK_BYTES = MAX_LOG_CHUNK_BYTES // 3  # a byte that is not UTF-8 becomes a character of three

log = structlog.get_logger(__name__)


class StartNotices:
    """Tells the market what has started, in one message for all that started together."""

    def __init__(self, market: MarketClient, clock: Clock) -> None:
        self._market = market
        self._clock = clock
        self._waiting: dict[str, StartItem] = {}
        self._signal = Signal()

    def add(self, item: StartItem) -> None:
        """Tell it soon."""
        self._waiting[item.lease_id] = item
        self._signal.set()

    def discard(self, lease_id: str) -> None:
        """Do not tell it any more: the report is there already."""
        self._waiting.pop(lease_id, None)

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._signal.wait()
            await self._clock.sleep(COALESCE_S)
            while self._waiting:
                items = tuple(self._waiting.values())[:MAX_BATCH]
                for item in items:
                    del self._waiting[item.lease_id]
                request = StartRequest(starts=items)
                try:
                    await within(self._clock, CALL_TIMEOUT_S, lambda request=request: self._market.start(request))  # type: ignore[misc]  # mypy cannot infer a default
                except (ParityError, TimeoutError) as exc:
                    log.info("starts_not_sent", starts=len(items), error=str(exc))


@dataclass(slots=True)
class LogFeed:
    """One execution's log on its way."""

    execution_id: str
    task_id: str
    lease_id: str
    fence: int
    executor: Executor
    handle: Handle
    read: int = 0  # bytes of the log
    sent: int = 0  # bytes of UTF-8 text that the market has
    is_over: bool = False  # the market wants no more, or the cap is reached
    lock: anyio.Lock = field(default_factory=anyio.Lock)


class LogShipper:
    """Sends what executions print while they run."""

    def __init__(self, market: MarketClient, store: NodeStore, clock: Clock) -> None:
        self._market = market
        self._store = store
        self._clock = clock
        self._feeds: dict[str, LogFeed] = {}
        self._added = Signal()

    def add(self, feed: LogFeed) -> None:
        """Follow an execution."""
        self._feeds[feed.execution_id] = feed
        self._added.set()

    def discard(self, execution_id: str) -> None:
        """Stop following it."""
        self._feeds.pop(execution_id, None)

    async def finish(self, execution_id: str) -> None:
        """Send what is left of an execution that has ended, within ``FINAL_LOG_TIMEOUT_S``, and stop following it."""
        feed = self._feeds.get(execution_id)
        if feed is None:
            return
        try:
            if feed.read == 0 and not await feed.executor.logs(feed.handle, 0):
                return  # most short tasks print nothing
            await within(self._clock, FINAL_LOG_TIMEOUT_S, lambda: self._drain(feed))
        except (ParityError, TimeoutError) as exc:
            log.info("log_not_sent", task_id=feed.task_id, error=str(exc))
        except Exception:  # a log is never worth the report that follows it
            log.exception("log_not_read", task_id=feed.task_id)
        finally:
            self.discard(execution_id)

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            if not self._feeds:
                await self._added.wait()
            await self._clock.sleep(LOG_INTERVAL_S)
            for feed in list(self._feeds.values()):
                try:
                    await within(self._clock, CALL_TIMEOUT_S, lambda feed=feed: self._ship_one(feed, last=False))  # type: ignore[misc]  # mypy cannot infer a default
                except (ParityError, TimeoutError) as exc:
                    log.info("log_not_sent", task_id=feed.task_id, error=str(exc))

    async def _drain(self, feed: LogFeed) -> None:
        while await self._ship_one(feed, last=True):
            pass

    async def _ship_one(self, feed: LogFeed, *, last: bool) -> bool:
        """Send the next chunk; return whether there was one."""
        async with feed.lock:
            if feed.is_over:
                return False
            data = (await feed.executor.logs(feed.handle, feed.read))[:_CHUNK_BYTES]
            if not last or len(data) == _CHUNK_BYTES:
                data = data[: len(data) - _partial_tail(data)]
            if not data:
                return False
            text = data.decode("utf-8", errors="replace").replace("\x00", "�")
            chunk = LogChunk(
                task_id=feed.task_id, lease_id=feed.lease_id, fence=feed.fence, offset=feed.sent, text=text
            )
            reply = await self._market.logs(LogsRequest(chunks=(chunk,)))
            status = reply.items[0].status if reply.items else 500
            feed.read += len(data)
            feed.sent += len(text.encode())
            feed.is_over = 400 <= status < 500 or feed.sent >= MAX_LOG_BYTES
            self._store.note(feed.execution_id, log_read=feed.read, log_sent=feed.sent)
            return True


def _partial_tail(data: bytes) -> int:
    """Return how many bytes at the end begin a UTF-8 character that is not whole yet (0 to 3)."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
        return back if needed > back else 0
    return 0
