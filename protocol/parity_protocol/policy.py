"""What may run, reach and consume. Policies only narrow: the effective one is the intersection, and deny wins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Annotated

from pydantic import Field, StringConstraints

from parity_protocol.quantities import TokenAmount, WireTokenAmount
from parity_protocol.task import CommandSpec, DockerSpec, FederatedLearningSpec, LlmSpec, TaskKind, input_bytes
from parity_protocol.wire import Request

__all__ = ["ALLOW_ALL_KINDS", "Denial", "Policy", "check_policy", "intersect"]

ALLOW_ALL_KINDS = frozenset(TaskKind)


class Policy(Request):
    """Limits on what a node will do; None means no limit of this policy's own. An unknown field is refused."""

    kinds: frozenset[TaskKind] = ALLOW_ALL_KINDS
    max_wall_time_s: float | None = Field(default=None, gt=0)
    max_memory_bytes: int | None = Field(default=None, gt=0)
    max_cpus: float | None = Field(default=None, gt=0)
    max_input_bytes: int | None = Field(default=None, ge=0)
    min_reward: WireTokenAmount = 0
    creators: frozenset[Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{40}$")]] | None = None


@dataclass(frozen=True, slots=True)
class Denial:
    """One rule that refuses a task, for people and for counters."""

    rule: str  # stable name, such as ``policy.kinds``
    message: str


def intersect(*policies: Policy) -> Policy:
    """Return the policy that allows exactly what each of ``policies`` allows; none of them means no limits."""
    return reduce(_narrower, policies, Policy())


def check_policy(
    policy: Policy,
    spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec,
    *,
    reward: TokenAmount,
    creator: str,
) -> list[Denial]:
    """Return every rule of ``policy`` that refuses this task; an empty list permits it.

    Args:
        reward: This task's share, base units.
        creator: Address of the submitter, lower case.
    """
    denials = []
    if TaskKind(spec.type) not in policy.kinds:
        denials.append(Denial("policy.kinds", f"{spec.type} tasks are not allowed here"))
    limits = (
        ("max_wall_time_s", policy.max_wall_time_s, spec.budgets.wall_time_s, "seconds of wall time"),
        ("max_memory_bytes", policy.max_memory_bytes, spec.resources.memory_bytes, "bytes of memory"),
        ("max_cpus", policy.max_cpus, spec.resources.cpus, "processors"),
        ("max_input_bytes", policy.max_input_bytes, input_bytes(spec), "bytes of input"),
    )
    for rule, limit, wanted, unit in limits:
        if limit is not None and wanted > limit:
            denials.append(Denial(f"policy.{rule}", f"asks for {wanted:g} {unit}, at most {limit:g} are allowed"))
    if reward < policy.min_reward:
        denials.append(Denial("policy.min_reward", f"pays {reward} base units, the floor is {policy.min_reward}"))
    if policy.creators is not None and creator not in policy.creators:
        denials.append(Denial("policy.creators", f"{creator} is not on the list of submitters"))
    return denials


def _narrower(left: Policy, right: Policy) -> Policy:
    creators = left.creators
    if right.creators is not None:
        creators = right.creators if creators is None else creators & right.creators
    return Policy(
        kinds=left.kinds & right.kinds,
        max_wall_time_s=_least(left.max_wall_time_s, right.max_wall_time_s),
        max_memory_bytes=_least_int(left.max_memory_bytes, right.max_memory_bytes),
        max_cpus=_least(left.max_cpus, right.max_cpus),
        max_input_bytes=_least_int(left.max_input_bytes, right.max_input_bytes),
        min_reward=max(left.min_reward, right.min_reward),
        creators=creators,
    )


def _least(left: float | None, right: float | None) -> float | None:
    return right if left is None else left if right is None else min(left, right)


def _least_int(left: int | None, right: int | None) -> int | None:
    return right if left is None else left if right is None else min(left, right)
