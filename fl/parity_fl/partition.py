"""Cutting a data set into parts: the market plans once, every node cuts the same.

The cut, exactly (so that another implementation gets the same hash):

1. Strata. Classification: the class index of each row. Regression: rows ranked by target (stable, so equal targets
   keep file order); stratum = ``rank * bins // n`` with ``bins = min(10, max(1, n // 10))``.
2. Hold-out. The rows of stratum ``c``, ascending, are shuffled with the stream ``stratum`` keyed by (seed, c); the first
   ``holdout_counts[c]`` are the hold-out. They belong to no part.
3. Parts. ``stratified``, ``non_iid``, ``label_skew``: what is left of each shuffled stratum is dealt in blocks, part 0
   first, ``counts[p][c]`` rows each. ``random``: the remaining rows, ascending, are shuffled with the stream ``rows`` keyed by (seed) and dealt in blocks
   of ``sum(counts[p])``. ``sequential``: the same without the shuffle.
4. Overlap. Each part also takes the first rows of the next part (cyclic) in the order they were dealt: per stratum where parts are
   dealt by stratum, else ``sum(overlap_counts[p])`` of them.
5. Row ids of each part, sorted, are what a node trains on.

Streams and shuffles are those of ``parity_fl.prng``. How the market came to ``counts`` does not matter to a node; for
the unequal strategies ``parity_fl.skew`` says it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

import numpy as np
from numpy.typing import NDArray

from parity_fl.data import Labels, label_classes, targets
from parity_fl.partition_config import BY_STRATUM, PartitionConfig
from parity_fl.plan import PartitionPlan
from parity_fl.prng import Sha256Stream, derive_key, shuffled
from parity_fl.skew import largest_remainder, skewed_counts
from parity_protocol.errors import BadField, ExecutionFailed, FailureReason

__all__ = ["Assignment", "assign", "holdout_rows", "largest_remainder", "plan_partition", "rows_of_part"]

RowIds = NDArray[np.uint32]

_QUANTILE_BINS = 10
_EMPTY_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which rows go where. All row ids are sorted uint32 arrays."""

    parts: tuple[RowIds, ...]
    holdout: RowIds

    def digest(self) -> str:
        """Return the assignment hash, 64 hex characters.

        SHA-256 over ``"parity-fl/assignment/v1" 00``, then for each part in order and last for the hold-out: the
        number of its rows and its sorted row ids, each as 32 bits little-endian.
        """
        digest = hashlib.sha256(b"parity-fl/assignment/v1\x00")
        for rows in (*self.parts, self.holdout):
            digest.update(len(rows).to_bytes(4, "little"))
            digest.update(rows.astype("<u4").tobytes())
        return digest.hexdigest()


def plan_partition(
    config: PartitionConfig, labels: Labels, *, seed: str, n_features: int, classification: bool
) -> PartitionPlan:
    """Compute the plan of a session; only the market does this.

    Args:
        config: The session's partition settings.
        labels: Raw labels of all rows, shape ``(n,)``.
        seed: 64 lower-case hex characters, unpredictable to submitters who should not choose their parts.
        n_features: Columns of the data set; kept in the plan for checking updates.
        classification: Strata are classes, else quantiles of the target.

    Raises:
        BadField: The data have too few rows for the parts and ``min_samples``.
        ExecutionFailed: ``data_invalid``: the labels do not fit the task.
    """
    names, strata = _strata(labels, classification=classification)
    sizes = np.bincount(strata, minlength=len(names) if classification else 0).tolist()
    n_rows = len(labels)

    wanted = _half_up(Fraction(str(config.holdout_fraction)) * n_rows)
    # A stratum always keeps a row to train on, so that no class is known to the hold-out alone.
    holdout = largest_remainder(wanted, sizes, [max(0, size - 1) for size in sizes])
    if config.holdout_fraction > 0 and sum(holdout) == 0:
        # Far from a fault of the fraction: somebody gave numbers to predict to a model that sorts into classes.
        if classification and wanted > 0:
            raise BadField(
                f"{n_rows} rows have {len(sizes)} different labels, so that no class has a row to spare for scoring: "
                "where the label is a number to predict, make it a regression (task regression, or a linear_regression)",
                field="model_config.task",
            )
        raise BadField(
            f"holdout_fraction {config.holdout_fraction} of {n_rows} rows leaves no row to score on",
            field="partition_config.holdout_fraction",
        )
    rest = [size - held for size, held in zip(sizes, holdout, strict=True)]

    counts, redraws, moved = _counts(config, rest, seed=seed)
    plan = PartitionPlan(
        strategy=config.strategy,
        total_parts=config.total_parts,
        seed=seed,
        n_rows=n_rows,
        n_features=n_features,
        strata="class" if classification else "quantile",
        class_names=names,
        class_count=len(sizes),
        holdout_fraction=config.holdout_fraction,
        holdout_counts=tuple(holdout),
        counts=counts,
        overlap_ratio=config.overlap_ratio,
        overlap_counts=tuple(() for _ in range(config.total_parts)),
        min_samples=config.min_samples,
        redraws=redraws,
        moved=moved,
        assignment_hash=_EMPTY_HASH,
    )
    if config.strategy not in BY_STRATUM:  # the cut decides the classes here; the matrix reports them
        owned, _ = _cut(plan, strata)
        plan = replace(plan, counts=tuple(_histogram(rows, strata, len(sizes)) for rows in owned))
    plan = replace(plan, overlap_counts=_overlap(plan, strata))
    return replace(plan, assignment_hash=_assign(plan, strata).digest())


