"""Data sets that the operator lends to tasks by name: ``RUNNER_SHARDS="mnist=/data/mnist,logs=/srv/logs"``."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog

from parity_protocol.errors import BadField

__all__ = ["MAX_SHARDS", "LentData", "parse_shards", "usable_shards"]

MAX_SHARDS = 64

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

log = structlog.get_logger(__name__)


class LentData(Mapping[str, Path]):
    """What a running node lends now, by name: tasks look a name up when they begin, the operator changes it meanwhile.

    Args:
        shards: What the settings said at the start.
    """

    def __init__(self, shards: Mapping[str, Path]) -> None:
        self._now = dict(shards)

    def __getitem__(self, name: str) -> Path:
        return self._now[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)

    def usable(self) -> tuple[str, ...]:
        """Return the names that a task could read now, sorted."""
        return tuple(sorted(usable_shards(self._now)[0]))

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what ``{"command": "data", "name": "…", "path": "/…"}`` asks for; without a path the name is taken back.

        Raises:
            BadField: It is no name and path, or too many are lent.
        """
        name, path = request.get("name"), request.get("path")
        if not isinstance(name, str) or not (path is None or isinstance(path, str)):
            raise BadField("data needs a name, and a path unless the name is taken back", field="name")
        now = {known: place for known, place in self._now.items() if known != name}
        if path is not None:
            try:
                found = parse_shards(f"{name}={path}")
            except ValueError as exc:
                raise BadField(str(exc), field="name") from exc
            if found != {name: Path(path)}:
                raise BadField("a path with a comma or a space at its end cannot be lent", field="path")
            now |= found
        if len(now) > MAX_SHARDS:
            raise BadField(f"at most {MAX_SHARDS} data sets, got {len(now)}", field="name")
        self._now = now  # another dictionary: threads may be reading the last one
        log.info("data_lent" if path is not None else "data_taken_back", name=name, path=path)
        return {"names": list(self.usable())}


def parse_shards(text: str) -> dict[str, Path]:
    """Read ``name=/path`` pairs, separated by commas.

    Raises:
        ValueError: A pair is something else, a name comes twice, or there are more than ``MAX_SHARDS``.
    """
    found: dict[str, Path] = {}
    for pair in filter(None, (each.strip() for each in text.split(","))):
        name, equals, path = pair.partition("=")
        if not equals or _NAME.fullmatch(name) is None or not path.startswith("/"):
            raise ValueError(f"expected NAME=/PATH, got {pair[:80]!r}")
        if name in found:
            raise ValueError(f"the name {name!r} comes twice")
        found[name] = Path(path)
    if len(found) > MAX_SHARDS:
        raise ValueError(f"at most {MAX_SHARDS} data sets, got {len(found)}")
    return found


def usable_shards(shards: Mapping[str, Path]) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the data sets that a task could read now, and why another could not, by name.

    When the node is root its tasks run as users of their own: everybody must be able to get there and read it then.
    """
    usable: dict[str, Path] = {}
    problems: dict[str, str] = {}
    for name, path in shards.items():
        try:
            place = path.resolve(strict=True)
            problem = _problem(place)
        except OSError as exc:
            problem = f"{path}: {exc.strerror}"
        if problem:
            problems[name] = problem
        else:
            usable[name] = place
    return usable, problems


def _problem(place: Path) -> str:
    found = place.stat()
    is_folder = stat.S_ISDIR(found.st_mode)
    if not is_folder and not stat.S_ISREG(found.st_mode):
        return f"{place} is neither a file nor a folder"
    if os.geteuid() != 0:
        return "" if os.access(place, os.R_OK | (os.X_OK if is_folder else 0)) else f"{place} cannot be read"
    closed = next((folder for folder in place.parents if not folder.stat().st_mode & 0o001), None)
    if closed is not None:
        return f"{closed} lets only its owner through (chmod o+x {closed})"
    wanted = 0o005 if is_folder else 0o004
    return "" if found.st_mode & wanted == wanted else f"{place} is not for everybody to read (chmod -R o+rX {place})"
