"""Leases as the whole agent keeps them: renewed together, given up in time, and messages that are lost."""

from __future__ import annotations

from datetime import timedelta

from parity_node.testing.executors import ScriptedExecutor
from parity_node.testing.market import MarketSimulator
from parity_protocol.task import TaskState
from parity_protocol.testing.clock import FakeClock


async def test_node_stops_work_when_lease_is_lost(node, market: MarketSimulator, clock: FakeClock) -> None:
    task = market.offer()

    async with node(executor=ScriptedExecutor(clock, run_for_s=3600)) as running:
        await running.until(lambda: task.state is TaskState.RUNNING)
        market.go_offline()
        await running.until(lambda: running.executor.stopped == [task.id], within_s=31)
        await running.until(running.is_idle)

    assert running.executor.cleaned == [task.id]
    assert task.reports == {}
    assert running.agent.outbox.rows == 0  # nothing to claim: the fence has moved on


async def test_work_ends_before_the_market_may_give_it_away(node, market: MarketSimulator, clock: FakeClock) -> None:
    task = market.offer()

    async with node(executor=ScriptedExecutor(clock, run_for_s=3600)) as running:
        await running.until(lambda: task.state is TaskState.RUNNING)
        market.go_offline()
        await running.until(lambda: running.executor.stopped == [task.id], within_s=31)

        assert task.lease is not None
        assert clock.now() < task.lease.expires_at


async def test_jump_of_the_wall_clock_neither_ends_nor_extends_a_lease(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    task = market.offer()

    async with node(executor=ScriptedExecutor(clock, run_for_s=3600)) as running:
        await running.until(lambda: task.state is TaskState.RUNNING)
        market.go_offline()
        for jump in (-3600, 3600):
            clock.jump_wall(timedelta(seconds=jump))
        await running.pass_time(10)
        assert running.executor.stopped == []
        await running.until(lambda: running.executor.stopped == [task.id], within_s=31)


async def test_all_leases_are_renewed_in_one_message_at_a_third_of_their_ttl(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    for _ in range(2):
        market.offer()

    async with node(executor=ScriptedExecutor(clock, run_for_s=3600)) as running:
        await running.until(lambda: len(running.executor.started) == 2)
        before = market.calls.get("renew", 0)
        await running.pass_time(31)

    assert market.calls["renew"] - before in (3, 4)
    assert running.executor.stopped == []


async def test_cancelled_task_is_stopped_at_the_next_renewal(node, market: MarketSimulator, clock: FakeClock) -> None:
    task = market.offer()

    async with node(executor=ScriptedExecutor(clock, run_for_s=3600)) as running:
        await running.until(lambda: task.state is TaskState.RUNNING)
        market.cancel(task)
        await running.until(lambda: running.executor.stopped == [task.id], within_s=11)
        await running.until(running.is_idle)

    assert task.reports == {}


async def test_lost_answer_to_a_claim_costs_no_attempt(node, market: MarketSimulator) -> None:
    task = market.offer()
    market.lose_replies("claim", 2)

    async with node() as running:
        await running.until(lambda: task.state is TaskState.COMPLETED)

    assert task.attempts == 1


async def test_lost_answer_to_a_report_is_sent_again_and_paid_once(node, market: MarketSimulator) -> None:
    task = market.offer()
    market.lose_replies("report", 3)

    async with node() as running:
        await running.until(running.is_idle)
        await running.until(lambda: task.state is TaskState.COMPLETED and running.agent.outbox.rows == 0)

    assert market.calls["report"] >= 4
    assert task.earnings == 1


async def test_result_of_a_task_that_ended_while_the_market_was_away_is_delivered(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    task = market.offer()

    async with node(executor=ScriptedExecutor(clock, run_for_s=5)) as running:
        await running.until(lambda: task.state is TaskState.RUNNING)
        market.go_offline()
        await running.pass_time(120)
        assert running.agent.outbox.rows == 1
        market.come_back()
        await running.until(lambda: task.state is TaskState.COMPLETED, within_s=120)

    assert task.earnings == 1