def assign(plan: PartitionPlan, labels: Labels) -> Assignment:
    """Cut the data set as the plan says, and check that it came out as the market's did.

    Args:
        labels: Raw labels of all rows, shape ``(plan.n_rows,)``.

    Raises:
        ExecutionFailed: ``data_invalid``: these are not the data that were planned for.
    """
    if len(labels) != plan.n_rows:
        _refuse(f"the partition plan is for {plan.n_rows} rows, the data have {len(labels)}")
    names, strata = _strata(labels, classification=plan.strata == "class")
    if names != plan.class_names:
        _refuse(f"the partition plan knows {len(plan.class_names)} classes, the data have {len(names)} or other ones")
    held = np.array(plan.holdout_counts, dtype=np.int64)
    if plan.class_count <= int(strata.max()) or (np.bincount(strata, minlength=plan.class_count) < held).any():
        _refuse("the partition plan does not fit the classes of the data")
    found = _assign(plan, strata)
    if found.digest() != plan.assignment_hash:
        _refuse(f"assignment hash is {found.digest()}, the plan says {plan.assignment_hash}")
    return found


def rows_of_part(plan: PartitionPlan, labels: Labels, part: int) -> RowIds:
    """Return the sorted row ids that ``part`` trains on.

    Raises:
        BadField: There is no such part.
        ExecutionFailed: ``data_invalid``: these are not the data that were planned for.
    """
    if not 0 <= part < plan.total_parts:
        raise BadField(f"part must be 0 to {plan.total_parts - 1}, got {part}", field="part")
    return assign(plan, labels).parts[part]


def holdout_rows(plan: PartitionPlan, labels: Labels) -> RowIds:
    """Return the sorted row ids that no part trains on; empty when ``holdout_fraction`` is 0."""
    return assign(plan, labels).holdout


