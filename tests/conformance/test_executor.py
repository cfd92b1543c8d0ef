"""One suite for every ``Executor``: a new one adds a subject."""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from parity_fl.runner import plan_session
from parity_fl.session import SessionPlan, resolve_session
from parity_node.executors.base import MAX_LOG_READ_BYTES, ExecutionResult, Executor, Handle, Job, Limits
from parity_node.executors.command import CommandExecutor
from parity_node.executors.docker.executor import DockerExecutor, DockerOptions
from parity_node.executors.federated import FederatedExecutor
from parity_node.testing.dockerd import PrivateDockerd
from parity_node.testing.executors import FileExecutor, NoopExecutor, ScriptedExecutor
from parity_node.testing.inputs import StaticInputs
from parity_protocol.clock import SystemClock
from parity_protocol.errors import ParityError
from parity_protocol.report import Outcome
from parity_protocol.task import CidInput, CommandSpec, DockerSpec, FederatedLearningSpec

BUSYBOX = "parity-test/busybox:1"
LIMITS = Limits(wall_time_s=60, cpus=1, memory_bytes=512 << 20, disk_bytes=64 << 20, pids=32)
DATA = ("a,b,t\n" + "\n".join(f"{at},{at * 7 % 11},{at * 0.5}" for at in range(200)) + "\n").encode()


@dataclass
class Subject:
    """An executor, and jobs for it."""

    make: Callable[[], Executor]
    executor: Executor
    quick: Callable[[], Job]  # ends soon and well
    long: Callable[[], Job]  # does not end by itself


