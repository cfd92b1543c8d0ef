"""What may run, reach and consume. Policies only narrow: the effective one is the intersection, and deny wins.

A list of a policy (its images, its hosts …) is a set of *clauses*; a task must meet each of them, and it meets a clause
that has one pattern for it. One operator's list is one clause, no list is no clause, and the intersection of policies has
the clauses of all: so it permits exactly what each of them permits, in whatever order and however often they are joined.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from functools import reduce
from hashlib import sha256
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, JsonValue, StringConstraints, model_validator

from parity_protocol.isolation import IsolationTier
from parity_protocol.policy_rules import (
    DomainPattern,
    Glob,
    Hours,
    ImagePattern,
    ProgramPattern,
    covers_domain,
    is_denied_image,
    is_denied_program,
    is_image,
    is_program,
    is_shell,
    matches,
    parse_window,
    registry_of,
    touches_domain,
)
from parity_protocol.quantities import TokenAmount, WireTokenAmount
from parity_protocol.task import CommandSpec, DockerSpec, Egress, FederatedLearningSpec, LlmSpec, TaskKind, input_bytes
from parity_protocol.wire import Request

__all__ = [
    "ALLOW_ALL_KINDS",
    "ALL_SOURCES",
    "CLAUSE_FIELDS",
    "DENY_PREFIX",
    "HOURS_RULE",
    "Denial",
    "DenyRule",
    "Policy",
    "Source",
    "allowed_now",
    "check_bundle",
    "check_policy",
    "intersect",
    "least_tier",
    "policy_digest",
]

T = TypeVar("T")

Spec = CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec
Source = Literal["cid", "https", "shard"]
CreatorAddress = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{40}$")]

ALLOW_ALL_KINDS = frozenset(TaskKind)
ALL_SOURCES: frozenset[Source] = frozenset({"cid", "https", "shard"})
DENY_PREFIX = "policy.deny."  # then the name that the operator gave, or the fields of the rule
HOURS_RULE = "policy.hours"
CLAUSE_FIELDS = (
    "images",
    "registries",
    "programs",
    "domains",
    "models",
    "bundles",
    "hours",
)  # of ``Policy``: sets of clauses

_SECONDS_AN_HOUR = 3600
_SHOWN = 120  # characters of what a task asked for in a message

_LEAST = (
    "max_wall_time_s",
    "max_memory_bytes",
    "max_cpus",
    "max_pids",
    "max_disk_bytes",
    "max_gpus",
    "max_input_bytes",
    "max_output_bytes",
    "max_egress_bytes",
    "max_cache_bytes",
)
_GREATEST = ("min_reward", "min_reward_per_hour", "digest_only")


class DenyRule(Request):
    """Refuses the tasks of which everything that is given here is true; at least one thing must be.

    A list is true of a task when one of its entries is.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.+-]{0,47}$")]
    kinds: frozenset[TaskKind] | None = None
    images: frozenset[ImagePattern] | None = None
    registries: frozenset[Glob] | None = None
    programs: frozenset[ProgramPattern] | None = None
    domains: frozenset[DomainPattern] | None = None
    models: frozenset[Glob] | None = None
    creators: frozenset[CreatorAddress] | None = None
    sources: frozenset[Source] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> DenyRule:
        if all(getattr(self, name) is None for name in type(self).model_fields if name != "name"):
            raise ValueError("a rule that denies must say what: kinds, images, programs, domains, creators …")
        return self


