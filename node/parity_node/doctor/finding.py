"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

__all__ = ["Finding", "FindingResult", "failed", "fine", "unused", "warned"]


class FindingResult(StrEnum):
    """How a check came out. Only ``fail`` keeps a node from working as its settings ask."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and the one line that changes it."""

    id: str
    result: FindingResult
    cause: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """Return it as JSON values."""
        return asdict(self) | {"result": self.result.value}


def fine(name: str, cause: str) -> Finding:
    """Return a check that came out well."""
    return Finding(name, FindingResult.OK, cause)


def warned(name: str, cause: str, fix: str) -> Finding:
    """Return what should be better and keeps nothing from working."""
    return Finding(name, FindingResult.WARN, cause, fix)


def failed(name: str, cause: str, fix: str) -> Finding:
    """Return what keeps the node from working."""
    return Finding(name, FindingResult.FAIL, cause, fix)


def unused(name: str, cause: str, fix: str = "") -> Finding:
    """Return what this machine does not have, or the settings do not ask for."""
    return Finding(name, FindingResult.NOT_APPLICABLE, cause, fix)
