"""A forest as the Parity network's runners write it: one flat list of numbers.

Per tree: ``max_depth, min_samples_split, min_samples_leaf, max_features``, then its nodes in pre-order, six numbers each:
``feature, threshold, value, samples, impurity, is_leaf``; an inner node is followed by its left and right subtree, and a
lone -1 stands for a subtree that is missing. There are no lengths and no number of trees, so it is read to its end.

``value`` is the label of the largest class (the lower one on a tie), or a mean. Class shares are lost: a tree that is read
votes for one class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.limits import FOREST_LIMITS, ForestLimits
from parity_fl.spec import ForestConfig
from parity_fl.trees import Forest
from parity_protocol.errors import BadDocument

__all__ = ["read_old_trees", "write_old_trees"]

_HEAD: Final = 4
_NODE: Final = 6
_LARGEST: Final = float(np.finfo(np.float32).max)


def write_old_trees(forest: Forest, config: ForestConfig, *, labels: Sequence[float] = ()) -> list[float]:
    """Return the forest as the old network's list.

    Args:
        forest: A checked forest.
        config: Its settings, for the four numbers before each tree.
        labels: The number that stands for each class; empty for regression.
    """
    head = [config.max_depth, config.min_samples_split, config.min_samples_leaf, config.max_features]
    impurity = _impurity(forest, config, classification=bool(labels))
    out: list[float] = []
    for tree in range(forest.n_trees):
        first = int(forest.tree_starts[tree])
        out.extend(float(number) for number in head)
        stack = [first]
        while stack:
            node = stack.pop()
            leaf = forest.feature[node] < 0
            value = labels[int(np.argmax(forest.value[node]))] if labels else float(forest.value[node, 0])
            out.extend(
                (
                    float(forest.feature[node]),
                    float(forest.threshold[node]),
                    float(value),
                    float(forest.n[node]),
                    float(impurity[node]),
                    float(leaf),
                )
            )
            if not leaf:
                stack.extend((first + int(forest.right[node]), first + int(forest.left[node])))
    return out


@dataclass(slots=True)
class _Nodes:
    feature: list[int] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    n: list[int] = field(default_factory=list)


def read_old_trees(
    numbers: Sequence[float],
    *,
    n_features: int,
    labels: Sequence[float] = (),
    importance: NDArray[np.float64] | None = None,
    limits: ForestLimits = FOREST_LIMITS,
) -> Forest:
    """Read a forest from a runner of the old network.

    Args:
        numbers: The list.
        n_features: Columns of the data.
        labels: The number that stands for each class, in class order; empty for regression.
        importance: Per feature, not negative; scaled to sum 1. Without, all 0.
        limits: Caps on trees, nodes and depth.

    Raises:
        BadDocument: It is not such a list over such data, or over a cap.
    """
    nodes, starts = _Nodes(), [0]
    at = 0
    classes = {float(label): number for number, label in enumerate(labels)}
    while at < len(numbers):
        if len(starts) > limits.max_trees:
            _fail(f"more than {limits.max_trees} trees")
        at = _read_tree(numbers, at + _HEAD, nodes, starts[-1], n_features, limits)
        starts.append(len(nodes.feature))
    if len(starts) < 2:
        _fail("it has no tree")
    if classes:
        unknown = next((one for one in nodes.value if one not in classes), None)
        if unknown is not None:
            _fail(f"value {unknown:g} is no class")
        shares = np.zeros((len(nodes.value), len(labels)), dtype=np.float32)
        shares[np.arange(len(nodes.value)), [classes[one] for one in nodes.value]] = 1
    else:
        shares = np.array(nodes.value, dtype=np.float32)[:, None]
    return Forest(
        tree_starts=np.array(starts, dtype=np.uint32),
        feature=np.array(nodes.feature, dtype=np.int32),
        threshold=np.array(nodes.threshold, dtype=np.float64),
        left=np.array(nodes.left, dtype=np.int32),
        right=np.array(nodes.right, dtype=np.int32),
        value=shares,
        n=np.array(nodes.n, dtype=np.uint32),
        tree_weight=np.full(len(starts) - 1, 1 / (len(starts) - 1), dtype=np.float64),
        importance=_scaled(importance, n_features),
    )


def _read_tree(
    numbers: Sequence[float], at: int, nodes: _Nodes, first: int, n_features: int, limits: ForestLimits
) -> int:
    """Read the nodes of one tree and return where the next begins."""
    waiting: list[tuple[int, str, int]] = [(-1, "", 0)]  # parent, which child of it, depth
    while waiting:
        parent, side, depth = waiting.pop()
        if len(nodes.feature) >= limits.max_nodes or depth > limits.max_depth:
            _fail(f"more than {limits.max_nodes} nodes or deeper than {limits.max_depth}")
        some = numbers[at : at + _NODE]
        if len(some) < _NODE or not all(math.isfinite(number) and abs(number) <= _LARGEST for number in some):
            _fail(f"it ends inside a node, or a number is not finite, at number {at}")
        feature, threshold, value, samples, _, is_leaf = some
        if is_leaf not in (0, 1) or samples != int(samples) or not 1 <= samples < 1 << 32:
            _fail(f"no node begins at number {at}: samples must be at least 1, is_leaf 0 or 1")
        if not is_leaf and (feature != int(feature) or not 0 <= feature < n_features):
            _fail(f"feature {feature:g} is not below {n_features}")
        number = len(nodes.feature) - first
        if parent >= 0:
            (nodes.left if side == "left" else nodes.right)[first + parent] = number
        nodes.feature.append(-1 if is_leaf else int(feature))
        nodes.threshold.append(0.0 if is_leaf else float(threshold))
        nodes.left.append(-1)
        nodes.right.append(-1)
        nodes.value.append(float(value))
        nodes.n.append(int(samples))
        at += _NODE
        if not is_leaf:
            waiting.extend(((number, "right", depth + 1), (number, "left", depth + 1)))
    for node in range(len(nodes.feature) - 1, first - 1, -1):
        if nodes.feature[node] >= 0:  # a runner may count an inner node's samples otherwise; ours are its children's
            nodes.n[node] = nodes.n[first + nodes.left[node]] + nodes.n[first + nodes.right[node]]
            if nodes.n[node] >= 1 << 32:
                _fail("too many samples")
    return at


def _impurity(forest: Forest, config: ForestConfig, *, classification: bool) -> NDArray[np.float64]:
    """Return each node's impurity; that of a regression is not in the arrays and is written as 0."""
    if not classification:
        return np.zeros(len(forest.feature), dtype=np.float64)
    shares = forest.value.astype(np.float64)
    impurity: NDArray[np.float64]
    if config.criterion == "gini":
        impurity = 1 - np.einsum("nc,nc->n", shares, shares)
        return impurity
    logs = np.zeros_like(shares)
    np.log2(shares, out=logs, where=shares > 0)
    impurity = -np.einsum("nc,nc->n", shares, logs)
    return impurity


def _scaled(importance: NDArray[np.float64] | None, n_features: int) -> NDArray[np.float64]:
    if importance is None:
        return np.zeros(n_features, dtype=np.float64)
    if importance.shape != (n_features,) or not np.isfinite(importance).all() or (importance < 0).any():
        _fail(f"feature_importance must be {n_features} numbers, none negative")
    total = float(importance.sum())
    return importance / total if total > 0 else importance.astype(np.float64)


def _fail(message: str) -> NoReturn:
    raise BadDocument(f"not a list of trees: {message}")
