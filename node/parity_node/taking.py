"""The loop that takes work: it asks for offers while the claims of the last ones are still on their way.

While tasks are short, offers for the slots that claims fill come with the claims' answer: the market keeps them for a
moment only, so a node whose tasks take long after all holds up nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio
import structlog
from anyio.abc import TaskGroup

from parity_node.acquire import Acquirer, Granted
from parity_node.presence import Presence
from parity_node.slots import Slots
from parity_node.waiting import Backoff, Comeback, Signal
from parity_protocol.clock import Clock
from parity_protocol.errors import (
    Forbidden,
    NotFound,
    ParityError,
    StakeTooLow,
    StorageFull,
    Unauthenticated,
    Unreachable,
)

__all__ = ["Taker"]

MAX_CLAIMS_UNDER_WAY = 4  # batches; more would share no commit
OBSTACLE_PAUSE_S = 1.0
GATHER_S = 0.002
BRISK_S = 0.1  # tasks that take no longer are short
FRESH_S = 0.2  # for which offers that came ahead are good; the market keeps them a little longer
LONGEST_RETRY_S = 20.0
LONGEST_IDLE_S = 5.0

log = structlog.get_logger(__name__)


class Taker:
    """Polls, claims and hands leases over, until it is told to stop.

    A stop interrupts the waiting, never a claim on its way.

    Args:
        obstacle: Why nothing may be taken now, in words; empty when nothing stands in the way.
        room: How many executions may begin so that each one's report has room.
        measure: Measures the node again, when an obstacle may have gone.
        begin: Takes a slot for a lease and starts its execution; must not wait.
    """

    def __init__(
        self,
        *,
        acquirer: Acquirer,
        presence: Presence,
        slots: Slots,
        clock: Clock,
        comeback: Comeback,
        market_back: Signal,
        obstacle: Callable[[], str],
        room: Callable[[], int],
        measure: Callable[[], object],
        begin: Callable[[Granted], None],
    ) -> None:
        self._acquirer = acquirer
        self._presence = presence
        self._slots = slots
        self._clock = clock
        self._comeback = comeback
        self._market_back = market_back
        self._obstacle = obstacle
        self._room = room
        self._measure = measure
        self._begin = begin
        self._waiting = anyio.CancelScope()  # what a stop may interrupt
        self._is_stopped = False
        self._told_obstacle = ""
        self._had_offers = False
        self._pause_s = 0.0  # before the next poll
        self._failed = Backoff(0.2, LONGEST_RETRY_S)
        self._idle = Backoff(0.05, LONGEST_IDLE_S)
        self._claims = anyio.Semaphore(MAX_CLAIMS_UNDER_WAY)
        self._lasted = deque[float](maxlen=slots.count)  # seconds, of the executions that ended last
        self._ahead = deque[tuple[str, float]]()  # an offer, and until when it is good (monotonic)

    def stop(self) -> None:
        """Take no new work; ``run`` returns when the claims on their way are answered."""
        self._is_stopped = True
        self._waiting.cancel()

    def note_end(self, seconds: float) -> None:
        """Note how long an execution took."""
        self._lasted.append(seconds)

    async def run(self) -> None:
        """Take work until stopped."""
        async with anyio.create_task_group() as claims:
            while not self._is_stopped:
                if self._pause_s:
                    await self._pause()
                    continue
                try:
                    await self._poll(claims)
                except (ParityError, TimeoutError) as exc:
                    self._note_failure(exc)

    async def _poll(self, claims: TaskGroup) -> None:
        offers: tuple[str, ...] = ()
        with anyio.CancelScope() as self._waiting:
            if not self._is_stopped:
                offers = await self._next_offers()
        self._failed.reset()
        if not offers:
            return
        self._slots.reserve(len(offers))
        await self._claims.acquire()
        claims.start_soon(self._take, offers)

    async def _take(self, offers: tuple[str, ...]) -> None:
        reserved = len(offers)

        async def begin(lease: Granted) -> None:
            nonlocal reserved
            await self._slots.wait_free()
            self._slots.unreserve(1)
            reserved -= 1
            self._begin(lease)

        try:
            taken = await self._acquirer.take(offers, begin, ahead=self._wanted_ahead(reserved))
            until = self._clock.monotonic() + FRESH_S
            self._ahead += [(offer, until) for offer in taken.ahead]
            if taken.count:
                self._idle.reset()
            else:
                self._pause_s = max(self._pause_s, self._idle.after())
        except (ParityError, TimeoutError) as exc:
            self._note_failure(exc)
        finally:
            self._slots.unreserve(reserved)
            self._claims.release()

    async def _next_offers(self) -> tuple[str, ...]:
        await self._presence.wait_eligible()
        asked = await self._slots.wait_open()
        obstacle = self._obstacle()
        if obstacle != self._told_obstacle:
            self._told_obstacle = obstacle
            log.warning("no_new_work" if obstacle else "new_work_again", reason=obstacle)
        if obstacle:
            await self._clock.sleep(OBSTACLE_PAUSE_S)
            self._measure()
            return ()
        if self._had_offers and asked < self._slots.count:
            # The market is busy and slots become free one after the other: asking for several at once costs less.
            await self._clock.sleep(GATHER_S)
            asked = self._slots.open
        most = max(1, min(asked, self._room() - self._slots.reserved))
        offers = self._take_ahead(most) or await self._acquirer.poll(most)
        self._comeback.answered()
        self._had_offers = bool(offers)
        return offers

    def _wanted_ahead(self, claims: int) -> int:
        """Return how many offers the answer to so many claims is to bring."""
        is_brisk = len(self._lasted) == self._lasted.maxlen and max(self._lasted) <= BRISK_S
        return max(0, min(claims, self._slots.count - len(self._ahead))) if is_brisk else 0

    def _take_ahead(self, most: int) -> tuple[str, ...]:
        """Return offers that came ahead and are still good."""
        now = self._clock.monotonic()
        while self._ahead and self._ahead[0][1] <= now:
            self._ahead.popleft()
        return tuple(self._ahead.popleft()[0] for _ in range(min(most, len(self._ahead))))

    def _note_failure(self, exc: Exception) -> None:
        if isinstance(exc, StakeTooLow | Forbidden | NotFound | Unauthenticated):
            self._presence.doubt()  # a heartbeat finds out what we are to the market now
            self._pause_s = self._failed.after(exc)
            return
        if isinstance(exc, Unreachable | TimeoutError):
            self._comeback.failed()
        self._pause_s = self._failed.after(exc)
        level = log.error if isinstance(exc, StorageFull) else log.info
        level("no_offers", error=str(exc), retry_in_s=round(self._pause_s, 3))

    async def _pause(self) -> None:
        pause_s, self._pause_s = self._pause_s, 0.0
        with anyio.CancelScope() as self._waiting:
            if not self._is_stopped and await self._market_back.wait_within(self._clock, pause_s):
                self._failed.reset()
