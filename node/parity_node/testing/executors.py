# ruff: noqa: ARG002 - the port names arguments that a fake does not need
"""Executors that follow a script: for tests, and for measuring a node without what tasks cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import anyio

from parity_node.executors.base import MAX_LOG_READ_BYTES, ExecutionResult, Executor, Handle, Job
from parity_protocol.capability import ExecutorState
from parity_protocol.clock import Clock
from parity_protocol.errors import BadField
from parity_protocol.receipt import Usage
from parity_protocol.report import Outcome
from parity_protocol.task import IsolationTier, TaskKind

__all__ = ["FileExecutor", "NoopExecutor", "ScriptedExecutor"]


class NoopExecutor(Executor):
    """Ends every task at once with the result ``ok``; keeps nothing."""

    def __init__(self, kind: TaskKind = TaskKind.COMMAND) -> None:
        self._kind = kind

    @property
    def kind(self) -> TaskKind:
        """The kind that it was made for."""
        return self._kind

    async def describe(self) -> ExecutorState:
        """Say that it can run."""
        return ExecutorState(available=True, isolation=IsolationTier.PROCESS)

    async def prepare(self, job: Job) -> Handle:
        """Do nothing."""
        return Handle("noop", 1, {"execution_id": job.execution_id})

    async def start(self, handle: Handle) -> Handle:
        """Do nothing."""
        return handle

    async def wait(self, handle: Handle) -> ExecutionResult:
        """Return success."""
        return ExecutionResult(Outcome.SUCCEEDED, exit_code=0, result_bytes=b"ok", usage=Usage(wall_ms=1))

    async def stop(self, handle: Handle) -> None:
        """Do nothing."""

    async def recover(self, handle: Handle) -> bool:
        """Say that ``wait`` works: it always does."""
        return True

    async def cleanup(self, handle: Handle) -> None:
        """Do nothing."""

    async def logs(self, handle: Handle, offset: int) -> bytes:
        """Return nothing: it prints nothing."""
        return b""


class ScriptedExecutor(Executor):
    """Runs each task for a given time and ends it with a given result; remembers what was asked of it.

    Args:
        run_for_s: Time from ``start`` to the end, on ``clock``.
        result: How executions end, unless ``results`` names their task.
        can_recover: What ``recover`` answers for executions of an earlier process.
        log: What every execution prints at its start.
        fail_in: Name of a method that raises ``error``.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        kind: TaskKind = TaskKind.COMMAND,
        run_for_s: float = 0.0,
        result: ExecutionResult | None = None,
        results: Mapping[str, ExecutionResult] | None = None,
        can_recover: bool = False,
        log: bytes = b"",
        fail_in: str = "",
        error: Exception | None = None,
        available: bool = True,
    ) -> None:
        self._clock = clock
        self._kind = kind
        self.run_for_s = run_for_s
        self.result = result or ExecutionResult(Outcome.SUCCEEDED, exit_code=0, result_bytes=b"done")
        self.results = dict(results or {})
        self.can_recover = can_recover
        self.log = log
        self.fail_in = fail_in
        self.error = error or RuntimeError("scripted failure")
        self.available = available
        self.jobs: list[Job] = []
        self.started: list[str] = []  # task ids, in order, as the lists below
        self.stopped: list[str] = []
        self.recovered: list[str] = []
        self.cleaned: list[str] = []
        self._ends_at: dict[str, float] = {}

    @property
    def kind(self) -> TaskKind:
        """The kind that it was made for."""
        return self._kind

    async def describe(self) -> ExecutorState:
        """Say what the script says."""
        self._maybe_fail("describe")
        return ExecutorState(
            available=self.available,
            isolation=IsolationTier.PROCESS,
            reason="" if self.available else "the script says so",
        )

    async def prepare(self, job: Job) -> Handle:
        """Remember the job."""
        self._maybe_fail("prepare")
        self.jobs.append(job)
        return Handle("scripted", 1, {"task_id": job.task_id, "folder": str(job.folder)})

    async def start(self, handle: Handle) -> Handle:
        """Let the time run."""
        self._maybe_fail("start")
        task_id = _task_of(handle)
        self.started.append(task_id)
        self._ends_at[task_id] = self._clock.monotonic() + self.run_for_s
        return Handle("scripted", 1, {**handle.state, "started": True})

    async def wait(self, handle: Handle) -> ExecutionResult:
        """Return the scripted result when the time is over."""
        self._maybe_fail("wait")
        task_id = _task_of(handle)
        end = self._ends_at.get(task_id, self._clock.monotonic() + self.run_for_s)
        left_s = end - self._clock.monotonic()
        if left_s > 0:
            await self._clock.sleep(left_s)
        return self.results.get(task_id, self.result)

    async def stop(self, handle: Handle) -> None:
        """Remember that it was asked."""
        self._maybe_fail("stop")
        self.stopped.append(_task_of(handle))

    async def recover(self, handle: Handle) -> bool:
        """Say what the script says."""
        self._maybe_fail("recover")
        self.recovered.append(_task_of(handle))
        return self.can_recover

    async def cleanup(self, handle: Handle) -> None:
        """Remember that it was asked."""
        self._maybe_fail("cleanup")
        self.cleaned.append(_task_of(handle))

    async def logs(self, handle: Handle, offset: int) -> bytes:
        """Return the scripted log."""
        return self.log[offset : offset + MAX_LOG_READ_BYTES]

    def _maybe_fail(self, method: str) -> None:
        if method == self.fail_in:
            raise self.error


class FileExecutor(NoopExecutor):
    """Writes its result to a file of ``size`` bytes after ``run_for_s``: small enough results travel inside a report."""

    def __init__(self, clock: Clock, *, size: int = 2, run_for_s: float = 0.0) -> None:
        super().__init__()
        self._clock = clock
        self._size = size
        self._run_for_s = run_for_s

    async def prepare(self, job: Job) -> Handle:
        """Remember the folder."""
        return Handle("file", 1, {"folder": str(job.folder)})

    async def wait(self, handle: Handle) -> ExecutionResult:
        """Write the result."""
        await self._clock.sleep(self._run_for_s)
        path = Path(str(handle.state["folder"])) / "result"
        await anyio.Path(path).write_bytes(b"r" * self._size)
        return ExecutionResult(Outcome.SUCCEEDED, exit_code=0, result_path=path, usage=Usage(wall_ms=1))

    async def recover(self, handle: Handle) -> bool:
        """Say that ``wait`` works while the folder is there."""
        return await anyio.Path(str(handle.state["folder"])).is_dir()


def _task_of(handle: Handle) -> str:
    task_id = handle.state.get("task_id")
    if not isinstance(task_id, str):
        raise BadField("not a handle of this executor", field="handle")
    return task_id
