"""Commands: a program and its arguments in bubblewrap. Off unless the operator enables it.

Inside, ``/task`` is the task's home with its inputs below ``/task/inputs``, ``/output`` takes the files of its result if it
asked for that, and ``/tmp`` is scratch space. All of them are memory of the task's own.

A task dies with its node: bwrap's parent-death signal ends the tree when the node is killed, so nothing of it can be
found again and ``recover`` says no. The market hands the task on.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread

from parity_node.data import InputSource
from parity_node.executors.base import ExecutionResult, Handle, Job, Limits
from parity_node.executors.command_job import CommandJob
from parity_node.executors.command_result import Ending, command_result
from parity_node.executors.egress import EgressProxy, listen_inside
from parity_node.executors.folder import JobFolder, folder_of
from parity_node.executors.process import Identity, OutputLog, adopt_orphans, boot_id, kill_tree_of, same_process
from parity_node.executors.sandbox.bwrap import OUTPUT, find_bwrap
from parity_node.executors.sandbox.cgroup import Cgroup, remove_left_over
from parity_node.executors.sandbox.drop import make_traversable, own, slot_identity
from parity_node.executors.sandbox.landlock import missing_layer
from parity_node.executors.sandbox.launch import SandboxExit, SandboxProcess
from parity_node.executors.sandbox.limits import most_files
from parity_node.executors.sandbox.orphans import kill_orphans
from parity_node.executors.sandbox.probe import find_missing, try_sandbox
from parity_node.executors.trial import Trial
from parity_node.waiting import within
from parity_protocol.capability import ExecutorState
from parity_protocol.clock import Clock
from parity_protocol.disk import failure_of
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.report import Outcome
from parity_protocol.task import CommandSpec, IsolationTier, TaskKind

__all__ = ["CommandExecutor"]

VERSION = 1
RETRY_TRIAL_S = 30.0  # after a trial run that failed
_TRIAL_LIMITS = Limits(wall_time_s=1.0, cpus=1.0, memory_bytes=64 << 20, disk_bytes=0, pids=8)
_RLIMITS_ONLY = "limits hold per process only: control groups cannot be written here"
_WATCH_S = 0.5  # between two looks at how many files a task has made


@dataclass
class _Run:
    """A task that this process started."""

    process: SandboxProcess
    job: CommandJob
    cgroup: Cgroup | None
    proxy: EgressProxy | None
    started_at: float  # Clock.monotonic()
    stopped: bool = False
    has_too_many_files: bool = False
    result: ExecutionResult | None = None
    closing: anyio.Lock = field(default_factory=anyio.Lock)  # one makes the result, or lets go of what it is made from


class CommandExecutor:
    """Implements ``Executor`` for argument lists.

    The result is what the task printed, standard output and error together. Exit status 0 is success.

    Args:
        exec_dir: Where the executions' folders are; tried by the trial run.
        enabled: Whether the operator wants it.
        hidden: Files of the node, such as its keys, that the trial run must not reach.
        on_egress_refused: As ``on_refused`` of ``EgressProxy``.
    """

    def __init__(
        self,
        *,
        exec_dir: Path,
        inputs: InputSource,
        clock: Clock,
        enabled: bool,
        hidden: Collection[Path] = (),
        on_egress_refused: Callable[[str], None] | None = None,
    ) -> None:
        self._exec_dir = exec_dir
        self._inputs = inputs
        self._clock = clock
        self._enabled = enabled
        self._hidden = tuple(hidden)
        self._on_egress_refused = on_egress_refused
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
        for item in spec.inputs:
            await self._inputs.bring(item, folder.inputs / item.name)
        CommandJob.of(job, spec).write(folder)
        return Handle(
            "command", VERSION, {"execution_id": job.execution_id, "folder": str(job.folder), "slot": job.slot}
        )

    async def start(self, handle: Handle) -> Handle:
        """Start the sandbox; see the port."""
        await self._refuse_unless_available()
        key = _key(handle)
        if key in self._runs:
            return _started(handle, self._runs[key].process)
        folder = folder_of(handle)
        job = CommandJob.read(folder)
        bwrap = find_bwrap()
        if bwrap is None:
            raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, "bubblewrap is not installed any more")
        output = OutputLog(folder.log, job.max_output_bytes)
        cgroup, proxy = None, None
        try:
            cgroup = Cgroup.make(key, job.limits)
            if job.egress is not None:
                proxy = EgressProxy(
                    job.egress,
                    folder=folder.path,
                    on_refusal=output.note,
                    on_refused=self._on_egress_refused,
                    execution_id=key,
                    clock=self._clock,
                )
            sandbox = job.sandbox(folder, also_env=proxy.env() if proxy else {})
            adopt_orphans()
            process = await SandboxProcess.launch(
                bwrap,
                sandbox,
                output,
                confine=cgroup.join if cgroup else None,
                before_start=_door(proxy, sandbox.identity) if proxy else None,
                keeps_scratch=True,
            )
        except BaseException:
            output.close()
            with anyio.CancelScope(shield=True):
                if proxy is not None:
                    await proxy.aclose()
            if cgroup is not None:
                cgroup.remove()
            raise
        output.file.when_full(process.kill)
        self._runs[key] = _Run(process, job, cgroup, proxy, self._clock.monotonic())
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
        left_s = run.started_at + run.job.limits.wall_time_s - self._clock.monotonic()
        is_late = False
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch, run)
            try:
                await within(self._clock, max(0.0, left_s), run.process.wait)
            except TimeoutError:
                is_late = True
                with anyio.CancelScope(shield=True):
                    await run.process.end()
            ended = await run.process.wait()
            group.cancel_scope.cancel()
        async with run.closing:
            if run.result is None:
                run.result = await self._result(folder_of(handle), run, ended, is_late=is_late)
            await _release(run)
        return run.result

    async def _watch(self, run: _Run) -> None:
        """End a task that makes more files than its memory holds: a tmpfs bounds their bytes, not their number."""
        most = most_files(run.job.limits)
        while run.process.scratch is not None:
            if run.process.scratch.fill().files > most:
                run.has_too_many_files = True
                run.process.kill()
                return
            await self._clock.sleep(_WATCH_S)

    async def _result(self, folder: JobFolder, run: _Run, ended: SandboxExit, *, is_late: bool) -> ExecutionResult:
        """Say what became of a task that has ended."""
        wall_s = self._clock.monotonic() - run.started_at
        group, scratch = run.cgroup, run.process.scratch
        ending = Ending(
            exit=ended,
            wall_s=wall_s,
            cpu_ms=max(ended.usage.cpu_ms, group.cpu_ms() if group else 0),
            peak_memory_bytes=max(ended.usage.peak_memory_bytes, group.peak_memory_bytes() if group else 0),
            oom_kills=group.oom_kills() if group else 0,
            network_bytes=run.proxy.bytes_used if run.proxy else 0,
            scratch_bytes=scratch.fill().size if scratch else 0,
            is_stopped=run.stopped,
            is_late=is_late,
            has_too_many_files=run.has_too_many_files,
            full=tuple(path for path in scratch.folders if not scratch.fill(path).has_room) if scratch else (),
        )
        job, log = run.job, run.process.child.output.file
        source = scratch.path(OUTPUT) if scratch is not None and job.output is not None else None

        def make() -> ExecutionResult:
            return command_result(folder, log, ending, job.limits, source=source, output=job.output)

        return make() if source is None else await anyio.to_thread.run_sync(make)

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
        run = self._runs.pop(_key(handle), None)
        if run is not None:
            async with run.closing:
                await _release(run)
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
        await anyio.to_thread.run_sync(remove_left_over, self._clock.now().timestamp())
        missing = find_missing() or await try_sandbox(self._exec_dir, hidden=self._hidden)
        if missing is not None:
            return ExecutorState(available=False, reason=missing.reason[:500])
        group = Cgroup.make(f"probe-{os.getpid()}", _TRIAL_LIMITS)
        if group is not None:
            group.remove()
        lacks = [each for each in ("" if group else _RLIMITS_ONLY, missing_layer()) if each]
        return ExecutorState(available=True, isolation=IsolationTier.BWRAP, reason="; ".join(lacks))


def _door(proxy: EgressProxy, identity: Identity | None) -> Callable[[int], Awaitable[None]]:
    """Return what opens the proxy's listener in a sandbox, before anything of the task runs there."""

    async def open_door(pid: int) -> None:
        proxy.attach(await listen_inside(pid, identity))

    return open_door


async def _release(run: _Run) -> None:
    """Let go of what a run holds beside its process; idempotent."""
    if run.process.scratch is not None:
        run.process.scratch.close()
        run.process.scratch = None
    if run.proxy is not None:
        await run.proxy.aclose()
    if run.cgroup is not None:
        run.cgroup.remove()


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
        raise ExecutionFailed(failure_of(exc), f"{path}: {exc.strerror}") from exc
