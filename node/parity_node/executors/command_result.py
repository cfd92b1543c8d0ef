"""What became of a command that has ended: the first of its faults that explains the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from parity_node.executors.base import ExecutionResult, Limits
from parity_node.executors.folder import JobFolder, printable_tail
from parity_node.executors.log_file import LogFile
from parity_node.executors.sandbox.launch import SandboxExit
from parity_node.executors.sandbox.limits import output_bytes
from parity_node.outputs import gather_output
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.needs import OutputFolder
from parity_protocol.receipt import Usage
from parity_protocol.report import MAX_INLINE_RESULT_BYTES, Outcome

__all__ = ["Ending", "command_result"]

_SIGNALLED = 128  # bwrap and shells report signal n as 128 + n
_SIGXCPU, _SIGXFSZ = 24, 25
_GIB = 1 << 30
_HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class Ending:
    """What the node saw of a task's end."""

    exit: SandboxExit
    wall_s: float
    cpu_ms: int
    peak_memory_bytes: int
    oom_kills: int
    network_bytes: int = 0
    scratch_bytes: int = 0  # of its writable folders
    is_stopped: bool = False
    is_late: bool = False
    has_too_many_files: bool = False
    full: tuple[str, ...] = field(default=())  # its writable folders that had no room left


def command_result(
    folder: JobFolder,
    log: LogFile,
    ending: Ending,
    limits: Limits,
    *,
    source: Path | None,
    output: OutputFolder | None,
) -> ExecutionResult:
    """Say what became of a task; blocking when it has an output folder, so call it on a thread.

    Args:
        source: Where this process finds the task's ``/output``.
        output: What the task may leave there; None when it asked for no such folder.
    """
    code = ending.exit.code
    usage = Usage(wall_ms=round(ending.wall_s * 1000), cpu_ms=ending.cpu_ms, peak_memory_bytes=ending.peak_memory_bytes)
    metrics = {
        "cpu_seconds": ending.cpu_ms / 1000,
        "memory_gb_hours": ending.peak_memory_bytes / _GIB * ending.wall_s / _HOUR_S,
        "storage_gb": (ending.scratch_bytes + log.size) / _GIB,
        "network_data_gb": ending.network_bytes / _GIB,
    }

    def failed(reason: FailureReason, message: str) -> ExecutionResult:
        return ExecutionResult(
            Outcome.FAILED, reason, message, exit_code=code, usage=usage, metrics=metrics, log_path=folder.log
        )

    fault = _fault(folder, log, ending, limits, output)
    if fault is not None:
        return failed(*fault)
    if output is not None and source is not None:
        try:
            path = gather_output(source, folder.log, folder.path / "result", output)
        except ExecutionFailed as exc:
            return failed(exc.reason, exc.message)
        inline = None
    elif log.size <= MAX_INLINE_RESULT_BYTES:
        path, inline = None, folder.log.read_bytes()
    else:
        path, inline = folder.log, None
    return ExecutionResult(
        Outcome.SUCCEEDED,
        exit_code=0,
        result_bytes=inline,
        result_path=path,
        usage=usage,
        metrics=metrics,
        log_path=folder.log,
    )


def _fault(
    folder: JobFolder, log: LogFile, ending: Ending, limits: Limits, output: OutputFolder | None
) -> tuple[FailureReason, str] | None:
    """Return why the task failed; None when it did not."""
    code = ending.exit.code
    if ending.is_stopped:
        return FailureReason.INTERRUPTED, "the task was stopped"
    if ending.is_late:
        return FailureReason.TIMEOUT, f"the task did not end within its {limits.wall_time_s:g} s"
    if log.is_disk_full:
        return FailureReason.DISK_FULL, "the node's disk is full"
    if log.is_truncated:
        return FailureReason.OUTPUT_TOO_LARGE, f"the task printed more than its {log.max_bytes} bytes"
    if ending.has_too_many_files:
        return FailureReason.OUT_OF_MEMORY, "the task made more files than its memory holds; ask for more memory"
    if ending.oom_kills:
        return FailureReason.OUT_OF_MEMORY, f"the task used more than its {limits.memory_bytes} bytes of memory"
    if code == 0:
        return None
    tail = printable_tail(folder.read_tail())
    if code is None:
        return FailureReason.SANDBOX_FAILED, f"the sandbox could not start the task: {tail}"
    if code == _SIGNALLED + _SIGXCPU:
        return FailureReason.TIMEOUT, "the task used more processor time than its wall time allows"
    said = f": {tail}" if tail else ""
    if "/output" in ending.full and output is not None:
        room = output_bytes(limits, output.max_bytes)
        why = "" if room > output.max_bytes else ", which its memory bounds"
        return (
            FailureReason.OUTPUT_TOO_LARGE,
            f"the task filled the {room} bytes of /output{why}; exit status {code}{said}",
        )
    full = f" ({', '.join(ending.full)} was full)" if ending.full else ""
    return FailureReason.EXIT_STATUS, f"exit status {code}{_meaning(code)}{full}{said}"


def _meaning(code: int) -> str:
    """Return what an exit status usually means, in brackets; empty for an ordinary one."""
    match code:
        case 126 | 127:
            return " (the program is not on this node, or cannot be executed)"
        case _ if code == _SIGNALLED + _SIGXFSZ:
            return " (a file grew over its limit)"
        case _ if _SIGNALLED < code < _SIGNALLED + 32:
            return f" (signal {code - _SIGNALLED})"
        case _:
            return ""
