"""Leases claimed before there are slots for them: on the whole agent, with a market that tasks never run out of."""

from __future__ import annotations

import pytest

from parity_node.store.base import Phase
from parity_node.store.memory import MemoryNodeStore
from parity_node.taking import HAND_BACK_S
from parity_node.testing.executors import ScriptedExecutor
from parity_node.testing.market import MarketSimulator, command_spec
from parity_protocol.task import TaskState
from parity_protocol.testing.clock import FakeClock

pytestmark = pytest.mark.anyio

SLOTS = 2


async def turned_long(running, market: MarketSimulator) -> list[str]:
    """Run short tasks, then ones that take an hour, until these hold every slot; return the tasks that wait for one."""
    executor, acquirer = running.executor, running.agent._acquirer
    for _ in range(20):  # the threads of a busy machine may keep the node from claiming early just then
        for _ in range(10 * SLOTS):
            market.offer(max_attempts=1)
        executor.run_for_s, begun = 0.02, len(executor.started)
        await running.until(lambda begun=begun: len(executor.started) >= begun + 4 * SLOTS, step_s=0.01)
        executor.run_for_s, short = 3_600.0, len(executor.started)
        for _ in range(round(HAND_BACK_S / 0.01)):
            await running.pass_time(0.01)
            left = waiting_for_a_slot(running, market)
            if len(executor.started) - short == SLOTS and acquirer.claimed - len(executor.jobs) == len(left) == SLOTS:
                return left
        await running.pass_time(3_600)
    raise AssertionError("the node claims nothing early")


def waiting_for_a_slot(running, market: MarketSimulator) -> list[str]:
    """Return the tasks that are leased and do not run here."""
    begun = {live.row.task_id for live in running.agent.runner.running}
    return [task.id for task in market.tasks.values() if task.state is TaskState.LEASED and task.id not in begun]


async def test_short_tasks_are_claimed_before_there_are_slots_and_never_run_on_more_than_there_are(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    tasks = [market.offer() for _ in range(40)]

    async with node(executor=ScriptedExecutor(clock, run_for_s=0.05), runner_slots=SLOTS) as running:
        most = most_waiting = 0

        def is_done() -> bool:
            nonlocal most, most_waiting
            most_waiting = max(most_waiting, len(waiting_for_a_slot(running, market)))
            most = max(most, sum(not live.has_ended for live in running.agent.runner.running))
            assert running.agent.slots.free >= 0
            return all(task.state is TaskState.COMPLETED for task in tasks)

        await running.until(is_done, step_s=0.01)
        await running.until(running.is_idle)

    assert (most, most_waiting) == (SLOTS, SLOTS)
    assert {task.attempts for task in tasks} == {1}
    assert market.calls["poll"] < len(tasks) / SLOTS  # most came with the answers to claims


async def test_when_tasks_turn_long_what_waits_for_a_slot_goes_back_soon_and_costs_no_attempt(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    store = MemoryNodeStore()

    async with node(executor=ScriptedExecutor(clock, run_for_s=0.02), store=store, runner_slots=SLOTS) as running:
        left = await turned_long(running, market)
        await running.pass_time(HAND_BACK_S + 0.05)
        await running.until(lambda: not waiting_for_a_slot(running, market))

        assert all(market.tasks[task_id].state is TaskState.PENDING for task_id in left)
        assert {market.tasks[task_id].attempts for task_id in left} == {0}
        assert len([live for live in running.agent.runner.running if not live.has_ended]) == SLOTS
        assert running.agent.slots.reserved == 0
        claims = market.calls["claim"]
        await running.pass_time(5)
        assert market.calls["claim"] == claims  # nothing is claimed early any more
        journalled = (await store.load()).executions
        assert {row.task_id for row in journalled} == {live.row.task_id for live in running.agent.runner.running}

    assert not [task for task in market.tasks.values() if task.state is TaskState.FAILED]


async def test_a_node_that_drains_gives_back_at_once_what_waits_for_a_slot(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    async with node(executor=ScriptedExecutor(clock, run_for_s=0.02), runner_slots=SLOTS) as running:
        left = await turned_long(running, market)
        began, at = len(running.executor.started), clock.monotonic()
        running.agent.drain(grace_s=7_200)
        await running.until(lambda: not waiting_for_a_slot(running, market), step_s=0.01, within_s=HAND_BACK_S / 2)

        assert clock.monotonic() - at < HAND_BACK_S
        assert {market.tasks[task_id].attempts for task_id in left} == {0}
        assert len(running.executor.started) == began
        running.agent.drain(grace_s=0)
        await running.until(running.ended.is_set, within_s=7_300, step_s=60)


async def test_a_node_killed_while_leases_wait_for_slots_runs_each_of_them_once_after_its_restart(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    store = MemoryNodeStore()
    async with node(executor=ScriptedExecutor(clock, run_for_s=0.02), store=store, runner_slots=SLOTS) as killed:
        left = await turned_long(killed, market)
    phases = {row.task_id: row.phase for row in (await store.load()).executions}
    assert {phases[task_id] for task_id in left} == {Phase.CLAIMED}

    async with node(executor=ScriptedExecutor(clock, can_recover=True), store=store, runner_slots=SLOTS) as running:
        await running.until(lambda: all(market.tasks[id_].state is TaskState.COMPLETED for id_ in left))

    assert {market.tasks[task_id].attempts for task_id in left} == {1}
    assert {market.tasks[task_id].earnings for task_id in left} == {1}


async def test_where_the_memory_is_for_the_slots_alone_nothing_waits_and_nothing_is_refused(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    memory = (await _memory(node)) // SLOTS
    spec = command_spec("true", resources={"memory_bytes": memory})
    tasks = [market.offer(spec) for _ in range(20)]

    async with node(executor=ScriptedExecutor(clock, run_for_s=0.05), runner_slots=SLOTS) as running:
        await running.until(lambda: all(task.state is TaskState.COMPLETED for task in tasks))

    assert running.agent.metrics.refusals == {}
    assert market.refused == []


async def _memory(node) -> int:
    async with node(runner_slots=SLOTS) as running:
        return running.agent.capability().memory_bytes
