"""The port behind which every kind of task runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from pydantic import JsonValue

from parity_protocol.capability import ExecutorState
from parity_protocol.errors import BadField, FailureReason
from parity_protocol.receipt import Usage
from parity_protocol.report import Outcome
from parity_protocol.task import CommandSpec, DockerSpec, FederatedLearningSpec, LlmSpec, TaskKind

__all__ = ["MAX_LOG_READ_BYTES", "ExecutionResult", "Executor", "Handle", "Job", "Limits"]

MAX_LOG_READ_BYTES = 65_536  # that one call of ``logs`` returns


@dataclass(frozen=True, slots=True)
class Limits:
    """What one execution may use: the task's wishes, narrowed by the node's own limits."""

    wall_time_s: float
    cpus: float
    memory_bytes: int
    disk_bytes: int
    pids: int


@dataclass(frozen=True, slots=True)
class Job:
    """One execution, as an executor gets it."""

    execution_id: str  # UUID
    task_id: str
    lease_id: str
    fence: int
    spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec
    part: int
    parts: int
    plan: Mapping[str, JsonValue] | None  # what the market computed for the group
    folder: Path  # this execution's own; exists, empty, mode 0700
    limits: Limits
    slot: int = 0  # 0 … slots - 1, held by one execution at a time
    group_id: str = ""  # of the session that it is a part of; empty for a task by itself
    shard: str | None = None  # of a part of a sharded session: its sealed source, as it was signed


@dataclass(frozen=True, slots=True)
class Handle:
    """What a restarted node needs to find an execution again. ``state`` is JSON and the executor's own."""

    executor: str
    version: int
    state: Mapping[str, JsonValue]

    @property
    def slot(self) -> int | None:
        """The slot that the execution was prepared for, where the executor says so."""
        slot = self.state.get("slot")
        return slot if isinstance(slot, int) else None

    def to_json(self) -> dict[str, JsonValue]:
        """Return the handle as JSON."""
        return {"executor": self.executor, "version": self.version, "state": dict(self.state)}

    @classmethod
    def from_json(cls, value: object) -> Handle:
        """Read what ``to_json`` wrote.

        Raises:
            BadField: Something else.
        """
        if isinstance(value, dict):
            executor, version, state = value.get("executor"), value.get("version"), value.get("state")
            if isinstance(executor, str) and isinstance(version, int) and isinstance(state, dict):
                return cls(executor, version, state)
        raise BadField("not an executor's handle", field="handle")


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """How an execution ended. A success has exactly one of ``result_bytes`` and ``result_path``.

    ``result_path`` is a file, or a folder that ``parity_node.outputs.gather_output`` made, inside the job's folder; the
    agent takes what it needs of it before ``cleanup``.
    """

    outcome: Outcome
    reason: FailureReason | None = None  # with a failure
    message: str = ""
    exit_code: int | None = None
    result_bytes: bytes | None = None
    result_path: Path | None = None
    usage: Usage = field(default_factory=Usage)
    metrics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    log_path: Path | None = None
    environment: str = ""  # ``sha256:…`` of the image or model that ran; goes into the receipt


class Executor(Protocol):
    """Runs one kind of task.

    ``start`` MUST return before the task ends. ``stop`` and ``cleanup`` MUST be idempotent and MUST NOT raise if
    nothing is left to do. A handle MUST survive ``json.loads(json.dumps(...))`` and a node restart. Foreign
    exceptions MUST NOT cross this port: what the task did wrong is a failed ``ExecutionResult``; what keeps the
    executor from working is ``ExecutionFailed`` or another ``ParityError``. Every call but ``wait`` MUST be bounded
    in time. Cancelling a call MUST leave a state that ``stop`` and ``cleanup`` can end.
    """

    @property
    def kind(self) -> TaskKind:
        """The kind of task that this runs."""
        ...

    async def describe(self) -> ExecutorState:
        """Try a run and say whether tasks can run here, in which isolation tier, and why not. MUST NOT raise."""
        ...

    async def prepare(self, job: Job) -> Handle:
        """Fetch inputs and make the folder ready; nothing of the task runs yet."""
        ...

    async def start(self, handle: Handle) -> Handle:
        """Start the task; the returned handle has what ``recover`` needs (pid, start time, boot id …)."""
        ...

    async def wait(self, handle: Handle) -> ExecutionResult:
        """Return when the task has ended; the limits of its job are enforced while it runs."""
        ...

    async def stop(self, handle: Handle) -> None:
        """End the task, its whole tree of processes, in bounded time; idempotent."""
        ...

    async def recover(self, handle: Handle) -> bool:
        """Return whether ``wait`` will work on a handle of an earlier process: the task runs on, or has ended."""
        ...

    async def cleanup(self, handle: Handle) -> None:
        """Remove what the execution left; idempotent."""
        ...

    async def logs(self, handle: Handle, offset: int) -> bytes:
        """Return what the task printed from byte ``offset`` on, at most ``MAX_LOG_READ_BYTES``; empty when none yet."""
        ...
