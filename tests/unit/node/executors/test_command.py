from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from parity_node.executors import command
from parity_node.executors.base import Handle, Job, Limits
from parity_node.executors.command import CommandExecutor
from parity_node.executors.folder import JobFolder, printable_tail
from parity_node.executors.sandbox.probe import Missing
from parity_node.testing.inputs import StaticInputs
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.report import Outcome
from parity_protocol.task import CommandSpec, HttpsInput, IsolationTier, LlmSpec
from parity_protocol.testing.clock import FakeClock

LIMITS = Limits(wall_time_s=30, cpus=1, memory_bytes=256 << 20, disk_bytes=64 << 20, pids=32)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def executor(tmp_path: Path, clock: FakeClock) -> CommandExecutor:
    return CommandExecutor(exec_dir=tmp_path, inputs=StaticInputs(), clock=clock, enabled=True)


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> list[Missing | None]:
    """What the next trial runs find; the last one stays."""
    answers: list[Missing | None] = [None]

    async def answer(exec_dir: Path, *, hidden: Collection[Path] = ()) -> Missing | None:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    monkeypatch.setattr(command, "find_missing", lambda: None)
    monkeypatch.setattr(command, "try_sandbox", answer)
    monkeypatch.setattr("os.geteuid", lambda: 1_000)
    return answers


def job(folder: Path, spec: object) -> Job:
    path = folder / "job"
    path.mkdir()
    return Job("e", "t", "l", 1, spec, 0, 1, None, path, LIMITS)  # type: ignore[arg-type]


async def test_it_is_off_unless_the_operator_turns_it_on(tmp_path, clock, trial):
    executor = CommandExecutor(exec_dir=tmp_path, inputs=StaticInputs(), clock=clock, enabled=False)

    state = await executor.describe()

    assert not state.available
    assert "RUNNER_SHELL_ENABLED" in state.reason
    with pytest.raises(ExecutionFailed) as caught:
        await executor.prepare(job(tmp_path, CommandSpec(command=("true",))))
    assert caught.value.reason is FailureReason.EXECUTOR_UNAVAILABLE


async def test_it_is_announced_only_after_a_trial_run(executor, trial):
    state = await executor.describe()

    assert state.available
    assert state.isolation is IsolationTier.BWRAP


async def test_what_holds_less_than_it_could_is_said_with_the_tier(executor, trial, monkeypatch):
    monkeypatch.setattr(command.Cgroup, "make", lambda *words, **more: None)
    monkeypatch.setattr(command, "missing_layer", lambda: "no Landlock layer: perl is missing")

    state = await executor.describe()

    assert state.available
    assert "per process only" in state.reason
    assert "no Landlock layer" in state.reason


async def test_a_failed_trial_says_why_and_nothing_runs(executor, trial, tmp_path):
    trial[:] = [Missing("user namespaces are off")]

    state = await executor.describe()

    assert not state.available
    assert state.isolation is IsolationTier.NONE
    assert "user namespaces are off" in state.reason
    with pytest.raises(ExecutionFailed) as caught:
        await executor.start(Handle("command", 1, {"execution_id": "e", "folder": str(tmp_path)}))
    assert caught.value.reason is FailureReason.EXECUTOR_UNAVAILABLE


async def test_a_failed_trial_is_repeated_after_a_while(executor, trial, clock):
    trial[:] = [Missing("not yet"), None]
    assert not (await executor.describe()).available
    assert not (await executor.describe()).available

    await clock.sleep(0)
    clock._elapsed += command.RETRY_TRIAL_S

    assert (await executor.describe()).available


async def test_without_bubblewrap_it_refuses(executor, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")

    state = await executor.describe()

    assert not state.available
    assert state.reason


async def test_an_input_of_another_kind_that_nobody_has_fails_before_anything_starts(executor, trial, tmp_path):
    spec = CommandSpec(command=("true",), inputs=(HttpsInput(url="https://x.test/", sha256="0" * 64, size=1),))

    with pytest.raises(ExecutionFailed) as caught:
        await executor.prepare(job(tmp_path, spec))

    assert caught.value.reason is FailureReason.DATA_UNAVAILABLE


async def test_another_kind_of_task_is_refused(executor, trial, tmp_path):
    with pytest.raises(ExecutionFailed) as caught:
        await executor.prepare(job(tmp_path, LlmSpec(model="m", prompt="p")))

    assert caught.value.reason is FailureReason.SPEC_INVALID


@pytest.mark.parametrize(
    "handle",
    [
        Handle("federated", 1, {"execution_id": "e", "folder": "/x"}),
        Handle("command", 2, {"execution_id": "e", "folder": "/x"}),
        Handle("command", 1, {"folder": "/x"}),
    ],
)
async def test_a_handle_of_another_executor_is_refused(executor, handle):
    with pytest.raises(ExecutionFailed):
        await executor.stop(handle)


async def test_a_folder_lost_with_the_power_is_a_restart(executor, trial, tmp_path):
    with pytest.raises(ExecutionFailed) as caught:
        await executor.start(Handle("command", 1, {"execution_id": "e", "folder": str(tmp_path / "gone")}))

    assert caught.value.reason is FailureReason.NODE_RESTARTED


async def test_waiting_for_a_task_of_an_earlier_process_says_that_the_node_restarted(executor, tmp_path):
    result = await executor.wait(Handle("command", 1, {"execution_id": "e", "folder": str(tmp_path)}))

    assert (result.outcome, result.reason) == (Outcome.FAILED, FailureReason.NODE_RESTARTED)


# -- the folder ----------------------------------------------------------------------------------------------------


def test_a_job_is_read_back_as_written(tmp_path):
    folder = JobFolder(tmp_path)

    folder.write_job({"command": ["a", "ü"], "part": 3}, LIMITS)

    assert folder.read_job() == ({"command": ["a", "ü"], "part": 3}, LIMITS)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"limits": {}}', b'{"limits": {"wall_time_s": 1}}'])
def test_a_job_that_is_not_whole_is_a_restart(tmp_path, text):
    (tmp_path / "job.json").write_bytes(text)

    with pytest.raises(ExecutionFailed) as caught:
        JobFolder(tmp_path).read_job()

    assert caught.value.reason is FailureReason.NODE_RESTARTED


async def test_a_log_is_not_read_through_a_link(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "output.log").symlink_to(tmp_path / "secret")

    assert await JobFolder(tmp_path).read_log(0) == b""


def test_the_tail_of_an_output_is_fit_for_a_message():
    tail = printable_tail(b"x" * 10_000 + b"\x1b[31mred\x00\xff\r\nend\n")

    assert tail.endswith("end")
    assert len(tail) <= 2_000
    assert not any(ord(char) < 32 and char not in "\n\t" for char in tail)
