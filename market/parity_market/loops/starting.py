"""Starting the loops, and what comes before them (design §6: what is found half done at start-up).

| Found | Done |
|---|---|
| a live lease | extended to a whole ttl: its node could not renew while the market was down |
| an earning without a voucher, a voucher without a signature | made and signed |
| a transaction signed or sent, not mined | sent again, the same bytes |
| a round of training | its deadline is put off; one that was being closed is closed again, with the same updates |
| a task that is being verified, a group whose parts are all done | found by the rounds loop's first look |
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from parity_market.loops import chain_follower, housekeeping, payouts, presence, reaper, rounds, training, vouchers
from parity_market.loops.supervise import supervise
from parity_market.operations import leases
from parity_market.state import MarketState
from parity_protocol.errors import ChainUnavailable, ConfigInvalid

__all__ = ["run_all", "start_up"]

log = structlog.get_logger(__name__)

START_UP_ROUNDS = 64  # of making and signing vouchers; the loop does what is left

_LOOPS: dict[str, Callable[[MarketState], Awaitable[None]]] = {
    "reaper": reaper.run,
    "presence": presence.run,
    "chain_follower": chain_follower.run,
    "vouchers": vouchers.run,
    "payouts": payouts.run,
    "rounds": rounds.run,
    "training": training.run,
    "housekeeping": housekeeping.run,
}


async def start_up(state: MarketState) -> None:
    """Bring what an earlier run left half done in order; call it once, before ``run_all``."""
    extended = await state.store.write(partial(leases.extend_all_live, market=state.market, now=state.clock.now()))
    for _ in range(START_UP_ROUNDS):
        if not await vouchers.step(state):
            break
    try:
        await payouts.resend(state)
    except ChainUnavailable as exc:
        log.warning("payouts_wait", problem=exc.message)
    log.info("started_up", leases_extended=extended)


async def run_all(state: MarketState) -> None:
    """Run every loop until cancelled.

    Raises:
        ConfigInvalid: The market must stop: the chain is not the one that its money is on.
    """
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(supervise("scheduler", state.scheduler.run, state.clock), name="scheduler")
            for name, loop in _LOOPS.items():
                group.create_task(supervise(name, partial(loop, state), state.clock), name=name)
    except ExceptionGroup as failed:
        refused = failed.subgroup(ConfigInvalid)
        if refused is None:
            raise
        raise refused.exceptions[0] from failed
