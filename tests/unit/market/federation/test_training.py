"""Sessions that train in rounds at the market: opened, closed, resumed after a kill, or failed with a reason."""

from __future__ import annotations

from base64 import b64decode
from datetime import timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from parity_contracts.chain.memory import MemoryChain
from parity_fl.checkpoint import CheckpointFolder, decode_checkpoint
from parity_fl.codec import decode_weights, encode_weights
from parity_fl.forest_rounds import ForestTrainer
from parity_fl.histogram import part_rows, run_local
from parity_fl.model import decode_model
from parity_fl.rounds import Reduced, RoundServer, RoundTrainer
from parity_fl.spec import ForestConfig
from parity_fl.table import Table
from parity_fl.tensors import decode_tensors
from parity_fl.trees import Forest
from parity_market import round_jobs
from parity_market.loops.rounds import Rounds
from parity_market.loops.training import Training
from parity_market.operations import leases, round_closing, round_small, round_views, rounds
from parity_market.round_files import model_file, sent_file
from parity_market.round_intake import EXTRA_BYTES
from parity_market.store import sql
from parity_market.testing.playing import DATA, NODES, TIMEOUT_S, Play
from parity_market.testing.rig import DEPLOYMENT, Rig, inline, open_rig
from parity_protocol.errors import (
    StaleFence,
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


# -- the way to a model ----------------------------------------------------------------------------------------------


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


async def test_an_update_may_be_as_long_as_the_markets_own_model_though_a_shorter_one_was_sent(rig: Rig) -> None:
    play = await Play.begin(rig)
    step = await play.next(0)
    whole = 3 * EXTRA_BYTES  # the model that was sent has far less
    model_file(rig.state.rounds.folder(play.id), 1, 0).write_bytes(bytes(whole))

    with pytest.raises(TooLarge):
        await play.send(0, step, bytes(whole + EXTRA_BYTES + 1))

    assert await play.send(0, step, bytes(whole + EXTRA_BYTES))


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


# -- pay and checkpoints ---------------------------------------------------------------------------------------------


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
