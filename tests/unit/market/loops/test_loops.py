"""Loops start again after a failure, reap in time, write presence, and begin by repairing what is half done."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from parity_contracts.chain.base import PaidKey
from parity_contracts.chain.memory import MemoryChain
from parity_market import loops
from parity_market.loops import housekeeping, presence, reaper
from parity_market.loops.chain_follower import Follower, refresh_account
from parity_market.loops.supervise import FIRST_DELAY_S, MAX_DELAY_S, supervise
from parity_market.metrics import LEASES_LIVE, NODES_ONLINE, TASKS
from parity_market.operations import nodes, sessions, vouchers
from parity_market.operations.steps import load_task
from parity_market.store.rows import TaskRow, from_us
from parity_market.testing.builders import SPENDER, TOKEN, command_submission, new_node
from parity_market.testing.rig import Rig, inline, open_rig
from parity_protocol.errors import ConfigInvalid, NotFound, Unauthenticated
from parity_protocol.ids import Address
from parity_protocol.task import TaskState
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_evm_key

CREATOR = deterministic_evm_key("creator").address
NODE = new_node("n1").node_id


async def task_of(rig: Rig, task_id: str) -> TaskRow:
    return await rig.store.read(lambda tx: load_task(tx, task_id))


async def committed(rig: Rig) -> None:
    """Return when everything that was handed to the store before is on disk."""
    await rig.store.write(lambda tx: None)


# -- supervise --------------------------------------------------------------------------------------------------------


async def test_a_failing_loop_starts_again_later_each_time_up_to_the_cap(clock: FakeClock) -> None:
    starts: list[float] = []

    async def loop() -> None:
        starts.append(clock.monotonic())
        raise RuntimeError("a bug")

    running = asyncio.create_task(supervise("test", loop, clock, jitter=lambda: 1.0))
    await clock.advance(timedelta(seconds=200))
    running.cancel()

    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert gaps[:4] == [FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S, 8 * FIRST_DELAY_S]
    assert gaps[-1] == MAX_DELAY_S
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_loop_that_recovered_begins_with_the_first_delay_again(clock: FakeClock) -> None:
    ends: list[float] = []

    async def loop() -> None:
        await clock.sleep(0 if len(ends) < 5 else 120)
        ends.append(clock.monotonic())
        raise RuntimeError("a bug")

    running = asyncio.create_task(supervise("test", loop, clock, jitter=lambda: 0.0))
    await clock.advance(timedelta(seconds=400))
    running.cancel()

    assert ends[6] - ends[5] == pytest.approx(120 + FIRST_DELAY_S / 2)
    with suppress(asyncio.CancelledError):
        await running


async def test_a_cancelled_loop_is_not_started_again(clock: FakeClock) -> None:
    starts = 0

    async def loop() -> None:
        nonlocal starts
        starts += 1
        await clock.sleep(3600)

    running = asyncio.create_task(supervise("test", loop, clock))
    await clock.advance(timedelta(seconds=1))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert starts == 1


async def test_what_forbids_the_market_to_go_on_is_not_repeated(clock: FakeClock) -> None:
    async def loop() -> None:
        raise ConfigInvalid(["another chain"])

    with pytest.raises(ConfigInvalid, match="another chain"):
        await supervise("test", loop, clock)


async def test_another_chain_ends_all_loops(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def other(state: object) -> bool:
        raise ConfigInvalid(["genesis hash: expected 0xaa"])

    monkeypatch.setattr(Follower, "step", other)

    with pytest.raises(ConfigInvalid, match="genesis hash"):
        await loops.run_all(rig.state)


# -- reaper -----------------------------------------------------------------------------------------------------------


async def open_for_work(rig: Rig) -> str:
    await rig.bench.open("n1", "n2")
    return (await rig.bench.submit(command_submission())).id


async def test_a_lapsed_lease_is_taken_back_when_it_lapses(rig: Rig, clock: FakeClock) -> None:
    task_id = await open_for_work(rig)
    await rig.bench.lease("n1", task_id)
    running = asyncio.create_task(reaper.run(rig.state))
    ttl = rig.state.market.lease_ttl
    states = []
    for wait in (ttl - timedelta(seconds=0.5), timedelta(seconds=0.6)):
        await clock.advance(wait)
        await committed(rig)
        states.append((await task_of(rig, task_id)).state)
    running.cancel()

    assert states == [TaskState.LEASED, TaskState.PENDING]
    with suppress(asyncio.CancelledError):
        await running


async def test_the_reaper_sleeps_until_the_next_lease_lapses(rig: Rig, clock: FakeClock) -> None:
    task_id = await open_for_work(rig)
    idle = await reaper.step(rig.state)
    await rig.bench.lease("n1", task_id)
    await clock.advance(rig.state.market.lease_ttl - timedelta(seconds=0.25))

    assert idle == reaper.LOOK_S
    assert await reaper.step(rig.state) == pytest.approx(0.25)


async def test_a_pending_task_past_its_deadline_fails(rig: Rig, clock: FakeClock) -> None:
    await rig.bench.open("n1")
    deadline = clock.now() + timedelta(seconds=10)
    task_id = (await rig.bench.submit(command_submission(deadline=deadline))).id
    await clock.advance(timedelta(seconds=11))

    await reaper.step(rig.state)

    found = await task_of(rig, task_id)
    assert found.state is TaskState.FAILED
    assert "deadline" in found.message


# -- presence and housekeeping ------------------------------------------------------------------------------------------


async def test_who_spoke_is_written_once(rig: Rig, clock: FakeClock) -> None:
    await rig.bench.open("n1")
    await rig.state.scheduler.load()
    await clock.advance(timedelta(seconds=40))
    rig.state.scheduler.presence.heard(NODE, draining=True)

    counts = [await presence.step(rig.state), await presence.step(rig.state)]

    row = await rig.store.read(partial(nodes.get, node_id=NODE))
    assert counts == [1, 0]
    assert (from_us(row.last_seen_us), row.draining) == (clock.now(), 1)


async def test_expired_sessions_are_forgotten_and_live_ones_stay(rig: Rig, clock: FakeClock) -> None:
    async def sign_in(name: str) -> None:
        def op(tx):  # type: ignore[no-untyped-def]  # an operation
            now = clock.now()
            until = now + sessions.NONCE_TTL
            sessions.open_session(
                tx, nonce=name, nonce_expires=until, session_id=name, account=CREATOR, key="k", now=now
            )

        await rig.store.write(op)

    await sign_in("old")
    await clock.advance(timedelta(minutes=59))
    await sign_in("new")
    await clock.advance(timedelta(minutes=2))

    assert await housekeeping.forget(rig.state) == 1

    assert (await rig.store.read(partial(sessions.get, session_id="new", now=clock.now()))).id == "new"
    with pytest.raises(Unauthenticated):
        await rig.store.read(partial(sessions.get, session_id="old", now=clock.now()))


async def test_gauges_say_what_there_is(rig: Rig) -> None:
    task_id = await open_for_work(rig)
    await rig.state.scheduler.load()
    await rig.bench.lease("n1", task_id)

    await housekeeping.measure(rig.state)

    assert TASKS.labels("leased")._value.get() == 1
    assert TASKS.labels("pending")._value.get() == 0
    assert LEASES_LIVE._value.get() == 1
    assert NODES_ONLINE._value.get() == 2


# -- start-up ---------------------------------------------------------------------------------------------------------


async def test_start_up_extends_leases_that_could_not_be_renewed(
    tmp_path: Path, chain: MemoryChain, clock: FakeClock
) -> None:
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        task_id = await open_for_work(rig)
        await rig.bench.lease("n1", task_id)
    await clock.advance(rig.state.market.lease_ttl * 10)  # the market was down for long

    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        await loops.start_up(rig.state)
        await reaper.step(rig.state)
        kept = (await task_of(rig, task_id)).state
        await clock.advance(rig.state.market.lease_ttl + timedelta(seconds=1))
        await reaper.step(rig.state)

        assert (kept, (await task_of(rig, task_id)).state) == (TaskState.LEASED, TaskState.PENDING)


async def test_start_up_signs_what_was_earned_and_does_not_wait_for_the_chain(
    tmp_path: Path, chain: MemoryChain, clock: FakeClock
) -> None:
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        await rig.stake("n1")
        await rig.bench.enrol("n1")
        await rig.allow(10 * TOKEN)
        await refresh_account(rig.state, CREATOR)
        await Follower(rig.state).step()
        await rig.earn("n1")
    chain.go_offline()
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        await loops.start_up(rig.state)

        waiting = await rig.store.read(partial(vouchers.unpaid_vouchers, chain=rig.state.market.chain))

    assert [row.cumulative for row in waiting] == [TOKEN]


async def test_all_loops_together_pay_for_work(rig: Rig, clock: FakeClock) -> None:
    await rig.stake("n1")
    await rig.bench.enrol("n1")
    await rig.allow(10 * TOKEN)
    await refresh_account(rig.state, CREATOR)
    await loops.start_up(rig.state)
    running = asyncio.create_task(loops.run_all(rig.state))
    await advance(rig, clock, 2)
    await rig.earn("n1", 3 * TOKEN)

    await advance(rig, clock, 30)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running

    paid = await rig.state.chain.paid([PaidKey(CREATOR, Address(SPENDER), NODE)])
    assert paid.amounts == (3 * TOKEN,)
    with pytest.raises(NotFound):
        await task_of(rig, "none")


async def advance(rig: Rig, clock: FakeClock, seconds: int) -> None:
    """Let time pass, and the store's thread do its commits."""
    for _ in range(seconds * 2):
        await clock.advance(timedelta(seconds=0.5))
        await committed(rig)
