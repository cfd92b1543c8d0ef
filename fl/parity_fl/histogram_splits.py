"""The best split of each node, from the sums of all parts.

A node's table has one row of ``C`` whole numbers for each tried feature and bin: draws per class, or for regression
(draws, sum of targets, sum of squared targets) with targets as whole numbers. A split after bin ``b`` sends bins up to ``b``
left. What is compared is float64 of exact integers, so equal sums give equal trees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.histogram_codec import Sparse

__all__ = ["Criterion", "Splits", "best_splits", "draws_of", "is_pure"]

_CELLS_PER_STEP: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Criterion:
    """How splits are judged.

    Attributes:
        name: ``gini``, ``entropy`` or ``squared_error``.
        min_samples_leaf: Fewest draws on either side.
    """

    name: str
    min_samples_leaf: int

    def purity(self, sums: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return draws times negative impurity, up to a term that a split leaves as it is, for sums ``(..., C)``."""
        amounts = sums.astype(np.float64)
        score: NDArray[np.float64]
        if self.name == "squared_error":
            score = amounts[..., 1] ** 2 / np.maximum(amounts[..., 0], 1)
            return score
        count = amounts.sum(axis=-1)
        if self.name == "gini":
            score = np.einsum("...c,...c->...", amounts, amounts) / np.maximum(count, 1)
            return score
        own = np.zeros_like(amounts)
        np.log2(amounts, out=own, where=amounts > 0)
        score = np.einsum("...c,...c->...", amounts, own) - count * np.log2(np.maximum(count, 1))
        return score


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """The best split of each node.

    Attributes:
        tried: Position of its feature among those that the node tried; -1 if no split leaves enough on both sides.
        cut: Last bin that goes left.
        left: Sums that go left, ``(m, C)``.
        total: Sums of the node, ``(m, C)``.
        decrease: Draws times the decrease of impurity.
    """

    tried: NDArray[np.int64]
    cut: NDArray[np.int64]
    left: NDArray[np.int64]
    total: NDArray[np.int64]
    decrease: NDArray[np.float64]


def best_splits(cells: Sparse, shape: tuple[int, int, int, int], criterion: Criterion) -> Splits:
    """Find every node's best split.

    Of equal splits the one of the feature tried first wins; where neighbouring cuts send the same draws left, the
    middle one is taken.

    Args:
        cells: The summed table, by ``((node * F + tried) * B + bin) * C + column``.
        shape: ``(m, F, B, C)``.
        criterion: How to judge.
    """
    nodes, tries, width, columns = shape
    per_node = tries * width * columns
    step = max(1, _CELLS_PER_STEP // per_node)
    blocks = []
    for start in range(0, nodes, step):
        end = min(nodes, start + step)
        some = cells.between(start * per_node, end * per_node)
        table = np.zeros((end - start) * per_node, dtype=np.int64)
        table[some.index - start * per_node] = some.value
        blocks.append(_best(table.reshape(end - start, tries, width, columns), criterion))
    return Splits(*(np.concatenate([getattr(block, name) for block in blocks]) for name in Splits.__slots__))


def draws_of(sums: NDArray[np.int64], *, classification: bool) -> NDArray[np.int64]:
    """Return the draws of sums ``(..., C)``."""
    total: NDArray[np.int64] = sums.sum(axis=-1) if classification else sums[..., 0]
    return total


def is_pure(sums: NDArray[np.int64], *, classification: bool) -> bool:
    """Whether a node's draws, sums ``(C,)``, all have one class or one target."""
    if classification:
        return int(np.count_nonzero(sums)) <= 1
    count, total, squares = (int(number) for number in sums)
    return count * squares == total * total


def _best(table: NDArray[np.int64], criterion: Criterion) -> Splits:
    nodes, _, width, _ = table.shape
    running = np.cumsum(table, axis=2)
    total = running[:, 0, -1, :]
    if width == 1:
        none = np.full(nodes, -1, dtype=np.int64)
        return Splits(none, none.copy(), np.zeros_like(total), total, np.zeros(nodes))
    left = running[:, :, :-1, :]
    right = total[:, None, None, :] - left
    classification = criterion.name != "squared_error"
    on_left = draws_of(left, classification=classification)
    on_right = draws_of(right, classification=classification)
    least = criterion.min_samples_leaf
    score = np.where(
        (on_left >= least) & (on_right >= least), criterion.purity(left) + criterion.purity(right), -np.inf
    ).reshape(nodes, -1)
    best = np.argmax(score, axis=1)
    node = np.arange(nodes)
    found = score[node, best]
    tried, cut = best // (width - 1), best % (width - 1)

    sent = on_left[node, tried]  # (m, B - 1), rising: equal entries are neighbours
    same = sent == sent[node, cut][:, None]
    cut = cut + (same.sum(axis=1) - 1) // 2  # argmax found the first of them
    valid = np.isfinite(found)
    decrease = np.where(valid, np.maximum(0.0, np.where(valid, found, 0.0) - criterion.purity(total)), 0.0)
    return Splits(
        tried=np.where(valid, tried, -1).astype(np.int64),
        cut=cut.astype(np.int64),
        left=left[node, tried, cut],
        total=total,
        decrease=decrease,
    )
