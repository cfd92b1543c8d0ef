"""Which node may run which task, and in words why another may not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache

from parity_protocol.capability import MAX_CAPABILITY_AGE_S, AnnouncedPolicy, Capability
from parity_protocol.manifest import version_tuple
from parity_protocol.policy import HOURS_RULE, Denial
from parity_protocol.quantities import format_bytes
from parity_protocol.task import (
    CommandSpec,
    DockerSpec,
    FederatedLearningSpec,
    IsolationTier,
    LlmSpec,
    ShardInput,
    TaskKind,
    input_bytes,
)

__all__ = ["Needs", "NodeView", "check_fit", "needs_of"]

_NO_VERSION = "0.0.0"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a node must have for a task, as far as dispatch compares it."""

    kind: TaskKind
    isolation: IsolationTier
    cpus: float
    memory_bytes: int
    disk_bytes: int
    min_node_version: str
    model: str = ""  # LLM model, or the federated model's type
    gpus: int = 0
    egress: bool = False
    wall_time_s: float = 0.0
    reward: int | None = None  # of one task, base units; None when it was not noted
    shards: tuple[str, ...] = ()  # data sets of operators, by name
    engine: str = ""  # that carries a federated session's rounds, when it is not our own
    legacy: bool = False  # without an order that a node could check: for devices of the old network alone

    def to_doc(self) -> str:
        """Return it as JSON text."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    @lru_cache(maxsize=4096)
    def from_doc(text: str) -> Needs:
        """Read what ``to_doc`` wrote."""
        fields = json.loads(text)
        fields["kind"] = TaskKind(fields["kind"])
        fields["isolation"] = IsolationTier(fields["isolation"])
        fields["shards"] = tuple(fields.get("shards", ()))
        return Needs(**fields)


@dataclass(frozen=True, slots=True)
class NodeView:
    """What dispatch knows of a node when it decides."""

    node_id: str
    capability: Capability
    capability_age_s: float
    free_slots: int
    draining: bool
    bond: int  # base units, as the chain follower saw it last
    min_bond: int


def needs_of(spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec, *, reward: int | None = None) -> Needs:
    """Return what ``spec`` needs of a node that gets ``reward`` base units for one task of it."""
    model = engine = ""
    if isinstance(spec, LlmSpec):
        model = spec.model
    elif isinstance(spec, FederatedLearningSpec):
        model, engine = spec.model_type, "" if spec.engine == "parity" else spec.engine
    return Needs(
        kind=TaskKind(spec.type),
        isolation=spec.requires.isolation,
        cpus=spec.resources.cpus,
        memory_bytes=spec.resources.memory_bytes,
        disk_bytes=spec.resources.disk_bytes + input_bytes(spec),
        min_node_version=spec.requires.min_node_version or _NO_VERSION,
        model=model,
        gpus=spec.resources.gpus,
        egress=isinstance(spec, CommandSpec | DockerSpec) and spec.egress is not None,
        wall_time_s=spec.budgets.wall_time_s,
        reward=reward,
        shards=tuple(sorted({item.shard for item in spec.inputs if isinstance(item, ShardInput)})),
        engine=engine,
    )


def check_fit(needs: Needs, node: NodeView) -> Denial | None:  # one rule a line
    """Return the first rule that keeps ``node`` from a task with these needs, or None when it fits.

    Free slots are no rule: a busy node fits and waits its turn.
    """
    have = node.capability
    if needs.legacy:
        return Denial("order", "no order signs this task: only devices of the old network may have it")
    if node.bond < node.min_bond:
        return Denial("stake", f"its bond is {node.bond} base units, the market requires {node.min_bond}")
    if node.draining:
        return Denial("draining", "it is draining and takes no new work")
    if node.capability_age_s > MAX_CAPABILITY_AGE_S:
        age = round(node.capability_age_s)
        return Denial("capability", f"its capability is {age} s old, at most {MAX_CAPABILITY_AGE_S:.0f} s count")
    executor = have.executors.get(needs.kind)
    if executor is None or not executor.available:
        reason = executor.reason if executor is not None and executor.reason else "it offers no executor for it"
        return Denial("kind", f"it cannot run {needs.kind} tasks: {reason}")
    if executor.isolation.rank < needs.isolation.rank:
        return Denial("isolation", f"its isolation is {executor.isolation}, the task needs {needs.isolation}")
    if have.memory_bytes < needs.memory_bytes:
        return Denial(
            "memory",
            f"it has {format_bytes(have.memory_bytes)} of memory, the task needs {format_bytes(needs.memory_bytes)}",
        )
    if have.cpus < needs.cpus:
        return Denial("cpus", f"it has {have.cpus:g} CPUs, the task needs {needs.cpus:g}")
    if len(have.gpus) < needs.gpus:
        return Denial("gpus", f"it has {len(have.gpus)} graphics processors, the task needs {needs.gpus}")
    if have.disk_free_bytes < needs.disk_bytes:
        return Denial(
            "disk",
            f"it has {format_bytes(have.disk_free_bytes)} of free disk, the task needs {format_bytes(needs.disk_bytes)}",
        )
    if version_tuple(have.node_version) < version_tuple(needs.min_node_version):
        return Denial("version", f"it runs version {have.node_version}, the task needs {needs.min_node_version}")
    for shard in needs.shards:
        if shard not in have.shards:
            return Denial("shards", f"it does not have the data set {shard!r}")
    if needs.kind is TaskKind.FEDERATED_LEARNING and needs.model not in have.model_types:
        return Denial("model_type", f"it does not train models of type {needs.model!r}")
    if needs.engine and needs.engine not in have.engines:
        return Denial(
            "engine", f"engine {needs.engine} is not installed there: parity fl engine install {needs.engine}"
        )
    if needs.kind is TaskKind.LLM and needs.model not in have.models:
        return Denial("model", f"it does not have the model {needs.model!r}")
    return _check_policy(needs, have.policy) if have.policy is not None else None


def _check_policy(needs: Needs, policy: AnnouncedPolicy) -> Denial | None:
    """Return the first rule of the operator, as far as it was announced, that refuses such a task."""
    if not policy.is_open:
        return Denial(HOURS_RULE, "its operator takes no new work at this time of the week")
    if needs.kind not in policy.kinds:
        return Denial("policy.kinds", f"its operator allows no {needs.kind} tasks")
    if needs.egress and not policy.egress:
        return Denial("policy.domains", "its operator lets tasks reach no host")
    limits = (
        ("max_wall_time_s", policy.max_wall_time_s, needs.wall_time_s, "seconds of wall time"),
        ("max_memory_bytes", policy.max_memory_bytes, needs.memory_bytes, "bytes of memory"),
        ("max_cpus", policy.max_cpus, needs.cpus, "CPUs"),
        ("max_gpus", policy.max_gpus, needs.gpus, "graphics processors"),
    )
    for rule, limit, wanted, unit in limits:
        if limit is not None and wanted > limit:
            return Denial(f"policy.{rule}", f"its operator allows {limit:.15g} {unit}, the task asks for {wanted:.15g}")
    if needs.reward is not None and needs.reward < policy.min_reward:
        return Denial("policy.min_reward", f"its operator's floor is {policy.min_reward} base units a task")
    if needs.reward is not None and needs.reward * 3600 < policy.min_reward_per_hour * Fraction(needs.wall_time_s):
        return Denial("policy.min_reward_per_hour", f"its operator's floor is {policy.min_reward_per_hour} an hour")
    return None
