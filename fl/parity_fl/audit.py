"""Recounting a forest: did these trees really see these rows?

A tree's draws follow from the plan and its seed, so whoever has the data can send the same draws down the tree and must
find, node for node, the counts and class shares that the node sent. Well-formed trees that were made up do not pass.
That the splits were well chosen is not proved: a poor forest is still a forest, and the hold-out shows it.
"""

from __future__ import annotations

from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.bootstrap import draw_counts
from parity_fl.spec import ForestConfig
from parity_fl.trees import Forest
from parity_protocol.errors import BadDocument

__all__ = ["recount"]

_SHARE_TOLERANCE: Final = 1e-5  # float32 shares
_MEAN_TOLERANCE: Final = 1e-4  # float32 means, relative to the largest target


def recount(
    forest: Forest,
    config: ForestConfig,
    features: NDArray[np.float32],
    truth: NDArray[np.float64],
    *,
    part: int,
) -> None:
    """Send each tree's draws down the tree and compare what arrives with what the forest says.

    Args:
        forest: A part's checked forest.
        config: The forest's settings.
        features: The part's rows, shape ``(n, d)``.
        truth: Their class indices or targets, shape ``(n,)``.
        part: Part number; with the tree's number it keys the draws.

    Raises:
        BadDocument: A count or value is not what the draws give.
    """
    for tree in range(forest.n_trees):
        counts = draw_counts(config, part=part, tree=tree, rows=len(truth))
        drawn = np.flatnonzero(counts)
        _recount_tree(forest, tree, features[drawn], truth[drawn], counts[drawn], config.task == "classification")


def _recount_tree(
    forest: Forest,
    tree: int,
    features: NDArray[np.float32],
    truth: NDArray[np.float64],
    counts: NDArray[np.int64],
    classification: bool,  # noqa: FBT001 - private, one caller
) -> None:
    first, end = int(forest.tree_starts[tree]), int(forest.tree_starts[tree + 1])
    feature, threshold = forest.feature[first:end], forest.threshold[first:end]
    left, right = forest.left[first:end], forest.right[first:end]
    size, width = end - first, forest.n_outputs

    arrived = np.zeros(size, dtype=np.int64)
    sums = np.zeros(size * width, dtype=np.float64)  # draws per class, or the sum of targets
    column = truth.astype(np.int64) if classification else np.zeros(len(truth), dtype=np.int64)
    amount = counts.astype(np.float64) if classification else counts * truth
    at, rows = np.zeros(len(truth), dtype=np.int64), np.arange(len(truth))
    while len(rows):
        arrived += np.bincount(at, weights=counts[rows], minlength=size).astype(np.int64)
        sums += np.bincount(at * width + column[rows], weights=amount[rows], minlength=size * width)
        inner = feature[at] >= 0
        at, rows = at[inner], rows[inner]
        goes_left = features[rows, feature[at]] <= threshold[at]
        at = np.where(goes_left, left[at], right[at]).astype(np.int64)

    if not np.array_equal(arrived, forest.n[first:end].astype(np.int64)):
        _fail(tree, "n is not the number of draws that arrive")
    expected = sums.reshape(size, width) / arrived[:, None]
    tolerance = _SHARE_TOLERANCE if classification else _MEAN_TOLERANCE * float(np.abs(truth).max())
    if (np.abs(expected - forest.value[first:end]) > tolerance).any():
        _fail(tree, "value is not what the draws that arrive give")


def _fail(tree: int, message: str) -> NoReturn:
    raise BadDocument(f"not trained on this part: tree {tree}: {message}")
