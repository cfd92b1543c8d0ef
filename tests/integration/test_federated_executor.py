"""Training in a real child process: real data sets, limits, and nothing left behind."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes

from parity_fl.finishing import audit_update
from parity_fl.runner import check_update, finish, plan_session
from parity_fl.session import SessionPlan, resolve_session
from parity_node.executors.base import ExecutionResult, Handle, Job, Limits
from parity_node.executors.federated import FederatedExecutor
from parity_node.executors.process import start_time
from parity_node.testing.inputs import StaticInputs
from parity_protocol.clock import SystemClock
from parity_protocol.errors import FailureReason
from parity_protocol.report import Outcome
from parity_protocol.task import FederatedLearningSpec, IsolationTier

LIMITS = Limits(wall_time_s=60, cpus=1, memory_bytes=512 << 20, disk_bytes=64 << 20, pids=32)
PARTS = 3


def to_csv(data: Any) -> bytes:
    text = io.StringIO()
    text.write(",".join([*(str(name).replace(" ", "_") for name in data.feature_names), "target"]) + "\n")
    np.savetxt(text, np.c_[data.data, data.target], delimiter=",", fmt="%.17g")
    return text.getvalue().encode()


@pytest.fixture
def inputs() -> StaticInputs:
    return StaticInputs()


@pytest.fixture
def executor(tmp_path: Path, inputs: StaticInputs) -> FederatedExecutor:
    return FederatedExecutor(exec_dir=tmp_path, inputs=inputs, clock=SystemClock())


def forest(cid: str) -> FederatedLearningSpec:
    return FederatedLearningSpec(
        model_type="random_forest",
        dataset_cid=cid,
        data_format="csv",
        model_settings={"num_trees": 12, "random_state": 42},
        partition_config={"strategy": "stratified", "total_parts": PARTS, "min_samples": 10},
    )


def linear(cid: str, *, epochs: int = 30, size: int = 10, rate: float = 0.02) -> FederatedLearningSpec:
    return FederatedLearningSpec(
        model_type="linear_regression",
        dataset_cid=cid,
        data_format="csv",
        model_settings={"input_size": size},
        train_config={"epochs": epochs, "batch_size": 32, "learning_rate": rate},
        partition_config={"strategy": "random", "total_parts": PARTS, "min_samples": 10},
    )


class Session:
    def __init__(self, spec: FederatedLearningSpec, data: bytes, folder: Path) -> None:
        self.spec = spec
        self.resolved = resolve_session(spec.session(), session_id="s", round_id="1")
        self.plan = plan_session(self.resolved, data, "5" * 64)
        self.folder = folder

    def job(self, part: int, limits: Limits = LIMITS) -> Job:
        name = str(uuid.uuid4())
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        plan = SessionPlan("s", "1", self.plan).to_dict()
        return Job(name, name, name, 1, self.spec, part, PARTS, plan, folder, limits)  # type: ignore[arg-type]


async def run(executor: FederatedExecutor, job: Job) -> tuple[ExecutionResult, bytes]:
    handle = await executor.start(await executor.prepare(job))
    try:
        result = await executor.wait(handle)
        return result, result.result_path.read_bytes() if result.result_path else b""
    finally:
        await executor.cleanup(handle)


def is_gone(pid: object, started: object) -> bool:
    """Whether nothing of the process runs; a dead one may still wait for whoever adopted it."""
    assert isinstance(pid, int)
    if start_time(pid) != started:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def gone(pid: object, started: object, within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if is_gone(pid, started):
            return True
        await anyio.sleep(0.02)
    return False


async def test_the_trial_run_names_the_models_that_were_trained(executor, tmp_path):
    state = await executor.describe()

    assert state.available, state.reason
    assert state.isolation is IsolationTier.PROCESS
    assert executor.model_types == ("linear_regression", "neural_network", "random_forest")
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize("kind", ["forest", "linear"])
async def test_the_parts_of_a_session_become_a_model_that_predicts(executor, inputs, tmp_path, kind):
    data = to_csv(load_breast_cancer() if kind == "forest" else load_diabetes())
    cid = inputs.add(data)
    session = Session(forest(cid) if kind == "forest" else linear(cid, epochs=100), data, tmp_path)

    updates = []
    for part in range(PARTS):
        result, update = await run(executor, session.job(part))
        assert result.outcome is Outcome.SUCCEEDED, result.message
        assert result.usage.cpu_ms > 0
        assert result.usage.peak_memory_bytes > 0
        audit_update(session.resolved, session.plan, data, update, part)
        updates.append(update)

    metrics = finish(session.resolved, session.plan, data, updates).metrics
    if kind == "forest":
        assert metrics["accuracy"] > 0.9
    else:
        assert metrics["r2"] > 0.35


async def test_the_same_part_trained_twice_gives_the_same_bytes(executor, inputs, tmp_path):
    data = to_csv(load_diabetes())
    session = Session(linear(inputs.add(data)), data, tmp_path)

    first = await run(executor, session.job(1))
    second = await run(executor, session.job(1))

    assert first[1] == second[1]
    assert dict(first[0].metrics) == dict(second[0].metrics)


async def test_progress_is_a_json_object_a_line(executor, inputs, tmp_path):
    data = to_csv(load_diabetes())
    handle = await executor.start(await executor.prepare(Session(linear(inputs.add(data)), data, tmp_path).job(0)))

    await executor.wait(handle)

    events = [json.loads(line)["event"] for line in (await executor.logs(handle, 0)).splitlines()]
    assert events == ["loading", "training", "trained", "ended"]
    await executor.cleanup(handle)


async def test_data_that_are_not_those_of_the_plan_are_the_tasks_fault(executor, inputs, tmp_path):
    data = to_csv(load_diabetes())
    session = Session(linear(inputs.add(data)), data, tmp_path)
    other = b"\n".join(data.splitlines()[:-5]) + b"\n"
    session.spec = linear(inputs.add(other))

    result, _ = await run(executor, session.job(0))

    assert (result.outcome, result.reason) == (Outcome.FAILED, FailureReason.DATA_INVALID)
    assert result.message


@pytest.mark.parametrize(
    ("text", "said"),
    [(b"", "failed to read CSV header"), (b"a,b,target\n1,x,2\n" * 9, "failed to parse"), (b"\xff\xfe\x00", "")],
)
async def test_data_that_cannot_be_read_are_the_tasks_fault(executor, inputs, tmp_path, text, said):
    data = to_csv(load_diabetes())
    session = Session(linear(inputs.add(data)), data, tmp_path)
    session.spec = linear(inputs.add(text))

    result, _ = await run(executor, session.job(0))

    assert (result.outcome, result.reason) == (Outcome.FAILED, FailureReason.DATA_INVALID)
    assert said in result.message


async def test_training_is_ended_at_its_wall_time(executor, inputs, tmp_path):
    data = to_csv(load_diabetes())
    limits = Limits(wall_time_s=1.0, cpus=1, memory_bytes=512 << 20, disk_bytes=0, pids=8)
    session = Session(linear(inputs.add(data), epochs=100_000), data, tmp_path)
    began = time.monotonic()

    result, _ = await run(executor, session.job(0, limits))

    assert result.reason is FailureReason.TIMEOUT
    assert time.monotonic() - began < 10


async def test_stopping_ends_the_process_at_once(executor, inputs, tmp_path):
    data = to_csv(load_diabetes())
    job = Session(linear(inputs.add(data), epochs=100_000), data, tmp_path).job(0)
    handle = await executor.start(await executor.prepare(job))

    with anyio.fail_after(5):
        await executor.stop(handle)
        result = await executor.wait(handle)

    assert result.reason is FailureReason.INTERRUPTED
    assert is_gone(handle.state["pid"], handle.state["pid_started"])
    await executor.cleanup(handle)


async def test_a_process_that_dies_is_the_nodes_fault(executor, inputs, tmp_path):
    data = to_csv(load_diabetes())
    job = Session(linear(inputs.add(data), epochs=100_000), data, tmp_path).job(0)
    handle = await executor.start(await executor.prepare(job))
    pid = handle.state["pid"]
    assert isinstance(pid, int)

    os.kill(pid, 9)
    result = await executor.wait(handle)

    assert result.reason is FailureReason.NODE_FAULT
    await executor.cleanup(handle)


async def test_the_process_gets_nothing_of_the_nodes_environment(executor, inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("OPERATOR_SECRET", "canary")
    data = to_csv(load_diabetes())
    job = Session(linear(inputs.add(data), epochs=100_000), data, tmp_path).job(0)
    handle = await executor.start(await executor.prepare(job))

    environment = await anyio.Path(f"/proc/{handle.state['pid']}/environ").read_bytes()

    assert b"canary" not in environment
    assert b"OMP_NUM_THREADS=1" in environment
    await executor.cleanup(handle)


@pytest.mark.root
async def test_training_has_no_network(executor, inputs, tmp_path):
    data = to_csv(load_diabetes())
    job = Session(linear(inputs.add(data), epochs=100_000), data, tmp_path).job(0)
    handle = await executor.start(await executor.prepare(job))
    while b"training" not in await executor.logs(handle, 0):  # noqa: ASYNC110 - another process writes it
        await anyio.sleep(0.02)

    assert network_of(handle.state["pid"]) != network_of("self")
    await executor.cleanup(handle)


def network_of(pid: object) -> Path:
    return Path(f"/proc/{pid}/ns/net").readlink()


NODE = textwrap.dedent(
    """
    import asyncio, json, sys
    from pathlib import Path
    from parity_node.executors.base import Handle
    from parity_node.executors.federated import FederatedExecutor
    from parity_node.testing.inputs import StaticInputs
    from parity_protocol.clock import SystemClock

    async def main():
        executor = FederatedExecutor(exec_dir=Path(sys.argv[1]), inputs=StaticInputs(), clock=SystemClock())
        handle = await executor.start(Handle.from_json(json.loads(sys.argv[2])))
        print(json.dumps(handle.to_json()), flush=True)
        result = await executor.wait(handle)
        print(result.outcome, flush=True)
        await asyncio.sleep(600)

    asyncio.run(main())
    """
)


def spawn_node(exec_dir: Path, handle: Handle) -> subprocess.Popen[str]:
    arguments = [str(exec_dir), json.dumps(handle.to_json())]
    return subprocess.Popen([sys.executable, "-c", NODE, *arguments], stdout=subprocess.PIPE, text=True)


async def killed_node(exec_dir: Path, handle: Handle, *, lines: int) -> Handle:
    """Run ``handle`` in another process, kill that after it printed ``lines`` lines, and return the started handle."""
    node = spawn_node(exec_dir, handle)
    try:
        assert node.stdout is not None
        said = [await anyio.to_thread.run_sync(node.stdout.readline) for _ in range(lines)]
    finally:
        node.kill()
        node.wait()
        if node.stdout is not None:
            node.stdout.close()
    return Handle.from_json(json.loads(said[0]))


async def test_a_node_killed_with_sigkill_takes_training_with_it(executor, inputs, tmp_path):
    data = to_csv(load_diabetes())
    job = Session(linear(inputs.add(data), epochs=100_000), data, tmp_path).job(0)

    handle = await killed_node(tmp_path, await executor.prepare(job), lines=1)

    assert await gone(handle.state["pid"], handle.state["pid_started"])
    assert not await executor.recover(handle)
    assert (await executor.wait(handle)).reason is FailureReason.NODE_RESTARTED
    await executor.cleanup(handle)


async def test_what_was_trained_before_the_node_was_killed_is_not_lost(executor, inputs, tmp_path):
    data = to_csv(load_diabetes())
    session = Session(linear(inputs.add(data)), data, tmp_path)

    handle = await killed_node(tmp_path, await executor.prepare(session.job(2)), lines=2)

    assert await executor.recover(handle)
    result = await executor.wait(handle)
    assert result.outcome is Outcome.SUCCEEDED
    assert result.result_path is not None
    check_update(session.resolved, session.plan, result.result_path.read_bytes(), 2)
    await executor.cleanup(handle)
