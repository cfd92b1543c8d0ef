"""Executors that fail, vanish or never end, as the whole agent meets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_blobs.files import cid_of_path
from parity_node import agent
from parity_node.executors.base import ExecutionResult
from parity_node.testing.executors import ScriptedExecutor
from parity_node.testing.market import MarketSimulator, command_spec
from parity_protocol.errors import (
    ExecutionFailed,
    FailureReason,
    Overloaded,
)
from parity_protocol.report import Outcome
from parity_protocol.task import TaskState
from parity_protocol.testing.clock import FakeClock


@pytest.mark.parametrize("method", ["prepare", "start", "wait"])
async def test_executor_that_breaks_is_the_nodes_fault(node, market: MarketSimulator, clock, method: str) -> None:
    task = market.offer(max_attempts=1)

    async with node(executor=ScriptedExecutor(clock, fail_in=method)) as running:
        await running.until(lambda: task.state is TaskState.FAILED)
        await running.until(running.is_idle)

    (report,) = (item.report for item in task.reports.values())
    assert (report.reason, report.outcome) == ("node_fault", Outcome.FAILED)
    assert running.agent.slots.free == 2


async def test_executor_whose_trial_run_breaks_is_unavailable_and_does_not_stop_the_agent(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    market.offer()

    async with node(executor=ScriptedExecutor(clock, fail_in="describe")) as running:
        await running.until(lambda: "executor" in running.agent.metrics.refusals)

    assert "RuntimeError" in running.agent.metrics.refusals["executor"].message


async def test_executor_that_goes_away_is_announced_no_longer_and_again_when_it_is_back(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    executor = ScriptedExecutor(clock)

    def is_announced() -> bool:
        return running.agent.capability().executors[executor.kind].available

    async with node(executor=executor) as running:
        assert is_announced()
        executor.available = False
        await running.pass_time(31)
        assert not is_announced()

        executor.available = True
        await running.pass_time(31)
        assert is_announced()


async def test_a_task_that_meets_no_executor_has_it_looked_at_at_once(
    node, market: MarketSimulator, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "LOOK_INTERVAL_S", 1e9)
    error = ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, "no engine answers")
    executor = ScriptedExecutor(clock, fail_in="prepare", error=error)

    async with node(executor=executor) as running:
        executor.available = False
        market.offer(max_attempts=1)
        await running.until(lambda: not running.agent.capability().executors[executor.kind].available)


@pytest.mark.parametrize("method", ["stop", "cleanup"])
async def test_executor_that_cannot_clean_up_does_not_hold_up_the_agent(
    node, market: MarketSimulator, clock: FakeClock, method: str
) -> None:
    tasks = [market.offer(), market.offer()]
    executor = ScriptedExecutor(clock, fail_in=method)

    async with node(executor=executor, runner_slots=1) as running:
        await running.until(lambda: all(task.state is TaskState.COMPLETED for task in tasks))


async def test_reason_of_an_executor_reaches_the_market(node, market: MarketSimulator, clock: FakeClock) -> None:
    task = market.offer()
    error = ExecutionFailed(FailureReason.DIGEST_MISMATCH, "expected abc, got def\x07")

    async with node(executor=ScriptedExecutor(clock, fail_in="wait", error=error)) as running:
        await running.until(lambda: task.state is TaskState.FAILED)

    (report,) = (item.report for item in task.reports.values())
    assert report.reason == "digest_mismatch"
    assert report.message == "expected abc, got def�"


async def test_result_with_metrics_that_are_not_numbers_is_the_nodes_fault(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    task = market.offer(max_attempts=1)
    result = ExecutionResult(Outcome.SUCCEEDED, result_bytes=b"x", metrics={"loss": float("nan")})

    async with node(executor=ScriptedExecutor(clock, result=result)) as running:
        await running.until(lambda: task.state is TaskState.FAILED)

    assert task.earnings == 0


async def test_task_that_never_ends_is_stopped_after_its_wall_time(
    node, market: MarketSimulator, clock: FakeClock
) -> None:
    task = market.offer(command_spec("sleep", budgets={"wall_time_s": 60}))

    async with node(executor=ScriptedExecutor(clock, run_for_s=1e6)) as running:
        await running.until(lambda: task.state is TaskState.FAILED, within_s=120, step_s=1)

    (report,) = (item.report for item in task.reports.values())
    assert report.reason == "timeout"
    assert running.executor.stopped == [task.id]


async def test_large_result_is_uploaded_before_its_report(node, market: MarketSimulator, clock: FakeClock) -> None:
    task = market.offer()
    result = ExecutionResult(Outcome.SUCCEEDED, result_bytes=b"z" * 100_000)
    market.fail_next("upload", Overloaded("not now"), Overloaded("not now"))

    async with node(executor=ScriptedExecutor(clock, result=result)) as running:
        await running.until(lambda: task.state is TaskState.COMPLETED)
        await running.until(running.is_idle)

    (report,) = (item.report for item in task.reports.values())
    assert market.blobs[report.result_cid] == b"z" * 100_000
    assert list(running.agent.parts.folders.results.iterdir()) == []


async def test_result_folder_is_uploaded_packed_before_its_report(
    node, market: MarketSimulator, clock: FakeClock, tmp_path: Path
) -> None:
    task = market.offer()
    folder = tmp_path / "gathered"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "model").write_bytes(b"m")
    result = ExecutionResult(Outcome.SUCCEEDED, result_path=folder)

    async with node(executor=ScriptedExecutor(clock, result=result)) as running:
        await running.until(lambda: task.state is TaskState.COMPLETED)
        await running.until(running.is_idle)

    (report,) = (item.report for item in task.reports.values())
    assert report.result_cid == str((await cid_of_path(folder, cid_version=1)).cid)
    assert report.result_cid in market.blobs
    assert list(running.agent.parts.folders.results.iterdir()) == []
