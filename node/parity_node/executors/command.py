"""Commands: a program and its arguments in bubblewrap. Off unless the operator enables it.

A task dies with its node: bwrap's parent-death signal ends the tree when the node is killed, so nothing of it can be
found again and ``recover`` says no. The market hands the task on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
from pydantic import JsonValue

from parity_node.data import InputSource
from parity_node.executors.base import ExecutionResult, Handle, Job, Limits
from parity_node.executors.folder import JobFolder, folder_of, printable_tail
from parity_node.executors.process import OutputLog, adopt_orphans, boot_id, kill_tree_of, same_process
from parity_node.executors.sandbox.bwrap import TASK_HOME, Sandbox, find_bwrap
from parity_node.executors.sandbox.cgroup import Cgroup
from parity_node.executors.sandbox.drop import make_traversable, own, slot_identity
from parity_node.executors.sandbox.env import task_env
from parity_node.executors.sandbox.launch import SandboxExit, SandboxProcess
from parity_node.executors.sandbox.limits import scratch_bytes, task_rlimits
from parity_node.executors.sandbox.orphans import kill_orphans
from parity_node.executors.sandbox.probe import find_missing, try_sandbox
from parity_node.executors.trial import Trial
from parity_node.waiting import within
from parity_protocol.capability import ExecutorState
from parity_protocol.clock import Clock
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.receipt import Usage
from parity_protocol.report import MAX_INLINE_RESULT_BYTES, Outcome
from parity_protocol.task import CidInput, CommandSpec, IsolationTier, TaskKind

__all__ = ["CommandExecutor"]

VERSION = 1
RETRY_TRIAL_S = 30.0  # after a trial run that failed
_TRIAL_LIMITS = Limits(wall_time_s=1.0, cpus=1.0, memory_bytes=64 << 20, disk_bytes=0, pids=8)
_RLIMITS_ONLY = "limits hold per process only: control groups cannot be written here"
_SIGNALLED = 128  # bwrap and shells report signal n as 128 + n
_SIGXCPU = 24


@dataclass
class _Run:
    """A task that this process started."""

    process: SandboxProcess
    limits: Limits
    cgroup: Cgroup | None
    started_at: float  # Clock.monotonic()
    stopped: bool = False
    result: ExecutionResult | None = None


class CommandExecutor:
    """Implements ``Executor`` for argument lists.

    The result is what the task printed, standard output and error together. Exit status 0 is success.

    Args:
        exec_dir: Where the executions' folders are; tried by the trial run.
        enabled: Whether the operator wants it.
    """

    def __init__(self, *, exec_dir: Path, inputs: InputSource, clock: Clock, enabled: bool) -> None:
        self._exec_dir = exec_dir
        self._inputs = inputs
        self._clock = clock
        self._enabled = enabled
        self._runs: dict[str, _Run] = {}
        self._trial = Trial(self._try, clock=clock, retry_s=RETRY_TRIAL_S)

    @property
    def kind(self) -> TaskKind:
        """``command``."""
        return TaskKind.COMMAND

    async def describe(self) -> ExecutorState:
        """Say whether commands can run here; the first call, and any after a failure, makes a trial run."""
        if not self._enabled:
            return ExecutorState(available=False, reason="off; RUNNER_SHELL_ENABLED=true turns it on")
        return await self._trial.outcome()

    async def prepare(self, job: Job) -> Handle:
        """Fetch the inputs; see the port."""
        spec = job.spec
        if not isinstance(spec, CommandSpec):
            raise ExecutionFailed(FailureReason.SPEC_INVALID, f"expected a command, got {spec.type}")
        await self._refuse_unless_available()
        folder = JobFolder(job.folder)
        identity = slot_identity(job.slot)
        _mkdir(folder.inputs)
        if identity is not None:
            make_traversable(job.folder)
            own(folder.inputs, identity)
        names = []
        for item in spec.inputs:
            if not isinstance(item, CidInput):
                raise ExecutionFailed(
                    FailureReason.EXECUTOR_UNAVAILABLE, f"input {item.name}: this node fetches inputs by CID only"
                )
            target = folder.inputs / item.name
            await self._inputs.fetch(item.cid, target, max_bytes=item.max_bytes)
            await anyio.to_thread.run_sync(_make_readable, target)
            names.append(item.name)
        members = {
            "command": spec.command,
            "env": spec.env,
            "inputs": names,
            "max_output_bytes": spec.max_output_bytes,
            "slot": job.slot,
        }
        folder.write_job(members, job.limits)
        return Handle("command", VERSION, {"execution_id": job.execution_id, "folder": str(job.folder)})

    async def start(self, handle: Handle) -> Handle:
        """Start the sandbox; see the port."""
        await self._refuse_unless_available()
        key = _key(handle)
        if key in self._runs:
            return _started(handle, self._runs[key].process)
        folder = folder_of(handle)
        members, limits = folder.read_job()
        bwrap = find_bwrap()
        if bwrap is None:
            raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, "bubblewrap is not installed any more")
        output = OutputLog(folder.log, _whole(members, "max_output_bytes"))
        cgroup = Cgroup.make(key, limits)
        try:
            sandbox = Sandbox(
                command=_texts(members, "command"),
                env=task_env(_text_map(members, "env"), home=TASK_HOME),
                inputs=tuple((folder.inputs / name, name) for name in _texts(members, "inputs")),
                scratch_bytes=scratch_bytes(limits),
                rlimits=task_rlimits(limits),
                identity=slot_identity(_whole(members, "slot")),
            )
            adopt_orphans()
            process = await SandboxProcess.launch(bwrap, sandbox, output, confine=cgroup.join if cgroup else None)
        except BaseException:
            output.close()
            if cgroup is not None:
                cgroup.remove()
            raise
        output.when_full(process.kill)
        self._runs[key] = _Run(process, limits, cgroup, self._clock.monotonic())
        return _started(handle, process)

    async def wait(self, handle: Handle) -> ExecutionResult:
        """Return when the task has ended, or has been ended at its wall time; see the port."""
        run = self._runs.get(_key(handle))
        if run is None:
            return ExecutionResult(
                Outcome.FAILED, FailureReason.NODE_RESTARTED, "the node restarted while the task ran"
            )
        if run.result is not None:
            return run.result
        left_s = run.started_at + run.limits.wall_time_s - self._clock.monotonic()
        is_late = False
        try:
            await within(self._clock, max(0.0, left_s), run.process.wait)
        except TimeoutError:
            is_late = True
            with anyio.CancelScope(shield=True):
                await run.process.end()
        ended = await run.process.wait()
        if run.result is None:
            run.result = _result(folder_of(handle), run, ended, is_late=is_late, now=self._clock.monotonic())
        return run.result

    async def stop(self, handle: Handle) -> None:
        """End the task's whole tree; see the port."""
        run = self._runs.get(_key(handle))
        if run is not None:
            run.stopped = run.stopped or run.result is None
            await run.process.end()
            return
        state = handle.state
        left_over = same_process(state.get("init_pid"), state.get("init_started"), state.get("boot_id"))
        if left_over is not None:
            await kill_tree_of(left_over)

    async def recover(self, handle: Handle) -> bool:
        """Return whether the task runs in this very process; one of an earlier process is ended for good."""
        if _key(handle) in self._runs:
            return True
        await self.stop(handle)
        await anyio.to_thread.run_sync(kill_orphans)
        return False

    async def cleanup(self, handle: Handle) -> None:
        """Stop the task if it still runs, and remove its folder; see the port."""
        await self.stop(handle)
        self._runs.pop(_key(handle), None)
        Cgroup(_key(handle)).remove()
        await folder_of(handle).remove()

    async def logs(self, handle: Handle, offset: int) -> bytes:
        """Return what the task printed from ``offset`` on; see the port."""
        return await folder_of(handle).read_log(offset)

    # -- small things --------------------------------------------------------------------------------------------

    async def _refuse_unless_available(self) -> None:
        """Never degrade: without a sandbox that was proven here, nothing runs."""
        state = await self.describe()
        if not state.available:
            raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, f"commands cannot run here: {state.reason}")

    async def _try(self) -> ExecutorState:
        adopt_orphans()
        await anyio.to_thread.run_sync(kill_orphans)
        missing = find_missing() or await try_sandbox(self._exec_dir)
        if missing is not None:
            return ExecutorState(available=False, reason=missing.reason[:500])
        group = Cgroup.make(f"probe-{os.getpid()}", _TRIAL_LIMITS)
        if group is None:
            return ExecutorState(available=True, isolation=IsolationTier.BWRAP, reason=_RLIMITS_ONLY)
        group.remove()
        return ExecutorState(available=True, isolation=IsolationTier.BWRAP)


