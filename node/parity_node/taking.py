"""The loop that takes work: it asks for offers while the claims of the last ones are still on their way.

While tasks are short, offers for the slots that claims fill come with the claims' answer, and are claimed before there
are slots for them, so that a processor does not wait for the network. The market keeps such offers for a moment only,
and a lease that finds no slot within ``HAND_BACK_S`` goes back: a node whose tasks take long after all holds up nobody.
A lease that waits is not renewed: it lasts longer than that, by far.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio
import structlog
from anyio.abc import TaskGroup

from parity_node.acquire import Acquirer, Answer, Granted
from parity_node.presence import Presence
from parity_node.slots import Slots
from parity_node.waiting import Backoff, Comeback, Signal
from parity_protocol.api.leases import AHEAD_A_CLAIM
from parity_protocol.clock import Clock
from parity_protocol.errors import (
    FailureReason,
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
HAND_BACK_S = 0.5  # in which a lease must find a slot; leases last seconds
CRAMPED_PAUSE_S = 10.0  # without early claims, after one for which there was no room beside what runs
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
        self._expected = 0  # offers asked for with claims that are not answered
        self._early_from = 0.0  # monotonic; before it nothing is claimed early

    def stop(self) -> None:
        """Take no new work and give back what waits for a slot; ``run`` returns when the claims are answered."""
        self._is_stopped = True
        self._waiting.cancel()
        self._slots.wake()

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
        early = max(0, len(offers) - self._slots.open)
        self._slots.reserve(len(offers))
        await self._claims.acquire()
        claims.start_soon(self._take, offers, early)

    async def _take(self, offers: tuple[str, ...], early: int) -> None:
        reserved, is_answered, until = len(offers), False, 0.0
        ahead = self._wanted_ahead(reserved)
        self._expected += ahead

        def answered(answer: Answer) -> None:
            nonlocal is_answered, until
            is_answered, until = True, self._clock.monotonic() + HAND_BACK_S
            self._claims.release()
            self._expected -= ahead
            self._note_answer(answer)

        async def begin(lease: Granted) -> FailureReason | None:
            nonlocal reserved
            has_slot = await self._has_slot(until)
            self._slots.unreserve(1)
            reserved -= 1
            if has_slot:
                self._begin(lease)
                return None
            if self._is_stopped:
                return FailureReason.DRAINED
            self._lasted.clear()  # nothing is early again until as many tasks as there are slots were short
            return FailureReason.INTERRUPTED

        try:
            await self._acquirer.take(offers, answered, begin, ahead=ahead, early=early)
        except (ParityError, TimeoutError) as exc:
            self._note_failure(exc)
        finally:
            self._slots.unreserve(reserved)
            if not is_answered:
                self._claims.release()
                self._expected -= ahead

    def _note_answer(self, answer: Answer) -> None:
        now = self._clock.monotonic()
        if answer.is_cramped:
            self._early_from = now + CRAMPED_PAUSE_S
        self._ahead += [(offer, now + FRESH_S) for offer in answer.ahead]
        if answer.leases:
            self._idle.reset()
        elif not answer.is_cramped:
            self._pause_s = max(self._pause_s, self._idle.after())

    async def _has_slot(self, until: float) -> bool:
        """Wait for a free slot; return whether there is one before ``until`` and before a stop."""
        while not self._slots.free:
            left_s = until - self._clock.monotonic()
            if self._is_stopped or left_s <= 0:
                return False
            await self._slots.changed_within(self._clock, left_s)
        return True

    async def _next_offers(self) -> tuple[str, ...]:
        await self._presence.wait_eligible()
        while not self._slots.open and not self._early():
            await self._slots.changed()
        obstacle = self._obstacle()
        if obstacle != self._told_obstacle:
            self._told_obstacle = obstacle
            log.warning("no_new_work" if obstacle else "new_work_again", reason=obstacle)
        if obstacle:
            await self._clock.sleep(OBSTACLE_PAUSE_S)
            self._measure()
            return ()
        if self._had_offers and self._slots.open < self._slots.count and not self._early():
            # The market is busy and slots become free one after the other: asking for several at once costs less.
            await self._clock.sleep(GATHER_S)
        room = max(1, self._room() - self._slots.reserved)
        offers = self._take_ahead(min(room, max(self._slots.open, self._early())))
        if not offers:
            if not self._slots.open:
                return ()
            offers = await self._acquirer.poll(min(room, self._slots.open))
        self._comeback.answered()
        self._had_offers = bool(offers)
        return offers

    @property
    def _is_brisk(self) -> bool:
        return len(self._lasted) == self._lasted.maxlen and max(self._lasted) <= BRISK_S

    def _wanted_ahead(self, claims: int) -> int:
        """Return how many offers the answer to so many claims is to bring."""
        if not self._is_brisk:
            return 0
        return max(0, min(AHEAD_A_CLAIM * claims, 2 * self._slots.count - len(self._ahead) - self._expected))

    def _early(self) -> int:
        """Return how many offers are to be claimed now although there are not slots for all of them.

        Only what came ahead is: then the market has more than others have slots for. As many as there are slots share
        a message, and while it is on its way the one before fills the slots.
        """
        self._drop_stale()
        if not self._ahead or not self._is_brisk or self._clock.monotonic() < self._early_from:
            return 0
        usable = min(len(self._ahead), self._slots.beyond(self._slots.count))
        return usable if usable >= self._slots.count else 0

    def _take_ahead(self, most: int) -> tuple[str, ...]:
        """Return offers that came ahead and are still good."""
        self._drop_stale()
        return tuple(self._ahead.popleft()[0] for _ in range(min(most, len(self._ahead))))

    def _drop_stale(self) -> None:
        now = self._clock.monotonic()
        while self._ahead and self._ahead[0][1] <= now:
            self._ahead.popleft()

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
