"""The operator's policy file, ``policy.toml``: sections ``allow``, ``limits``, ``price``, ``isolation`` and ``[[deny]]``.

What it does not name is not limited; what it names and this program does not know is refused, with the place.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from parity_protocol.errors import ConfigInvalid
from parity_protocol.isolation import IsolationTier
from parity_protocol.policy import DenyRule, Policy, Source
from parity_protocol.policy_rules import DomainPattern, Glob, Hours, ImagePattern, ProgramPattern
from parity_protocol.settings import Seconds, Size, Tokens
from parity_protocol.task import TaskKind

__all__ = ["MAX_POLICY_BYTES", "POLICY_FILE", "SourcedPolicy", "read_policy_file"]

POLICY_FILE = "policy.toml"  # in the state folder
MAX_POLICY_BYTES = 256 << 10
MAX_PATTERNS = 1_000  # of one list
MAX_DENY_RULES = 1_000

_MAX_SHOWN = 60  # characters of a wrong value in a message

Address = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-fA-F]{40}$", to_lower=True)]
Few = Field(default=None, max_length=MAX_PATTERNS)


@dataclass(frozen=True, slots=True)
class SourcedPolicy:
    """One policy and where each of its fields comes from."""

    policy: Policy
    origins: Mapping[str, str]  # field of ``Policy`` → ``policy.toml:12`` or a setting


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Allow(_Section):
    kinds: frozenset[TaskKind] | None = None
    images: frozenset[ImagePattern] | None = Few
    registries: frozenset[Glob] | None = Few
    digest_only: bool | None = None
    programs: frozenset[ProgramPattern] | None = Few
    shell: bool | None = None
    domains: frozenset[DomainPattern] | None = Few
    models: frozenset[Glob] | None = Few
    bundles: frozenset[Glob] | None = Few
    sources: frozenset[Source] | None = None
    creators: frozenset[Address] | None = Few
    hours: frozenset[Hours] | None = Few


class _Limits(_Section):
    wall_time: Seconds | None = None
    memory: Annotated[Size, Field(gt=0)] | None = None
    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    pids: Annotated[int, Field(gt=0)] | None = None
    disk: Size | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    input: Size | None = None
    output: Size | None = None
    egress: Size | None = None
    cache: Size | None = None


class _Price(_Section):
    min_reward: Tokens | None = None
    min_reward_per_hour: Tokens | None = None


class _Deny(_Section):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.+-]{0,47}$")] | None = None
    kinds: frozenset[TaskKind] | None = None
    images: frozenset[ImagePattern] | None = Few
    registries: frozenset[Glob] | None = Few
    programs: frozenset[ProgramPattern] | None = Few
    domains: frozenset[DomainPattern] | None = Few
    models: frozenset[Glob] | None = Few
    creators: frozenset[Address] | None = Few
    sources: frozenset[Source] | None = None


class _File(_Section):
    allow: _Allow = _Allow()
    limits: _Limits = _Limits()
    price: _Price = _Price()
    isolation: dict[TaskKind, IsolationTier] = {}
    deny: Annotated[tuple[_Deny, ...], Field(max_length=MAX_DENY_RULES)] = ()


_LIMIT_FIELDS = MappingProxyType(
    {
        "memory": "max_memory_bytes",
        "cpus": "max_cpus",
        "pids": "max_pids",
        "disk": "max_disk_bytes",
        "gpus": "max_gpus",
        "input": "max_input_bytes",
        "output": "max_output_bytes",
        "egress": "max_egress_bytes",
        "cache": "max_cache_bytes",
    }
)
_PLAIN = frozenset({"kinds", "digest_only", "shell", "sources", "creators"})  # of ``allow``: no clauses

_EXPECTED = MappingProxyType(
    {
        "kinds": f"a list of {', '.join(TaskKind)}",
        "images": "a list of images such as 'debian:12', 'debian@sha256:…', 'ghcr.io/me/*', 'tar:*'",
        "registries": "a list of registries such as 'docker.io', 'ghcr.io', or 'tar' for archives",
        "digest_only": "true or false",
        "programs": "a list of programs such as 'ffmpeg' or '/usr/bin/*'",
        "shell": "true or false",
        "domains": "a list of hosts such as 'pypi.org', '*.example.org', 'example.org:8443'",
        "models": "a list of models such as 'llama3*'",
        "bundles": "a list of SHA-256 sums of Flower apps, 64 hex digits each, or '*'",
        "sources": f"a list of {', '.join(get_args(Source))}",
        "creators": "a list of addresses, each 0x and 40 hex digits",
        "hours": "a list of hours such as 'mon-fri 22:00-06:00 Europe/Rome' or 'sat,sun'",
        "wall_time": "a duration above 0 such as '15m'",
        "memory": "a size above 0 such as '2g'",
        "cpus": "a number above 0",
        "pids": "a whole number above 0",
        "gpus": "a whole number, 0 or more",
        "min_reward": "an amount of tokens in quotes, such as '0.25'",
        "min_reward_per_hour": "an amount of tokens in quotes, such as '0.25'",
        "isolation": f"lines such as docker = 'docker+gvisor', of {', '.join(IsolationTier)}",
        "name": "small letters, digits and _ . + -, at most 48",
        "deny": "[[deny]] tables",
    }
)
_A_SIZE = "a size such as '512m' or '2g'"


def read_policy_file(path: Path) -> SourcedPolicy:
    """Read a policy file.

    Raises:
        ConfigInvalid: Carries every problem at once: line, key, what came, what was expected.
    """
    text = _read(path)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigInvalid([f"{path}: this is no TOML: {exc}"]) from exc
    except (RecursionError, ValueError) as exc:  # brackets in brackets; a number of thousands of digits
        raise ConfigInvalid(
            [f"{path}: this is no TOML that can be read: it is too deep, or a number too long"]
        ) from exc
    lines = _lines_of(text)
    place = _place(path, lines)
    try:
        file = _File.model_validate(document)
    except ValidationError as exc:
        errors = sorted(exc.errors(include_url=False), key=lambda error: _line(lines, error["loc"]))
        told: dict[tuple[Step, ...], str] = {}
        for error in errors:  # one for each key: a map tells of a wrong one twice, a list of each wrong entry
            steps = error["loc"]
            told.setdefault(steps[: 3 if steps[0] == "deny" else 2], _problem(place, error))
        raise ConfigInvalid(list(told.values())) from exc
    problems: list[str] = []
    deny = _deny_rules(file, place, problems)
    if file.limits.wall_time is not None and not file.limits.wall_time:
        problems.append(f"{place(('limits', 'wall_time'))}: limits.wall_time: expected {_EXPECTED['wall_time']}")
    if problems:
        raise ConfigInvalid(problems)
    return _sourced(file, deny, place)


def _read(path: Path) -> str:
    try:
        # A pipe in its place would hold up the whole node.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigInvalid([f"the policy file {path} is no regular file"])
            if status.st_mode & stat.S_IWOTH:
                raise ConfigInvalid([f"everybody can write the policy file {path}: chmod o-w {path}"])
            data = file.read(MAX_POLICY_BYTES + 1)
        if len(data) > MAX_POLICY_BYTES:
            raise ConfigInvalid([f"the policy file {path} is over {MAX_POLICY_BYTES} bytes"])
        return data.decode()
    except OSError as exc:
        raise ConfigInvalid([f"the policy file {path} cannot be read: {exc.strerror}"]) from exc
    except UnicodeDecodeError as exc:
        raise ConfigInvalid([f"the policy file {path} is not UTF-8 text"]) from exc


# -- what the file says ----------------------------------------------------------------------------------------------

Step = str | int
Place = Callable[[tuple[Step, ...]], str]


def _sourced(file: _File, deny: dict[DenyRule, str], place: Place) -> SourcedPolicy:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def take(field: str, value: object, *steps: Step) -> None:
        values[field], origins[field] = value, place(steps)

    for name in file.allow.model_fields_set:
        value = getattr(file.allow, name)
        take(name, value if name in _PLAIN else frozenset({value}), "allow", name)
    for name in file.limits.model_fields_set - {"wall_time"}:
        take(_LIMIT_FIELDS[name], getattr(file.limits, name), "limits", name)
    if file.limits.wall_time is not None:
        take("max_wall_time_s", file.limits.wall_time.total_seconds(), "limits", "wall_time")
    for name in file.price.model_fields_set:
        take(name, getattr(file.price, name), "price", name)
    if file.isolation:
        take("isolation", file.isolation, "isolation")
    if deny:
        values["deny"], origins["deny"] = frozenset(deny), place(("deny", 0))
        origins |= {f"deny.{rule.name}": where for rule, where in deny.items()}
    return SourcedPolicy(Policy(**values), MappingProxyType(origins))


def _deny_rules(file: _File, place: Place, problems: list[str]) -> dict[DenyRule, str]:
    found: dict[DenyRule, str] = {}
    names: set[str] = {rule.name for rule in file.deny if rule.name is not None}
    told: set[str] = set()
    for index, rule in enumerate(file.deny):
        where = place(("deny", index))
        said = sorted(rule.model_fields_set - {"name"})
        if not said:
            problems.append(f"{where}: a [[deny]] rule must say what it denies: kinds, images, domains, creators …")
            continue
        name = rule.name or _free_name("+".join(said), names)
        if name in told:
            problems.append(f"{where}: deny.name: {name!r} is another rule's name already")
        told.add(name)
        names.add(name)
        fields = {field: getattr(rule, field) for field in said}
        found[DenyRule(name=name, **fields)] = where
    return found


def _free_name(wanted: str, names: set[str]) -> str:
    """Return the rule's fields as its name, with a number when there is one of that name."""
    wanted, name, number = wanted[:44], wanted[:44], 2
    while name in names:
        name, number = f"{wanted}-{number}", number + 1
    return name


