"""What a node can do, as it measured it itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from parity_protocol.ids import WireSha256
from parity_protocol.needs import Name
from parity_protocol.quantities import WireTokenAmount
from parity_protocol.task import IsolationTier, TaskKind
from parity_protocol.wire import Request

__all__ = ["MAX_CAPABILITY_AGE_S", "AnnouncedPolicy", "Capability", "ExecutorState", "Gpu"]

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


class AnnouncedPolicy(Request):
    """What dispatch compares of the operator's policy, to spare hopeless offers; the node's own check decides."""

    digest: WireSha256  # of the whole policy; a new one makes what the node refused worth another offer
    kinds: frozenset[TaskKind]
    egress: bool  # whether a task may reach any host at all
    is_open: bool = True  # whether new tasks are taken at this time of the week
    max_wall_time_s: float | None = Field(default=None, gt=0)
    max_memory_bytes: int | None = Field(default=None, gt=0)
    max_cpus: float | None = Field(default=None, gt=0)
    max_gpus: int | None = Field(default=None, ge=0)
    min_reward: WireTokenAmount = 0
    min_reward_per_hour: WireTokenAmount = 0


class Capability(Request):
    """A node's fingerprint, offered to dispatch."""

    node_version: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,5}\.[0-9]{1,5}\.[0-9]{1,5}$")]
    executors: dict[TaskKind, ExecutorState] = {}
    slots: int = Field(ge=0, le=4096)
    cpus: float = Field(gt=0, le=4096)
    memory_bytes: int = Field(ge=0, lt=2**53)
    disk_free_bytes: int = Field(ge=0, lt=2**60)
    model_types: Annotated[tuple[Text, ...], Field(max_length=64)] = ()  # of federated learning
    engines: Annotated[tuple[Text, ...], Field(max_length=16)] = ()  # beside our own, that carry rounds
    models: Annotated[tuple[Text, ...], Field(max_length=256)] = ()  # of the LLM executor
    gpus: Annotated[tuple[Gpu, ...], Field(max_length=64)] = ()
    shards: Annotated[tuple[Name, ...], Field(max_length=64)] = ()  # data sets that the operator lends, by name
    policy: AnnouncedPolicy | None = None
    platform: Text = ""
    python: Text = ""
    measured_at: float = Field(ge=0, lt=2**40, allow_inf_nan=False)  # unix seconds
