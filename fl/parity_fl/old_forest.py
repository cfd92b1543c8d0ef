"""A forest that a runner of the Parity network grew, counted again on the rows of its part.

Such a runner cuts the data by itself and draws by itself, so nothing that it says of its leaves can be checked. What is
taken of it is where its trees split; what arrives there, and of which class, is counted here with the draws that the plan
gives the part. So its update passes the same recount as every other one, and a lie about a leaf has no effect. A branch
that no row reaches is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.bootstrap import draw_counts, split_trees
from parity_fl.forest_wire import read_old_trees
from parity_fl.limits import ForestLimits
from parity_fl.plan import PartitionPlan
from parity_fl.spec import FlSpec, ForestConfig
from parity_fl.table import Table
from parity_fl.trees import Forest, as_forest_features, forest_tensors
from parity_fl.update import FlUpdate, encode_update
from parity_protocol import strict_json
from parity_protocol.errors import BadField

__all__ = ["MAX_OLD_NUMBERS", "refitted_update"]

MAX_OLD_NUMBERS: Final = 400_000  # of a part's trees
_MAX_BYTES: Final = 8 << 20
_SPARE_VALUES: Final = 20_000  # beside the trees


@dataclass(slots=True)
class _Nodes:
    feature: list[int] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    value: list[NDArray[np.float64]] = field(default_factory=list)
    n: list[int] = field(default_factory=list)


def refitted_update(spec: FlSpec, plan: PartitionPlan, dataset: bytes, data: bytes, part: int) -> bytes:
    """Return a part's update made of an old runner's.

    Args:
        spec: Of a forest in mode ``union``.
        plan: The session's.
        dataset: The whole data set.
        data: The runner's update, JSON.
        part: Number of the part.

    Raises:
        BadField: There are no trees, too few, or they are not lists of numbers; ``field`` names the place.
        BadDocument: They are no trees over such data; ``TooLarge``: too many numbers.
    """
    assert isinstance(spec.model, ForestConfig)
    config = spec.model
    wanted = split_trees(config.num_trees, plan.total_parts)[part]
    numbers, importance = _read(data, plan.n_features)
    limits = ForestLimits(max_depth=config.max_depth)
    sent = read_old_trees(numbers, n_features=plan.n_features, importance=importance, limits=limits)
    if sent.n_trees < wanted:
        raise BadField(f"weights.trees must hold {wanted} trees, got {sent.n_trees}", field="weights.trees")
    table = Table.load(spec, plan, dataset)
    rows = table.assignment.parts[part]
    features, truth = as_forest_features(table.dataset.features[rows]), table.truth[rows]
    width = plan.class_count if spec.is_classification else 1
    nodes, starts = _Nodes(), [0]
    for tree in range(wanted):
        counts = draw_counts(config, part=part, tree=tree, rows=len(rows))
        _refit(sent, tree, features, truth, counts, width, nodes)
        starts.append(len(nodes.feature))
    forest = Forest(
        tree_starts=np.array(starts, dtype=np.uint32),
        feature=np.array(nodes.feature, dtype=np.int32),
        threshold=np.array(nodes.threshold, dtype=np.float64),
        left=np.array(nodes.left, dtype=np.int32),
        right=np.array(nodes.right, dtype=np.int32),
        value=np.array(nodes.value, dtype=np.float32),
        n=np.array(nodes.n, dtype=np.uint32),
        tree_weight=np.full(wanted, 1 / wanted, dtype=np.float64),
        importance=sent.importance,
    )
    return encode_update(
        FlUpdate(
            model_type=spec.model_type,
            session_id=spec.session_id,
            round_id=spec.round_id,
            part=part,
            total_parts=plan.total_parts,
            assignment_hash=plan.assignment_hash,
            base_hash="",
            n_samples=len(rows),
            metrics={},
            tensors=forest_tensors(forest),
        )
    )


def _read(data: bytes, n_features: int) -> tuple[list[float], NDArray[np.float64] | None]:
    raw = strict_json.loads(data, max_bytes=_MAX_BYTES, max_depth=8, max_values=2 * MAX_OLD_NUMBERS + _SPARE_VALUES)
    weights = raw.get("weights") if isinstance(raw, dict) else None
    if not isinstance(weights, dict):
        raise BadField("weights must be an object of lists", field="weights")
    trees = weights.get("trees")
    if not isinstance(trees, list) or not 0 < len(trees) <= MAX_OLD_NUMBERS:
        raise BadField(f"weights.trees must be a list of 1 to {MAX_OLD_NUMBERS} numbers", field="weights.trees")
    numbers, shares = _numbers(trees, "trees"), weights.get("feature_importance") or []
    importance = _numbers(shares, "feature_importance")
    if len(importance) != n_features:  # old runners leave out columns that no tree used
        return numbers, None
    return numbers, np.array(importance, dtype=np.float64)


def _numbers(values: object, name: str) -> list[float]:
    found = [float(one) for one in values if type(one) in (int, float)] if isinstance(values, list) else None
    if not isinstance(values, list) or found is None or len(found) != len(values):
        raise BadField(f"weights.{name} must be a list of numbers", field=f"weights.{name}")
    return found


def _refit(
    sent: Forest,
    tree: int,
    features: NDArray[np.float32],
    truth: NDArray[np.float64],
    counts: NDArray[np.int64],
    width: int,
    nodes: _Nodes,
) -> None:
    """Send a part's draws down one tree, and add what they reach of it."""
    first, end = int(sent.tree_starts[tree]), int(sent.tree_starts[tree + 1])
    feature, threshold = sent.feature[first:end], sent.threshold[first:end]
    left, right = sent.left[first:end], sent.right[first:end]
    size = end - first
    arrived, sums = np.zeros(size, dtype=np.int64), np.zeros(size * width, dtype=np.float64)
    rows = np.flatnonzero(counts)
    column = truth.astype(np.int64) if width > 1 else np.zeros(len(truth), dtype=np.int64)
    amount = counts.astype(np.float64) if width > 1 else counts * truth
    at = np.zeros(len(rows), dtype=np.int64)
    while len(rows):
        arrived += np.bincount(at, weights=counts[rows], minlength=size).astype(np.int64)
        sums += np.bincount(at * width + column[rows], weights=amount[rows], minlength=size * width)
        inner = feature[at] >= 0
        at, rows = at[inner], rows[inner]
        at = np.where(features[rows, feature[at]] <= threshold[at], left[at], right[at]).astype(np.int64)
    values = sums.reshape(size, width) / np.maximum(arrived, 1)[:, None]
    base = len(nodes.feature)
    waiting: list[tuple[int, int, list[int] | None]] = [
        (0, -1, None)
    ]  # node, its parent's number, where to note its own
    while waiting:
        node, parent, side = waiting.pop()
        while feature[node] >= 0 and not (arrived[left[node]] and arrived[right[node]]):
            node = int(left[node] if arrived[left[node]] else right[node])
        number = len(nodes.feature) - base
        if side is not None:
            side[base + parent] = number
        is_leaf = feature[node] < 0
        nodes.feature.append(-1 if is_leaf else int(feature[node]))
        nodes.threshold.append(0.0 if is_leaf else float(threshold[node]))
        nodes.left.append(-1)
        nodes.right.append(-1)
        nodes.value.append(values[node])
        nodes.n.append(int(arrived[node]))
        if not is_leaf:
            waiting.append((int(right[node]), number, nodes.right))
            waiting.append((int(left[node]), number, nodes.left))
