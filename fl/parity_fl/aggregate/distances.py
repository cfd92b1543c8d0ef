"""Rules that compare whole updates: Krum, MultiKrum, Bulyan's selection, and nearest-neighbour mixing.

All work on the Gram matrix of the centred updates in float64. Distances between raw float32 weights, as
``|x|² + |y|² − 2xy``, are lost to cancellation as soon as updates are small beside the weights; of deltas they are not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parity_fl.aggregate.base import Updates
from parity_fl.aggregate.layout import Layout, load_block, pieces

__all__ = ["bulyan_selection", "gram", "krum_order", "mixing", "squared_distances"]

Matrix = NDArray[np.float64]


def gram(layout: Layout, updates: Updates, parts: Sequence[int], scales: NDArray[np.float64]) -> Matrix:
    """Return the inner products of all pairs of updates, each scaled, less their mean.

    Args:
        layout: The model's.
        updates: The round's.
        parts: Which of them, ascending; ``m`` in number.
        scales: Factor of each, shape ``(m,)``.

    Returns:
        Shape ``(m, m)``, symmetric.
    """
    products = np.zeros((len(parts), len(parts)))
    wanted = frozenset(parts)
    is_scaled = bool((scales != 1).any())
    for block in layout.blocks(len(parts)):
        rows = load_block(updates, wanted, block)
        for piece in pieces(block.size, len(parts)):
            wide = rows[:, piece].astype(np.float64)
            if is_scaled:
                wide *= scales[:, None]
            # Any common vector may be taken off before distances; the first update is as near as the mean, and
            # costs half.
            wide -= wide[0].copy()
            products += wide @ wide.T
    return products


def squared_distances(products: Matrix) -> Matrix:
    """Return squared distances of all pairs, shape ``(m, m)``, from a Gram matrix; rounding below 0 is cut."""
    lengths = np.diagonal(products)
    distances = np.maximum(lengths[:, None] + lengths[None, :] - 2 * products, 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def krum_order(distances: Matrix, f: int) -> NDArray[np.int64]:
    """Return all rows, best first, by the sum of squared distances to their ``m - f - 2`` nearest others.

    Blanchard et al., 2017, §4. Equal scores keep the order of parts.

    Args:
        distances: Squared, shape ``(m, m)``.
        f: Byzantine updates to tolerate; needs ``m >= 2 * f + 3`` for the promise, and works for any ``m >= 2``.
    """
    m = len(distances)
    others = distances.copy()
    np.fill_diagonal(others, np.inf)
    others.sort(axis=1)
    scores = others[:, : max(1, min(m - f - 2, m - 1))].sum(axis=1)
    return np.argsort(scores, kind="stable").astype(np.int64)


def bulyan_selection(distances: Matrix, f: int) -> list[int]:
    """Return the ``m - 2f`` rows that Bulyan keeps: Krum's best, again and again among those left.

    El Mhamdi et al., 2018, §4: after each choice the scores are taken anew, over one update fewer. One pass of
    MultiKrum is another rule.
    """
    left = list(range(len(distances)))
    chosen: list[int] = []
    for _ in range(len(distances) - 2 * f):
        best = 0 if len(left) == 1 else int(krum_order(distances[np.ix_(left, left)], f)[0])
        chosen.append(left.pop(best))
    return sorted(chosen)


def mixing(distances: Matrix, f: int) -> Matrix:
    """Return the matrix that replaces each update by the mean of its ``m - f`` nearest, itself among them.

    Nearest-neighbour mixing, Allouah et al., 2023, algorithm 2.

    Returns:
        Shape ``(m, m)``; each row sums to 1.
    """
    m = len(distances)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : m - f]
    matrix = np.zeros((m, m))
    np.put_along_axis(matrix, nearest, 1.0 / (m - f), axis=1)
    return matrix
