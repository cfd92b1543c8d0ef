"""Mode ``leaf_refit``: the structures of every part's own trees, and leaves that count all parts' rows.

Under skewed data a part's trees split sensibly but their leaves know only the part's classes. So all trees go back to all
parts, each counts its rows in every leaf, and the sums become the leaves' values. Every tree then votes alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.bootstrap import split_trees
from parity_fl.histogram_codec import Sparse, request_digest, summed
from parity_fl.histogram_phases import Agreed
from parity_fl.limits import FOREST_LIMITS, ForestLimits
from parity_fl.spec import ForestConfig
from parity_fl.tensors import decode_tensors, encode_tensors, take
from parity_fl.trees import Forest, forest_from_tensors, forest_tensors, leaf_numbers
from parity_protocol.errors import BadDocument

__all__ = [
    "check_own_leaves",
    "decode_sums",
    "decode_trees",
    "encode_sums",
    "encode_trees",
    "leaf_counts",
    "leaf_sums",
    "max_sums_bytes",
    "max_trees_bytes",
    "refitted",
]

_HEADER_BYTES = 4096
_NODE_BYTES = 24  # of a forest's tensors, without values
_CONSTANT_WEIGHT = 1e-6  # of a tree that has one leaf, beside 1 of one that splits


def encode_trees(request: bytes, forest: Forest) -> bytes:
    """Return a part's own trees as the answer to ``request``."""
    return encode_tensors(forest_tensors(forest), {"request": request_digest(request).hex()})


def max_trees_bytes(config: ForestConfig, agreed: Agreed, *, part: int, rows: int, n_features: int) -> int:
    """Return the longest answer of a part that grows its share of the trees on ``rows`` rows."""
    limits = _limits(config, agreed, part, rows)
    outputs = max(1, len(agreed.class_names))
    return _HEADER_BYTES + limits.max_nodes * (_NODE_BYTES + 4 * outputs) + 16 * limits.max_trees + 8 * n_features


def decode_trees(
    answer: bytes, request: bytes, config: ForestConfig, agreed: Agreed, *, part: int, rows: int, n_features: int
) -> Forest:
    """Read a part's own trees.

    Raises:
        TooLarge: Longer than they can be.
        BadDocument: They are not such trees.
    """
    cap = max_trees_bytes(config, agreed, part=part, rows=rows, n_features=n_features)
    tensors, metadata = decode_tensors(answer, max_bytes=cap)
    if metadata != {"request": request_digest(request).hex()}:
        _fail("it answers another request")
    limits = _limits(config, agreed, part, rows)
    forest = forest_from_tensors(
        tensors,
        n_features=n_features,
        n_outputs=max(1, len(agreed.class_names)),
        classification=agreed.classification,
        limits=limits,
    )
    if forest.n_trees != limits.max_trees:
        _fail(f"part {part} grows {limits.max_trees} trees, got {forest.n_trees}")
    return forest


def leaf_counts(forest: Forest, features: NDArray[np.float32], classes: NDArray[np.int64]) -> Sparse:
    """Count rows by leaf and class, ``leaf * k + class``; every tree sees every row once.

    Args:
        forest: A checked forest.
        features: Shape ``(n, d)``.
        classes: Class indices, shape ``(n,)``.
    """
    width = forest.n_outputs
    tables = [
        summed(leaf_numbers(forest, tree, features) * width + classes, np.ones(len(classes), dtype=np.int64))
        for tree in range(forest.n_trees)
    ]
    return Sparse(np.concatenate([one.index for one in tables]), np.concatenate([one.value for one in tables]))


