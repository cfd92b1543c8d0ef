"""The whole agent on fakes: what it does with work, and with a market, a task or an operator that fails it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parity_node.store.memory import MemoryNodeStore
from parity_node.testing.executors import ScriptedExecutor
from parity_node.testing.market import MarketSimulator
from parity_protocol.errors import (
    Overloaded,
)
from parity_protocol.task import TaskState
from parity_protocol.testing.clock import FakeClock


async def test_offered_task_is_executed_reported_and_paid_once(node, market: MarketSimulator) -> None:
    task = market.offer()

    async with node() as running:
        await running.until(lambda: task.state is TaskState.COMPLETED)
        await running.until(running.is_idle)

    assert task.earnings == 1
    assert running.executor.started == [task.id]
    assert running.executor.cleaned == [task.id]
    assert (await running.store.load()).executions == ()


async def test_data_that_are_lent_or_taken_back_are_announced_without_a_restart(
    node, market: MarketSimulator, tmp_path: Path
) -> None:
    for folder in (tmp_path, *tmp_path.parents[:-1]):  # a node that is root lends what everybody may read
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o011)
    (tmp_path / "rows.csv").write_text("a,label\n1,0\n")
    (tmp_path / "rows.csv").chmod(0o644)

    def announced() -> list[tuple[str, ...]]:
        return [beat.capability.shards for beat in market.heartbeats if beat.capability is not None]

    async with node() as running:
        told = {"command": "data", "name": "ward", "path": str(tmp_path / "rows.csv")}
        answer = await running.agent.handle_control(told)
        await running.until(lambda: announced()[-1:] == [("ward",)], within_s=2)
        await running.agent.handle_control({"command": "data", "name": "ward"})
        await running.until(lambda: announced()[-1:] == [()], within_s=2)

    assert answer["names"] == ["ward"]


async def test_no_more_tasks_run_than_there_are_slots(node, market: MarketSimulator, clock: FakeClock) -> None:
    for _ in range(5):
        market.offer()

    async with node(executor=ScriptedExecutor(clock, run_for_s=3600), runner_slots=2) as running:
        await running.until(lambda: len(running.executor.started) == 2)
        await running.pass_time(20)

        assert len(running.executor.started) == 2
        assert running.agent.slots.free == 0


async def test_every_task_of_a_burst_is_done_once(node, market: MarketSimulator) -> None:
    tasks = [market.offer() for _ in range(40)]

    async with node(runner_slots=8) as running:
        await running.until(lambda: not market.unfinished())

    assert [task.earnings for task in tasks] == [1] * 40
    assert sorted(running.executor.started) == sorted(task.id for task in tasks)


# -- notices ---------------------------------------------------------------------------------------------------------


async def test_short_task_sends_no_start_and_long_one_does_within_50_ms(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    short = market.offer()
    async with node() as running:
        await running.until(lambda: short.state is TaskState.COMPLETED, step_s=0.001)
        running.executor.run_for_s = 3600.0
        long = market.offer()
        await running.until(lambda: len(running.executor.started) == 2, step_s=0.001)
        await running.pass_time(0.05)

        assert long.state is TaskState.RUNNING
    assert "start" not in short.events


async def test_what_a_task_prints_reaches_the_market_before_its_report(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    text = "Grüße aus dem Sandkasten\n" * 5_000
    task = market.offer()

    async with node(executor=ScriptedExecutor(clock, log=text.encode(), run_for_s=1.0)) as running:
        await running.until(lambda: task.state is TaskState.COMPLETED)

    assert task.log == text


async def test_bytes_that_are_not_text_are_shown_as_such(node, market: MarketSimulator, clock: FakeClock) -> None:
    task = market.offer()

    async with node(executor=ScriptedExecutor(clock, log=b"a\xff\x00b\xe2\x82")) as running:
        await running.until(lambda: task.state is TaskState.COMPLETED)

    assert task.log == "a��b�"


# -- room ------------------------------------------------------------------------------------------------------------


async def test_full_outbox_stops_new_work_and_loses_nothing(node, market: MarketSimulator, clock: FakeClock) -> None:
    tasks = [market.offer() for _ in range(20)]
    market.fail_next("report", *[Overloaded("busy")] * 12)

    async with node(runner_slots=16, runner_outbox_max_rows=16) as running:
        await running.until(lambda: running.agent.outbox.rows == 16)
        assert running.agent.outbox.room == 0
        assert len(running.executor.started) == 16
        await running.until(lambda: not market.unfinished(), within_s=600, step_s=1)

    assert [task.earnings for task in tasks] == [1] * 20


async def test_nothing_is_claimed_while_the_journal_is_full(node, market: MarketSimulator) -> None:
    store = MemoryNodeStore()

    async with node(store=store) as running:
        store.is_full = True
        task = market.offer()
        await running.pass_time(30)
        assert market.calls.get("claim", 0) == 0
        store.is_full = False
        await running.until(lambda: task.state is TaskState.COMPLETED)


async def test_result_waits_for_room_in_the_journal(node, market: MarketSimulator, clock: FakeClock) -> None:
    store, task = MemoryNodeStore(), market.offer()

    async with node(store=store, executor=ScriptedExecutor(clock, run_for_s=5)) as running:
        await running.until(lambda: task.state is TaskState.RUNNING)
        store.is_full = True
        await running.pass_time(20)
        assert task.state is TaskState.RUNNING
        store.is_full = False
        await running.until(lambda: task.state is TaskState.COMPLETED)


# -- ending ----------------------------------------------------------------------------------------------------------


async def test_drained_node_ends_its_tasks_says_goodbye_and_takes_no_more(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    task = market.offer()

    async with node(executor=ScriptedExecutor(clock, run_for_s=5)) as running:
        await running.until(lambda: task.state is TaskState.RUNNING)
        running.agent.drain()
        late = market.offer()
        await running.until(running.ended.is_set)

    assert running.failure is None
    assert task.state is TaskState.COMPLETED
    assert late.state is TaskState.PENDING
    assert market.heartbeats[-1].going_offline


async def test_task_that_outlasts_the_grace_is_stopped_and_handed_back(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    task = market.offer()

    async with node(executor=ScriptedExecutor(clock, run_for_s=3600)) as running:
        await running.until(lambda: task.state is TaskState.RUNNING)
        running.agent.drain(grace_s=7)
        await running.pass_time(6)
        assert running.executor.stopped == []
        await running.until(running.ended.is_set)

    assert running.executor.stopped == [task.id]
    assert task.events[-1] == "release"
    assert (await running.store.load()).executions == ()


async def test_control_answers_status_drain_and_logs(node, market: MarketSimulator, clock: FakeClock) -> None:
    task = market.offer()

    async with node(executor=ScriptedExecutor(clock, run_for_s=5, log=b"hello")) as running:
        await running.until(lambda: task.state is TaskState.RUNNING)
        status = await running.agent.handle_control({"command": "status"})
        logs = await running.agent.handle_control({"command": "logs", "task_id": task.id, "offset": 1})
        await running.agent.handle_control({"command": "drain", "grace_s": 60})
        await running.until(running.ended.is_set)

    assert status["running"][0]["task_id"] == task.id
    assert status["state"] == "online"
    assert logs["text"] == "ello"
    assert task.state is TaskState.COMPLETED


# -- what only time brings -------------------------------------------------------------------------------------------


async def test_machine_that_slept_past_its_lease_stops_the_task_within_a_second_of_waking(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    task = market.offer()

    async with node(executor=ScriptedExecutor(clock, run_for_s=7200)) as running:
        await running.until(lambda: task.state is TaskState.RUNNING)
        clock._elapsed += 3600  # timers stand still while a machine sleeps, CLOCK_BOOTTIME does not
        await running.until(lambda: running.executor.stopped == [task.id], within_s=1.1)

    assert task.reports == {}


async def test_lease_that_is_lost_while_the_result_is_journalled_leaves_the_verdict_to_the_market(
    node, market: MarketSimulator, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, task = MemoryNodeStore(), market.offer()
    collect = store.collect

    async with node(store=store, executor=ScriptedExecutor(clock, run_for_s=5)) as running:
        await running.until(lambda: task.state is TaskState.RUNNING)

        async def collect_slowly(*args, **kwargs) -> None:
            await clock.sleep(40)
            await collect(*args, **kwargs)

        monkeypatch.setattr(store, "collect", collect_slowly)
        market.cancel(task)
        await running.until(lambda: market.calls.get("report", 0) > 0, within_s=120)
        await running.until(running.is_idle)

    assert task.earnings == 0
    assert (await store.load()).executions == ()
    assert (await store.load()).outbox == ()


async def test_heartbeats_carry_what_the_node_does(node, market: MarketSimulator, clock: FakeClock) -> None:
    task = market.offer()

    async with node(executor=ScriptedExecutor(clock, run_for_s=3600)) as running:
        await running.until(lambda: task.state is TaskState.RUNNING)
        await running.pass_time(35)

    beat = market.heartbeats[-1]
    assert (beat.running, beat.free_slots, beat.draining) == ((task.id,), 1, False)


async def test_capability_is_measured_again_before_the_market_forgets_it(node, market: MarketSimulator) -> None:
    async with node() as running:
        await running.pass_time(200)

    measured = [beat.capability.measured_at for beat in market.heartbeats if beat.capability is not None]
    assert len(measured) >= 1
    assert measured[-1] - running.agent.started_at.timestamp() >= 100


async def test_executor_that_cannot_run_is_announced_with_its_reason_and_tried_again(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    executor = ScriptedExecutor(clock, available=False)
    task = market.offer()

    async with node(executor=executor) as running:
        await running.until(lambda: "executor" in running.agent.metrics.refusals)
        executor.available = True
        await running.until(lambda: task.state is TaskState.COMPLETED, within_s=400, step_s=1)

    (request,) = market.nodes.values()
    assert not request.capability.executors[executor.kind].available
    announced = [beat.capability.executors[executor.kind].available for beat in market.heartbeats if beat.capability]
    assert announced[-1]
    assert "script says so" in running.agent.metrics.refusals["executor"].message
