"""Sessions that go on from a checkpoint: the same bits, and a refusal by name where they cannot be."""

from __future__ import annotations

import shutil
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_contracts.chain.memory import MemoryChain
from parity_fl.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from parity_market.loops.rounds import Rounds
from parity_market.loops.training import Training
from parity_market.operations import groups, round_control, rounds
from parity_market.testing.playing import DATA, Play, spec
from parity_market.testing.rig import DEPLOYMENT, Rig, inline, open_rig
from parity_protocol.errors import BadField, NotFound
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_evm_key

CREATOR = deterministic_evm_key("creator").address
SETTINGS = {"quorum": 2, "update_format": "fp32", "checkpoint_interval": 1}


async def model_of(play: Play) -> str:
    """Return the hash of the newest model."""
    found = await play.rig.store.read(partial(rounds.load, group_id=play.id))
    assert found is not None
    return found.row.base_hash


async def first_half(rig: Rig, *, count: int = 3, **changes: Any) -> tuple[Play, str]:
    """Return a session after some of its six rounds, and the CID of its newest checkpoint."""
    play = await Play.begin(rig, total_rounds=6, rounds_config=SETTINGS, **changes)
    for _ in range(count):
        await play.round(0, 1, 2)
    return play, (await rig.state.rounds.checkpoints.find(play.id, CREATOR)).cid


async def refused(rig: Rig, cid: str, **changes: Any) -> BadField:
    data = await rig.upload(DATA.encode())
    wanted = spec(data, total_rounds=6, rounds_config={**SETTINGS, "resume_from": cid})
    with pytest.raises(BadField) as caught:
        await rig.submit_session({**wanted, **changes})
    return caught.value


@pytest.mark.parametrize("strategy", ["FedAdam", "FedAvgM", "FedAvg"])
async def test_three_rounds_and_three_more_from_a_checkpoint_are_six_rounds_bit_for_bit(
    rig: Rig, strategy: str
) -> None:
    rule = {"strategy_config": {"strategy": strategy}}
    play, cid = await first_half(rig, **rule)

    again = await Play.begin(rig, total_rounds=6, rounds_config={**SETTINGS, "resume_from": cid}, **rule)
    begun = await again.show()
    for _ in range(3):
        await play.round(0, 1, 2)
        await again.round(0, 1, 2)

    assert begun.round == 4
    assert begun.settings["resumed_from"] == {"cid": cid, "round": 3, "session_id": await session_id(play)}
    assert [one.round for one in (await again.show()).rounds] == [4, 5, 6]
    assert (await again.show()).state == (await play.show()).state == "done"
    assert await model_of(again) == await model_of(play)


async def session_id(play: Play) -> str:
    return str(play.rig.state.rounds.known(await play.group()).session.spec.session_id)


async def test_a_market_that_is_killed_before_the_resumed_session_has_begun_begins_it_again(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise RuntimeError("killed")

    chain = MemoryChain(clock, DEPLOYMENT)
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        await rig.bench.open("n1", "n2", "n3")
        play, cid = await first_half(rig)
        cut = await rig.upload(DATA.encode())
        wanted = spec(cut, total_rounds=6, rounds_config={**SETTINGS, "resume_from": cid})
        made = await rig.submit_session(wanted)
        again = Play(rig, made.id)
        with monkeypatch.context() as patched:
            patched.setattr(rounds, "begin", killed)
            with pytest.raises(RuntimeError, match="killed"):
                await again.step()

    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        play.rig = again.rig = rig
        await Training(rig.state).start_up()
        assert await again.step()

        assert (await again.show()).round == 4
        assert await model_of(again) == await model_of(play)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy_config": {"strategy": "FedYogi"}}, "strategy_config.strategy 'fedadam' where this session has"),
        ({"strategy_config": {"strategy": "FedAdam", "server_lr": 0.2}}, "strategy_config.server_lr 0.3 where"),
        ({"train_config": {"epochs": 4, "batch_size": 8, "learning_rate": 0.05}}, "train_config.epochs 3 where"),
        (
            {"partition_config": {"strategy": "random", "total_parts": 2, "min_samples": 2}},
            "partition_config.total_parts 3 where this session has 2",
        ),
        ({"model_config": {"input_size": 2, "standardize": False}}, "model_config.standardize True where"),
        ({"total_rounds": 3}, "total_rounds counts from the first round of all: it must be above 3"),
    ],
)
async def test_a_session_that_trains_something_else_is_refused_with_what_differs(
    rig: Rig, changes: dict[str, Any], words: str
) -> None:
    _, cid = await first_half(rig)

    assert words in (await refused(rig, cid, **changes)).message