def _strata(labels: Labels, *, classification: bool) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    if classification:
        classes = label_classes(labels)
        return classes.names, classes.index
    values = targets(labels)
    n_rows = len(values)
    bins = min(_QUANTILE_BINS, max(1, n_rows // _QUANTILE_BINS))
    strata = np.empty(n_rows, dtype=np.int64)
    strata[np.argsort(values, kind="stable")] = np.arange(n_rows, dtype=np.int64) * bins // n_rows
    return (), strata


def _counts(
    config: PartitionConfig, sizes: Sequence[int], *, seed: str
) -> tuple[tuple[tuple[int, ...], ...], int, int]:
    """Return how many rows each part owns, by stratum where it is dealt by stratum, with redraws and moved rows."""
    if config.strategy in {"non_iid", "label_skew"}:
        skewed = skewed_counts(config, sizes, seed=seed)
        return skewed.counts, skewed.redraws, skewed.moved
    parts, rows = config.total_parts, sum(sizes)
    totals = [rows // parts + (part < rows % parts) for part in range(parts)]
    for part, total in enumerate(totals):
        if total < config.min_samples:
            raise BadField(
                f"invalid partition configuration: part {part} would have {total} samples,"
                f" min_samples is {config.min_samples} ({rows} rows to train on, {parts} parts)",
                field="partition_config.min_samples",
            )
    counts = _deal(sizes, parts) if config.strategy == "stratified" else tuple((total,) for total in totals)
    return counts, 0, 0


def _deal(sizes: Sequence[int], parts: int) -> tuple[tuple[int, ...], ...]:
    """Share each stratum evenly; left-over rows go round the parts without starting again, so part sizes differ by ≤ 1."""
    matrix = [[size // parts for size in sizes] for _ in range(parts)]
    turn = 0
    for stratum, size in enumerate(sizes):
        for _ in range(size % parts):
            matrix[turn][stratum] += 1
            turn = (turn + 1) % parts
    return tuple(tuple(row) for row in matrix)


def _cut(plan: PartitionPlan, strata: NDArray[np.int64]) -> tuple[list[RowIds], RowIds]:
    """Return the rows that each part owns, in the order they were dealt, and the hold-out."""
    seed = bytes.fromhex(plan.seed)
    shuffles = [
        shuffled(
            np.flatnonzero(strata == stratum).astype(np.uint32),
            Sha256Stream(derive_key("stratum", seed, stratum.to_bytes(4, "big"))),
        )
        for stratum in range(len(plan.holdout_counts))
    ]
    held = [rows[:count] for rows, count in zip(shuffles, plan.holdout_counts, strict=True)]
    holdout = np.sort(np.concatenate(held))
    if plan.strategy in BY_STRATUM:
        dealt: list[list[RowIds]] = [[] for _ in range(plan.total_parts)]
        for stratum, rows in enumerate(shuffles):
            start = plan.holdout_counts[stratum]
            for part in range(plan.total_parts):
                end = start + plan.counts[part][stratum]
                dealt[part].append(rows[start:end])
                start = end
        return [np.concatenate(blocks) for blocks in dealt], holdout

    free = np.ones(plan.n_rows, dtype=np.bool_)
    free[holdout] = False
    order = np.flatnonzero(free).astype(np.uint32)
    if plan.strategy == "random":
        order = shuffled(order, Sha256Stream(derive_key("rows", seed)))
    ends = np.cumsum([sum(row) for row in plan.counts])
    return list(np.split(order, ends[:-1])), holdout


def _overlap(plan: PartitionPlan, strata: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    width = len(plan.holdout_counts)
    ratio = Fraction(str(plan.overlap_ratio))
    if ratio == 0 or plan.total_parts == 1:
        return tuple((0,) * width for _ in range(plan.total_parts))
    owned, _ = _cut(plan, strata)
    matrix: list[tuple[int, ...]] = []
    for part in range(plan.total_parts):
        lender = (part + 1) % plan.total_parts
        wanted = ceil(ratio * len(owned[part]))
        if plan.strategy in BY_STRATUM:
            matrix.append(tuple(largest_remainder(wanted, plan.counts[lender], plan.counts[lender])))
        else:
            matrix.append(_histogram(owned[lender][:wanted], strata, width))
    return tuple(matrix)


def _assign(plan: PartitionPlan, strata: NDArray[np.int64]) -> Assignment:
    owned, holdout = _cut(plan, strata)
    parts: list[RowIds] = []
    for part, rows in enumerate(owned):
        lender = owned[(part + 1) % plan.total_parts]
        wanted = plan.overlap_counts[part]
        if plan.strategy in BY_STRATUM:
            lent = strata[lender]
            borrowed = [lender[lent == stratum][:count] for stratum, count in enumerate(wanted) if count]
        else:
            borrowed = [lender[: sum(wanted)]]
        parts.append(np.sort(np.concatenate([rows, *borrowed])))
    return Assignment(tuple(parts), holdout)


def _histogram(rows: RowIds, strata: NDArray[np.int64], width: int) -> tuple[int, ...]:
    return tuple(np.bincount(strata[rows], minlength=width).tolist())


def _half_up(value: Fraction) -> int:
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def _refuse(message: str) -> None:
    raise ExecutionFailed(
        FailureReason.DATA_INVALID, message, hint="Check that the CID is the one the session was made with."
    )
