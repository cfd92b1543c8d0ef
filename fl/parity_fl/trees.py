"""Forests as flat arrays: what travels instead of pickles, and how it predicts.

Wire format (safetensors; ``T`` trees, ``N`` nodes in all, ``k`` classes or 1, ``d`` features):

============  =====  =======  ==================================================================================
tree_starts   U32    (T+1,)   first node of each tree, then N
feature       I32    (N,)     feature of the split; -1 marks a leaf
threshold     F64    (N,)     go left if ``float32(x[feature]) <= threshold``; 0 in a leaf
left, right   I32    (N,)     children, counted from the tree's first node, each after its parent; -1 in a leaf
value         F32    (N, k)   class shares of the node's draws, summing to 1; for regression their mean
n             U32    (N,)     draws that reached the node; a parent's is the sum of its children's
tree_weight   F64    (T,)     share of each tree's vote, summing to 1
importance    F64    (d,)     impurity decrease per feature, summing to 1 (all 0 if no tree has a split)
============  =====  =======  ==================================================================================

A node's children come after it and every node but the root is a child exactly once, so there is no cycle and each node
has one depth. All checks are vectorised: a hostile document costs its length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.limits import FOREST_LIMITS, ForestLimits
from parity_fl.tensors import Tensor, take
from parity_protocol.errors import BadDocument, ExecutionFailed, FailureReason

__all__ = [
    "Forest",
    "as_forest_features",
    "forest_from_tensors",
    "forest_tensors",
    "leaf_numbers",
    "predict",
    "votes",
]

_ROWS_PER_STEP: Final = 8192
_SUM_TOLERANCE: Final = 1e-3  # float32 shares over up to a thousand classes
_WEIGHT_TOLERANCE: Final = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """Trees with their votes; the attributes are the tensors above."""

    tree_starts: NDArray[np.uint32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: NDArray[np.float32]
    n: NDArray[np.uint32]
    tree_weight: NDArray[np.float64]
    importance: NDArray[np.float64]

    @property
    def n_trees(self) -> int:
        """Number of trees."""
        return len(self.tree_weight)

    @property
    def n_outputs(self) -> int:
        """Number of classes, or 1 for regression."""
        return int(self.value.shape[1])


def forest_tensors(forest: Forest) -> dict[str, Tensor]:
    """Return the tensors of the wire format."""
    return {name: getattr(forest, name) for name in _TENSORS}


def forest_from_tensors(
    tensors: Mapping[str, Tensor],
    *,
    n_features: int,
    n_outputs: int,
    classification: bool,
    limits: ForestLimits = FOREST_LIMITS,
) -> Forest:
    """Check tensors that somebody else made and return the forest they are.

    Args:
        tensors: Decoded tensors; other names than the format's are refused.
        n_features: Columns of the data.
        n_outputs: Classes, or 1 for regression.
        classification: Whether values are class shares.
        limits: Caps on trees, nodes and depth.

    Raises:
        BadDocument: They are not a forest over such data.
    """
    if set(tensors) != set(_TENSORS):
        _fail(f"expected the tensors {', '.join(_TENSORS)}")
    parts = {name: take(tensors, name, dtype, dimensions) for name, (dtype, dimensions) in _TENSORS.items()}
    forest = Forest(**parts)
    nodes, trees = len(forest.feature), forest.n_trees
    if not 1 <= trees <= limits.max_trees or len(forest.tree_starts) != trees + 1:
        _fail(f"needs 1 to {limits.max_trees} trees, got {trees}")
    if not trees <= nodes <= limits.max_nodes:
        _fail(f"needs {trees} to {limits.max_nodes} nodes, got {nodes}")
    if any(len(parts[name]) != nodes for name in ("threshold", "left", "right", "value", "n")):
        _fail("node tensors differ in length")
    if n_outputs > limits.max_classes or forest.n_outputs != n_outputs:
        _fail(f"value must have {n_outputs} columns, got {forest.n_outputs}")
    if n_features > limits.max_features or len(forest.importance) != n_features:
        _fail(f"importance must have {n_features} entries, got {len(forest.importance)}")
    _check_structure(forest, n_features, limits.max_depth)
    _check_values(forest, classification=classification)
    return forest


def as_forest_features(features: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return features as trees compare them, float32 ``(n, d)``.

    Raises:
        ExecutionFailed: ``data_invalid``: a value does not fit a 32-bit float.
    """
    bad = np.argwhere(np.abs(features) > np.finfo(np.float32).max)
    if len(bad):
        sample, column = bad[0].tolist()
        message = f"feature value is too large for a forest at sample {sample}, feature {column} (over 3.4e38)"
        raise ExecutionFailed(FailureReason.DATA_INVALID, message)
    return features.astype(np.float32)