async def test_what_is_no_checkpoint_or_nobody_stored_is_refused_by_name(rig: Rig) -> None:
    _, cid = await first_half(rig)
    stored = decode_checkpoint(await rig.state.federation.read(cid, CREATOR, max_bytes=1 << 20))
    other_shape = {name: np.zeros((7, 7), np.float32) for name in stored.weights}

    for data, words in (
        (b"rubbish", "not a checkpoint"),
        (encode_checkpoint(changed(stored, weights=other_shape)), "resume_from"),
        (encode_checkpoint(changed(stored, settings={})), "does not say what it was trained with"),
        (encode_checkpoint(changed(stored, assignment_hash="ab" * 32)), "dealt to its parts in another way"),
    ):
        error = await refused(rig, await rig.upload(data))
        assert words in error.message
        assert error.field == "spec.rounds_config.resume_from"
    assert "cannot be read here" in (await refused(rig, await rig.upload(b"x", owner="somebody else"))).message
    assert "cannot be read here" in (await refused(rig, "no cid")).message


def changed(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    members = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    return Checkpoint(**{**members, **changes})


async def test_a_model_that_is_made_at_once_cannot_be_gone_on_with(rig: Rig) -> None:
    _, cid = await first_half(rig)
    forest = {"model_type": "random_forest", "model_config": {"num_trees": 3}, "train_config": {}, "total_rounds": 1}

    assert "made at once" in (await refused(rig, cid, **forest)).message
    grown = {**forest, "model_config": {"num_trees": 3, "mode": "histogram"}, "rounds_config": {"resume_from": cid}}
    assert "made at once" in (await refused(rig, cid, **grown)).message


# -- which checkpoint there is -----------------------------------------------------------------------------------------


async def test_a_session_that_fails_leaves_a_checkpoint_of_its_last_round_though_none_was_asked_for(
    rig: Rig, clock: FakeClock
) -> None:
    config = {"round_timeout_s": 60.0, "quorum": 2, "update_format": "fp32"}
    play = await Play.begin(rig, total_rounds=6, rounds_config=config)
    for _ in range(3):
        await play.round(0, 1, 2)
    model = await model_of(play)
    await play.step()
    await clock.advance(timedelta(seconds=61))
    await play.step()
    assert (await play.group()).value.state == "failed"

    await Training(rig.state).start_up()  # a market that was killed right after does it too

    found = await rig.state.rounds.checkpoints.find(play.id, CREATOR)
    again = await Play.begin(rig, total_rounds=6, rounds_config={**config, "resume_from": found.cid})
    assert rig.state.rounds.folders() == [again.id]
    assert (found.round, (await again.show()).round, await model_of(again)) == (3, 4, model)


async def test_a_session_that_failed_in_its_first_round_leaves_nothing(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig)
    now = clock.now()
    await rig.store.write(partial(groups.fail, market=rig.state.market, group_id=play.id, reason="enough", now=now))

    await Training(rig.state).start_up()

    with pytest.raises(NotFound, match="no checkpoint here"):
        await rig.state.rounds.checkpoints.find(play.id, CREATOR)


async def test_a_resumed_session_that_fails_at_once_is_gone_on_with_from_where_it_began(
    rig: Rig, clock: FakeClock
) -> None:
    _, cid = await first_half(rig)
    again = await Play.begin(rig, total_rounds=6, rounds_config={**SETTINGS, "resume_from": cid})
    now = clock.now()
    await rig.store.write(partial(groups.fail, market=rig.state.market, group_id=again.id, reason="enough", now=now))

    await Training(rig.state).start_up()

    found = await rig.state.rounds.checkpoints.find(again.id, CREATOR)
    assert (found.cid, found.round) == (cid, 3)


async def test_a_stopped_session_leaves_a_checkpoint_of_its_last_round(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig, total_rounds=6)
    await play.round(0, 1, 2)
    await rig.store.write(partial(round_control.stop, market=rig.state.market, group_id=play.id, now=clock.now()))
    await play.round(0, 1, 2)

    assert (await rig.state.rounds.checkpoints.find(play.id, CREATOR)).round == 2


async def test_a_session_that_is_stopped_while_its_round_closes_leaves_a_checkpoint_all_the_same(
    rig: Rig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = await Play.begin(rig, total_rounds=6)
    for part in range(3):
        await play.send(part)
    work = rig.state.rounds.work

    async def stop_meanwhile(group: Any, job: Any) -> Any:
        done = await work(group, job)
        await rig.store.write(partial(round_control.stop, market=rig.state.market, group_id=play.id, now=clock.now()))
        return done

    with monkeypatch.context() as patched:
        patched.setattr(rig.state.rounds, "work", stop_meanwhile)
        assert await play.step()
    for part in range(3):
        await play.report(part)
    await Rounds(rig.state).step()

    assert (await play.show()).state == "completed"
    assert (await rig.state.rounds.checkpoints.find(play.id, CREATOR)).round == 1


async def test_a_checkpoint_is_found_by_its_round_and_by_its_submitter_alone(rig: Rig) -> None:
    play, _ = await first_half(rig)
    checkpoints = rig.state.rounds.checkpoints

    assert (await checkpoints.find(play.id, CREATOR, number=2)).round == 2
    with pytest.raises(NotFound, match="no checkpoint after round 4"):
        await checkpoints.find(play.id, CREATOR, number=4)
    for name, account in ((play.id, "0x" + "11" * 20), ("../rounds", CREATOR)):
        with pytest.raises(NotFound):
            await checkpoints.find(name, account)


async def test_a_new_market_on_the_folder_of_a_lost_one_gives_its_checkpoints_to_whose_they_are(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_CHECKPOINT_ENABLED", "YES")
    monkeypatch.setenv("FL_CHECKPOINT_INTERVAL", "1")
    monkeypatch.setenv("FL_CHECKPOINT_PATH", str(tmp_path / "volume"))
    chain = MemoryChain(clock, DEPLOYMENT)
    (tmp_path / "lost").mkdir()
    (tmp_path / "new").mkdir()
    async with open_rig(tmp_path / "lost", chain, clock, offload=inline) as rig:
        await rig.bench.open("n1", "n2", "n3")
        play, _ = await first_half(rig)
        for _ in range(3):
            await play.round(0, 1, 2)
        expected = await model_of(play)
    shutil.rmtree(tmp_path / "lost")
    (tmp_path / "volume" / play.id / "checkpoint_latest.json").unlink()
    for number in (4, 5, 6):
        (tmp_path / "volume" / play.id / f"checkpoint_round_{number}.npz").unlink()

    async with open_rig(tmp_path / "new", MemoryChain(clock, DEPLOYMENT), clock, offload=inline) as rig:
        await rig.bench.open("n1", "n2", "n3")
        found = await rig.state.rounds.checkpoints.find(play.id, CREATOR, number=3)
        again = await Play.begin(rig, total_rounds=6, rounds_config={**SETTINGS, "resume_from": found.cid})
        for _ in range(3):
            await again.round(0, 1, 2)
        with pytest.raises(NotFound):
            await rig.state.rounds.checkpoints.find(play.id, "0x" + "11" * 20)

        assert await model_of(again) == expected
