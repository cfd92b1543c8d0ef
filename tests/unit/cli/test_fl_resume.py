"""`parity fl pause | resume | stop`, and sessions that go on from a checkpoint."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest

from parity_client.testing import FakeMarket
from parity_fl.checkpoint import Checkpoint, CheckpointFolder
from parity_fl.strategy import read_strategy
from parity_protocol.needs import ShardInput
from parity_protocol.shards import open_shards

from .fl_sessions import SPEC, begun, checkpoint, close_rounds, only

if TYPE_CHECKING:
    from .conftest import Done, Parity
else:
    Done = Parity = Any


def test_a_session_that_has_ended_is_never_in_a_round_beyond_its_last(
    parity: Parity, joined: FakeMarket, spec: Path
) -> None:
    session = begun(parity, joined, spec)
    session.round, session.state = 4, "stopping"

    assert parity("fl", "stop", session.id).out.strip().endswith("round 3/3")


def test_who_stops_a_session_before_its_first_round_is_told_that_nothing_was_spent(
    parity: Parity, joined: FakeMarket, spec: Path
) -> None:
    waiting, training = begun(parity, joined, spec), begun(parity, joined, spec)
    waiting.round = 0

    said = parity("fl", "stop", waiting.id)

    assert said.out.strip() == f"{waiting.id}: cancelled, round 0/3"
    assert "before its first round" in said.err
    assert "parity task cancel" not in said.err
    assert parity("fl", "stop", training.id).err == ""


def test_a_session_is_paused_resumed_and_stopped(parity: Parity, joined: FakeMarket, spec: Path) -> None:
    session = begun(parity, joined, spec)

    said = [parity("fl", verb, session.id).out.strip() for verb in ("pause", "resume", "stop")]

    assert said == [f"{session.id}: {state}, round 1/3" for state in ("paused", "running", "stopping")]
    assert parity("fl", "pause", session.id, "--json").json["state"] == "paused"


def test_an_ended_session_is_gone_on_with_in_a_new_one_from_its_newest_checkpoint(
    parity: Parity, joined: FakeMarket, spec: Path
) -> None:
    session = begun(parity, joined, spec)
    close_rounds(joined, session, 2)
    cid = checkpoint(joined, session, 2)
    checkpoint(joined, session, 1)
    session.state = "failed"
    session.settings["strategy"] = {"strategy": "fedprox", "proximal_mu": 0.3}

    done = parity("fl", "resume", session.id, "--reward", "1", "--no-wait")

    assert done.code == 0
    assert f"goes on after round 2 of session {session.id} ({cid})" in done.err
    again = joined.training.sessions["group-2"].spec
    assert again["rounds_config"] == {"resume_from": cid}
    assert again["strategy_config"] == {"strategy": "fedprox", "proximal_mu": 0.3}
    assert again["total_rounds"] == 3
    assert {**SPEC, **again, "rounds_config": {}, "strategy_config": {}} == {
        **SPEC,
        "type": "federated_learning",
        "rounds_config": {},
        "strategy_config": {},
    }


def test_a_completed_session_is_gone_on_with_only_to_more_rounds(
    parity: Parity, joined: FakeMarket, spec: Path
) -> None:
    session = begun(parity, joined, spec)
    close_rounds(joined, session, 3)
    checkpoint(joined, session, 2)
    newest = checkpoint(joined, session, 3)

    without = parity("fl", "resume", session.id, "--reward", "1")
    free = parity("fl", "resume", session.id, "--rounds", "9")
    earlier = parity("fl", "resume", session.id, "--reward", "1", "--from-round", "2", "--no-wait")
    more = parity("fl", "resume", session.id, "--reward", "1", "--rounds", "9", "--no-wait")

    assert (without.code, free.code) == (2, 2)
    assert "the checkpoint is of round 3: say with --rounds how many there shall be in all" in without.err
    assert "give it a --reward" in free.err
    assert earlier.code == more.code == 0
    specs = [one.spec for one in list(joined.training.sessions.values())[1:]]
    assert [one["total_rounds"] for one in specs] == [3, 9]
    assert specs[1]["rounds_config"]["resume_from"] == newest


def test_a_running_session_takes_no_reward_and_one_without_a_checkpoint_says_so(
    parity: Parity, joined: FakeMarket, spec: Path
) -> None:
    session = begun(parity, joined, spec)

    running = parity("fl", "resume", session.id, "--reward", "1")
    session.state = "failed"
    ended = parity("fl", "resume", session.id, "--reward", "1")

    assert (running.code, ended.code) == (2, 22)
    assert "it goes on by itself" in running.err
    assert "no checkpoint" in ended.err


def test_a_sharded_session_is_gone_on_with_by_who_knows_its_shards(
    parity: Parity, joined: FakeMarket, spec: Path
) -> None:
    session = begun(parity, joined, spec)
    close_rounds(joined, session, 2)
    cid = checkpoint(joined, session, 2)
    session.state = "failed"
    for task in joined.tasks.values():
        sharded = {**json.loads(task.request.spec), "data_mode": "sharded", "shards": ["0" * 64] * 2}
        for name in ("dataset_cid", "partition_config"):
            del sharded[name]
        task.request = task.request.model_copy(update={"spec": json.dumps(sharded)})

    without = parity("fl", "resume", session.id, "--reward", "1")
    given = parity(
        *("fl", "resume", session.id, "--reward", "1", "--no-wait"), *("--shard", "local:a", "--shard", "local:b")
    )

    assert without.code == 20
    assert "has 2 shards, 0 are given" in without.err
    assert given.code == 0, given.err
    went_on = list(joined.training.sessions.values())[-1].spec
    assert went_on["rounds_config"]["resume_from"] == cid
    sources = [shard.source for shard in open_shards(joined.sealed, went_on["shards"])]
    assert sources == [ShardInput(shard="a"), ShardInput(shard="b")]


def write_checkpoint(folder: Path) -> Path:
    made = Checkpoint("old", 5, 9, read_strategy("FedAvg"), {"w": np.ones(3, np.float32)}, {"norms": np.ones(1)})
    return CheckpointFolder(folder).save(made, now=datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("given", ["folder", "file", "cid"])
def test_a_run_goes_on_from_a_folder_a_file_or_a_cid(
    parity: Parity, joined: FakeMarket, spec: Path, tmp_path: Path, given: str
) -> None:
    file = write_checkpoint(tmp_path / "checkpoints" / "old")
    cid = anyio.run(joined.storage.put, file.read_bytes())
    name = {"folder": str(file.parent), "file": str(file), "cid": cid}[given]

    done = parity("fl", "run", str(spec), "--reward", "1", "--no-wait", "--resume-from", name)

    assert done.code == 0
    assert only(joined).spec["rounds_config"] == {"resume_from": cid}
    if given != "cid":
        assert f"goes on after round 5 of session old, from checkpoint_round_5.npz ({cid})" in done.err
        assert joined.visibility == {cid: "private"}


def test_what_is_no_checkpoint_is_refused_before_anything_is_submitted(
    parity: Parity, joined: FakeMarket, spec: Path, tmp_path: Path
) -> None:
    file = write_checkpoint(tmp_path / "broken")
    file.write_bytes(file.read_bytes()[:-1])
    (tmp_path / "empty").mkdir()
    (tmp_path / "rubbish.npz").write_bytes(b"rubbish")

    said: dict[str, Done] = {
        name: parity("fl", "run", str(spec), "--reward", "1", "--resume-from", name)
        for name in ("broken", "empty", "rubbish.npz", "no such thing")
    }

    assert "is not what was written" in said["broken"].err
    assert "has no checkpoint_latest.json" in said["empty"].err
    assert "not a checkpoint" in said["rubbish.npz"].err
    assert "is no file, no folder and no CID" in said["no such thing"].err
    assert all(done.code != 0 for done in said.values())
    assert joined.tasks == {}