def votes(
    forest: Forest, features: NDArray[np.float32], *, skip: Callable[[int], NDArray[np.bool_]] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Add up the trees' weighted votes.

    Args:
        forest: A checked forest.
        features: Rows to vote on, shape ``(n, d)``.
        skip: For a tree number, which rows it must not vote on, shape ``(n,)``.

    Returns:
        Votes, shape ``(n, k)``, and the weight that voted, shape ``(n,)``: 0 where every tree was skipped.
    """
    rows = len(features)
    total = np.zeros((rows, forest.n_outputs), dtype=np.float64)
    weight = np.zeros(rows, dtype=np.float64)
    for tree in range(forest.n_trees):
        share = float(forest.tree_weight[tree])
        voting = np.arange(rows) if skip is None else np.flatnonzero(~skip(tree))
        for start in range(0, len(voting), _ROWS_PER_STEP):
            some = voting[start : start + _ROWS_PER_STEP]
            leaves = leaf_numbers(forest, tree, features[some])
            total[some] += share * forest.value[leaves].astype(np.float64)
            weight[some] += share
    return total, weight


def predict(forest: Forest, features: NDArray[np.float32], *, classification: bool) -> NDArray[np.float64]:
    """Return each row's class index (ties go to the lower one) or its predicted value, shape ``(n,)``, float64."""
    total, weight = votes(forest, features)
    if classification:
        winners: NDArray[np.float64] = np.argmax(total, axis=1).astype(np.float64)
        return winners
    predicted: NDArray[np.float64] = total[:, 0] / weight
    return predicted


_TENSORS: Final[Mapping[str, tuple[str, int]]] = {
    "tree_starts": ("U32", 1),
    "feature": ("I32", 1),
    "threshold": ("F64", 1),
    "left": ("I32", 1),
    "right": ("I32", 1),
    "value": ("F32", 2),
    "n": ("U32", 1),
    "tree_weight": ("F64", 1),
    "importance": ("F64", 1),
}


def leaf_numbers(forest: Forest, tree: int, features: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the node where each row ends, as an index into the forest's arrays, shape ``(n,)``."""
    first = int(forest.tree_starts[tree])
    node = np.full(len(features), first, dtype=np.int64)
    walking = np.arange(len(features))
    while len(walking):
        feature = forest.feature[node[walking]]
        inner = feature >= 0
        walking, feature = walking[inner], feature[inner]
        at = node[walking]
        goes_left = features[walking, feature] <= forest.threshold[at]
        node[walking] = first + np.where(goes_left, forest.left[at], forest.right[at])
    return node


def _check_structure(forest: Forest, n_features: int, max_depth: int) -> None:
    starts = forest.tree_starts.astype(np.int64)
    nodes = len(forest.feature)
    if starts[0] != 0 or starts[-1] != nodes or (np.diff(starts) < 1).any():
        _fail("tree_starts must begin at 0, rise, and end at the number of nodes")
    first = np.repeat(starts[:-1], np.diff(starts))
    leaf = forest.feature == -1
    inner = np.flatnonzero(~leaf)
    if ((forest.feature < -1) | (forest.feature >= n_features)).any():
        _fail(f"feature must be -1 or below {n_features}")
    if (forest.left[leaf] != -1).any() or (forest.right[leaf] != -1).any() or forest.threshold[leaf].any():
        _fail("a leaf has children or a threshold")

    end = np.repeat(starts[1:], np.diff(starts))
    children = np.concatenate([first[inner] + forest.left[inner], first[inner] + forest.right[inner]])
    parents = np.concatenate([inner, inner])
    if ((children <= parents) | (children >= end[parents])).any():
        _fail("a child does not come after its parent in the same tree")
    expected = np.ones(nodes, dtype=np.int64)
    expected[starts[:-1]] = 0
    if (np.bincount(children, minlength=nodes) != expected).any():
        _fail("a node is not the child of exactly one node")

    level, depth = starts[:-1], 0
    while len(level := level[~leaf[level]]):
        depth += 1
        if depth > max_depth:
            _fail(f"deeper than {max_depth}")
        level = np.concatenate([first[level] + forest.left[level], first[level] + forest.right[level]])
    count = forest.n.astype(np.int64)
    halves = len(inner)
    if (count < 1).any() or (count[children[:halves]] + count[children[halves:]] != count[inner]).any():
        _fail("n must be at least 1, and a parent's the sum of its children's")


def _check_values(forest: Forest, *, classification: bool) -> None:
    if classification:
        shares = forest.value.sum(axis=1, dtype=np.float64)
        if (forest.value < 0).any() or (np.abs(shares - 1) > _SUM_TOLERANCE).any():
            _fail("value must be class shares that sum to 1")
    if (forest.tree_weight <= 0).any() or abs(float(forest.tree_weight.sum()) - 1) > _WEIGHT_TOLERANCE:
        _fail("tree_weight must be positive and sum to 1")
    total = float(forest.importance.sum())
    if (forest.importance < 0).any() or (total != 0 and abs(total - 1) > _WEIGHT_TOLERANCE):
        _fail("importance must not be negative and must sum to 1 or be all 0")


def _fail(message: str) -> NoReturn:
    raise BadDocument(f"not a forest: {message}")
