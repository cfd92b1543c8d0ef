"""A market that was away for long: the first of the node's loops to get through ends the pauses of the others."""

from __future__ import annotations

from datetime import timedelta

from parity_node.testing.executors import ScriptedExecutor
from parity_node.testing.market import MarketSimulator
from parity_node.waiting import Comeback
from parity_protocol.task import TaskState
from parity_protocol.testing.clock import FakeClock

HEARTBEAT = timedelta(seconds=2)
OUTAGE_S = 120.0


def test_those_who_pause_are_woken_at_the_first_answer_after_a_failure_only() -> None:
    comeback, woken = Comeback(), []
    comeback.wakes(lambda: woken.append("reports"))
    comeback.wakes(lambda: woken.append("polls"))

    comeback.answered()
    assert woken == []
    comeback.failed()
    comeback.failed()
    comeback.answered()
    comeback.answered()

    assert woken == ["reports", "polls"]


async def test_node_takes_work_within_a_heartbeat_of_the_markets_return(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    async with node(runner_heartbeat_interval=HEARTBEAT) as running:
        await running.until(lambda: running.agent.presence.standing.is_eligible)
        market.go_offline()
        for _ in range(int(OUTAGE_S / 2)):
            await running.pass_time(2)
        task = market.offer()
        market.come_back()

        await running.until(lambda: task.state is TaskState.COMPLETED, within_s=HEARTBEAT.total_seconds() + 0.5)


async def test_result_that_waited_is_delivered_within_a_heartbeat_of_the_markets_return(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    task = market.offer()

    async with node(executor=ScriptedExecutor(clock, run_for_s=5), runner_heartbeat_interval=HEARTBEAT) as running:
        await running.until(lambda: task.state is TaskState.RUNNING)
        market.go_offline()
        for _ in range(int(OUTAGE_S / 2)):
            await running.pass_time(2)
        assert running.agent.outbox.rows == 1
        market.come_back()

        await running.until(lambda: task.state is TaskState.COMPLETED, within_s=HEARTBEAT.total_seconds() + 0.5)
    assert task.earnings == 1