def _result(folder: JobFolder, run: _Run, ended: SandboxExit, *, is_late: bool, now: float) -> ExecutionResult:
    """Say what became of a task that has ended."""
    output, limits, code = run.process.child.output, run.limits, ended.code
    oom_kills = run.cgroup.oom_kills() if run.cgroup else 0
    peak = max(ended.usage.peak_memory_bytes, run.cgroup.peak_memory_bytes() if run.cgroup else 0)
    usage = Usage(wall_ms=round((now - run.started_at) * 1000), cpu_ms=ended.usage.cpu_ms, peak_memory_bytes=peak)
    if run.cgroup is not None:
        run.cgroup.remove()

    def failed(reason: FailureReason, message: str) -> ExecutionResult:
        return ExecutionResult(Outcome.FAILED, reason, message, exit_code=code, usage=usage, log_path=folder.log)

    if run.stopped:
        return failed(FailureReason.INTERRUPTED, "the task was stopped")
    if is_late:
        return failed(FailureReason.TIMEOUT, f"the task did not end within its {limits.wall_time_s:g} s")
    if output.is_disk_full:
        return failed(FailureReason.DISK_FULL, "the node's disk is full")
    if output.is_truncated:
        return failed(FailureReason.OUTPUT_TOO_LARGE, f"the task printed more than its {output.max_bytes} bytes")
    if oom_kills:
        return failed(FailureReason.OUT_OF_MEMORY, f"the task used more than its {limits.memory_bytes} bytes of memory")
    tail = printable_tail(folder.read_tail())
    if code is None:
        return failed(FailureReason.SANDBOX_FAILED, f"the sandbox could not start the task: {tail}")
    if code == _SIGNALLED + _SIGXCPU:
        return failed(FailureReason.TIMEOUT, "the task used more processor time than its wall time allows")
    if code != 0:
        return failed(FailureReason.EXIT_STATUS, f"exit status {code}{_meaning(code)}: {tail}" if tail else f"exit status {code}{_meaning(code)}")  # fmt: skip
    if output.size <= MAX_INLINE_RESULT_BYTES:
        return ExecutionResult(
            Outcome.SUCCEEDED, exit_code=0, result_bytes=folder.log.read_bytes(), usage=usage, log_path=folder.log
        )
    return ExecutionResult(Outcome.SUCCEEDED, exit_code=0, result_path=folder.log, usage=usage, log_path=folder.log)