# -- where it says it ------------------------------------------------------------------------------------------------

_HEADER = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.-]+)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.-]+)\s*=")


def _lines_of(text: str) -> dict[tuple[Step, ...], int]:
    """Return the line of each section and key, as far as they are written plainly."""
    found: dict[tuple[Step, ...], int] = {}
    section: tuple[Step, ...] = ()
    tables: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        header, key = _HEADER.match(line), _KEY.match(line)
        if header is not None:
            section = tuple(header[2].split("."))
            if header[1] == "[[":
                index = tables[header[2]] = tables.get(header[2], -1) + 1
                section = (*section, index)
            found.setdefault(section, number)
        elif key is not None:
            found.setdefault((*section, *key[1].split(".")), number)
    return found


def _line(lines: Mapping[tuple[Step, ...], int], steps: tuple[Step, ...]) -> int:
    """Return where a key is, else its section; 0 when neither was found."""
    while steps and steps not in lines:
        steps = steps[:-1]
    return lines.get(steps, 0)


def _place(path: Path, lines: Mapping[tuple[Step, ...], int]) -> Place:
    def place(steps: tuple[Step, ...]) -> str:
        line = _line(lines, steps)
        return f"{path}:{line}" if line else str(path)

    return place


def _problem(place: Place, error: Any) -> str:
    steps: tuple[Step, ...] = tuple(error["loc"])
    named = [
        step for step in steps if isinstance(step, str) and not step.startswith(("function-", "constrained-", "["))
    ]
    key, leaf = ".".join(named[:2]), named[-1] if named else ""
    where = place(steps)
    if error["type"] == "extra_forbidden":
        known = _known_at(named[:-1])
        near = get_close_matches(leaf, known, n=1)
        return f"{where}: {key}: there is no such {'key' if len(named) > 1 else 'section'}" + (
            f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        )
    shown = repr(error.get("input"))
    shown = shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 1] + "…"
    message = str(error["msg"]).removeprefix("Value error, ")
    known = named[:1] if named[:1] == ["isolation"] else named[::-1]
    expected = next((_EXPECTED[name] for name in known if name in _EXPECTED), None)
    if expected is None and named[:1] == ["limits"]:
        expected = _A_SIZE
    if expected is None or (error["type"] == "value_error" and not isinstance(error.get("input"), float)):
        return f"{where}: {key} = {shown}: {message}"
    return f"{where}: {key} = {shown}: expected {expected}"


def _known_at(sections: list[str]) -> list[str]:
    models: dict[str, type[_Section]] = {"allow": _Allow, "limits": _Limits, "price": _Price, "deny": _Deny}
    return list((models[sections[0]] if sections and sections[0] in models else _File).model_fields)
