"""Forgetting what has expired, and keeping the gauges right."""

from __future__ import annotations

from functools import partial

from parity_market.metrics import CHAIN_HEAD, LEASES_LIVE, NODES_ONLINE, TASKS
from parity_market.operations import sessions, views
from parity_market.state import MarketState
from parity_protocol.task import TaskState

__all__ = ["forget", "measure", "run"]

MEASURE_S = 15.0
FORGET_EVERY = 4  # measurements


async def run(state: MarketState) -> None:
    """Measure every 15 seconds and forget once a minute."""
    turn = 0
    while True:
        await measure(state)
        if turn % FORGET_EVERY == 0:
            await forget(state)
        turn += 1
        await state.clock.sleep(MEASURE_S)


async def forget(state: MarketState) -> int:
    """Delete expired sessions and nonces; return how many sessions."""
    return await state.store.write(partial(sessions.forget_expired, now=state.clock.now()))


async def measure(state: MarketState) -> None:
    """Set the gauges from the store and from memory."""
    counts, leases = await state.store.read(views.counts)
    for task_state in TaskState:
        TASKS.labels(str(task_state)).set(counts.get(str(task_state), 0))
    LEASES_LIVE.set(leases)
    NODES_ONLINE.set(sum(1 for _ in state.scheduler.presence.online()))
    if state.chain_health.head is not None:
        CHAIN_HEAD.set(state.chain_health.head)