class Policy(Request):
    """Limits on what a node will do; None means no limit of this policy's own. An unknown field is refused."""

    kinds: frozenset[TaskKind] = ALLOW_ALL_KINDS
    images: frozenset[frozenset[ImagePattern]] = frozenset()
    registries: frozenset[frozenset[Glob]] = frozenset()  # ``docker.io``, ``*.example.org``; ``tar`` is an archive
    digest_only: bool = False  # an image must be named by its digest, or come as an archive
    programs: frozenset[frozenset[ProgramPattern]] = frozenset()  # of command tasks
    shell: bool = True  # whether a command task may ask for a shell
    domains: frozenset[frozenset[DomainPattern]] = frozenset()  # that a task may ask to reach
    models: frozenset[frozenset[Glob]] = frozenset()  # of LLM tasks
    bundles: frozenset[frozenset[Glob]] = (
        frozenset()
    )  # SHA-256 of Flower apps beside the node's own, which is always allowed
    sources: frozenset[Source] = ALL_SOURCES  # where inputs, data sets and image archives may come from
    creators: frozenset[CreatorAddress] | None = None
    hours: frozenset[frozenset[Hours]] = frozenset()  # in which new tasks are taken
    max_wall_time_s: float | None = Field(default=None, gt=0)
    max_memory_bytes: int | None = Field(default=None, gt=0)
    max_cpus: float | None = Field(default=None, gt=0)
    max_pids: int | None = Field(default=None, gt=0)
    max_disk_bytes: int | None = Field(default=None, ge=0)
    max_gpus: int | None = Field(default=None, ge=0)
    max_input_bytes: int | None = Field(default=None, ge=0)
    max_output_bytes: int | None = Field(default=None, ge=0)  # what it prints and its output folder together
    max_egress_bytes: int | None = Field(default=None, ge=0)
    max_cache_bytes: int | None = Field(default=None, ge=0)  # of the node's images and data sets; no task asks for it
    min_reward: WireTokenAmount = 0
    min_reward_per_hour: WireTokenAmount = 0  # reward by the wall time that the task asks for
    isolation: dict[TaskKind, IsolationTier] = {}  # the least tier in which a kind of task may run
    deny: frozenset[DenyRule] = frozenset()


@dataclass(frozen=True, slots=True)
class Denial:
    """One rule that refuses a task, for people and for counters."""

    rule: str  # stable name, such as ``policy.kinds``
    message: str


def intersect(*policies: Policy) -> Policy:
    """Return the policy that allows exactly what each of ``policies`` allows; none of them means no limits."""
    return reduce(_narrower, policies, Policy())


