"""Sessions that train in rounds at the market: opened, closed, resumed after a kill, or failed with a reason."""

from __future__ import annotations

import asyncio
import errno
from base64 import b64decode
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from parity_contracts.chain.memory import MemoryChain
from parity_fl.checkpoint import CheckpointFolder, decode_checkpoint
from parity_fl.codec import decode_weights, encode_delta, encode_weights
from parity_fl.forest_rounds import ForestTrainer
from parity_fl.histogram import part_rows, run_local
from parity_fl.model import decode_model
from parity_fl.rounds import Reduced, RoundServer, RoundTrainer
from parity_fl.spec import ForestConfig
from parity_fl.table import Table
from parity_fl.tensors import decode_tensors
from parity_fl.trees import Forest
from parity_market import round_intake, round_jobs
from parity_market.loops.rounds import Rounds
from parity_market.loops.training import Training
from parity_market.operations import groups, leases, round_closing, round_control, round_small, round_views, rounds
from parity_market.operations.groups import Group
from parity_market.operations.rounds import NewUpdate
from parity_market.round_files import model_file, sent_file
from parity_market.round_intake import EXTRA_BYTES
from parity_market.store import sql
from parity_market.store.base import ReadTx
from parity_market.testing.builders import fl_submission, new_node
from parity_market.testing.playing import DATA, NODES, TIMEOUT_S, Play
from parity_market.testing.rig import DEPLOYMENT, Rig, inline, open_rig
from parity_protocol.errors import (
    Conflict,
    InvalidTransition,
    Overloaded,
    StaleFence,
    StorageFull,
    TaskCancelled,
    TooLarge,
)
from parity_protocol.testing.clock import FakeClock


async def straight(play: Play, count: int) -> str:
    """Return the hash of the model that an undisturbed session of the same order would have after ``count`` rounds."""
    known = play.rig.state.rounds.known(await play.group())
    session = known.session
    server = RoundServer(session.spec, session.plan, DATA.encode(), known.strategy)
    trainers = [RoundTrainer(session.spec, session.plan, DATA.encode(), part) for part in range(3)]
    base, state = server.first(), None
    for number in range(1, count + 1):
        bodies = [trainer.train(base, number=number).update for trainer in trainers]
        found = server.reduce(
            base, state, {part: (lambda body=body: body) for part, body in enumerate(bodies)}, number=number
        )  # type: ignore[misc]
        assert isinstance(found, Reduced)
        base, state = found.model, found.state
    return sha256(base).hexdigest()


# -- the way to a model ---------------------------------------------------------------------------------------------


async def test_each_round_starts_from_the_model_of_the_last_and_the_final_one_is_the_groups_result(rig: Rig) -> None:
    play = await Play.begin(rig)

    for _ in range(3):
        await play.round(0, 1, 2)
    for part in range(3):
        await play.report(part)
    await Rounds(rig.state).step()

    shown = await play.show()
    assert shown.state == "completed"
    assert [one.round for one in shown.rounds] == [1, 2, 3]
    assert shown.metrics["final_model"] == await straight(play, 3)
    group = await play.group()
    assert {str(task.state) for task in group.tasks} == {"completed"}
    assert shown.result_cid is not None
    model = decode_model(await rig.state.federation.read(shown.result_cid, group.row.creator, max_bytes=1 << 20))
    assert model.n_features == 2
    assert rig.state.rounds.folders() == []


