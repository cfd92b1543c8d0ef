"""What the operator lets this node do: settings and policy file joined, and read again when the file changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import structlog

from parity_node.policy_file import POLICY_FILE, SourcedPolicy, read_policy_file
from parity_node.settings import NodeSettings
from parity_protocol.capability import AnnouncedPolicy
from parity_protocol.clock import Clock
from parity_protocol.errors import ConfigInvalid
from parity_protocol.isolation import IsolationTier
from parity_protocol.policy import CLAUSE_FIELDS, DENY_PREFIX, DenyRule, Policy, allowed_now, intersect, policy_digest
from parity_protocol.quantities import format_bytes, format_duration, format_tokens

__all__ = ["OperatorPolicy", "PolicyLine", "explain", "join_policies", "policy_path", "settings_policy"]

LOOK_INTERVAL_S = 1.0  # between two looks at the file

_UNREADABLE = (0, 0, 0, 0)

_SETTINGS = MappingProxyType(
    {
        "kinds": "runner_policy_kinds",
        "images": "runner_policy_images",
        "domains": "runner_policy_domains",
        "creators": "runner_policy_creators",
        "max_wall_time_s": "runner_execution_timeout",
        "max_memory_bytes": "runner_max_memory",
        "max_cpus": "runner_max_cpus",
        "max_input_bytes": "runner_policy_max_input",
        "min_reward": "runner_policy_min_reward",
        "min_reward_per_hour": "runner_policy_min_reward_per_hour",
    }
)
_DEFAULT = SourcedPolicy(Policy(domains=frozenset({frozenset()})), {"domains": "default"})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PolicyLine:
    """One rule of the effective policy, for people."""

    rule: str  # as refusals name it
    value: str
    origin: str  # ``policy.toml:12``, a setting, or ``default``


def policy_path(settings: NodeSettings, state_dir: Path | None = None) -> Path:
    """Return where the policy file is or would be: in the state folder, unless the settings say otherwise."""
    named = settings.runner_policy_file
    return named.expanduser().absolute() if named is not None else (state_dir or settings.state_dir()) / POLICY_FILE


def settings_policy(settings: NodeSettings) -> SourcedPolicy:
    """Return what the settings limit, and which of them."""
    policy, origins = settings.policy(), {}
    for field, name in _SETTINGS.items():
        if name in settings.model_fields_set:
            origins[field] = name.upper()
        elif getattr(policy, field) != Policy.model_fields[field].get_default(call_default_factory=True):
            origins[field] = f"{name.upper()}, its default"
    return SourcedPolicy(policy, origins)


def join_policies(settings: SourcedPolicy, file: SourcedPolicy | None) -> tuple[Policy, tuple[SourcedPolicy, ...]]:
    """Return what both allow, and the parts of it. Where neither names hosts, tasks reach none."""
    parts = (settings,) if file is None else (settings, file)
    if not any("domains" in part.origins for part in parts):
        parts = (*parts, _DEFAULT)
    return intersect(*(part.policy for part in parts)), parts


class OperatorPolicy:
    """The policy in force. A broken edit of the file changes nothing and is told; so is a file that has gone.

    Raises:
        ConfigInvalid: The file is named by the settings and not there, or it is wrong.
    """

    def __init__(self, settings: NodeSettings, clock: Clock, *, state_dir: Path | None = None) -> None:
        self._settings = settings_policy(settings)
        self._clock = clock
        self.path = policy_path(settings, state_dir)
        self.problem = ""  # why the file as it is now is not in force, in words
        self._seen = _signature(self.path)
        self._looked_at = clock.monotonic()
        if self._seen is None and settings.runner_policy_file is not None:
            raise ConfigInvalid([f"RUNNER_POLICY_FILE={self.path}: there is no such file"])
        self._file = None if self._seen is None else read_policy_file(self.path)
        self.current, self.parts = join_policies(self._settings, self._file)
        self.digest = policy_digest(self.current)

    def refresh(self) -> bool:
        """Look at the file, at most once a second; return whether another policy is in force now. Never raises."""
        now = self._clock.monotonic()
        if now - self._looked_at < LOOK_INTERVAL_S:
            return False
        self._looked_at = now
        signature = _signature(self.path)
        if signature == self._seen:
            return False
        self._seen = signature
        if signature is None:
            self._complain(f"the policy file {self.path} has gone; what it said stays in force until a restart")
            return False
        try:
            file = read_policy_file(self.path)
        except ConfigInvalid as exc:
            shown = "; ".join(exc.problems[:3]) + (" …" if len(exc.problems) > 3 else "")
            self._complain(f"the policy file was changed and is wrong, the last one stays in force: {shown}")
            return False
        self.problem = ""
        before, self._file = self.digest, file
        self.current, self.parts = join_policies(self._settings, file)
        self.digest = policy_digest(self.current)
        log.info("policy_read", file=str(self.path), digest=self.digest, changed=self.digest != before)
        return self.digest != before

    def announced(self) -> AnnouncedPolicy:
        """Return what the market may compare before it makes an offer."""
        policy = self.current
        return AnnouncedPolicy(
            digest=self.digest,
            is_open=allowed_now(policy, self._clock.now()),
            kinds=policy.kinds,
            egress=all(policy.domains),
            max_wall_time_s=policy.max_wall_time_s,
            max_memory_bytes=policy.max_memory_bytes,
            max_cpus=policy.max_cpus,
            max_gpus=policy.max_gpus,
            min_reward=policy.min_reward,
            min_reward_per_hour=policy.min_reward_per_hour,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the policy in force as ``parity node policy show --json`` prints it."""
        return {
            "digest": self.digest,
            "file": str(self.path) if self._file is not None else None,
            "problem": self.problem,
            "lines": [
                {"rule": line.rule, "value": line.value, "from": line.origin}
                for line in explain(self.current, self.parts)
            ],
            "policy": self.current.model_dump(mode="json"),
        }

    def _complain(self, problem: str) -> None:
        self.problem = problem
        log.error("policy_not_changed", problem=problem)


