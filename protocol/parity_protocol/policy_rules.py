"""How a policy's patterns compare with what a task asks for: images, programs, hosts, weekly hours.

Allowing is exact and denying is generous: what a pattern allows it denies too, never the other way round. In a pattern
only ``*`` is special; it stands for any text, ``/`` included.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, StringConstraints

from parity_protocol.needs import CidInput, HttpsInput, split_image
from parity_protocol.task import CommandSpec, DockerSpec

__all__ = [
    "SHELLS",
    "DomainPattern",
    "Glob",
    "Hours",
    "ImagePattern",
    "ProgramPattern",
    "Window",
    "covers_domain",
    "is_denied_image",
    "is_denied_program",
    "is_image",
    "is_program",
    "is_shell",
    "matches",
    "parse_window",
    "registry_of",
    "touches_domain",
]

SHELLS = frozenset({"sh", "ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "mksh", "tcsh", "zsh"})

ARCHIVE = "tar"  # the "registry" of an image that comes as an archive, and the prefix of its patterns
HUB = "docker.io"

_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(
    r"(?:(?P<days>(?:mon|tue|wed|thu|fri|sat|sun)(?:[-,](?:mon|tue|wed|thu|fri|sat|sun))*)(?:\s+|$))?"
    r"(?:(?P<start>[0-9]{1,2}:[0-9]{2})-(?P<end>[0-9]{1,2}:[0-9]{2})(?:\s+|$))?"
    r"(?P<zone>[A-Za-z][A-Za-z0-9_+/-]{1,63})?",
    re.ASCII,
)
_HOST = r"(?:\*\.)?(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN_PATTERN = rf"^(?:\*|{_HOST})(?::(?:\*|[1-9][0-9]{{0,4}}))?$"
_IMAGE_PATTERN = r"^[A-Za-z0-9*][A-Za-z0-9*._/:@-]*$"

Glob = Annotated[str, StringConstraints(min_length=1, max_length=512)]
ProgramPattern = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00]+$")]
ImagePattern = Annotated[str, StringConstraints(pattern=_IMAGE_PATTERN, max_length=512)]
"""``debian`` (any tag), ``debian:12``, ``debian@sha256:…``, ``ghcr.io/me/*``, or an archive: ``tar:CID``, ``tar:*``."""
DomainPattern = Annotated[str, StringConstraints(pattern=_DOMAIN_PATTERN, max_length=260)]
"""``pypi.org``, ``*.example.org``, ``*``; the port is 443 unless one follows: ``example.org:8443``, ``example.org:*``."""


def matches(pattern: str, text: str) -> bool:
    """Return whether ``text`` is what ``pattern`` says; takes time in proportion to both lengths' product at most."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == text
    *middle, last = rest
    if not text.startswith(first) or len(text) < len(first) + len(last) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


# -- images ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Image:
    name: str  # with its registry: docker.io/library/debian
    tag: str
    digest: str


def registry_of(spec: DockerSpec) -> str:
    """Return the registry that the image is pulled from, ``docker.io`` for a bare name; ``tar`` for an archive."""
    return ARCHIVE if spec.image_tar is not None else _read_image(spec.image).name.partition("/")[0]


def is_image(pattern: str, spec: DockerSpec) -> bool:
    """Return whether ``pattern`` allows the task's image.

    The tag beside a digest is only the submitter's word, since the engine looks at the digest alone: a pattern that
    names a tag and no digest allows no reference with a digest. What an archive calls its image is only a word too: a
    pattern such as ``tar:bafy…`` or ``tar:sha256:…`` (of the archive) or ``tar:*`` allows an archive, nothing else.
    """
    if spec.image_tar is not None:
        return matches(pattern, _archive(spec.image_tar))
    wanted, allowed = _read_image(spec.image), _read_pattern(pattern)
    if allowed.name.startswith(f"{ARCHIVE}:") or not matches(allowed.name, wanted.name):
        return False
    if allowed.digest:
        return matches(allowed.digest, wanted.digest)
    if allowed.tag:
        return not wanted.digest and matches(allowed.tag, wanted.tag or "latest")
    return True


def is_denied_image(pattern: str, spec: DockerSpec) -> bool:
    """Return whether ``pattern`` denies the task's image: by any part of its name, and by what an archive claims."""
    if pattern.startswith(f"{ARCHIVE}:") or (pattern == "*" and spec.image_tar is not None):
        return spec.image_tar is not None and matches(pattern, _archive(spec.image_tar))
    wanted, denied = _read_image(spec.image), _read_pattern(pattern)
    if denied.digest and not matches(denied.digest, wanted.digest):
        return False
    if denied.tag and not denied.digest and not matches(denied.tag, wanted.tag or "latest"):
        return False
    return any(matches(name, part) for name in {denied.name, _head(pattern)} for part in _parts(wanted.name))


def _archive(tar: CidInput | HttpsInput) -> str:
    return f"{ARCHIVE}:{tar.cid}" if isinstance(tar, CidInput) else f"{ARCHIVE}:sha256:{tar.sha256}"


def _parts(name: str) -> Iterable[str]:
    """Yield a name, and it without its first components: an evil image is evil in every registry."""
    while name:
        yield name
        name = name.partition("/")[2]


@lru_cache(maxsize=1024)
def _read_image(reference: str) -> _Image:
    name, tag, digest = split_image(reference)
    return _Image(_full_name(name), tag, digest)


@lru_cache(maxsize=1024)
def _read_pattern(pattern: str) -> _Image:
    if pattern.startswith(f"{ARCHIVE}:"):
        return _Image(pattern, "", "")
    rest, _, digest = pattern.partition("@")
    name = _head(pattern)
    tag = rest[len(name) + 1 :]  # after the colon
    return _Image(name if name.startswith("*") else _full_name(name), tag, digest)


def _head(pattern: str) -> str:
    """Return a pattern's name: without digest and without what follows a colon after the last slash."""
    rest = pattern.partition("@")[0]
    folder, slash, leaf = rest.rpartition("/")
    return folder + slash + leaf.partition(":")[0]


def _full_name(name: str) -> str:
    """Return a name with its registry, as an engine reads it."""
    first, slash, rest = name.partition("/")
    is_registry = bool(slash) and ("." in first or ":" in first or first == "localhost" or first != first.lower())
    if is_registry:
        host = HUB if first.lower() in _HUB_NAMES else first.lower()
        return f"{host}/{rest}" if host != HUB or "/" in rest or rest == "*" else f"{HUB}/library/{rest}"
    return f"{HUB}/{name}" if slash else f"{HUB}/library/{name}"


# -- programs --------------------------------------------------------------------------------------------------------


def is_program(pattern: str, spec: CommandSpec) -> bool:
    """Return whether ``pattern`` allows the program: one with ``/`` compares the path, another one a bare name."""
    program = _program(spec)
    return pattern == "*" or (("/" in pattern) == ("/" in program) and matches(pattern, program))


def is_denied_program(pattern: str, spec: CommandSpec) -> bool:
    """Return whether ``pattern`` denies the program, by its path or by its name wherever it lies."""
    program = _program(spec)
    name = posixpath.basename(program)
    return any(matches(one, two) for one in {pattern, posixpath.basename(pattern)} for two in {program, name})


def is_shell(spec: CommandSpec) -> bool:
    """Return whether the task asks for a shell, or its program is called like one."""
    return spec.shell or posixpath.basename(_program(spec)) in SHELLS


def _program(spec: CommandSpec) -> str:
    program = spec.argv[0]
    if "/" not in program:
        return program
    root = "/" if program.startswith("/") else "./"
    return root + posixpath.normpath(program).lstrip("/")


# -- hosts -----------------------------------------------------------------------------------------------------------


def covers_domain(pattern: str, wanted: str) -> bool:
    """Return whether ``pattern`` allows every host and port that a task's ``wanted`` stands for."""
    host, port = _split_port(pattern)
    wanted_host, wanted_port = _split_port(wanted)
    if port not in ("*", wanted_port):
        return False
    if host in ("*", wanted_host):
        return True
    return host.startswith("*.") and wanted_host.removeprefix("*").endswith(host[1:])


def touches_domain(pattern: str, wanted: str) -> bool:
    """Return whether a task's ``wanted`` stands for any host that ``pattern`` names, at its port, or at any if none."""
    host, _, port = pattern.partition(":")
    wanted_host, wanted_port = _split_port(wanted)
    if port not in ("", "*", wanted_port):
        return False
    return covers_domain(f"{host}:1", f"{wanted_host}:1") or covers_domain(f"{wanted_host}:1", f"{host}:1")


def _split_port(text: str) -> tuple[str, str]:
    host, _, port = text.partition(":")
    return host, port or "443"


# -- hours -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Window:
    """Hours that come back every week. One that ends before it starts goes on into the next day."""

    days: frozenset[int]  # on which it starts; 0 is Monday
    start_min: int  # minutes since local midnight
    end_min: int  # 1 … 1440
    zone: str

    def contains(self, now: datetime) -> bool:
        """Return whether ``now`` (UTC) is inside."""
        local = now.astimezone(ZoneInfo(self.zone))
        minute = local.hour * 60 + local.minute
        yesterday = (local - timedelta(days=1)).weekday()
        if self.start_min < self.end_min:
            return local.weekday() in self.days and self.start_min <= minute < self.end_min
        return (local.weekday() in self.days and minute >= self.start_min) or (
            yesterday in self.days and minute < self.end_min
        )


@lru_cache(maxsize=256)
def parse_window(text: str) -> Window:
    """Read hours such as ``mon-fri 22:00-06:00 Europe/Rome``, ``sat,sun`` or ``09:00-17:00``; the zone is UTC if none.

    Raises:
        ValueError: Something else, or a time zone that this machine does not know.
    """
    found = _WINDOW.fullmatch(text.strip()) if 0 < len(text.strip()) <= 128 else None
    if found is None or not (found["days"] or found["start"]):
        raise ValueError(f"expected hours such as 'mon-fri 22:00-06:00 Europe/Rome' or 'sat,sun', got {text[:80]!r}")
    start, end = _minutes(found["start"] or "00:00"), _minutes(found["end"] or "24:00")
    if start == end or start == 24 * 60 or end == 0:
        raise ValueError(f"expected a start before 24:00 and another end after 00:00, got {text[:80]!r}")
    zone = found["zone"] or "UTC"
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"expected a time zone such as 'Europe/Rome', got {zone!r}") from None
    return Window(_read_days(found["days"] or "mon-sun"), start, end, zone)


def _read_days(text: str) -> frozenset[int]:
    days: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last not in ("", *_DAYS):
            raise ValueError(f"expected days such as 'mon-fri' or 'sat,sun', got {text!r}")
        at, end = _DAYS.index(first), _DAYS.index(last or first)
        days.update(day % 7 for day in range(at, end + 1 if end >= at else end + 8))
    return frozenset(days)


def _minutes(text: str) -> int:
    hour, _, minute = text.partition(":")
    total = int(hour) * 60 + int(minute)
    if int(minute) > 59 or total > 24 * 60:
        raise ValueError(f"expected a time of day such as '22:00', got {text!r}")
    return total


def _is_window(text: str) -> str:
    parse_window(text)
    return " ".join(text.split())


Hours = Annotated[str, AfterValidator(_is_window)]