async def test_nodes_start_from_the_large_model_in_half_its_bytes_and_the_market_keeps_it_whole(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("parity_fl.codec._HALVED_BYTES", "parity_market.round_jobs.SMALL_BYTES"):
        monkeypatch.setattr(place, 1)
    play = await Play.begin(rig, rounds_config={"round_timeout_s": TIMEOUT_S, "quorum": 2, "update_format": "fp16"})
    folder = rig.state.rounds.folder(play.id)

    for number in (1, 2):
        step = await play.next(0)
        path, digest, size = await rig.state.rounds.intake.model(play.id)
        sent, whole = path.read_bytes(), model_file(folder, number, 0).read_bytes()
        assert (path, digest, size) == (sent_file(folder, number, 0), step.base, step.base_size)
        assert (sha256(sent).hexdigest(), len(sent)) == (digest, size)
        assert sent == encode_weights(decode_tensors(whole, max_bytes=1 << 16)[0], "fp16") != whole
        await play.round(0, 1, 2)

    assert not sent_file(folder, 2, 0).exists()
    await play.round(0, 1, 2)
    for part in range(3):
        await play.report(part)
    await Rounds(rig.state).step()
    assert (await play.show()).state == "completed"


@pytest.mark.parametrize("killed_after", ["begin", "two updates", "freeze", "reduce"])
async def test_a_market_that_is_killed_in_a_round_goes_on_there_and_ends_with_the_same_bits(
    tmp_path: Path, clock: FakeClock, killed_after: str
) -> None:
    chain = MemoryChain(clock, DEPLOYMENT)
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        await rig.bench.open(*NODES)
        play = await Play.begin(rig)
        await play.round(0, 1, 2)
        if killed_after != "begin":
            await play.send(0)
            await play.send(1)
        if killed_after in ("freeze", "reduce"):
            await play.send(2)
            await rig.store.write(partial(round_closing.freeze, group_id=play.id, now=clock.now()))
        if killed_after == "reduce":
            group = await play.group()
            chosen = [(one.part, one.sha256) for one in (await play.show()).rounds[1].updates]
            job = {"do": "reduce", "round": 2, "phase": 0, "updates": chosen, "credit": None}
            await rig.state.rounds.work(group, job)

    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        play.rig = rig
        await Training(rig.state).start_up()
        sent = {one.part for one in (await play.show()).rounds[1].updates}
        for part in {0, 1, 2} - sent:
            await play.send(part)
        assert await play.step()
        await play.round(0, 1, 2)

        assert (await play.show()).state == "done"
        final = await rig.store.read(partial(rounds.load, group_id=play.id))
        assert final is not None
        assert final.row.base_hash == await straight(play, 3)


@pytest.mark.parametrize("lost", ["everything", "all but the names"])
async def test_small_files_that_a_power_cut_took_are_written_again(tmp_path: Path, clock: FakeClock, lost: str) -> None:
    chain = MemoryChain(clock, DEPLOYMENT)
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        await rig.bench.open(*NODES)
        play = await Play.begin(rig)
        await play.round(0, 1, 2)
        await play.send(0)
        await play.send(1)
        folder = rig.state.rounds.folder(play.id)
    small = [path for path in folder.rglob("*.safetensors") if path.name != "model-1-0.safetensors"]
    for path in small:
        if lost == "everything":
            path.unlink()
        else:
            path.write_bytes(b"")

    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        play.rig = rig
        round_jobs._open.clear()
        await Training(rig.state).start_up()
        await play.send(2)
        assert await play.step()
        await play.round(0, 1, 2)
        final = await rig.store.read(partial(rounds.load, group_id=play.id))

        assert len(small) == 4  # the model, the rule's state, two updates
        assert final is not None
        assert final.row.base_hash == await straight(play, 3)
        await rig.state.rounds.remove(play.id)
        assert await rig.store.read(partial(round_small.kept, folder=folder, group_id=play.id)) == []


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_small_model_is_told_with_the_step_that_names_it(rig: Rig, is_restarted: bool) -> None:
    play = await Play.begin(rig)
    await play.round(0, 1, 2)
    step = await play.next(0)
    if is_restarted:
        rig.state.rounds.intake.forget(play.id)

    told = await rig.state.rounds.intake.with_model(play.id, step)
    await play.round(0, 1, 2)
    late = await rig.state.rounds.intake.with_model(play.id, step)

    assert sha256(b64decode(told.model)).hexdigest() == step.base
    assert late.model == ""  # the session has moved on
    await rig.state.rounds.remove(play.id)
    assert rig.state.rounds.intake._small == {}


async def test_a_closed_round_leaves_only_the_next_ones_files_in_the_store(rig: Rig) -> None:
    play = await Play.begin(rig)
    await play.round(0, 1, 2)
    await play.round(0, 1, 2)
    folder = rig.state.rounds.folder(play.id)

    files = await rig.store.read(partial(round_small.kept, folder=folder, group_id=play.id))

    assert sorted(path.name for path, _ in files) == ["model-3-0.safetensors", "state-3-0.safetensors"]
    assert all(path.read_bytes() == data for path, data in files)


async def test_a_whole_round_that_another_update_comes_to_while_it_is_reduced_is_reduced_again(
    rig: Rig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = await Play.begin(rig)
    engine, reduced = rig.state.rounds, 0
    step, body = await play.body(0)
    work = engine._work

    async def slow(session_id: str, job: Any) -> dict[str, Any]:
        nonlocal reduced
        done = await work(session_id, job)
        reduced += 1
        if reduced == 1:  # the part's lease has lapsed, and its heir sends before it asks
            await clock.advance(timedelta(seconds=31))
            await rig.store.write(partial(leases.reap, market=rig.state.market, now=clock.now()))
            for part, node in ((0, "n2"), (1, "n3"), (2, "n1")):
                await play.hold(part, node)
            await play.send(0, step, body)
        return done

    monkeypatch.setattr(engine, "_work", slow)
    await play.send(0)
    await play.send(1)
    await play.send(2)

    assert [await play.step(), await play.step()] == [True, True]

    shown = await play.show()
    assert (reduced, shown.round) == (2, 2)
    first = {(one.part, one.fence): one.state for one in shown.rounds[0].updates}
    assert [first[0, fence] for fence in sorted(fence for part, fence in first if part == 0)] == [
        "received",
        "accepted",
    ]


async def test_a_node_that_takes_over_a_part_joins_in_the_same_round(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig, rounds_config={"round_timeout_s": 600.0, "quorum": 3, "update_format": "fp32"})
    await play.round(0, 1, 2)
    await clock.advance(timedelta(seconds=31))  # nobody has renewed
    await rig.store.write(partial(leases.reap, market=rig.state.market, now=clock.now()))

    with pytest.raises(StaleFence):
        await play.next(0)
    for part, node in ((0, "n2"), (1, "n3"), (2, "n1")):
        await play.hold(part, node)
    step = await play.next(0)
    await play.round(0, 1, 2)

    assert (step.state, step.round) == ("train", 2)
    assert (await play.show()).round == 3


# -- who is late, wrong or missing -----------------------------------------------------------------------------------


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


# -- what its submitter may do ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [round_control.pause, round_control.resume, round_control.stop])
async def test_a_session_that_has_failed_is_not_changed_any_more(rig: Rig, clock: FakeClock, change: Any) -> None:
    play = await Play.begin(rig)
    market, now = rig.state.market, clock.now()
    await rig.store.write(partial(groups.fail, market=market, group_id=play.id, reason="enough", now=now))
    before = (await play.show()).state

    with pytest.raises(InvalidTransition, match="it is failed"):
        await rig.store.write(partial(change, market=market, group_id=play.id, now=now))

    assert (await play.show()).state == before


async def test_a_paused_session_closes_no_round_and_has_no_deadline(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig)
    await rig.store.write(partial(round_control.pause, market=rig.state.market, group_id=play.id, now=clock.now()))
    await clock.advance(timedelta(days=1))

    assert not await play.step()
    waiting = await play.show()
    await rig.store.write(partial(round_control.resume, market=rig.state.market, group_id=play.id, now=clock.now()))
    await play.step()

    assert (waiting.state, waiting.closes_at) == ("paused", None)
    assert (await play.show()).state == "running"


async def test_a_stopped_session_ends_with_the_open_rounds_model(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig)
    await rig.store.write(partial(round_control.stop, market=rig.state.market, group_id=play.id, now=clock.now()))

    await play.round(0, 1, 2)

    assert (await play.next(0)).state == "done"
    with pytest.raises(InvalidTransition):
        await rig.store.write(partial(round_control.pause, market=rig.state.market, group_id=play.id, now=clock.now()))


async def test_a_part_is_paid_only_for_a_list_of_its_own_accepted_updates(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig, total_rounds=2)
    await play.round(0, 1, 2)
    await play.round(0, 1, 2)
    for part in (0, 1):
        await play.report(part)
    await play.report(2, {"updates": [{"round": 1, "phase": 0, "sha256": "ab" * 32}]})

    loop = Rounds(rig.state)
    await loop.step()

    group = await play.group()
    assert [str(task.state) for task in group.tasks] == ["completed", "completed", "cancelled"]
    assert group.value.state == "completed"
    earned = [
        await rig.store.read(lambda tx, task=task: tx.one(sql.EARNING_OF_TASK, task_id=task.id)) for task in group.tasks
    ]
    assert [row is not None for row in earned] == [True, True, False]
    assert new_node("n3").node_id == group.tasks[2].last_node


async def test_a_part_that_reports_before_the_session_is_over_is_unpaid_and_goes_to_another_node(rig: Rig) -> None:
    play = await Play.begin(rig, rounds_config={"round_timeout_s": TIMEOUT_S, "quorum": 3, "update_format": "fp32"})
    await play.round(0, 1, 2)
    [sent] = [one for one in (await play.show()).rounds[0].updates if one.part == 2]

    await play.report(2, {"updates": [{"round": 1, "phase": 0, "sha256": sent.sha256}]})
    await Rounds(rig.state).step()

    task = (await play.group()).tasks[2]
    assert (str(task.state), task.failure) == ("pending", "node_fault")
    assert await rig.store.read(lambda tx: tx.one(sql.EARNING_OF_TASK, task_id=task.id)) is None
    await play.hold(2, "n1")
    await play.round(0, 1, 2)
    assert (await play.show()).round == 3


async def test_a_report_longer_than_a_list_is_rejected_unread_and_the_others_are_checked(rig: Rig) -> None:
    play = await Play.begin(rig, total_rounds=1)
    await play.round(0, 1, 2)
    await play.report(0)
    await play.report(1)
    await play.report(2, b"[" * 30_000)

    why = await rig.state.rounds.check(await play.group(), (await play.group()).tasks[2])
    await Rounds(rig.state).step()

    assert why == "the result has 30000 bytes, a list of 1 updates at most 1024"
    states = [str(task.state) for task in (await play.group()).tasks]
    assert states == ["completed", "completed", "cancelled"]


# -- pay and checkpoints -----------------------------------------------------------------------------------------------


async def test_pay_follows_the_rounds_that_a_part_took_part_in(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig, total_rounds=2)
    await play.round(0, 1, 2)
    await play.send(0)
    await play.send(1)
    await play.step()  # the clock of round 2 begins
    await clock.advance(timedelta(seconds=TIMEOUT_S))
    assert await play.step()

    for part in range(3):
        await play.report(part)
    await Rounds(rig.state).step()

    tasks = (await play.group()).tasks
    earned = [
        await rig.store.read(lambda tx, task=task: tx.one(sql.EARNING_OF_TASK, task_id=task.id)) for task in tasks
    ]
    assert [row.amount for row in earned] == [tasks[0].reward, tasks[1].reward, tasks[2].reward // 2]
    account = await rig.store.read(
        lambda tx: tx.one(sql.ACCOUNT, chain=rig.state.market.chain, creator=tasks[0].creator)
    )
    assert account is not None
    assert account.reserved == 0


@pytest.mark.parametrize("method", ["leave_one_out", "shapley"])
async def test_contributions_are_scored_on_the_hold_out_when_asked_for(rig: Rig, method: str) -> None:
    settings = {"round_timeout_s": TIMEOUT_S, "update_format": "fp32", "contribution": method}
    play = await Play.begin(rig, rounds_config=settings, strategy_config={"strategy": "FedAvg"})

    await play.round(0, 1, 2)

    done = (await play.show()).rounds[0]
    assert all(isinstance(one.metrics["contribution"], float) for one in done.updates)
    if method == "shapley":
        assert (done.metrics["shapley_permutations"], done.metrics["shapley_evaluations"]) == (6, 8)


async def test_shapley_values_of_a_session_are_those_of_their_definition(rig: Rig) -> None:
    settings = {"round_timeout_s": TIMEOUT_S, "update_format": "fp32", "contribution": "shapley"}
    play = await Play.begin(rig, rounds_config=settings, strategy_config={"strategy": "FedAvg"})
    session = rig.state.rounds.known(await play.group()).session
    rule = rig.state.rounds.known(await play.group()).strategy
    server = RoundServer(session.spec, session.plan, DATA.encode(), rule)
    base = server.first()
    bodies = {part: (await play.body(part))[1] for part in range(3)}

    def loss(*parts: int) -> float:
        if not parts:
            return server.scores(decode_weights(base, server._made.model.shapes()))["loss"]
        done = server.reduce(base, None, {part: partial(bytes, bodies[part]) for part in parts}, number=1)
        assert isinstance(done, Reduced)
        return done.metrics["loss"]

    await play.round(0, 1, 2)

    gave = {one.part: one.metrics["contribution"] for one in (await play.show()).rounds[0].updates}
    for part in range(3):
        one, two = sorted({0, 1, 2} - {part})
        value = (loss() - loss(part)) / 3 + (loss(one, two) - loss(0, 1, 2)) / 3
        value += (loss(one) - loss(*sorted((one, part)))) / 6 + (loss(two) - loss(*sorted((two, part)))) / 6
        assert gave[part] == pytest.approx(value, rel=1e-9)
    assert sum(float(str(one)) for one in gave.values()) == pytest.approx(loss() - loss(0, 1, 2))


async def test_shapley_has_a_bound_of_time_and_then_nobody_is_scored(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"round_timeout_s": TIMEOUT_S, "contribution": "shapley", "shapley_seconds": 1e-9, "base_share": 0.5}
    play = await Play.begin(rig, rounds_config=settings, strategy_config={"strategy": "FedAvg"})

    await play.round(0, 1, 2)

    done = (await play.show()).rounds[0]
    assert done.metrics["shapley_permutations"] == 0
    assert not any("contribution" in one.metrics for one in done.updates)


async def test_checkpoints_are_written_every_interval_and_at_the_end_and_kept_by_cid(rig: Rig, tmp_path: Path) -> None:
    settings = {"quorum": 2, "update_format": "fp32", "checkpoint_interval": 2}
    play = await Play.begin(rig, rounds_config=settings)

    for _ in range(3):
        await play.round(0, 1, 2)

    folder = CheckpointFolder(tmp_path / "checkpoints" / play.id)
    latest = folder.latest()
    assert folder.rounds() == [2, 3]
    assert latest is not None
    assert sha256(encode_weights(latest.weights)).hexdigest() == await straight(play, 3)
    assert latest.state
    shown = await play.show()
    group = await play.group()
    cids = [one.metrics.get("checkpoint_cid") for one in shown.rounds]
    assert cids[0] is None
    for number, cid in zip((2, 3), cids[1:], strict=True):
        stored = await rig.state.federation.read(str(cid), group.row.creator, max_bytes=1 << 20)
        assert decode_checkpoint(stored).round == number


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_forest_in_phases_is_the_forest_of_one_process(rig: Rig, restarts: bool) -> None:
    changes = {
        "model_type": "random_forest",
        "model_config": {"mode": "histogram", "task": "regression", "num_trees": 3, "max_depth": 3},
        "train_config": {},
        "total_rounds": 1,
        "rounds_config": {},
        "strategy_config": {},
    }
    play = await Play.begin(rig, **changes)
    session = rig.state.rounds.known(await play.group()).session
    trainers = [ForestTrainer(session.spec, session.plan, DATA.encode(), part) for part in range(3)]
    kept: list[int] = []
    while (await play.next(0)).state == "train":
        if restarts:  # the worker that had the answers so far in memory
            round_jobs._open.clear()
        kept.append(len(list(rig.state.rounds.folder(play.id).glob("state-*"))))
        path, _, _ = await rig.state.rounds.intake.model(play.id)
        for part, trainer in enumerate(trainers):
            await play.send(part, await play.next(part), trainer.train(path.read_bytes(), number=1).update)
        assert await play.step()
    assert len(list(rig.state.rounds.folder(play.id).glob("state-*"))) == 1
    for part in range(3):
        await play.report(part)
    await Rounds(rig.state).step()

    table = Table.load(session.spec, session.plan, DATA.encode())
    assert isinstance(session.spec.model, ForestConfig)
    expected = run_local(session.spec.model, [part_rows(table, session.plan, part) for part in range(3)], session.plan)
    shown = await play.show()
    assert shown.state == "completed", shown.message
    assert {one.round for one in shown.rounds} == {1}
    assert len(shown.rounds) > 3
    assert kept == list(range(len(kept)))
    rest = await rig.store.read(partial(round_views.session, group_id=play.id, first=1, first_phase=2))
    assert [one.phase for one in rest.rounds] == [one.phase for one in shown.rounds[2:]]
    group = await play.group()
    data = await rig.state.federation.read(str(shown.result_cid), group.row.creator, max_bytes=1 << 20)
    forest = decode_model(data).fitted
    assert isinstance(forest, Forest)
    assert forest.feature.tolist() == expected.forest.feature.tolist()
    assert forest.value.tolist() == expected.forest.value.tolist()
