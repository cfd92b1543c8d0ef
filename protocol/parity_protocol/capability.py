"""What a node can do, as it measured it itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from parity_protocol.task import IsolationTier, TaskKind
from parity_protocol.wire import Request

__all__ = ["MAX_CAPABILITY_AGE_S", "Capability", "ExecutorState", "Gpu"]

MAX_CAPABILITY_AGE_S = 300.0  # seconds; an older one does not match anything

Text = Annotated[str, StringConstraints(max_length=255)]


class ExecutorState(Request):
    """Whether one kind of task can run here, proven by a trial run."""

    available: bool
    reason: Annotated[str, StringConstraints(max_length=500)] = ""  # why not, when it is not
    isolation: IsolationTier = IsolationTier.NONE


class Gpu(Request):
    """One graphics processor."""

    name: Text
    memory_bytes: int = Field(ge=0, lt=2**53)
    driver: Text = ""


class Capability(Request):
    """A node's fingerprint, offered to dispatch."""

    node_version: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,5}\.[0-9]{1,5}\.[0-9]{1,5}$")]
    executors: dict[TaskKind, ExecutorState] = {}
    slots: int = Field(ge=0, le=4096)
    cpus: float = Field(gt=0, le=4096)
    memory_bytes: int = Field(ge=0, lt=2**53)
    disk_free_bytes: int = Field(ge=0, lt=2**60)
    model_types: Annotated[tuple[Text, ...], Field(max_length=64)] = ()  # of federated learning
    models: Annotated[tuple[Text, ...], Field(max_length=256)] = ()  # of the LLM executor
    gpus: Annotated[tuple[Gpu, ...], Field(max_length=64)] = ()
    platform: Text = ""
    python: Text = ""
    measured_at: float = Field(ge=0, lt=2**40, allow_inf_nan=False)  # unix seconds
