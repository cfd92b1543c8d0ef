"""Sessions in rounds with updates that are late, wrong or missing, and a market that is in trouble."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial

import pytest

from parity_fl.codec import encode_delta
from parity_fl.rounds import RoundServer
from parity_market import round_intake
from parity_market.loops.training import Training
from parity_market.operations import groups, rounds
from parity_market.operations.groups import Group
from parity_market.operations.rounds import NewUpdate
from parity_market.round_intake import EXTRA_BYTES
from parity_market.store.base import ReadTx
from parity_market.testing.builders import fl_submission, new_node
from parity_market.testing.playing import DATA, TIMEOUT_S, Play
from parity_market.testing.rig import Rig
from parity_protocol.errors import (
    Conflict,
    Overloaded,
    StaleFence,
    StorageFull,
    TaskCancelled,
    TooLarge,
)
from parity_protocol.testing.clock import FakeClock


async def test_an_update_is_taken_once_and_another_one_under_its_name_is_refused(rig: Rig) -> None:
    play = await Play.begin(rig)
    step, body = await play.body(0)
    other = (await play.body(1))[1]

    assert [await play.send(0, step, body), await play.send(0, step, body)] == [True, False]

    with pytest.raises(Conflict, match="another update"):
        await play.send(0, step, other)
    await play.send(1)
    await play.send(2)
    assert await play.step()
    assert {one.state for one in (await play.show()).rounds[0].updates} == {"accepted"}


async def test_a_late_update_is_refused_with_the_reason_and_is_not_in_the_model(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig)
    step, body = await play.body(2)
    await play.send(0)
    await play.send(1)
    assert not await play.step()
    await clock.advance(timedelta(seconds=TIMEOUT_S))

    assert await play.step()
    with pytest.raises(Conflict, match="late: round 1"):
        await play.send(2, step, body)

    assert [one.part for one in (await play.show()).rounds[0].updates] == [0, 1]


async def test_an_update_for_another_model_or_that_is_too_long_is_refused(rig: Rig) -> None:
    play = await Play.begin(rig)
    step, body = await play.body(0)

    with pytest.raises(Conflict, match="starts from the model"):
        await play.send(0, step, body, base="ab" * 32)
    with pytest.raises(TooLarge):
        await play.send(0, step, body * 5_000)

    assert (await play.show()).rounds[0].updates == ()


async def test_a_session_fails_with_the_missing_parts_named_when_its_quorum_does_not_come(
    rig: Rig, clock: FakeClock
) -> None:
    play = await Play.begin(rig)
    await play.send(1)
    await clock.advance(timedelta(seconds=TIMEOUT_S))

    await play.step()

    group = await play.group()
    assert group.value.state == "failed"
    assert "1 of 2 needed updates came within 60 s; missing parts 0, 2" in group.row.message
    assert {str(task.state) for task in group.tasks} == {"cancelled"}
    with pytest.raises(TaskCancelled):
        await play.next(1)


async def test_a_round_does_not_run_out_while_nodes_are_still_to_come(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig, hold=(0,))
    await clock.advance(timedelta(hours=5))

    await play.step()

    shown = await play.show()
    assert (shown.state, shown.closes_at) == ("running", None)
    assert "1 of 2 parts are held" in shown.message


async def test_an_update_that_is_not_finite_leaves_the_model_as_it_is_without_it(rig: Rig) -> None:
    play = await Play.begin(rig)
    step, _ = await play.body(2)
    session = rig.state.rounds.known(await play.group()).session
    shapes = RoundServer(session.spec, session.plan, DATA.encode(), rig.state.rounds.known(await play.group()).strategy)
    weights = {name: value * float("nan") for name, value in shapes._made.model.init(b"0" * 32).items()}

    await play.send(0)
    await play.send(1)
    await play.send(2, step, encode_delta(weights, "fp32")[0])
    assert await play.step()

    updates = {one.part: one for one in (await play.show()).rounds[0].updates}
    assert updates[2].state == "rejected"
    assert "finite" in updates[2].reason
    assert updates[0].state == updates[1].state == "accepted"


@pytest.mark.parametrize("thief", [0, 2])
async def test_a_node_that_sends_another_parts_update_as_its_own_is_told_so_and_the_other_is_in_the_model(
    rig: Rig, thief: int
) -> None:
    play = await Play.begin(rig)

    for _ in range(3):
        step, copied = await play.body(1)
        await play.send(thief, step, copied)  # it comes first
        await play.round(*({0, 1, 2} - {thief}))

    for shown in (await play.show()).rounds[:3]:
        states = {update.part: (update.state, update.reason) for update in shown.updates}
        assert states.pop(thief) == ("rejected", "duplicate: it is part 1's update")
        assert set(states.values()) == {("accepted", "")}
    told, honest = await play.next(thief), await play.next(1)
    assert told.accepted == ()  # nothing of it is paid
    assert told.message == "round 3: duplicate: it is part 1's update"
    assert [update.round for update in honest.accepted] == [1, 2, 3]


async def test_a_round_with_too_few_usable_updates_opens_again_for_the_others(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig, hold=(0, 1), strategy_config={"strategy": "FedMedian"}, rounds_config={"quorum": 3})
    await play.hold(2, "n3")
    step, _ = await play.body(2)
    await play.send(0)
    await play.send(1)
    await play.send(2, step, b"rubbish")

    assert await play.step()

    shown = await play.show()
    assert (shown.state, shown.round) == ("running", 1)
    assert {one.part: one.state for one in shown.rounds[0].updates} == {0: "received", 1: "received", 2: "rejected"}
    assert shown.closes_at is not None


async def test_who_sent_what_was_rejected_loses_the_part_and_who_takes_over_is_asked(rig: Rig) -> None:
    settings = {"quorum": 3, "round_timeout_s": 600.0, "update_format": "fp32"}
    play = await Play.begin(rig, strategy_config={"strategy": "FedMedian"}, rounds_config=settings)
    step, body = await play.body(2)
    await play.send(0)
    await play.send(1)
    await play.send(2, step, b"rubbish")

    assert await play.step()

    with pytest.raises(StaleFence):
        await play.next(2)
    task = (await play.group()).tasks[2]
    assert (str(task.state), task.failure) == ("pending", "node_fault")
    assert new_node("n3").node_id in task.excluded_doc
    await play.hold(2, "n1")
    successor = await play.next(2)
    await play.send(2, successor, body)
    assert successor.state == "train"
    assert await play.step()
    assert (await play.show()).round == 2


async def test_one_body_of_a_part_is_on_its_way_at_a_time_and_a_second_may_come_after_it(rig: Rig) -> None:
    play = await Play.begin(rig)
    step, body = await play.body(0)
    begun, rest = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        begun.set()
        yield body[:10]
        await rest.wait()
        yield body[10:]

    lease, group, engine = play.leases[0], await play.group(), rig.state.rounds
    new = NewUpdate(step.round, step.phase, 0, lease.lease_id, lease.fence, step.base, "", 0, {})
    async with asyncio.TaskGroup() as turn:
        first = turn.create_task(engine.intake.take(group, lease.node_id, new, slow()))
        await begun.wait()
        with pytest.raises(Overloaded, match=r"part 0 .* on its way already"):
            await play.send(0, step, body)
        assert await play.send(1)  # nobody else waits for it
        rest.set()

    assert first.result().created
    assert not await play.send(0, step, body)
    assert Overloaded.retryable


async def test_a_part_that_asks_what_to_do_reads_its_own_updates_only(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = await Play.begin(rig)
    step, _ = await play.body(2)
    await play.send(0)
    await play.send(1)

    def refuse(*_: object) -> None:
        raise AssertionError("all updates of the round were read")

    monkeypatch.setattr(rounds, "load", refuse)
    states = [(await play.next(part)).state for part in range(3)]
    lease = play.leases[2]
    new = NewUpdate(step.round, step.phase, 2, lease.lease_id, lease.fence, step.base, "", 0, {})
    known = await rig.store.read(partial(rounds.examine, group_id=play.id, node_id=lease.node_id, new=new))

    assert states == ["wait", "wait", "train"]
    assert known is None


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_an_update_is_bounded_by_its_model_also_before_the_loop_has_seen_the_session(
    rig: Rig, is_restarted: bool
) -> None:
    play = await Play.begin(rig)
    step, body = await play.body(0)
    if is_restarted:
        rig.state.rounds._known.clear()

    with pytest.raises(TooLarge, match=f"at most {step.base_size + EXTRA_BYTES} bytes"):
        await play.send(0, step, body.ljust(step.base_size + EXTRA_BYTES + 1, b" "))


async def test_a_full_disk_is_nobodys_fault_but_the_markets(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    play = await Play.begin(rig)
    step, body = await play.body(0)
    with monkeypatch.context() as patched:
        patched.setattr(round_intake, "settle", full)
        with pytest.raises(StorageFull, match="No space left"):
            await play.send(0, step, body)

    assert await play.send(0, step, body)
    assert StorageFull.retryable


async def test_an_ended_session_leaves_nothing_in_memory(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig)
    await rig.store.write(
        partial(groups.fail, market=rig.state.market, group_id=play.id, reason="enough", now=clock.now())
    )
    await rig.state.rounds.remove(play.id)

    rig.state.rounds.known(await play.group())

    assert play.id not in rig.state.rounds._known


async def test_a_group_that_does_not_train_in_rounds_is_read_once_and_forgotten_when_it_ends(
    rig: Rig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = groups.load

    def counted(tx: ReadTx, group_id: str) -> Group:
        loads.append(group_id)
        return load(tx, group_id)

    rig.bench.now = clock.now()
    other = (await rig.bench.submit(fl_submission(deadline=clock.now() + timedelta(hours=1)))).id
    monkeypatch.setattr(groups, "load", counted)
    training = Training(rig.state)
    async with asyncio.TaskGroup() as turn:
        for _ in range(3):
            await training.scan(turn)
        await rig.store.write(
            partial(groups.fail, market=rig.state.market, group_id=other, reason="enough", now=clock.now())
        )
        await training.scan(turn)

    assert loads == [other]
    assert training._others == set()
