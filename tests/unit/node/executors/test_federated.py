from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from parity_node.executors.base import Handle, Job, Limits
from parity_node.executors.federated import FederatedExecutor
from parity_node.executors.folder import JobFolder
from parity_node.executors.opened_sums import OpenedSums
from parity_node.executors.process import Child, OutputLog
from parity_node.executors.rounds import Place
from parity_node.testing.inputs import StaticInputs
from parity_protocol.api.rounds import RoundStep
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.needs import HttpsInput, ShardInput
from parity_protocol.report import Outcome
from parity_protocol.shards import seal_shard, shard_digest
from parity_protocol.task import CidInput, CommandSpec, FederatedLearningSpec
from parity_protocol.testing.clock import FakeClock

LIMITS = Limits(wall_time_s=30, cpus=1, memory_bytes=256 << 20, disk_bytes=64 << 20, pids=32)
DATA = b"a,b,label\n1,2,0\n3,4,1\n"


@pytest.fixture
def inputs() -> StaticInputs:
    return StaticInputs()


@pytest.fixture
def executor(tmp_path: Path, inputs: StaticInputs) -> FederatedExecutor:
    return FederatedExecutor(exec_dir=tmp_path, inputs=inputs, clock=FakeClock())


def spec_of(cid: str, **changes: Any) -> FederatedLearningSpec:
    members: dict[str, Any] = {
        "model_type": "random_forest",
        "dataset_cid": cid,
        "data_format": "csv",
        "model_settings": {"num_trees": 4},
        "partition_config": {"strategy": "random", "total_parts": 2, "min_samples": 1},
        **changes,
    }
    return FederatedLearningSpec(**members)


def plan_of(**changes: Any) -> dict[str, Any]:
    partition: dict[str, Any] = {
        "strategy": "random",
        "total_parts": 2,
        "seed": "0" * 64,
        "n_rows": 2,
        "n_features": 2,
        "strata": "class",
        "class_names": ["0", "1"],
        "class_count": 2,
        "holdout_fraction": 0.0,
        "holdout_counts": [0, 0],
        "counts": [[1, 0], [0, 1]],
        "overlap_ratio": 0.0,
        "overlap_counts": [[0, 0], [0, 0]],
        "min_samples": 1,
        "assignment_hash": "0" * 64,
        "redraws": 0,
        "moved": 0,
    }
    return {"session_id": "s", "round_id": "1", "partition": partition, **changes}


def job(folder: Path, spec: object, plan: object, *, part: int = 0, parts: int = 2) -> Job:
    path = folder / "job"
    path.mkdir()
    return Job("e", "t", "l", 1, spec, part, parts, plan, path, LIMITS)  # type: ignore[arg-type]


async def test_what_training_needs_is_written_down(executor, inputs, tmp_path):
    cid = inputs.add(DATA)

    handle = await executor.prepare(job(tmp_path, spec_of(cid), plan_of(), part=1))

    assert Handle.from_json(json.loads(json.dumps(handle.to_json()))) == handle
    assert (tmp_path / "job" / "dataset").read_bytes() == DATA
    written = json.loads((tmp_path / "job" / "job.json").read_text())
    assert written["part"] == 1
    assert written["spec"]["model_config"]["num_trees"] == 4
    assert written["spec"]["partition_config"]["holdout_fraction"] == 0.2


@pytest.mark.parametrize(
    ("plan", "part", "parts", "named"),
    [
        (None, 0, 2, "plan"),
        ({}, 0, 2, "plan"),
        ({**plan_of(), "more": 1}, 0, 2, "plan"),
        (plan_of(session_id=7), 0, 2, "session_id"),
        (plan_of(partition={}), 0, 2, "plan"),
        (plan_of(), 0, 3, "2 parts"),
        (plan_of(), 2, 2, "part 2 of 2"),
    ],
)
async def test_a_plan_that_does_not_fit_is_refused_before_anything_is_fetched(
    executor, inputs, tmp_path, plan, part, parts, named
):
    with pytest.raises(ExecutionFailed) as caught:
        await executor.prepare(job(tmp_path, spec_of("bafynobodyhasit"), plan, part=part, parts=parts))

    assert caught.value.reason is FailureReason.SPEC_INVALID
    assert named in caught.value.message


async def test_settings_are_checked_by_the_submitters_signed_text(executor, inputs, tmp_path):
    spec = spec_of(inputs.add(DATA), model_settings={"num_trees": 0})

    with pytest.raises(ExecutionFailed) as caught:
        await executor.prepare(job(tmp_path, spec, plan_of()))

    assert caught.value.reason is FailureReason.SPEC_INVALID
    assert caught.value.field == "model_config.num_trees"


