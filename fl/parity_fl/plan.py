"""The partition plan: the integers that the market publishes so that every node cuts the same parts.

A plan has no float that a node computes with: sizes are whole numbers that the market rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from parity_fl.limits import MAX_CLASSES, MAX_FEATURES, MAX_LABEL_CHARS, MAX_PARTS
from parity_fl.partition_config import MAX_REDRAWS, PARTITION_STRATEGIES
from parity_protocol.errors import BadField

__all__ = ["PartitionPlan"]

_MAX_ROWS: Final = (1 << 32) - 1
_HEX_CHARS: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """How one data set is cut for one session.

    A *stratum* is a class for classification, and one tenth of the rows by rank of the target for regression.

    Attributes:
        strategy: One of ``PARTITION_STRATEGIES``.
        total_parts: Number of parts, at least 1.
        seed: 64 lower-case hex characters; keys every shuffle.
        n_rows: Rows in the whole data set.
        n_features: Columns without the label.
        strata: ``class`` or ``quantile``.
        class_names: The classes in index order; empty for regression.
        class_count: Number of strata, which is the number of columns of ``counts``.
        holdout_fraction: What was asked for; nodes use ``holdout_counts``.
        holdout_counts: Rows of each stratum that belong to no part.
        counts: Training rows that each part owns, ``[part][stratum]``; these partition the rest exactly.
        overlap_ratio: What was asked for; nodes use ``overlap_counts``.
        overlap_counts: Rows that each part borrows from the next part (cyclic), ``[part][stratum]``.
        min_samples: Every part owns at least so many rows.
        redraws: How often the market drew all shares again because a part was below ``min_samples``.
        moved: Rows that it then moved from the largest part to the smallest.
        assignment_hash: SHA-256, hex, of all parts and the hold-out (see ``Assignment.digest``).
    """

    strategy: str
    total_parts: int
    seed: str
    n_rows: int
    n_features: int
    strata: str
    class_names: tuple[str, ...]
    class_count: int
    holdout_fraction: float
    holdout_counts: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]
    overlap_ratio: float
    overlap_counts: tuple[tuple[int, ...], ...]
    min_samples: int
    redraws: int
    moved: int
    assignment_hash: str

    @property
    def holdout_size(self) -> int:
        """Rows in the hold-out."""
        return sum(self.holdout_counts)

    def part_size(self, part: int) -> int:
        """Rows that ``part`` trains on, borrowed ones included."""
        return sum(self.counts[part]) + sum(self.overlap_counts[part])

    def to_dict(self) -> dict[str, object]:
        """Return JSON-ready members; ``from_dict`` reads them back to an equal plan."""
        members: dict[str, object] = {field.name: getattr(self, field.name) for field in fields(self)}
        members["class_names"] = list(self.class_names)
        members["holdout_counts"] = list(self.holdout_counts)
        members["counts"] = [list(row) for row in self.counts]
        members["overlap_counts"] = [list(row) for row in self.overlap_counts]
        return members

    @classmethod
    def from_dict(cls, raw: object) -> PartitionPlan:
        """Read a plan that somebody else made, checking every member against the others.

        Raises:
            BadField: A member is missing, unknown, of the wrong type or contradicts another.
        """
        if not isinstance(raw, dict):
            raise BadField("a partition plan must be an object", field="plan")
        names = {field.name for field in fields(cls)}
        for name in sorted(names ^ set(raw), key=str):
            word = "missing" if name in names else "unknown field"
            raise BadField(f"partition plan: {word} {str(name)[:64]!a}", field=f"plan.{str(name)[:64]}")

        parts = _whole(raw["total_parts"], "total_parts", 1, MAX_PARTS)
        rows = _whole(raw["n_rows"], "n_rows", 1, _MAX_ROWS)
        strata = _word(raw["strata"], "strata", ("class", "quantile"))
        width = _whole(raw["class_count"], "class_count", 1, MAX_CLASSES)
        class_names = _class_names(raw["class_names"], width if strata == "class" else 0)
        plan = cls(
            strategy=_word(raw["strategy"], "strategy", PARTITION_STRATEGIES),
            total_parts=parts,
            seed=_hex(raw["seed"], "seed"),
            n_rows=rows,
            n_features=_whole(raw["n_features"], "n_features", 1, MAX_FEATURES),
            strata=strata,
            class_names=class_names,
            class_count=width,
            holdout_fraction=_fraction(raw["holdout_fraction"], "holdout_fraction"),
            holdout_counts=_row(raw["holdout_counts"], "holdout_counts", width, rows),
            counts=_matrix(raw["counts"], "counts", parts, width, rows),
            overlap_ratio=_fraction(raw["overlap_ratio"], "overlap_ratio"),
            overlap_counts=_matrix(raw["overlap_counts"], "overlap_counts", parts, width, rows),
            min_samples=_whole(raw["min_samples"], "min_samples", 1, rows),
            redraws=_whole(raw["redraws"], "redraws", 0, MAX_REDRAWS),
            moved=_whole(raw["moved"], "moved", 0, _MAX_ROWS),
            assignment_hash=_hex(raw["assignment_hash"], "assignment_hash"),
        )
        plan._check_sums()
        return plan

    def _check_sums(self) -> None:
        if sum(sum(row) for row in self.counts) + self.holdout_size != self.n_rows:
            raise BadField(
                f"partition plan: counts and hold-out do not add up to {self.n_rows} rows", field="plan.counts"
            )
        for part, (own, borrowed) in enumerate(zip(self.counts, self.overlap_counts, strict=True)):
            if sum(own) < self.min_samples:
                raise BadField(f"partition plan: part {part} has fewer than min_samples rows", field="plan.counts")
            lender = self.counts[(part + 1) % self.total_parts]
            too_many = any(want > has for want, has in zip(borrowed, lender, strict=True))
            if too_many or (self.total_parts == 1 and any(borrowed)):
                raise BadField(f"partition plan: part {part} borrows more than there is", field="plan.overlap_counts")


def _whole(value: object, name: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise BadField(f"partition plan: {name} must be a whole number from {low} to {high}", field=f"plan.{name}")
    return value


def _fraction(value: object, name: str) -> float:
    if type(value) not in {int, float} or not 0 <= value < 1:  # type: ignore[operator]  # narrowed by the first half
        raise BadField(f"partition plan: {name} must be at least 0 and below 1", field=f"plan.{name}")
    return float(value)  # type: ignore[arg-type]  # int or float, as checked above


def _word(value: object, name: str, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise BadField(f"partition plan: {name} must be one of {', '.join(allowed)}", field=f"plan.{name}")
    return value


def _hex(value: object, name: str) -> str:
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= _HEX_CHARS:
        raise BadField(f"partition plan: {name} must be 64 lower-case hex characters", field=f"plan.{name}")
    return value


def _row(value: object, name: str, width: int, high: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != width:
        raise BadField(f"partition plan: each row of {name} must have {width} numbers", field=f"plan.{name}")
    return tuple(_whole(cell, name, 0, high) for cell in value)


def _matrix(value: object, name: str, height: int, width: int, high: int) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list) or len(value) != height:
        raise BadField(f"partition plan: {name} must have one row per part ({height})", field=f"plan.{name}")
    return tuple(_row(cells, name, width, high) for cells in value)


def _class_names(value: object, count: int) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) != count:
        raise BadField(f"partition plan: class_names must have {count} names", field="plan.class_names")
    names = tuple(name for name in value if isinstance(name, str) and 0 < len(name) <= MAX_LABEL_CHARS)
    if len(set(names)) != count:
        raise BadField("partition plan: class_names must be distinct, non-empty strings", field="plan.class_names")
    return names
