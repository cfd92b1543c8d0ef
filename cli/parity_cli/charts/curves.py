"""What is drawn: panels of curves over rounds, taken from the document of a simulation or of a session."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from parity_protocol.errors import BadDocument

__all__ = ["MAX_POINTS", "Curve", "Panel", "panels_of"]

MAX_POINTS: Final = 100_000
_QUALITY: Final = ("accuracy", "r2")
_LOSS: Final = ("loss", "train_loss")
_MAX_NODES: Final = 12  # curves of contributions that can still be told apart


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: ``points`` are (round, value), ascending, finite."""

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that share an axis.

    Attributes:
        title: What the axis shows.
        curves: At least one, none empty.
        low: Smallest value of the axis.
        high: Largest value of the axis, above ``low``.
    """

    title: str
    curves: tuple[Curve, ...]
    low: float
    high: float

    @property
    def first(self) -> int:
        """The first round."""
        return min(curve.points[0][0] for curve in self.curves)

    @property
    def last(self) -> int:
        """The last round."""
        return max(curve.points[-1][0] for curve in self.curves)


def panels_of(document: object) -> tuple[Panel, ...]:
    """Return the panels of a document: quality, loss, and ε and contributions by node if it has them.

    Args:
        document: Parsed JSON with ``rounds``, of ``parity fl simulate --json`` or ``parity fl show --json``.

    Raises:
        BadDocument: It has no rounds with scores.
    """
    rounds = document.get("rounds") if isinstance(document, dict) else None
    if not isinstance(rounds, list) or not all(isinstance(each, dict) for each in rounds):
        raise BadDocument("no rounds: expected what `parity fl simulate --json` or `parity fl show --json` prints")
    if len(rounds) > MAX_POINTS:
        raise BadDocument(f"at most {MAX_POINTS} rounds can be drawn, got {len(rounds)}")
    panels: list[Panel] = []
    quality = _curves(rounds, _QUALITY)
    if quality:
        panels.append(_panel(" and ".join(curve.name for curve in quality), quality, floor=None))
    loss = _curves(rounds, _LOSS)
    if loss:
        panels.append(_panel("loss", loss, floor=0.0))
    spent = _curves(rounds, ("epsilon",))
    if spent:
        panels.append(_panel("epsilon spent", spent, floor=0.0))
    nodes = _contributions(rounds)
    if nodes:
        panels.append(_panel("contribution", nodes, floor=None))
    if not panels:
        raise BadDocument("the rounds have no accuracy, r2 or loss to draw")
    return tuple(panels)


def _curves(rounds: Iterable[Mapping[str, Any]], names: Iterable[str]) -> tuple[Curve, ...]:
    found: dict[str, dict[int, float]] = {name: {} for name in names}
    for each in rounds:  # of a round's phases the last one that says something counts
        for name, points in found.items():
            value = _score(each, name)
            if value is not None:
                points[_round(each)] = value
    return tuple(Curve(name, tuple(sorted(points.items()))) for name, points in found.items() if points)


def _contributions(rounds: Iterable[Mapping[str, Any]]) -> tuple[Curve, ...]:
    by_node: dict[str, list[tuple[int, float]]] = {}
    for each in rounds:
        for node, value in _scored(each):
            if _is_number(value):
                by_node.setdefault(str(node)[:12], []).append((_round(each), float(value)))
    extreme = sorted(by_node, key=lambda node: -abs(by_node[node][-1][1]))[:_MAX_NODES]
    chosen = sorted(extreme, key=lambda node: (len(node), node))
    return tuple(Curve(f"node {node}", tuple(sorted(by_node[node]))) for node in chosen)


def _scored(record: Mapping[str, Any]) -> Iterable[tuple[object, Any]]:
    """Yield (node, contribution): a simulation has them in one place, a session with every part's update."""
    together, updates = record.get("contributions"), record.get("updates")
    if isinstance(together, dict):
        yield from together.items()
    for update in updates if isinstance(updates, list) else ():
        numbers = update.get("metrics") if isinstance(update, dict) else None
        if isinstance(numbers, dict) and "part" in update:
            yield update["part"], numbers.get("contribution")


def _panel(title: str, curves: tuple[Curve, ...], *, floor: float | None) -> Panel:
    values = [value for curve in curves for _, value in curve.points]
    low, high = min(values), max(values)
    if floor is not None:
        low = min(low, floor)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5 * max(abs(low), 1e-6), high + 0.5 * max(abs(high), 1e-6)
    return Panel(title, curves, low, high)


def _round(record: Mapping[str, Any]) -> int:
    number = record.get("round")
    if type(number) is not int or not 0 <= number <= 1 << 31:
        raise BadDocument("a round has no number")
    return number


def _score(record: Mapping[str, Any], name: str) -> float | None:
    nested = record.get("metrics")
    value = record.get(name, nested.get(name) if isinstance(nested, dict) else None)
    return float(value) if _is_number(value) else None


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
    )