def leaf_sums(
    forest: Forest, features: NDArray[np.float32], truth: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return rows and the sum of targets of each node that is a leaf, both ``(N,)``."""
    count = np.zeros(len(forest.feature), dtype=np.int64)
    total = np.zeros(len(forest.feature), dtype=np.float64)
    for tree in range(forest.n_trees):
        leaves = leaf_numbers(forest, tree, features)
        count += np.bincount(leaves, minlength=len(count))
        total += np.bincount(leaves, weights=truth, minlength=len(count))
    return count, total


def encode_sums(request: bytes, count: NDArray[np.int64], total: NDArray[np.float64]) -> bytes:
    """Return ``leaf_sums`` as the answer to ``request``."""
    return encode_tensors({"n": count.astype(np.uint32), "total": total}, {"request": request_digest(request).hex()})


def max_sums_bytes(nodes: int) -> int:
    """Return the longest such answer."""
    return _HEADER_BYTES + 12 * nodes


def decode_sums(answer: bytes, request: bytes, nodes: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Read an answer of ``encode_sums``.

    Raises:
        TooLarge: Longer than it can be.
        BadDocument: It is not exactly such an answer.
    """
    tensors, metadata = decode_tensors(answer, max_bytes=max_sums_bytes(nodes))
    if metadata != {"request": request_digest(request).hex()} or set(tensors) != {"n", "total"}:
        _fail("it answers another request, or has other tensors than n and total")
    count, total = take(tensors, "n", "U32", 1).astype(np.int64), take(tensors, "total", "F64", 1)
    if len(count) != nodes or len(total) != nodes or total[count == 0].any():
        _fail(f"n and total must have {nodes} entries, and no total without rows")
    return count, total


def refitted(forest: Forest, sums: NDArray[np.float64], *, classification: bool) -> Forest:
    """Return the forest with new leaves.

    Args:
        forest: All parts' trees.
        sums: Of each leaf, rows by class ``(N, k)``, or rows and sum of targets ``(N, 2)``; 0 at other nodes.
        classification: Which of the two.

    Raises:
        BadDocument: A leaf has no row: these are not trees that grew on the parts' rows.
    """
    sums = sums.astype(np.float64)
    first = np.repeat(forest.tree_starts[:-1], np.diff(forest.tree_starts)).astype(np.int64)
    levels = [forest.tree_starts[:-1].astype(np.int64)]
    while len(inner := levels[-1][forest.feature[levels[-1]] >= 0]):
        levels.append(np.concatenate([first[inner] + forest.left[inner], first[inner] + forest.right[inner]]))
    for level in reversed(levels):
        inner = level[forest.feature[level] >= 0]
        sums[inner] = sums[first[inner] + forest.left[inner]] + sums[first[inner] + forest.right[inner]]
    rows = sums.sum(axis=1) if classification else sums[:, 0]
    if (rows < 1).any():
        tree = int(np.searchsorted(forest.tree_starts, np.argmin(rows), side="right")) - 1
        _fail(f"no row ends in a leaf of tree {tree}: it did not grow on the parts' rows")
    value = sums / rows[:, None] if classification else sums[:, 1:] / rows[:, None]
    # A part with a single class grows trees without a split. Refitted, they all say what is common among all rows, and
    # would outvote those that know something: they decide only where nobody else does.
    weight = np.where(np.diff(forest.tree_starts.astype(np.int64)) > 1, 1.0, _CONSTANT_WEIGHT)
    return replace(
        forest,
        value=value.astype(np.float32),
        n=rows.astype(np.uint32),
        tree_weight=weight / weight.sum(),
    )


def check_own_leaves(forest: Forest, rows: Mapping[int, int], owned: range) -> None:
    """Refuse a part none of whose rows ends in a leaf of its own trees.

    Args:
        forest: All parts' trees.
        rows: The part's rows by node.
        owned: Numbers of the part's trees.

    Raises:
        BadDocument: It names the tree.
    """
    for tree in owned:
        first, end = int(forest.tree_starts[tree]), int(forest.tree_starts[tree + 1])
        for node in range(first, end):
            if forest.feature[node] == -1 and not rows.get(node):
                _fail(f"none of its rows ends in a leaf of its own tree {tree}")


def _limits(config: ForestConfig, agreed: Agreed, part: int, rows: int) -> ForestLimits:
    trees = split_trees(config.num_trees, len(agreed.row_offsets))[part]
    leaves = min(rows, 1 << config.max_depth)
    return ForestLimits(
        max_trees=trees,
        max_depth=config.max_depth,
        max_nodes=min(FOREST_LIMITS.max_nodes, trees * (2 * leaves - 1)),
    )


def _fail(message: str) -> NoReturn:
    raise BadDocument(f"not an answer to this phase: {message}")
