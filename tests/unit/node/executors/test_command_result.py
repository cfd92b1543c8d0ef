from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from parity_node.executors.base import ExecutionResult, Limits
from parity_node.executors.command_result import Ending, command_result
from parity_node.executors.folder import JobFolder
from parity_node.executors.process import Exit
from parity_node.executors.sandbox.launch import SandboxExit
from parity_protocol.errors import FailureReason
from parity_protocol.needs import OutputFolder
from parity_protocol.report import Outcome

LIMITS = Limits(wall_time_s=30, cpus=1, memory_bytes=64 << 20, disk_bytes=64 << 20, pids=32)
GIB = 1 << 30


def ending(code: int | None = 0, **changes: object) -> Ending:
    found = Ending(SandboxExit(code, Exit(0)), wall_s=3600, cpu_ms=2500, peak_memory_bytes=GIB // 2, oom_kills=0)
    return replace(found, **changes)  # type: ignore[arg-type]


def result_of(folder: Path, how: Ending, *, printed: bytes = b"said\n", **log: object) -> ExecutionResult:
    (folder / "output.log").write_bytes(printed)
    members = {"size": len(printed), "max_bytes": 100, "is_disk_full": False, "is_truncated": False, **log}
    return command_result(JobFolder(folder), SimpleNamespace(**members), how, LIMITS, source=None, output=None)  # type: ignore[arg-type]


def test_what_it_printed_is_the_result_of_a_command(tmp_path):
    result = result_of(tmp_path, ending())

    assert (result.outcome, result.result_bytes, result.exit_code) == (Outcome.SUCCEEDED, b"said\n", 0)


def test_metrics_have_the_names_and_units_that_rewards_are_computed_from(tmp_path):
    result = result_of(tmp_path, ending(network_bytes=GIB, scratch_bytes=GIB - 5))

    assert result.metrics == {"cpu_seconds": 2.5, "memory_gb_hours": 0.5, "storage_gb": 1.0, "network_data_gb": 1.0}


@pytest.mark.parametrize(
    ("how", "log", "reason", "said"),
    [
        (ending(137, is_stopped=True, is_late=True), {}, FailureReason.INTERRUPTED, "stopped"),
        (ending(137, is_late=True, oom_kills=1), {}, FailureReason.TIMEOUT, "30 s"),
        (ending(137), {"is_disk_full": True}, FailureReason.DISK_FULL, "disk is full"),
        (ending(137, oom_kills=1), {"is_truncated": True}, FailureReason.OUTPUT_TOO_LARGE, "100 bytes"),
        (ending(137, has_too_many_files=True), {}, FailureReason.OUT_OF_MEMORY, "more files"),
        (ending(0, oom_kills=1), {}, FailureReason.OUT_OF_MEMORY, str(LIMITS.memory_bytes)),  # a child's, unnoticed
        (ending(None), {}, FailureReason.SANDBOX_FAILED, "could not start"),
        (ending(152), {}, FailureReason.TIMEOUT, "processor time"),
        (ending(153), {}, FailureReason.EXIT_STATUS, "grew over its limit"),
        (ending(139), {}, FailureReason.EXIT_STATUS, "signal 11"),
        (ending(127), {}, FailureReason.EXIT_STATUS, "not on this node"),
        (ending(1, full=("/tmp",)), {}, FailureReason.EXIT_STATUS, "(/tmp was full): said"),
        (ending(3), {}, FailureReason.EXIT_STATUS, "exit status 3: said"),
    ],
)
def test_the_fault_that_explains_the_others_is_the_one_reported(tmp_path, how, log, reason, said):
    result = result_of(tmp_path, how, **log)

    assert (result.outcome, result.reason) == (Outcome.FAILED, reason)
    assert said in result.message
    assert result.metrics["cpu_seconds"] == 2.5


@pytest.mark.parametrize(
    ("wish", "said"), [(1 << 20, "4194304 bytes of /output;"), (1 << 30, "which its memory bounds;")]
)
def test_a_full_output_folder_says_how_large_it_was_and_why(tmp_path, wish, said):
    (tmp_path / "output.log").write_text("said")
    log = SimpleNamespace(size=4, max_bytes=100, is_disk_full=False, is_truncated=False)
    output = OutputFolder(max_bytes=wish)

    result = command_result(
        JobFolder(tmp_path),
        log,
        ending(1, full=("/output", "/tmp")),
        LIMITS,
        source=tmp_path,
        output=output,  # type: ignore[arg-type]
    )

    assert result.reason is FailureReason.OUTPUT_TOO_LARGE
    assert said in result.message


def test_with_an_output_folder_the_result_is_a_folder(tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "a").write_text("one")
    (tmp_path / "output.log").write_text("said")
    log = SimpleNamespace(size=4, max_bytes=100, is_disk_full=False, is_truncated=False)

    result = command_result(
        JobFolder(tmp_path),
        log,
        ending(),
        LIMITS,
        source=tmp_path / "output",
        output=OutputFolder(),  # type: ignore[arg-type]
    )

    assert result.result_path is not None
    assert (result.result_path / "files" / "a").read_text() == "one"
    assert (result.result_path / "output.log").read_text() == "said"
    assert result.result_bytes is None


def test_an_output_that_cannot_be_taken_fails_the_task_and_keeps_what_it_used(tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "a").symlink_to("/etc/shadow")
    (tmp_path / "output.log").write_text("said")
    log = SimpleNamespace(size=4, max_bytes=100, is_disk_full=False, is_truncated=False)

    result = command_result(
        JobFolder(tmp_path),
        log,
        ending(),
        LIMITS,
        source=tmp_path / "output",
        output=OutputFolder(),  # type: ignore[arg-type]
    )

    assert (result.outcome, result.reason) == (Outcome.FAILED, FailureReason.DATA_INVALID)
    assert result.usage.cpu_ms == 2500
