"""May this node run this task now? Pure: everything that is asked is passed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from parity_fl.engines.flower import bundle_digest
from parity_node.disk_need import DiskNeed
from parity_node.executors.base import Limits
from parity_protocol.capability import Capability
from parity_protocol.isolation import IsolationTier
from parity_protocol.manifest import VerifiedManifest, version_tuple
from parity_protocol.policy import Denial, Policy, check_bundle, check_policy, least_tier
from parity_protocol.task import CommandSpec, DockerSpec, FederatedLearningSpec, LlmSpec, TaskKind

__all__ = ["Committed", "admit", "limits_of", "narrowed"]


@dataclass(frozen=True, slots=True)
class Committed:
    """What the running executions may still use."""

    memory_bytes: int = 0
    disk: DiskNeed = field(default_factory=DiskNeed)

    def __add__(self, other: Committed) -> Committed:
        return Committed(self.memory_bytes + other.memory_bytes, self.disk + other.disk)

    def __sub__(self, other: Committed) -> Committed:
        return Committed(self.memory_bytes - other.memory_bytes, self.disk - other.disk)


def admit(
    verified: VerifiedManifest,
    *,
    policy: Policy,
    capability: Capability,
    committed: Committed,
    now: datetime,
) -> list[Denial]:
    """Return every rule that refuses this task; an empty list permits it. Its room on disk is ``NodeCache.denials``'.

    Args:
        verified: A manifest that passed ``verify_manifest``: signature, window, order and version are right.
        policy: The operator's own limits. A manifest brings none that widen them.
        capability: As measured last.
        committed: What the executions that run now may still use.
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
    denials += _bundle(verified, policy)
    denials += _room(verified, capability, committed)
    if now.timestamp() > manifest.order.deadline:
        denials.append(Denial("deadline", "the order's deadline has passed"))
    return denials


def narrowed(
    spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec, policy: Policy
) -> CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec:
    """Return the spec as it is run: it asks for the isolation that the operator wants, if that is stronger."""
    tier = least_tier(policy, spec)
    if tier is spec.requires.isolation:
        return spec
    return spec.model_copy(update={"requires": spec.requires.model_copy(update={"isolation": tier})})


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


def _bundle(verified: VerifiedManifest, policy: Policy) -> list[Denial]:
    """Refuse a session that Flower carries with an app that the operator does not allow."""
    plan = verified.manifest.plan
    fleet = plan.get("flower") if plan is not None else None
    if not isinstance(fleet, dict):
        return []
    denial = check_bundle(policy, str(fleet.get("bundle_sha256")), own=bundle_digest())
    return [] if denial is None else [denial]


def _room(verified: VerifiedManifest, capability: Capability, committed: Committed) -> list[Denial]:
    resources = verified.spec.resources
    free_memory = capability.memory_bytes - committed.memory_bytes
    denials = []
    if resources.cpus > capability.cpus:
        denials.append(Denial("cpus", f"asks for {resources.cpus:g} processors, there are {capability.cpus:g}"))
    if resources.gpus > len(capability.gpus):
        denials.append(
            Denial("gpus", f"asks for {resources.gpus} graphics processors, {len(capability.gpus)} are granted")
        )
    if resources.memory_bytes > free_memory:
        denials.append(Denial("memory", f"asks for {resources.memory_bytes} bytes of memory, {free_memory} are free"))
    return denials
