"""One client submits a task that does nothing and waits for its result, again and again."""

from __future__ import annotations

import os
import time
from statistics import median

from benchmarks.figures import Aim, Figure, percentile
from benchmarks.proc import cpu_seconds
from benchmarks.stage import NOOP, REWARD, open_stage
from parity_client import Client

__all__ = ["measure"]

WARM_UP = 30
TASKS = 500
QUICK_TASKS = 150


async def measure(*, quick: bool) -> list[Figure]:
    """Return p50 and p99 of submit → verified result."""
    count = QUICK_TASKS if quick else TASKS
    async with open_stage(nodes=2, slots=4) as stage, stage.client() as market:
        for _ in range(WARM_UP):
            await _once(market)
        before, own_before = stage.cpu(), cpu_seconds(os.getpid())
        took = [await _once(market) for _ in range(count)]
        after, own_after = stage.cpu(), cpu_seconds(os.getpid())
    spent = {**{role: after[role] - before[role] for role in after}, "client": own_after - own_before}
    shown = ", ".join(f"{role} {1000 * spent[role] / count:.1f}" for role in ("market", "nodes", "client"))
    return [
        Figure("no-op task, submit → result, p50", 1000 * median(took), "ms", Aim(15, "at most"), f"{count} tasks"),
        Figure(
            "no-op task, submit → result, p99",
            1000 * percentile(took, 0.99),
            "ms",
            Aim(40, "at most"),
            f"CPU ms a task: {shown}",
        ),
    ]


async def _once(market: Client) -> float:
    started = time.perf_counter()
    submission = await market.submit(NOOP, REWARD)
    result = await submission.result()
    took = time.perf_counter() - started
    if result.data != b"ok":
        raise AssertionError(f"the result of {submission.id} is {result.data!r}")
    return took
