"""The whole agent on fakes: what it does with work, and with a market that fails it."""

from __future__ import annotations

from parity_node.testing.market import MarketSimulator
from parity_protocol.task import TaskState


async def test_offered_task_is_executed_reported_and_paid_once(node, market: MarketSimulator) -> None:
    task = market.offer()

    async with node() as running:
        await running.until(lambda: task.state is TaskState.COMPLETED)
        await running.until(running.is_idle)

    assert task.earnings == 1
    assert running.executor.started == [task.id]
    assert running.executor.cleaned == [task.id]
    assert (await running.store.load()).executions == ()