def policy_digest(policy: Policy) -> str:
    """Return the policy's name by content, 64 hex digits: equal policies have equal ones, in every process."""
    text = json.dumps(_ordered(policy.model_dump(mode="json")), sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()


def check_policy(
    policy: Policy, spec: Spec, *, reward: TokenAmount, creator: str, tier: IsolationTier, now: datetime
) -> list[Denial]:
    """Return every rule of ``policy`` that refuses this task now; an empty list permits it.

    Args:
        reward: This task's share, base units.
        creator: Address of the submitter, lower case.
        tier: In which the node can prove that it would run.
        now: Current time, UTC.
    """
    denials = _denied(policy, spec, creator)
    kind = TaskKind(spec.type)
    if kind not in policy.kinds:
        denials.append(Denial("policy.kinds", f"{kind} tasks are not allowed here"))
    if isinstance(spec, DockerSpec):
        denials += _check_image(policy, spec)
    if isinstance(spec, CommandSpec):
        denials += _check_program(policy, spec)
    if isinstance(spec, CommandSpec | DockerSpec) and spec.egress is not None:
        denials += _check_egress(policy, spec.egress)
    if isinstance(spec, LlmSpec) and not _meets(policy.models, lambda pattern: matches(pattern, spec.model)):
        denials.append(Denial("policy.models", f"the model {_short(spec.model)} is not on the list"))
    for source in sorted(_sources(spec) - policy.sources):
        denials.append(Denial("policy.sources", f"brings data by {source}, which is not allowed here"))
    denials += _check_sizes(policy, spec)
    denials += _check_price(policy, spec, reward)
    if policy.creators is not None and creator not in policy.creators:
        denials.append(Denial("policy.creators", f"{creator} is not on the list of submitters"))
    least = policy.isolation.get(kind, IsolationTier.NONE)
    if tier.rank < least.rank:
        denials.append(Denial("policy.isolation", f"{kind} tasks need isolation {least}, proven here is {tier}"))
    if not allowed_now(policy, now):
        denials.append(Denial(HOURS_RULE, "no new work at this time of the week"))
    return denials


def check_bundle(policy: Policy, digest: str, *, own: str) -> Denial | None:
    """Return why a Flower app may not run here, or None when it may: the node's own always, others where they are listed.

    Args:
        digest: SHA-256 of the bundle that the manifest names, hex.
        own: Of the bundle that this program ships.
    """
    if digest == own or (policy.bundles and _meets(policy.bundles, lambda pattern: matches(pattern, digest))):
        return None
    return Denial("policy.bundles", f"the Flower app {_short(digest)} is neither this program's own nor on the list")


def allowed_now(policy: Policy, now: datetime) -> bool:
    """Return whether the policy's hours let new tasks begin at ``now``, UTC."""
    return _meets(policy.hours, lambda text: parse_window(text).contains(now))


def least_tier(policy: Policy, spec: Spec) -> IsolationTier:
    """Return the least isolation in which a task may run: what it asks for, or more if the policy does."""
    own = policy.isolation.get(TaskKind(spec.type), IsolationTier.NONE)
    return max(own, spec.requires.isolation, key=lambda tier: tier.rank)


# -- what is checked -------------------------------------------------------------------------------------------------


def _check_image(policy: Policy, spec: DockerSpec) -> list[Denial]:
    denials, named = [], _short(spec.image) + ("" if spec.image_tar is None else ", from an archive,")
    if not _meets(policy.images, lambda pattern: is_image(pattern, spec)):
        denials.append(Denial("policy.images", f"the image {named} is not on the list"))
    registry = registry_of(spec)
    if not _meets(policy.registries, lambda pattern: matches(pattern, registry)):
        denials.append(Denial("policy.registries", f"images from {_short(registry)} are not allowed here"))
    if policy.digest_only and spec.image_tar is None and "@" not in spec.image:
        denials.append(Denial("policy.digest_only", f"the image {named} is not named by its digest"))
    return denials


def _check_program(policy: Policy, spec: CommandSpec) -> list[Denial]:
    denials = []
    if not _meets(policy.programs, lambda pattern: is_program(pattern, spec)):
        denials.append(Denial("policy.programs", f"the program {_short(spec.argv[0])} is not on the list"))
    if not policy.shell and is_shell(spec):
        denials.append(Denial("policy.shell", "a shell is not allowed here"))
    return denials


def _check_egress(policy: Policy, egress: Egress) -> list[Denial]:
    denials = []
    for wanted in egress.domains:
        if not _meets(policy.domains, lambda pattern, wanted=wanted: covers_domain(pattern, wanted)):  # type: ignore[misc]
            denials.append(Denial("policy.domains", f"may not reach {_short(wanted)}"))
            break
    if policy.max_egress_bytes is not None and egress.max_bytes > policy.max_egress_bytes:
        denials.append(_too_much("max_egress_bytes", egress.max_bytes, policy.max_egress_bytes, "bytes of traffic"))
    return denials


def _check_sizes(policy: Policy, spec: Spec) -> list[Denial]:
    resources = spec.resources
    limits: tuple[tuple[str, float | None, float, str], ...] = (
        ("max_wall_time_s", policy.max_wall_time_s, spec.budgets.wall_time_s, "seconds of wall time"),
        ("max_memory_bytes", policy.max_memory_bytes, resources.memory_bytes, "bytes of memory"),
        ("max_cpus", policy.max_cpus, resources.cpus, "processors"),
        ("max_pids", policy.max_pids, resources.pids, "processes"),
        ("max_disk_bytes", policy.max_disk_bytes, resources.disk_bytes, "bytes on disk"),
        ("max_gpus", policy.max_gpus, resources.gpus, "graphics processors"),
        ("max_input_bytes", policy.max_input_bytes, input_bytes(spec), "bytes of input"),
        ("max_output_bytes", policy.max_output_bytes, _output_bytes(spec), "bytes of output"),
    )
    return [
        _too_much(rule, wanted, limit, unit)
        for rule, limit, wanted, unit in limits
        if limit is not None and wanted > limit
    ]


def _check_price(policy: Policy, spec: Spec, reward: TokenAmount) -> list[Denial]:
    denials = []
    if reward < policy.min_reward:
        denials.append(Denial("policy.min_reward", f"pays {reward} base units, the floor is {policy.min_reward}"))
    floor, wall_time_s = policy.min_reward_per_hour, spec.budgets.wall_time_s
    # Exactly: a float would round away what a floor of 10**18 base units is about.
    if reward * _SECONDS_AN_HOUR < floor * Fraction(wall_time_s):
        per_hour = int(reward * _SECONDS_AN_HOUR / Fraction(wall_time_s))
        denials.append(
            Denial("policy.min_reward_per_hour", f"pays {per_hour} base units an hour, the floor is {floor}")
        )
    return denials


def _denied(policy: Policy, spec: Spec, creator: str) -> list[Denial]:
    found = [rule for rule in policy.deny if _applies(rule, spec, creator)]
    return [Denial(DENY_PREFIX + rule.name, "denied by a rule of the operator") for rule in _by_name(found)]


def _applies(rule: DenyRule, spec: Spec, creator: str) -> bool:
    image = spec if isinstance(spec, DockerSpec) else None
    command = spec if isinstance(spec, CommandSpec) else None
    hosts = spec.egress.domains if isinstance(spec, CommandSpec | DockerSpec) and spec.egress is not None else ()
    model = spec.model if isinstance(spec, LlmSpec) else None
    sources = _sources(spec)
    return (
        _holds(rule.kinds, lambda kind: kind is TaskKind(spec.type))
        and _holds(rule.images, lambda pattern: image is not None and is_denied_image(pattern, image))
        and _holds(rule.registries, lambda pattern: image is not None and matches(pattern, registry_of(image)))
        and _holds(rule.programs, lambda pattern: command is not None and is_denied_program(pattern, command))
        and _holds(rule.domains, lambda pattern: any(touches_domain(pattern, host) for host in hosts))
        and _holds(rule.models, lambda pattern: model is not None and matches(pattern, model))
        and _holds(rule.creators, lambda address: address == creator)
        and _holds(rule.sources, lambda source: source in sources)
    )


def _holds(condition: frozenset[T] | None, test: Callable[[T], bool]) -> bool:
    return condition is None or any(test(one) for one in condition)


def _meets(clauses: frozenset[frozenset[str]], test: Callable[[str], bool]) -> bool:
    return all(any(test(pattern) for pattern in clause) for clause in clauses)


def _by_name(rules: Iterable[DenyRule]) -> list[DenyRule]:
    return list({rule.name: rule for rule in sorted(rules, key=lambda rule: rule.name)}.values())


def _sources(spec: Spec) -> frozenset[Source]:
    found: set[Source] = {item.kind for item in spec.inputs}
    if isinstance(spec, DockerSpec) and spec.image_tar is not None:
        found.add(spec.image_tar.kind)
    if isinstance(spec, FederatedLearningSpec) and spec.dataset_cid:
        found.add("cid")
    return frozenset(found)


def _output_bytes(spec: Spec) -> int:
    if not isinstance(spec, CommandSpec | DockerSpec):
        return 0
    return spec.max_output_bytes + (0 if spec.output is None else spec.output.max_bytes)


def _too_much(rule: str, wanted: float, limit: float, unit: str) -> Denial:
    return Denial(f"policy.{rule}", f"asks for {wanted:.15g} {unit}, at most {limit:.15g} are allowed")


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")


# -- joining ---------------------------------------------------------------------------------------------------------


def _narrower(left: Policy, right: Policy) -> Policy:
    joined: dict[str, Any] = {name: getattr(left, name) | getattr(right, name) for name in (*CLAUSE_FIELDS, "deny")}
    joined |= {name: max(getattr(left, name), getattr(right, name)) for name in _GREATEST}
    joined |= {name: _least(getattr(left, name), getattr(right, name)) for name in _LEAST}
    creators = left.creators
    if right.creators is not None:
        creators = right.creators if creators is None else creators & right.creators
    tiers = {
        kind: max((policy.isolation.get(kind, IsolationTier.NONE) for policy in (left, right)), key=lambda t: t.rank)
        for kind in {*left.isolation, *right.isolation}
    }
    return Policy(
        kinds=left.kinds & right.kinds,
        shell=left.shell and right.shell,
        sources=left.sources & right.sources,
        creators=creators,
        isolation=tiers,
        **joined,
    )


def _least(left: float | None, right: float | None) -> float | None:
    return right if left is None else left if right is None else min(left, right)


def _ordered(value: JsonValue) -> JsonValue:
    """Return the value with its lists, which are all sets here, in one order."""
    if isinstance(value, dict):
        return {key: _ordered(each) for key, each in value.items()}
    if isinstance(value, list):
        return sorted((_ordered(each) for each in value), key=lambda each: json.dumps(each, sort_keys=True))
    return value
