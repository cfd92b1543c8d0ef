"""May this node run this task now? Pure: everything that is asked is passed in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from parity_node.executors.base import Limits
from parity_protocol.capability import Capability
from parity_protocol.isolation import IsolationTier
from parity_protocol.manifest import VerifiedManifest, version_tuple
from parity_protocol.policy import Denial, Policy, check_policy
from parity_protocol.task import CommandSpec, DockerSpec, FederatedLearningSpec, LlmSpec, TaskKind, input_bytes

__all__ = ["Committed", "admit", "limits_of"]


@dataclass(frozen=True, slots=True)
class Committed:
    """What the running executions may still use."""

    memory_bytes: int = 0
    disk_bytes: int = 0

    def __add__(self, other: Committed) -> Committed:
        return Committed(self.memory_bytes + other.memory_bytes, self.disk_bytes + other.disk_bytes)

    def __sub__(self, other: Committed) -> Committed:
        return Committed(self.memory_bytes - other.memory_bytes, self.disk_bytes - other.disk_bytes)


def admit(
    verified: VerifiedManifest,
    *,
    policy: Policy,
    capability: Capability,
    committed: Committed,
    disk_floor_bytes: int,
    now: datetime,
) -> list[Denial]:
    """Return every rule that refuses this task; an empty list permits it.

    Args:
        verified: A manifest that passed ``verify_manifest``: signature, window, order and version are right.
        policy: The operator's own limits. A manifest brings none that widen them.
        capability: As measured last; its ``disk_free_bytes`` is what was free then.
        committed: What the executions that run now may still use.
        disk_floor_bytes: Free space that is never touched.
        now: Current time, UTC.
    """
    spec, manifest = verified.spec, verified.manifest
    kind = TaskKind(spec.type)
    executor = capability.executors.get(kind)
    denials = check_policy(
        policy,
        spec,
        reward=manifest.reward,
        creator=manifest.order.creator,
        tier=executor.isolation if executor is not None else IsolationTier.NONE,
        now=now,
    )
    if executor is None or not executor.available:
        reason = executor.reason if executor is not None else "this node has no executor for it"
        denials.append(Denial("executor", f"{kind} tasks cannot run here: {reason}"))
    elif executor.isolation.rank < spec.requires.isolation.rank:
        denials.append(
            Denial("isolation", f"asks for isolation {spec.requires.isolation}, proven here is {executor.isolation}")
        )
    wanted_version = spec.requires.min_node_version
    if wanted_version is not None and version_tuple(wanted_version) > version_tuple(capability.node_version):
        denials.append(Denial("version", f"asks for node {wanted_version}, this is {capability.node_version}"))
    denials += _room(verified, capability, committed, disk_floor_bytes)
    if now.timestamp() > manifest.order.deadline:
        denials.append(Denial("deadline", "the order's deadline has passed"))
    return denials


def limits_of(
    spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec, policy: Policy, capability: Capability
) -> Limits:
    """Return what the execution may use: what it asks for, never more than policy and machine allow."""
    wall = spec.budgets.wall_time_s
    cpus, memory = min(spec.resources.cpus, capability.cpus), min(spec.resources.memory_bytes, capability.memory_bytes)
    return Limits(
        wall_time_s=wall if policy.max_wall_time_s is None else min(wall, policy.max_wall_time_s),
        cpus=cpus if policy.max_cpus is None else min(cpus, policy.max_cpus),
        memory_bytes=memory if policy.max_memory_bytes is None else min(memory, policy.max_memory_bytes),
        disk_bytes=spec.resources.disk_bytes,
        pids=spec.resources.pids,
    )


def _room(
    verified: VerifiedManifest, capability: Capability, committed: Committed, disk_floor_bytes: int
) -> list[Denial]:
    resources = verified.spec.resources
    inputs = input_bytes(verified.spec)
    free_memory = capability.memory_bytes - committed.memory_bytes
    free_disk = capability.disk_free_bytes - committed.disk_bytes - disk_floor_bytes
    denials = []
    if resources.cpus > capability.cpus:
        denials.append(Denial("cpus", f"asks for {resources.cpus:g} processors, there are {capability.cpus:g}"))
    if resources.gpus > len(capability.gpus):
        denials.append(
            Denial("gpus", f"asks for {resources.gpus} graphics processors, {len(capability.gpus)} are granted")
        )
    if resources.memory_bytes > free_memory:
        denials.append(Denial("memory", f"asks for {resources.memory_bytes} bytes of memory, {free_memory} are free"))
    if resources.disk_bytes + inputs > free_disk:
        denials.append(
            Denial("disk", f"may need {resources.disk_bytes + inputs} bytes on disk, {max(0, free_disk)} are free")
        )
    return denials