def _signature(path: Path) -> tuple[int, int, int, int] | None:
    """Return what changes when the file does; None when there is none."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return _UNREADABLE
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode


# -- in words --------------------------------------------------------------------------------------------------------


def explain(policy: Policy, parts: Sequence[SourcedPolicy]) -> list[PolicyLine]:
    """Return each rule of the effective policy with its value and where that comes from, denials first."""
    lines = [
        PolicyLine(DENY_PREFIX + rule.name, _denial(rule), part.origins.get(f"deny.{rule.name}", "?"))
        for part in parts
        for rule in sorted(part.policy.deny, key=lambda rule: rule.name)
    ]
    for field in Policy.model_fields:
        if field != "deny":
            lines += _lines_of(field, policy, parts)
    return lines


def _lines_of(field: str, policy: Policy, parts: Sequence[SourcedPolicy]) -> list[PolicyLine]:
    rule, effective = f"policy.{field}", getattr(policy, field)
    saying = [(part.origins[field], getattr(part.policy, field)) for part in parts if field in part.origins]
    if not saying:
        return [PolicyLine(rule, _words(field, effective), "default")]
    if field in CLAUSE_FIELDS:
        return [PolicyLine(rule, _listed(clause), origin) for origin, value in saying for clause in value]
    if isinstance(effective, Mapping):
        return [
            PolicyLine(rule, f"{kind}: {tier} or better", next(o for o, value in saying if value.get(kind) is tier))
            for kind, tier in sorted(effective.items())
        ]
    binding = [origin for origin, value in saying if value == effective]
    return [PolicyLine(rule, _words(field, effective), " and ".join(binding or [origin for origin, _ in saying]))]


def _words(field: str, value: Any) -> str:
    if field == "bundles" and not value:
        return "this program's own"
    if value is None or (field in CLAUSE_FIELDS and not value):
        return "no limit"
    if isinstance(value, dict):
        return ", ".join(f"{kind}: {tier}" for kind, tier in value.items()) or f"{IsolationTier.NONE} or better"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, frozenset):
        return _listed(value)
    if field.endswith("_bytes"):
        return format_bytes(value)
    if field == "max_wall_time_s":
        return format_duration(timedelta(seconds=value))
    if field.startswith("min_reward"):
        return f"{format_tokens(value)} tokens" if value else "no limit"
    return f"{value:g}"


def _listed(values: frozenset[str]) -> str:
    return ", ".join(sorted(values)) or "nothing"


def _denial(rule: DenyRule) -> str:
    said = [(name, getattr(rule, name)) for name in DenyRule.model_fields if name != "name"]
    return " and ".join(f"{name}: {_listed(value)}" for name, value in said if value is not None)
