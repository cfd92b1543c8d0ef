"""What became of a container that has ended: the first of its faults that explains the others."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from parity_node.crashpoints import crashpoint
from parity_node.executors.base import ExecutionResult
from parity_node.executors.docker.job import DockerJob, output_folder
from parity_node.executors.docker.usage import Counters
from parity_node.executors.folder import JobFolder, printable_tail
from parity_node.executors.log_file import LogFile
from parity_node.outputs import MAX_OUTPUT_DEPTH, gather_output
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.receipt import Usage
from parity_protocol.report import MAX_INLINE_RESULT_BYTES, Outcome

__all__ = ["Ending", "Weight", "docker_result", "weigh"]

_GIB = 1 << 30
_HOUR_S = 3_600
_SIGNALLED = 128
_ENDED_BY_ENGINE = frozenset({137, 143, 255})  # what containers exit with when their engine is stopped or comes back
_BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Weight:
    """What lies in an output folder."""

    size: int  # bytes that it takes on the disk
    entries: int
    fault: str = ""  # what else cannot be accepted


@dataclass(frozen=True, slots=True)
class Ending:
    """What the node saw of a container's end."""

    code: int | None  # None: nobody knows
    wall_s: float
    counters: Counters
    is_oom_killed: bool = False
    is_stopped: bool = False
    is_late: bool = False
    is_gone: bool = False  # removed by somebody else
    has_lost_engine: bool = False
    overflow: str = ""  # what of the output folder is over its limit
    error: str = ""  # of the engine, when it could not start


def docker_result(folder: JobFolder, job: DockerJob, log: LogFile, ending: Ending) -> ExecutionResult:
    """Say what became of a task; blocking when it has an output folder, so call it on a thread."""
    counters, code = ending.counters, ending.code
    usage = Usage(
        wall_ms=round(ending.wall_s * 1000), cpu_ms=counters.cpu_ms, peak_memory_bytes=counters.peak_memory_bytes
    )
    metrics = {
        "cpu_seconds": counters.cpu_ms / 1000,
        "memory_gb_hours": counters.peak_memory_bytes / _GIB * ending.wall_s / _HOUR_S,
        "storage_gb": counters.io_bytes / _GIB,
        "network_data_gb": counters.network_bytes / _GIB,
    }

    def failed(reason: FailureReason, message: str) -> ExecutionResult:
        return ExecutionResult(
            Outcome.FAILED,
            reason,
            message,
            exit_code=code,
            usage=usage,
            metrics=metrics,
            log_path=folder.log,
            environment=job.environment,
        )

    fault = _fault(folder, job, log, ending)
    if fault is not None:
        return failed(*fault)
    path, inline = None, None
    if job.output is not None:
        try:
            path = gather_output(output_folder(folder), folder.log, folder.path / "result", job.output)
            crashpoint("docker.gathered")
        except ExecutionFailed as exc:
            return failed(exc.reason, exc.message)
    elif log.size <= MAX_INLINE_RESULT_BYTES:
        inline = folder.log.read_bytes()
    else:
        path = folder.log
    return ExecutionResult(
        Outcome.SUCCEEDED,
        exit_code=0,
        result_bytes=inline,
        result_path=path,
        usage=usage,
        metrics=metrics,
        log_path=folder.log,
        environment=job.environment,
    )


def weigh(folder: Path, *, max_entries: int) -> Weight:
    """Weigh what a running task has written, looking at ``max_entries`` + 1 entries at most; follows no link."""
    size, entries, pending = 0, 0, [(str(folder), 0)]
    while pending:
        path, depth = pending.pop()
        try:
            with os.scandir(path) as found:
                for entry in found:
                    entries += 1
                    if entries > max_entries:
                        return Weight(size, entries)
                    try:
                        stat = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # gone meanwhile; the others still count
                        continue
                    size += stat.st_blocks * _BLOCK_BYTES
                    if entry.is_dir(follow_symlinks=False):
                        if depth == MAX_OUTPUT_DEPTH:  # below some depth a path has no name that could be opened
                            return Weight(size, entries, fault=f"is more than {MAX_OUTPUT_DEPTH} folders deep")
                        pending.append((entry.path, depth + 1))
        except OSError as exc:
            if exc.errno in {errno.EACCES, errno.EPERM}:
                return Weight(size, entries, fault="holds a folder that cannot be read")
    return Weight(size, entries)


def _fault(folder: JobFolder, job: DockerJob, log: LogFile, ending: Ending) -> tuple[FailureReason, str] | None:
    """Return why the task failed; None when it did not."""
    code, limits = ending.code, job.limits
    if ending.is_stopped:
        return FailureReason.INTERRUPTED, "the task was stopped"
    if ending.is_late:
        return FailureReason.TIMEOUT, f"the task did not end within its {limits.wall_time_s:g} s"
    if log.is_disk_full:
        return FailureReason.DISK_FULL, "the node's disk is full"
    if ending.overflow:
        return FailureReason.OUTPUT_TOO_LARGE, ending.overflow
    if log.is_truncated:
        return FailureReason.OUTPUT_TOO_LARGE, f"the task printed more than its {log.max_bytes} bytes"
    if ending.is_oom_killed or ending.counters.oom_kills:
        return FailureReason.OUT_OF_MEMORY, f"the task used more than its {limits.memory_bytes} bytes of memory"
    if ending.is_gone:
        return FailureReason.INTERRUPTED, "somebody else removed the task's container"
    if ending.has_lost_engine and (code is None or code in _ENDED_BY_ENGINE):
        return FailureReason.INTERRUPTED, "the Docker engine stopped while the task ran"
    if code is None:
        return FailureReason.SANDBOX_FAILED, "the container's end is not known"
    if log.is_behind:
        return FailureReason.NODE_RESTARTED, "what the task printed was lost while the node was away"
    if code == 0:
        return None
    if ending.error:
        return FailureReason.SANDBOX_FAILED, f"the container did not start: {ending.error[:500]}"
    tail = printable_tail(folder.read_tail())
    said = f": {tail}" if tail else ""
    return FailureReason.EXIT_STATUS, f"exit status {code}{_meaning(code)}{said}"


def _meaning(code: int) -> str:
    """Return what an exit status usually means, in brackets; empty for an ordinary one."""
    match code:
        case 126 | 127:
            return " (the program is not in the image, or cannot be executed)"
        case _ if code == _SIGNALLED + 25:
            return " (a file grew over its limit)"
        case _ if _SIGNALLED < code < _SIGNALLED + 32:
            return f" (signal {code - _SIGNALLED})"
        case _:
            return ""
