"""Taking back tasks whose lease lapsed, when it lapses; and ending those whose time is over."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial

import structlog

from parity_market.operations import leases
from parity_market.state import MarketState
from parity_market.store import sql
from parity_market.store.base import ReadTx
from parity_market.store.rows import to_us
from parity_protocol.task import TaskState

__all__ = ["run", "step"]

log = structlog.get_logger(__name__)

LOOK_S = 1.0  # at most between two looks: a new lease or deadline may be nearer than what was known
LEAST_S = 0.01
BATCH = 256


async def run(state: MarketState) -> None:
    """Reap for as long as the market runs."""
    while True:
        await state.clock.sleep(await step(state))


async def step(state: MarketState) -> float:
    """Take back what has lapsed; return the seconds until there may be more."""
    now = state.clock.now()
    due = await state.store.read(partial(_due, now=now))
    if due.is_due:
        freed = await state.store.write(partial(leases.reap, market=state.market, now=now, limit=BATCH))
        for task in freed:
            log.info("task_reaped", task_id=task.id, state=str(task.state), fence=task.fence, node_id=task.last_node)
        return 0.0
    if due.next_expiry is None:
        return LOOK_S
    return min(max((due.next_expiry - now).total_seconds(), LEAST_S), LOOK_S)


@dataclass(frozen=True, slots=True)
class _Due:
    is_due: bool
    next_expiry: datetime | None


def _due(tx: ReadTx, now: datetime) -> _Due:
    expiry = leases.next_expiry(tx)
    late = tx.all(sql.TASKS_PAST_DEADLINE, state=TaskState.PENDING, now_us=to_us(now), limit=1)
    return _Due(bool(late) or (expiry is not None and expiry <= now), expiry)
