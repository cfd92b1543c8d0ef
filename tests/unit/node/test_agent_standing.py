"""How the agent stands with its market: known, staked, on time, and what it says where it is not."""

from __future__ import annotations

from structlog.testing import CapturingLogger

from parity_node.store.memory import MemoryNodeStore
from parity_node.testing.executors import ScriptedExecutor
from parity_node.testing.market import MarketSimulator
from parity_protocol.errors import (
    ClockSkew,
    ConfigInvalid,
    NodeInUse,
    NotFound,
    StakeTooLow,
)
from parity_protocol.task import TaskState
from parity_protocol.testing.clock import FakeClock

from .conftest import keys_of


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