async def test_data_over_what_the_spec_allows_are_refused(executor, inputs, tmp_path):
    cid = inputs.add(DATA)
    spec = spec_of(cid, inputs=(CidInput(cid=cid, max_bytes=5),))

    with pytest.raises(ExecutionFailed) as caught:
        await executor.prepare(job(tmp_path, spec, plan_of()))

    assert caught.value.reason is FailureReason.DATA_INVALID
    assert caught.value.message.startswith("failed to fetch data: ")


async def test_another_kind_of_task_is_refused(executor, tmp_path):
    with pytest.raises(ExecutionFailed) as caught:
        await executor.prepare(job(tmp_path, CommandSpec(command=("true",)), plan_of()))

    assert caught.value.reason is FailureReason.SPEC_INVALID


def handle_in(folder: Path) -> Handle:
    return Handle("federated", 1, {"execution_id": "e", "folder": str(folder)})


async def test_an_outcome_that_an_earlier_process_saw_to_its_end_is_recovered(executor, tmp_path):
    (tmp_path / "update.bin").write_bytes(b"update")
    (tmp_path / "outcome.json").write_text('{"ok": true, "metrics": {"accuracy": 0.5, "oob_local": null, "n": 3}}')

    assert await executor.recover(handle_in(tmp_path))
    result = await executor.wait(handle_in(tmp_path))

    assert result.outcome is Outcome.SUCCEEDED
    assert result.result_path == tmp_path / "update.bin"
    assert dict(result.metrics) == {"accuracy": 0.5, "n": 3.0}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ok": true', "\x00"])
async def test_an_outcome_that_is_not_whole_is_none(executor, tmp_path, text):
    (tmp_path / "outcome.json").write_text(text)

    assert not await executor.recover(handle_in(tmp_path))


async def test_a_failure_that_the_child_names_keeps_its_reason(executor, tmp_path):
    (tmp_path / "outcome.json").write_text('{"ok": false, "reason": "data_invalid", "message": "no data loaded"}')

    result = await executor.wait(handle_in(tmp_path))

    assert (result.outcome, result.reason) == (Outcome.FAILED, FailureReason.DATA_INVALID)
    assert result.message == "no data loaded"


