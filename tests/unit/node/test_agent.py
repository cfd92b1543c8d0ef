"""The whole agent on fakes: what it does with work, and with a market, a task or an operator that fails it."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import CapturingLogger

from parity_blobs.files import cid_of_path
from parity_node import agent
from parity_node.executors.base import ExecutionResult
from parity_node.store.memory import MemoryNodeStore
from parity_node.testing.executors import ScriptedExecutor
from parity_node.testing.market import MarketSimulator, command_spec
from parity_protocol.errors import (
    ClockSkew,
    ConfigInvalid,
    ExecutionFailed,
    FailureReason,
    NodeInUse,
    NotFound,
    Overloaded,
    StakeTooLow,
)
from parity_protocol.report import Outcome
from parity_protocol.task import TaskState
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_ed25519

from .conftest import keys_of


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


# -- leases ------------------------------------------------------------------------------------------------------


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


# -- what comes from the market ------------------------------------------------------------------------------------


def _flip_a_bit(token: str) -> str:
    head, payload, signature = token.split(".")
    middle = len(payload) // 2
    return f"{head}.{payload[:middle]}{'A' if payload[middle] != 'A' else 'B'}{payload[middle + 1 :]}.{signature}"


def _without_signature(token: str) -> str:
    return token.rsplit(".", 1)[0] + "."


def _alg_none(token: str) -> str:
    return "eyJhbGciOiJub25lIiwidHlwIjoibWFuaWZlc3QrandzIn0." + token.split(".")[1] + "."


@pytest.mark.parametrize("forge", [_flip_a_bit, _without_signature, _alg_none])
async def test_forged_manifest_is_refused_and_nothing_is_executed(node, market: MarketSimulator, forge) -> None:
    market.tamper_token = forge
    market.offer()

    async with node() as running:
        await running.until(lambda: bool(running.agent.metrics.refusals))
        await running.pass_time(10)

    assert running.executor.jobs == []
    assert market.calls.get("claim", 0) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("aud", "f" * 64),
        ("iss", "A" * 43),
        ("exp", 1_000_000_001),
        ("nbf", 4_000_000_000),
        ("spec", command_spec("rm", "-rf", "/")),
        ("reward", "999"),
        ("total_reward", "1001"),
        ("parts", 2),
        ("min_node_version", "99.0.0"),
        ("chain", {"chain_id": 1, "genesis": "0x" + "00" * 32, "vault": "0x" + "11" * 20}),
        ("jti", "not-a-uuid"),
    ],
)
async def test_manifest_that_the_order_does_not_cover_is_refused(
    node, market: MarketSimulator, field: str, value: object
) -> None:
    market.tamper = lambda payload: payload.update({field: value, **({"iat": 1_000_000_000, "nbf": 1_000_000_000} if field == "exp" else {}), **({"iat": value, "exp": 4_000_000_060} if field == "nbf" else {})})  # fmt: skip
    market.offer()

    async with node() as running:
        await running.until(lambda: bool(running.agent.metrics.refusals))

    assert running.executor.jobs == []
    assert market.calls.get("claim", 0) == 0


async def test_manifest_is_used_once_even_across_a_restart(node, market: MarketSimulator) -> None:
    first, store = market.offer(), MemoryNodeStore()
    tokens: list[str] = []
    market.tamper_token = lambda token: tokens.append(token) or tokens[0]

    async with node(store=store) as running:
        await running.until(lambda: first.state is TaskState.COMPLETED)
        await running.until(running.is_idle)
    market.offer()
    async with node(store=store) as running:
        await running.until(lambda: "replayed" in running.agent.metrics.refusals)

    assert running.executor.jobs == []


async def test_unknown_manifest_key_refreshes_the_key_set_once_a_minute(node, market: MarketSimulator) -> None:
    async with node() as running:
        await running.pass_time(120)
        before = market.calls["trust"]
        market.book.manifest_key = market.manifest_key = deterministic_ed25519("rotated")
        market.tamper_token = _flip_a_bit  # stays refused after the refresh
        for _ in range(5):
            market.offer()
        await running.pass_time(30)
        assert market.calls["trust"] == before + 1


async def test_rotated_manifest_key_is_accepted_after_one_refresh(node, market: MarketSimulator) -> None:
    async with node() as running:
        await running.pass_time(120)
        market.book.manifest_key = market.manifest_key = deterministic_ed25519("rotated")
        task = market.offer()
        await running.until(lambda: task.state is TaskState.COMPLETED)


async def test_task_that_the_policy_forbids_is_not_claimed_and_the_rule_is_counted(
    node, market: MarketSimulator
) -> None:
    market.offer(command_spec("true", budgets={"wall_time_s": 7200}))

    async with node() as running:
        await running.until(lambda: "policy.max_wall_time_s" in running.agent.metrics.refusals)

    assert market.calls.get("claim", 0) == 0


async def test_lease_that_the_market_did_not_sign_is_not_worked_on(node, market: MarketSimulator, monkeypatch) -> None:
    task = market.offer()
    honest = market.book.claim
    monkeypatch.setattr(
        market.book, "claim", lambda item, node_id: honest(item, node_id).model_copy(update={"fence": 7})
    )

    async with node() as running:
        await running.until(lambda: "lease.digest_mismatch" in running.agent.metrics.refusals)

    assert running.executor.jobs == []
    assert task.reports == {}


# -- executors that fail -----------------------------------------------------------------------------------------


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


# -- notices -----------------------------------------------------------------------------------------------------


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


# -- standing ----------------------------------------------------------------------------------------------------


async def test_second_machine_with_a_copied_key_is_refused_and_the_agent_ends(node, market: MarketSimulator) -> None:
    async with node(), node(keys=keys_of(instance="2" * 64)) as copy:
        await copy.until(copy.ended.is_set)

    assert isinstance(copy.failure, NodeInUse)
    assert "testhost" in copy.failure.message


async def test_node_without_enough_stake_stays_up_says_why_and_starts_when_it_has(
    node, market: MarketSimulator
) -> None:
    market.eligible, market.problems = False, ("the bond is 0, this market asks for 10",)
    task = market.offer()

    async with node() as running:
        await running.pass_time(60)
        assert task.state is TaskState.PENDING
        assert running.agent.presence.standing.problems == market.problems
        market.eligible, market.problems = True, ()
        await running.until(lambda: task.state is TaskState.COMPLETED, within_s=40)


async def test_stake_that_falls_away_pauses_polling_until_the_next_heartbeat(node, market: MarketSimulator) -> None:
    async with node() as running:
        await running.until(lambda: market.calls.get("poll", 0) == 1)
        market.fail_next("poll", StakeTooLow())
        task = market.offer()
        await running.until(lambda: task.state is TaskState.COMPLETED)


async def test_market_that_refuses_every_poll_is_not_hammered(node, market: MarketSimulator) -> None:
    async with node() as running:
        market.fail_next("poll", *[StakeTooLow()] * 10_000)
        before = market.calls["poll"]
        await running.pass_time(60)

    assert market.calls["poll"] - before < 60


async def test_disk_that_is_full_is_named_as_the_reason(node, market: MarketSimulator, clock: FakeClock) -> None:
    task = market.offer(max_attempts=1)
    error = OSError(28, "No space left on device")

    async with node(executor=ScriptedExecutor(clock, fail_in="wait", error=error)) as running:
        await running.until(lambda: task.state is TaskState.FAILED)

    (report,) = (item.report for item in task.reports.values())
    assert report.reason == "disk_full"


async def test_market_that_forgot_the_node_gets_it_introduced_again(node, market: MarketSimulator) -> None:
    async with node() as running:
        await running.until(lambda: bool(market.heartbeats))
        market.fail_next("heartbeat", NotFound("this node is not enrolled here"))
        await running.until(lambda: market.calls["enrol"] == 2, within_s=70, step_s=1)


async def test_node_waits_for_a_market_that_is_not_there_yet(node, market: MarketSimulator) -> None:
    market.go_offline()
    async with node() as running:
        await running.pass_time(60)
        market.come_back()
        task = market.offer()
        await running.until(lambda: task.state is TaskState.COMPLETED, within_s=60)


async def test_clock_that_is_wrong_is_named_with_both_times(node, market: MarketSimulator, monkeypatch) -> None:
    told = "the request was signed at 2026-01-01T00:10:00Z, the market's time is 2026-01-01T00:00:00Z"
    market.fail_next("enrol", ClockSkew(told), ClockSkew(told))
    logged = CapturingLogger()
    monkeypatch.setattr("parity_node.presence.log", logged)

    async with node() as running:
        await running.pass_time(1)
        await running.until(lambda: any(told in str(call.kwargs.get("error")) for call in logged.calls))

    (shown, *_) = [call.kwargs for call in logged.calls if told in str(call.kwargs.get("error"))]
    assert "this machine's time is 2026-01-01T00:00" in shown["error"]
    assert "timedatectl" in shown["hint"]


async def test_other_market_than_the_pinned_one_ends_the_agent(node, market: MarketSimulator, clock) -> None:
    store = MemoryNodeStore()
    async with node(store=store) as running:
        await running.pass_time(1)
    market.chain = market.chain.model_copy(update={"chain_id": 5})

    async with node(store=store) as running:
        await running.until(running.ended.is_set)

    assert isinstance(running.failure, ConfigInvalid)


async def test_chain_that_the_settings_do_not_name_ends_the_agent(node, market: MarketSimulator) -> None:
    async with node(blockchain_chain_id=1) as running:
        await running.until(running.ended.is_set)

    assert isinstance(running.failure, ConfigInvalid)
    assert "BLOCKCHAIN_CHAIN_ID=1" in str(running.failure)


# -- room --------------------------------------------------------------------------------------------------------


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


# -- ending ------------------------------------------------------------------------------------------------------


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


# -- what only time brings ---------------------------------------------------------------------------------------


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
