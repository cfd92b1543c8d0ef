"""Keeps the leases: renews all of them in one message, and stops work whose lease could not be renewed in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import anyio
import structlog

from parity_node.market.base import MarketClient
from parity_node.waiting import Backoff, Signal, within
from parity_protocol.api.leases import MAX_BATCH, RenewItem, RenewReply, RenewRequest
from parity_protocol.clock import Clock
from parity_protocol.errors import ParityError, TaskCancelled
from parity_protocol.lease import local_deadline

__all__ = ["HeldLease", "LeaseKeeper", "LossReason"]

RENEWALS_PER_TTL = 3
CALL_TIMEOUT_S = 10.0
WAKE_INTERVAL_S = 1.0
_IDLE_S = 3_600.0

log = structlog.get_logger(__name__)


class LossReason(StrEnum):
    """Why a lease is not ours any more."""

    STALE = "stale"  # the market gave the task on, or ended it
    CANCELLED = "cancelled"
    DEADLINE = "deadline"  # it could not be renewed in time


@dataclass(slots=True)
class HeldLease:
    """A lease that this node holds.

    Attributes:
        sent_at: ``Clock.monotonic()`` just before the newest granted claim or renewal was sent.
        on_lost: Called once when it is lost; must not block.
        on_renewed: Called with the new deadline after each renewal.
    """

    task_id: str
    lease_id: str
    fence: int
    ttl_s: float
    sent_at: float
    deadline: float
    on_lost: Callable[[LossReason], None]
    on_renewed: Callable[[float], None]

    @property
    def renew_at(self) -> float:
        """When the next renewal is due."""
        return self.sent_at + self.ttl_s / RENEWALS_PER_TTL


class LeaseKeeper:
    """Renews what it is given, and says when something is lost. Run ``run`` beside it."""

    def __init__(self, market: MarketClient, clock: Clock) -> None:
        self._market = market
        self._clock = clock
        self._held: dict[str, HeldLease] = {}
        self._wake_renewals = Signal()
        self._wake_deadlines = Signal()
        self._next_renewal = float("inf")
        self._next_deadline = float("inf")

    def __len__(self) -> int:
        return len(self._held)

    def add(self, lease: HeldLease) -> None:
        """Keep ``lease`` from now on."""
        self._held[lease.lease_id] = lease
        if lease.renew_at < self._next_renewal:
            self._wake_renewals.set()
        if lease.deadline < self._next_deadline:
            self._wake_deadlines.set()

    def remove(self, lease_id: str) -> None:
        """Stop keeping it; nobody is told."""
        self._held.pop(lease_id, None)

    async def run(self) -> None:
        """Renew and watch until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._renew_loop)
            group.start_soon(self._deadline_loop)

    async def _renew_loop(self) -> None:
        backoff = Backoff(0.25, 5.0)
        while True:
            now = self._clock.monotonic()
            self._next_renewal = min((held.renew_at for held in self._held.values()), default=now + _IDLE_S)
            if self._next_renewal > now:
                await self._wake_renewals.wait_within(self._clock, self._next_renewal - now)
                continue
            try:
                await self._renew(list(self._held.values()))
                backoff.reset()
            except (ParityError, TimeoutError) as exc:
                shortest = min((held.ttl_s for held in self._held.values()), default=_IDLE_S)
                pause_s = min(backoff.after(), shortest / 10)  # Retry-After does not outlive a lease
                log.warning("leases_not_renewed", leases=len(self._held), error=str(exc), retry_in_s=round(pause_s, 3))
                await self._clock.sleep(pause_s)

    async def _renew(self, leases: list[HeldLease]) -> None:
        for start in range(0, len(leases), MAX_BATCH):
            await self._renew_batch(leases[start : start + MAX_BATCH])

    async def _renew_batch(self, leases: list[HeldLease]) -> None:
        request = RenewRequest(
            renewals=tuple(RenewItem(task_id=x.task_id, lease_id=x.lease_id, fence=x.fence) for x in leases)
        )
        sent_at = self._clock.monotonic()
        timeout_s = min(CALL_TIMEOUT_S, min(lease.ttl_s for lease in leases) / RENEWALS_PER_TTL)
        reply = await within(self._clock, timeout_s, lambda: self._market.renew(request))
        for lease, answer in zip(leases, reply.renewals, strict=True):
            if self._held.get(lease.lease_id) is lease:  # not removed meanwhile
                self._take(lease, answer, sent_at)

    def _take(self, lease: HeldLease, answer: RenewReply, sent_at: float) -> None:
        if answer.status == 200 and answer.ttl_s > 0:
            lease.ttl_s, lease.sent_at = answer.ttl_s, sent_at
            lease.deadline = local_deadline(sent_at, answer.ttl_s)
            lease.on_renewed(lease.deadline)
        elif answer.status in (404, 409):
            code = answer.problem.code if answer.problem is not None else ""
            self._lose(lease, LossReason.CANCELLED if code == TaskCancelled.code else LossReason.STALE)
        else:  # no verdict on the lease itself: ask again soon; the deadline still holds
            lease.sent_at += lease.ttl_s / 10
            log.warning("lease_renewal_unclear", task_id=lease.task_id, status=answer.status)

    async def _deadline_loop(self) -> None:
        while True:
            now = self._clock.monotonic()
            for lease in [held for held in self._held.values() if held.deadline <= now]:
                self._lose(lease, LossReason.DEADLINE)
            self._next_deadline = min((held.deadline for held in self._held.values()), default=now + _IDLE_S)
            # Timers stand still while the machine sleeps and the deadline's clock does not: look each second.
            pause_s = min(self._next_deadline - now, WAKE_INTERVAL_S) if self._held else _IDLE_S
            await self._wake_deadlines.wait_within(self._clock, max(0.0, pause_s))

    def _lose(self, lease: HeldLease, reason: LossReason) -> None:
        del self._held[lease.lease_id]
        log.warning("lease_lost", task_id=lease.task_id, lease_id=lease.lease_id, fence=lease.fence, reason=reason)
        lease.on_lost(reason)
