"""One client keeps a bounded number of tasks under way and fetches every result."""

from __future__ import annotations

import os
import time

import anyio

from benchmarks.figures import Aim, Figure
from benchmarks.proc import cpu_seconds
from benchmarks.stage import NOOP, REWARD, open_stage
from parity_client import Client

__all__ = ["measure"]

UNDER_WAY = 48  # tasks between submit and result, at most
WARM_UP = 100
TASKS = 3_000
QUICK_TASKS = 600
SLOTS = 8


async def measure(*, quick: bool) -> list[Figure]:
    """Return durable tasks a second over eight slots."""
    count = QUICK_TASKS if quick else TASKS
    async with open_stage(nodes=1, slots=SLOTS) as stage, stage.client() as market:
        await _run(market, WARM_UP)
        before, own_before = stage.cpu(), cpu_seconds(os.getpid())
        started = time.perf_counter()
        await _run(market, count)
        took = time.perf_counter() - started
        after, own_after = stage.cpu(), cpu_seconds(os.getpid())
        done = {str(node.id): (await market.node(node.id)).completed for node in stage.nodes}
    if sum(done.values()) != count + WARM_UP:
        raise AssertionError(f"{count + WARM_UP} tasks were done, the market counts {done}")
    spent = {**{role: after[role] - before[role] for role in after}, "client": own_after - own_before}
    shown = ", ".join(f"{role} {1000 * seconds / count:.2f}" for role, seconds in spent.items())
    return [
        Figure(
            "durable no-op tasks, 8 slots",
            count / took,
            "tasks/s",
            Aim(300, "at least"),
            f"{count} tasks, {UNDER_WAY} under way; CPU ms a task: {shown}",
        )
    ]


async def _run(market: Client, count: int) -> None:
    left = iter(range(count))

    async def one_after_another() -> None:
        for _ in left:
            submission = await market.submit(NOOP, REWARD)
            result = await submission.result()
            if result.data != b"ok":
                raise AssertionError(f"the result of {submission.id} is {result.data!r}")

    async with anyio.create_task_group() as group:
        for _ in range(UNDER_WAY):
            group.start_soon(one_after_another)
