"""What parts agree on before a histogram forest grows: classes, columns, rows, range of targets; and what cannot work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NoReturn

from parity_fl.histogram_codec import max_answer_bytes, request_digest
from parity_fl.histogram_draws import MAX_DRAWS
from parity_fl.histogram_phases import MAX_REQUEST_BYTES, MAX_TARGET_BITS, Agreed, TargetScale
from parity_fl.limits import FOREST_LIMITS, MAX_CLASSES, MAX_FEATURES, MAX_LABEL_CHARS
from parity_fl.plan import PartitionPlan
from parity_fl.shards import ShardPlan
from parity_fl.spec import ForestConfig
from parity_protocol import strict_json
from parity_protocol.errors import BadDocument, BadField, ExecutionFailed, FailureReason

__all__ = [
    "DEFAULT_MAX_PHASE_BYTES",
    "MAX_SAID_BYTES",
    "PartSays",
    "agree",
    "check_against_plan",
    "check_histogram",
    "read_classes",
]

MAX_SAID_BYTES: Final = 1 << 20  # a thousand class names of 256 characters, and their counts
DEFAULT_MAX_PHASE_BYTES: Final = 32 << 20  # longest answer of one part in one phase
_MAX_ROWS: Final = (1 << 32) - 1
_EXACT_BITS: Final = 53  # of a float64, which adds up whole numbers exactly to here
_NODE_BYTES: Final = 16  # of a growing tree in a request


@dataclass(frozen=True, slots=True)
class PartSays:
    """A part's answer to the first phase.

    Attributes:
        n_features: Columns.
        rows: Rows.
        classes: Rows of each class; empty for regression.
        low, high: Range of the targets; 0 for classification.
    """

    n_features: int
    rows: int
    classes: dict[str, int]
    low: float = 0.0
    high: float = 0.0


def check_histogram(config: ForestConfig, plan: PartitionPlan | ShardPlan, *, max_phase_bytes: int) -> None:
    """Refuse at creation what could only fail after nodes have worked.

    Raises:
        BadField: Rows that several parts share; a forest or a phase over its cap in the worst case.
    """
    if any(map(any, plan.overlap_counts)):
        raise BadField(
            "overlap_ratio must be 0 for mode histogram: a borrowed row would be counted twice",
            field="partition_config.overlap_ratio",
        )
    rows = plan.n_rows - plan.holdout_size
    leaves = min(rows, 1 << config.max_depth)
    nodes = config.num_trees * (2 * leaves - 1)
    most = min(FOREST_LIMITS.max_nodes, MAX_REQUEST_BYTES // (2 * _NODE_BYTES))
    if nodes > most:
        raise BadField(
            f"{config.num_trees} trees of depth {config.max_depth} on {rows} rows can have {nodes} nodes, at most {most}"
            " are allowed: use fewer trees or less depth",
            field="model_config.max_depth",
        )
    tries = min(plan.n_features, config.max_features or max(1, math.isqrt(plan.n_features)))
    columns = plan.class_count if config.task == "classification" else 3
    cells = tries * config.max_bins * columns
    draws = MAX_DRAWS * rows
    worst = max_answer_bytes(cells, cells, draws if config.task == "classification" else draws << (2 * MAX_TARGET_BITS))
    if worst > max_phase_bytes:
        raise BadField(
            f"one node's table can take {worst} bytes ({tries} features, {config.max_bins} bins, {columns} columns), a phase has"
            f" {max_phase_bytes}: use fewer bins or a smaller max_features",
            field="model_config.max_features",
        )


def read_classes(answer: bytes, request: bytes, *, classification: bool) -> PartSays:
    """Read a part's answer to the first phase.

    Raises:
        BadDocument: It is not exactly such an answer.
        TooLarge: Over its cap.
    """
    raw = strict_json.loads(answer, max_bytes=MAX_SAID_BYTES, max_depth=2)
    members = {"request", "n_features", "classes"} if classification else {"request", "n_features", "range", "rows"}
    if not isinstance(raw, dict) or set(raw) != members:
        _fail(f"it must have exactly {', '.join(sorted(members))}")
    if raw["request"] != request_digest(request).hex():
        _fail("it answers another request")
    width = _whole(raw["n_features"], "n_features", MAX_FEATURES)
    if classification:
        classes = raw["classes"]
        if not isinstance(classes, dict) or not 1 <= len(classes) <= MAX_CLASSES:
            _fail(f"classes must be an object of 1 to {MAX_CLASSES}")
        counts = {name: _whole(count, "a class", _MAX_ROWS) for name, count in classes.items()}
        if not all(0 < len(name) <= MAX_LABEL_CHARS for name in counts) or sum(counts.values()) > _MAX_ROWS:
            _fail("its classes have too long names or too many rows")
        return PartSays(width, sum(counts.values()), counts)
    ends = raw["range"]
    if not isinstance(ends, list) or len(ends) != 2:
        _fail("range must be two numbers")
    low, high = (
        float(end) if isinstance(end, (int, float)) and not isinstance(end, bool) else math.nan for end in ends
    )
    if not (-3.5e38 < low <= high < 3.5e38):
        _fail("range must be two 32-bit numbers, low and high")
    return PartSays(width, _whole(raw["rows"], "rows", _MAX_ROWS), {}, low, high)


def check_against_plan(said: PartSays, plan: PartitionPlan | ShardPlan, part: int) -> None:
    """Refuse a part that does not have what the plan gave it.

    Raises:
        BadDocument: It names the part.
    """
    if said.n_features != plan.n_features or said.rows != plan.part_size(part):
        _fail(
            f"{said.rows} rows of {said.n_features} columns, the plan says {plan.part_size(part)} of {plan.n_features}"
        )
    if plan.strata == "class":
        own = {name: count for name, count in zip(plan.class_names, plan.counts[part], strict=True) if count}
        if said.classes != own:
            _fail("its rows per class are not the plan's")


def agree(config: ForestConfig, said: list[PartSays], plan: PartitionPlan | ShardPlan | None) -> Agreed:
    """Make one agreement of what all parts say, in part order.

    Raises:
        ExecutionFailed: ``data_invalid``: the parts do not belong together.
    """
    if len({one.n_features for one in said}) != 1:
        widths = ", ".join(str(one.n_features) for one in said[:8])
        _refuse(f"inconsistent feature dimensions: the parts have {widths} columns")
    rows = sum(one.rows for one in said)
    if rows > _MAX_ROWS:
        _refuse(f"the parts have {rows} rows, at most {_MAX_ROWS} are allowed")
    offsets = [0]
    for one in said[:-1]:
        offsets.append(offsets[-1] + one.rows)
    names: tuple[str, ...] = ()
    target = TargetScale()
    if config.task == "classification":
        names = plan.class_names if plan is not None else _in_order({name for one in said for name in one.classes})
        if config.num_classes not in {0, len(names)}:
            _refuse(f"num_classes is {config.num_classes}, the data have {len(names)} classes")
        if not 2 <= len(names) <= MAX_CLASSES:
            _refuse(f"the labels have {len(names)} classes, 2 to {MAX_CLASSES} can be learned")
    else:
        low, high = min(one.low for one in said), max(one.high for one in said)
        bits = min(MAX_TARGET_BITS, (_EXACT_BITS - (MAX_DRAWS * rows).bit_length()) // 2)
        target = TargetScale(low, (high - low) / ((1 << bits) - 1) or 1.0, bits)
    return Agreed(names, target, tuple(offsets), config.random_state, config.subsample, config.bootstrap_samples)


def _in_order(names: set[str]) -> tuple[str, ...]:
    """Sort class names as a data set's are: as numbers if all are, else as text."""
    try:
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(names))


def _whole(value: object, name: str, high: int) -> int:
    if type(value) is not int or not 1 <= value <= high:
        _fail(f"{name} must be a whole number from 1 to {high}")
    return value


def _fail(message: str) -> NoReturn:
    raise BadDocument(f"not an answer to this phase: {message}")


def _refuse(message: str) -> NoReturn:
    raise ExecutionFailed(FailureReason.DATA_INVALID, message)
