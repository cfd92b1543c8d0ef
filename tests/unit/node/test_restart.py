"""What a node does with what an earlier process left: the table of design §6, on the whole agent."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anyio
import pytest

from parity_node.recovery import LeaseState, RecoveryAction, decide
from parity_node.removal import FolderRemover
from parity_node.store.base import Execution, Phase
from parity_node.store.memory import MemoryNodeStore
from parity_node.testing.executors import ScriptedExecutor
from parity_node.testing.market import MarketSimulator
from parity_protocol.task import TaskState
from parity_protocol.testing.clock import FakeClock

OURS, LOST, AWAY = LeaseState.OURS, LeaseState.LOST, LeaseState.UNREACHABLE
DROP, CONTINUE, RECOVER = RecoveryAction.DROP, RecoveryAction.CONTINUE, RecoveryAction.RECOVER
DISCARD, DELIVER, CLEAN_UP = RecoveryAction.DISCARD, RecoveryAction.DELIVER, RecoveryAction.CLEAN_UP

TABLE = {
    Phase.VERIFIED: {OURS: DROP, LOST: DROP, AWAY: DROP},
    Phase.CLAIMED: {OURS: CONTINUE, LOST: DISCARD, AWAY: CONTINUE},
    Phase.PREPARED: {OURS: CONTINUE, LOST: DISCARD, AWAY: CONTINUE},
    Phase.STARTED: {OURS: RECOVER, LOST: DISCARD, AWAY: RECOVER},
    Phase.COLLECTED: {OURS: DELIVER, LOST: DELIVER, AWAY: DELIVER},
    Phase.REPORTED: {OURS: CLEAN_UP, LOST: CLEAN_UP, AWAY: CLEAN_UP},
}


def test_decisions_are_those_of_the_design() -> None:
    assert {phase: {lease: decide(phase, lease) for lease in LeaseState} for phase in Phase} == TABLE


def _slow(clock: FakeClock, *, can_recover: bool = False) -> ScriptedExecutor:
    return ScriptedExecutor(clock, run_for_s=20, can_recover=can_recover)


async def test_running_task_is_recovered_and_paid_at_its_first_attempt(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    store, task = MemoryNodeStore(), market.offer()
    async with node(store=store, executor=_slow(clock)) as killed:
        await killed.until(lambda: task.state is TaskState.RUNNING)

    async with node(store=store, executor=_slow(clock, can_recover=True)) as running:
        await running.until(lambda: task.state is TaskState.COMPLETED)
        await running.until(running.is_idle)

    assert running.executor.recovered == [task.id]
    assert running.executor.started == []
    assert (task.attempts, task.earnings) == (1, 1)


async def test_running_task_that_cannot_be_recovered_is_reported_and_runs_again(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    store, task = MemoryNodeStore(), market.offer()
    async with node(store=store, executor=_slow(clock)) as killed:
        await killed.until(lambda: task.state is TaskState.RUNNING)

    async with node(store=store, executor=_slow(clock)) as running:
        await running.until(lambda: task.state is TaskState.COMPLETED)

    reasons = [item.report.reason for item in task.reports.values()]
    assert reasons == ["node_restarted", None]
    assert (task.attempts, task.earnings) == (2, 1)


async def test_running_task_whose_lease_was_lost_is_stopped_and_not_reported(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    store, task = MemoryNodeStore(), market.offer(max_attempts=1)
    async with node(store=store, executor=_slow(clock)) as killed:
        await killed.until(lambda: task.state is TaskState.RUNNING)
        market.cancel(task)

    async with node(store=store, executor=_slow(clock, can_recover=True)) as running:
        await running.until(lambda: running.executor.cleaned == [task.id])

    assert running.executor.stopped == [task.id]
    assert task.reports == {}
    assert (await store.load()).executions == ()


async def test_running_task_goes_on_while_the_market_is_away_until_its_deadline(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    store, task = MemoryNodeStore(), market.offer()
    executor = ScriptedExecutor(clock, run_for_s=3600, can_recover=True)
    async with node(store=store, executor=executor) as killed:
        await killed.until(lambda: task.state is TaskState.RUNNING)
    market.go_offline()

    async with node(store=store, executor=executor) as running:
        await running.pass_time(5)
        assert running.executor.recovered == [task.id]
        assert running.executor.stopped == []
        await running.until(lambda: running.executor.stopped == [task.id], within_s=31)


async def test_deadline_of_another_boot_says_nothing(
    node, market: MarketSimulator, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, task = MemoryNodeStore(), market.offer()
    executor = ScriptedExecutor(clock, run_for_s=3600, can_recover=True)
    async with node(store=store, executor=executor) as killed:
        await killed.until(lambda: task.state is TaskState.RUNNING)
    market.go_offline()
    monkeypatch.setattr("parity_node.agent.boot_id", lambda: "another boot")

    async with node(store=store, executor=executor) as running:
        await running.until(lambda: running.executor.stopped == [task.id])

    assert executor.recovered == []


async def test_result_that_waited_is_delivered_after_a_restart(node, market: MarketSimulator, clock: FakeClock) -> None:
    store, task = MemoryNodeStore(), market.offer()
    async with node(store=store, executor=_slow(clock)) as killed:
        await killed.until(lambda: task.state is TaskState.RUNNING)
        market.go_offline()
        await killed.until(lambda: killed.agent.outbox.rows == 1)
    market.come_back()

    async with node(store=store) as running:
        await running.until(lambda: task.state is TaskState.COMPLETED)
        await running.until(running.is_idle)

    assert running.executor.started == []
    assert (task.attempts, task.earnings) == (1, 1)


async def test_result_whose_lease_was_lost_meanwhile_is_refused_and_forgotten(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    store, task = MemoryNodeStore(), market.offer()
    async with node(store=store, executor=_slow(clock)) as killed:
        await killed.until(lambda: task.state is TaskState.RUNNING)
        market.go_offline()
        await killed.until(lambda: killed.agent.outbox.rows == 1)
    market.come_back()
    market.cancel(task)

    async with node(store=store) as running:
        await running.until(lambda: running.agent.outbox.rows == 0)
        await running.until(running.is_idle)

    assert task.earnings == 0
    assert (await store.load()).executions == ()


async def test_claim_without_an_answer_is_dropped_at_the_restart_and_the_task_runs_again(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    store, task = MemoryNodeStore(), market.offer()
    market.lose_replies("claim", 1_000)
    async with node(store=store) as killed:
        await killed.until(lambda: market.calls.get("claim", 0) > 0)
    assert [row.phase for row in (await store.load()).executions] == [Phase.VERIFIED]
    market.lose_replies("claim", 0)

    async with node(store=store) as running:
        await running.until(lambda: task.state is TaskState.COMPLETED, within_s=120)

    assert task.earnings == 1


async def test_folders_and_results_that_no_row_speaks_of_are_removed(node, folders, clock: FakeClock) -> None:
    (folders.executions / "orphan").mkdir()
    (folders.executions / "orphan" / "file").write_text("x")
    (folders.results / "orphan").write_text("x")

    async with node():
        pass

    assert list(folders.executions.iterdir()) == []
    assert list(folders.results.iterdir()) == []


async def test_a_node_that_is_stopped_while_it_cleans_up_leaves_no_row(node, monkeypatch) -> None:
    row = Execution("e", "0" * 36, "j", 0, "c", "command", "", "0" * 64, "0x" + "0" * 64, 0, phase=Phase.REPORTED)
    began, forgotten = anyio.Event(), list[str]()

    async def remove(_: object, folder: Path) -> None:
        assert folder.name == row.id
        began.set()
        await anyio.sleep(0.01)

    monkeypatch.setattr(FolderRemover, "remove", remove)
    async with node() as running:
        monkeypatch.setattr(running.store, "forget", forgotten.append)
        async with anyio.create_task_group() as group:
            group.start_soon(partial(running.agent.runner.finish_recovered, row, is_answered=True))
            await began.wait()
            group.cancel_scope.cancel()

    assert forgotten == [row.id]