async def test_a_child_that_cannot_start_makes_it_unavailable(executor, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")

    state = await executor.describe()

    assert not state.available
    assert "trial run failed" in state.reason
    assert executor.model_types == ()


def test_an_idle_node_loads_no_numerics():
    code = "import sys, parity_node.executors.registry, parity_node.agent; print([m for m in ('numpy', 'sklearn', 'scipy', 'web3', 'safetensors') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"


# -- a part whose data are its own ----------------------------------------------------------------------------------


class NoMarket:
    """Offers rounds that nobody asks for."""


def sharded_job(folder: Path, source: Any, *, sealed: str | None = None) -> Job:
    text = seal_shard(source, bytes(range(16)))
    spec = FederatedLearningSpec(
        model_type="neural_network",
        data_mode="sharded",
        data_format="csv",
        shards=(shard_digest(text), "0" * 64),
        model_settings={"hidden_size": 2},
        train_config={"epochs": 1, "batch_size": 1, "learning_rate": 0.1},
    )
    plan = {"session_id": "s", "round_id": "1", "shards": {"total_parts": 2, "seed": "0" * 64}}
    made = job(folder, spec.model_copy(update={"inputs": (source,)}), plan)
    return replace(made, group_id="g", shard=text if sealed is None else sealed)


@pytest.fixture
def in_rounds(tmp_path: Path, inputs: StaticInputs) -> FederatedExecutor:
    return FederatedExecutor(exec_dir=tmp_path, inputs=inputs, clock=FakeClock(), rounds=NoMarket())  # type: ignore[arg-type]


async def test_a_sharded_part_gets_its_own_data_and_the_salt_that_names_them(in_rounds, inputs, tmp_path):
    await in_rounds.prepare(sharded_job(tmp_path, CidInput(cid=inputs.add(DATA))))

    written, _ = JobFolder(tmp_path / "job").read_job()
    assert (tmp_path / "job" / "dataset").read_bytes() == DATA
    assert written["salt"] == bytes(range(16)).hex()
    assert written["plan"] == {"total_parts": 2, "seed": "0" * 64}
    assert written["rounds"] is True


async def test_a_sharded_part_reads_the_operators_data_where_they_lie(in_rounds, inputs, tmp_path):
    own = tmp_path / "own.csv"
    own.write_bytes(DATA)
    inputs.shards["own"] = own

    await in_rounds.prepare(sharded_job(tmp_path, ShardInput(shard="own")))

    assert (tmp_path / "job" / "dataset").resolve() == own


async def test_a_part_of_a_secure_sum_is_told_what_this_node_has_opened(inputs, tmp_path):
    source = CidInput(cid=inputs.add(DATA))
    made = sharded_job(tmp_path, source)
    private = {"secure_aggregation": True, "l2_norm_clip": 1.0}
    secret = replace(made, spec=made.spec.model_copy(update={"privacy": private}))
    sums = OpenedSums(tmp_path / "sums")
    sums.add(bytes(range(16)).hex(), ["round 1"])
    options = {"exec_dir": tmp_path, "inputs": inputs, "clock": FakeClock(), "rounds": NoMarket()}

    with pytest.raises(ExecutionFailed, match="keeps no list of the sums"):
        await FederatedExecutor(**options).prepare(secret)
    await FederatedExecutor(**options, sums=sums).prepare(secret)

    written, _ = JobFolder(tmp_path / "job").read_job()
    assert written["opened"] == ["round 1"]


async def test_a_folder_is_no_shard(in_rounds, inputs, tmp_path):
    inputs.shards["own"] = tmp_path

    with pytest.raises(ExecutionFailed, match="a shard is one file") as caught:
        await in_rounds.prepare(sharded_job(tmp_path, ShardInput(shard="own")))

    assert caught.value.reason == FailureReason.DATA_INVALID


async def test_a_shard_that_is_too_long_is_not_fetched(in_rounds, tmp_path):
    source = HttpsInput(url="https://example.org/a.csv", sha256="0" * 64, size=1 << 40)

    with pytest.raises(ExecutionFailed, match="at most") as caught:
        await in_rounds.prepare(sharded_job(tmp_path, source))

    assert caught.value.reason == FailureReason.DATA_INVALID


async def test_a_shard_that_was_not_signed_is_refused(in_rounds, inputs, tmp_path):
    source = CidInput(cid=inputs.add(DATA))
    other = seal_shard(source, bytes(16))

    with pytest.raises(ExecutionFailed) as caught:
        await in_rounds.prepare(sharded_job(tmp_path, source, sealed=other))

    assert caught.value.reason == FailureReason.SPEC_INVALID


class OneRound:
    """Asks for one round, whose answer never comes."""

    async def next_step(self, place: Place, *, wait_s: float) -> RoundStep:
        return RoundStep(state="train", round=1, phase=0, total_rounds=1, base="0" * 64, base_size=1)

    async def model(self, place: Place, step: RoundStep, into: Path, *, max_bytes: int) -> None:
        await anyio.Path(into).write_bytes(b"m")


async def test_a_child_that_hangs_up_in_a_round_may_still_write_down_why(inputs, tmp_path, monkeypatch):
    code = """
import json, pathlib, socket, sys, time
line = socket.socket(fileno=0)
line.recv(4096)
line.close()
time.sleep(0.2)  # between its hanging up and its last words
said = {"ok": False, "reason": "data_invalid", "message": "another shard"}
(pathlib.Path(sys.argv[1]) / "outcome.json").write_text(json.dumps(said))
"""

    def spawn(self: object, log: Path, arguments: list[str], *, cwd: Path, stdin: int, **_: object) -> Child:
        command = [sys.executable, "-I", "-c", code, *arguments]
        return Child(command, env={}, cwd=cwd, output=OutputLog(log, 1 << 16), stdin=stdin, new_group=True)

    monkeypatch.setattr(FederatedExecutor, "_spawn", spawn)
    executor = FederatedExecutor(exec_dir=tmp_path, inputs=inputs, clock=FakeClock(), rounds=OneRound())  # type: ignore[arg-type]
    handle = await executor.start(await executor.prepare(sharded_job(tmp_path, CidInput(cid=inputs.add(DATA)))))

    result = await executor.wait(handle)

    assert (result.reason, result.message) == (FailureReason.DATA_INVALID, "another shard")
    await executor.cleanup(handle)


async def test_a_trainer_whose_node_was_killed_leaves_nothing_that_looks_finished(in_rounds, inputs, tmp_path):
    handle = handle_in(tmp_path / "job")
    await in_rounds.prepare(sharded_job(tmp_path, CidInput(cid=inputs.add(DATA))))
    ours, theirs = socket.socketpair()
    ours.close()  # as the kernel does it before it ends the trainer too

    code = "import sys; from parity_node.executors.training import train_in; sys.exit(train_in(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "job")]
    with theirs:
        done = await anyio.run_process(command, stdin=theirs, check=False)

    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, b'{"event": "ended", "ok": true}')
    assert not await in_rounds.recover(handle)