@pytest.fixture
def exec_dir() -> Iterator[Path]:
    """Not below pytest's own folder: that is 0700, and a sandbox's user must pass through."""
    path = Path(tempfile.mkdtemp(prefix="parity-exec-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def job_in(exec_dir: Path, spec: object, *, plan: object = None, part: int = 0, parts: int = 1) -> Job:
    name = str(uuid.uuid4())
    folder = exec_dir / name
    folder.mkdir(mode=0o700)
    return Job(name, name, name, 1, spec, part, parts, plan, folder, LIMITS)  # type: ignore[arg-type]


def scripted(exec_dir: Path) -> Subject:
    def make() -> ScriptedExecutor:
        return ScriptedExecutor(SystemClock(), run_for_s=0.05, log=b"hello\n")

    executor, spec = make(), CommandSpec(command=("true",))

    def long() -> Job:
        executor.run_for_s = 3_600
        return job_in(exec_dir, spec)

    return Subject(make, executor, lambda: job_in(exec_dir, spec), long)


def noop(exec_dir: Path) -> Subject:
    spec = CommandSpec(command=("true",))
    return Subject(NoopExecutor, NoopExecutor(), lambda: job_in(exec_dir, spec), lambda: job_in(exec_dir, spec))


def file(exec_dir: Path) -> Subject:
    spec = CommandSpec(command=("true",))

    def make() -> FileExecutor:
        return FileExecutor(SystemClock())

    return Subject(make, make(), lambda: job_in(exec_dir, spec), lambda: job_in(exec_dir, spec))


def command(exec_dir: Path) -> Subject:
    inputs = StaticInputs()
    cid = inputs.add(b"hello\n")

    def make() -> CommandExecutor:
        return CommandExecutor(exec_dir=exec_dir, inputs=inputs, clock=SystemClock(), enabled=True)

    quick = CommandSpec(command=("cat", "inputs/data"), inputs=(CidInput(cid=cid),))
    long = CommandSpec(command=("sleep", "3600"))
    return Subject(make, make(), lambda: job_in(exec_dir, quick), lambda: job_in(exec_dir, long))


def federated(exec_dir: Path) -> Subject:
    inputs = StaticInputs()
    cid = inputs.add(DATA)

    def make() -> FederatedExecutor:
        return FederatedExecutor(exec_dir=exec_dir, inputs=inputs, clock=SystemClock())

    def job(epochs: int) -> Job:
        spec = FederatedLearningSpec(
            model_type="linear_regression",
            dataset_cid=cid,
            data_format="csv",
            model_settings={"input_size": 2},
            train_config={"epochs": epochs, "batch_size": 1, "learning_rate": 0.001},
            partition_config={"strategy": "random", "total_parts": 2, "min_samples": 1},
        )
        resolved = resolve_session(spec.session(), session_id="s", round_id="1")
        plan = SessionPlan("s", "1", plan_session(resolved, DATA, "0" * 64))
        return job_in(exec_dir, spec, plan=plan.to_dict(), part=1, parts=2)

    return Subject(make, make(), lambda: job(2), lambda: job(100_000))


def docker(exec_dir: Path, engine: PrivateDockerd) -> Subject:
    inputs = StaticInputs()
    cid = inputs.add(b"hello\n")

    def make() -> DockerExecutor:
        return DockerExecutor(
            exec_dir=exec_dir,
            inputs=inputs,
            clock=SystemClock(),
            node_id="0xconformance",
            options=DockerOptions(timeout_s=20, floor_bytes=0, local_images=("parity-test/*",)),
            environ={"DOCKER_HOST": engine.url},
        )

    quick = DockerSpec(image=BUSYBOX, command=("cat", "/inputs/data"), inputs=(CidInput(cid=cid),))
    long = DockerSpec(image=BUSYBOX, command=("sleep", "3600"))
    return Subject(make, make(), lambda: job_in(exec_dir, quick), lambda: job_in(exec_dir, long))


SUBJECTS = {"scripted": scripted, "noop": noop, "file": file, "command": command, "federated": federated}
MARKS = {
    "command": [pytest.mark.service("bubblewrap")],
    "docker": [pytest.mark.service("docker", "busybox"), pytest.mark.root],
}
ALL = [pytest.param(name, marks=MARKS.get(name, [])) for name in (*SUBJECTS, "docker")]
THAT_RUN = [each for each in ALL if each.values[0] not in {"noop", "file"}]  # the others end at once


@pytest.fixture(scope="module")
def dockerd() -> Iterator[PrivateDockerd]:
    with PrivateDockerd.start(has_gvisor=False) as engine:
        engine.import_busybox(BUSYBOX)
        yield engine


@pytest.fixture
async def subject(request: pytest.FixtureRequest, exec_dir: Path) -> Subject:
    if request.param == "docker":
        found = docker(exec_dir, request.getfixturevalue("dockerd"))
    else:
        found = SUBJECTS[request.param](exec_dir)
    if request.param in MARKS and not (state := await found.executor.describe()).available:
        pytest.skip(state.reason)
    return found


def revived(handle: Handle) -> Handle:
    return Handle.from_json(json.loads(json.dumps(handle.to_json())))


@asynccontextmanager
async def started(executor: Executor, job: Job) -> AsyncIterator[Handle]:
    handle = revived(await executor.start(revived(await executor.prepare(job))))
    try:
        yield handle
    finally:
        await executor.cleanup(handle)


def is_whole(result: ExecutionResult) -> bool:
    if result.outcome is Outcome.FAILED:
        return result.reason is not None
    return (result.result_bytes is None) != (result.result_path is None)


@pytest.mark.parametrize("subject", ALL, indirect=True)
async def test_it_says_the_same_of_itself_twice_and_that_it_can_run(subject):
    first, second = await subject.executor.describe(), await subject.executor.describe()

    assert first == second
    assert first.available


@pytest.mark.parametrize("subject", ALL, indirect=True)
async def test_a_task_that_ends_well_has_one_result(subject):
    async with started(subject.executor, subject.quick()) as handle:
        result = await subject.executor.wait(handle)

        assert result.outcome is Outcome.SUCCEEDED, result.message
        assert is_whole(result)
        assert result.result_path is None or result.result_path.is_file()


@pytest.mark.parametrize("subject", ALL, indirect=True)
async def test_waiting_again_gives_the_same_result(subject):
    async with started(subject.executor, subject.quick()) as handle:
        first = await subject.executor.wait(handle)

        assert await subject.executor.wait(handle) == first


@pytest.mark.parametrize("subject", THAT_RUN, indirect=True)
async def test_starting_returns_before_the_task_ends(subject):
    async with started(subject.executor, subject.long()) as handle:
        with anyio.move_on_after(0.3) as scope:
            await subject.executor.wait(handle)

        assert scope.cancelled_caught
        await subject.executor.stop(handle)


@pytest.mark.parametrize("subject", ALL, indirect=True)
async def test_stopping_is_idempotent_and_bounded(subject):
    job = subject.long()
    prepared = await subject.executor.prepare(job)

    with anyio.fail_after(10):
        await subject.executor.stop(prepared)
        handle = await subject.executor.start(prepared)
        await subject.executor.stop(handle)
        await subject.executor.stop(revived(handle))
        await subject.executor.cleanup(handle)
        await subject.executor.stop(handle)


@pytest.mark.parametrize("subject", ALL, indirect=True)
async def test_cleaning_up_is_idempotent_and_ends_what_still_runs(subject):
    job = subject.long()
    handle = await subject.executor.start(await subject.executor.prepare(job))

    with anyio.fail_after(10):
        await subject.executor.cleanup(handle)
        await subject.executor.cleanup(handle)

    assert not job.folder.exists() or not any(job.folder.iterdir())


@pytest.mark.parametrize("subject", ALL, indirect=True)
async def test_what_was_only_prepared_can_be_cleaned_up_by_a_later_process(subject):
    job = subject.quick()
    handle = revived(await subject.executor.prepare(job))

    await subject.make().cleanup(handle)

    assert not job.folder.exists() or not any(job.folder.iterdir())


@pytest.mark.parametrize("subject", ALL, indirect=True)
async def test_what_was_only_prepared_can_be_started_by_a_later_process(subject):
    handle = revived(await subject.executor.prepare(subject.quick()))
    later = subject.make()

    after = await later.start(handle)
    result = await later.wait(after)
    await later.cleanup(after)

    assert result.outcome is Outcome.SUCCEEDED, result.message


@pytest.mark.parametrize("subject", ALL, indirect=True)
async def test_if_a_later_process_says_it_recovered_waiting_works(subject):
    handle = await subject.executor.start(await subject.executor.prepare(subject.quick()))
    await subject.executor.wait(handle)
    later = subject.make()

    if await later.recover(revived(handle)):
        assert is_whole(await later.wait(revived(handle)))
    await later.cleanup(revived(handle))
    await subject.executor.cleanup(handle)


@pytest.mark.parametrize("subject", ALL, indirect=True)
async def test_the_running_process_recovers_its_own(subject):
    async with started(subject.executor, subject.quick()) as handle:
        recovered = await subject.executor.recover(handle)

        assert isinstance(recovered, bool)
        assert is_whole(await subject.executor.wait(handle))


@pytest.mark.parametrize("subject", ALL, indirect=True)
async def test_logs_are_read_from_an_offset_and_bounded(subject):
    async with started(subject.executor, subject.quick()) as handle:
        await subject.executor.wait(handle)
        whole = await subject.executor.logs(handle, 0)

        assert len(whole) <= MAX_LOG_READ_BYTES
        assert await subject.executor.logs(handle, 2) == whole[2:]
        assert await subject.executor.logs(handle, len(whole)) == b""
        assert await subject.executor.logs(handle, 1 << 40) == b""


@pytest.mark.parametrize("subject", THAT_RUN, indirect=True)
async def test_a_wait_that_was_cancelled_leaves_a_task_that_can_be_ended(subject):
    async with started(subject.executor, subject.long()) as handle:
        for _ in range(3):
            with anyio.move_on_after(0.05):
                await subject.executor.wait(handle)

        with anyio.fail_after(10):
            await subject.executor.stop(handle)


@pytest.mark.parametrize("subject", ALL, indirect=True)
async def test_two_tasks_at_once_do_not_touch_each_other(subject):
    async with (
        started(subject.executor, subject.quick()) as first,
        started(subject.executor, subject.quick()) as second,
    ):
        await subject.executor.stop(first)
        result = await subject.executor.wait(second)

        assert result.outcome is Outcome.SUCCEEDED, result.message


@pytest.mark.parametrize("subject", THAT_RUN, indirect=True)
async def test_a_handle_of_another_executor_raises_only_our_errors(subject):
    strange = Handle("strange", 99, {})

    for method in (subject.executor.wait, subject.executor.stop, subject.executor.recover, subject.executor.cleanup):
        with pytest.raises(ParityError):
            await method(strange)
