"""Writing down who was there: heartbeats stay in memory, the table follows about once a second."""

from __future__ import annotations

from functools import partial

from parity_market.operations import nodes
from parity_market.state import MarketState

__all__ = ["run", "step"]

WRITE_S = 1.0
AT_ONCE = 512  # nodes of one operation


async def run(state: MarketState) -> None:
    """Keep the table at most a second behind."""
    while True:
        await state.clock.sleep(WRITE_S)
        await step(state)


async def step(state: MarketState) -> int:
    """Write who spoke since the last step; return how many."""
    seen = state.scheduler.presence.take_dirty()
    for start in range(0, len(seen), AT_ONCE):
        await state.store.write(partial(nodes.record_seen, seen=seen[start : start + AT_ONCE]))
    return len(seen)