def _meaning(code: int) -> str:
    """Return what an exit status usually means, in brackets; empty for an ordinary one."""
    match code:
        case 126 | 127:
            return " (the program is not on this node, or cannot be executed)"
        case 153:
            return " (a file grew over its limit)"
        case _ if 128 < code < 160:
            return f" (signal {code - 128})"
        case _:
            return ""


def _started(handle: Handle, process: SandboxProcess) -> Handle:
    found = {"init_pid": process.init_pid, "init_started": process.init_started, "boot_id": boot_id()}
    return Handle(handle.executor, handle.version, {**handle.state, **found})


def _key(handle: Handle) -> str:
    key = handle.state.get("execution_id")
    if handle.executor != "command" or handle.version != VERSION or not isinstance(key, str):
        raise ExecutionFailed(FailureReason.NODE_FAULT, f"not a handle of commands: {handle.executor} {handle.version}")
    return key


def _mkdir(path: Path) -> None:
    try:
        path.mkdir(mode=0o700)
    except OSError as exc:
        reason = FailureReason.DISK_FULL if exc.errno in {28, 122} else FailureReason.NODE_FAULT
        raise ExecutionFailed(reason, f"{path}: {exc.strerror}") from exc


def _make_readable(path: Path) -> None:
    """Let the slot's user read an input that the node wrote."""
    if path.is_dir():
        path.chmod(0o755)
        for child in path.iterdir():
            _make_readable(child)
    else:
        path.chmod(0o444)


def _whole(members: Mapping[str, JsonValue], name: str) -> int:
    value = members.get(name)
    if not isinstance(value, int):
        raise ExecutionFailed(FailureReason.NODE_RESTARTED, f"the execution's folder was lost: no {name}")
    return value


def _texts(members: Mapping[str, JsonValue], name: str) -> tuple[str, ...]:
    value = members.get(name)
    if not isinstance(value, list):
        raise ExecutionFailed(FailureReason.NODE_RESTARTED, f"the execution's folder was lost: no {name}")
    return tuple(str(each) for each in value)


def _text_map(members: Mapping[str, JsonValue], name: str) -> dict[str, str]:
    value = members.get(name)
    if not isinstance(value, dict):
        raise ExecutionFailed(FailureReason.NODE_RESTARTED, f"the execution's folder was lost: no {name}")
    return {key: str(each) for key, each in value.items()}
