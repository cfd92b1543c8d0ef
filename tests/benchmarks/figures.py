"""What a measurement says: a number, its unit, what was aimed at, and whether that is met."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Aim", "Figure", "NotAvailable", "percentile"]


class NotAvailable(Exception):
    """A figure cannot be had here; the text says what is missing and how to get it."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure should be, in the figure's unit."""

    limit: float
    kind: Literal["at most", "at least"]

    def is_met(self, value: float) -> bool:
        """Return whether ``value`` is on the right side."""
        return value <= self.limit if self.kind == "at most" else value >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.kind == 'at most' else '≥'} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        value: None when it could not be measured; ``note`` says why.
        note: How it was measured, in a few words.
        load: Of the machine over the last minute, when it was measured: processes that ran or waited to.
    """

    name: str
    value: float | None
    unit: str
    aim: Aim | None = None
    note: str = ""
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 1))

    @property
    def is_met(self) -> bool | None:
        """Whether the aim is met; None without an aim or a value."""
        return None if self.aim is None or self.value is None else self.aim.is_met(self.value)

    def shown(self) -> str:
        """Return the value for people."""
        if self.value is None:
            return "not available"
        size = abs(self.value)
        digits = 0 if size >= 100 or self.value == int(self.value) else 1 if size >= 10 else 2
        return f"{self.value:,.{digits}f} {self.unit}"

    def document(self) -> dict[str, Any]:
        """Return it for programs."""
        return {**asdict(self), "aim": None if self.aim is None else str(self.aim), "met": self.is_met}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of all (0 … 1) do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = max(1, -(-int(share * 10_000) * len(ordered) // 10_000))
    return ordered[rank - 1]
