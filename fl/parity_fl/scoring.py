"""Scores, each with what it means when it cannot be computed: ``None``, never a made-up number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from parity_fl.trees import Forest, votes

__all__ = ["accuracy", "half_mse", "out_of_bag", "r_squared", "scores"]


def accuracy(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> float | None:
    """Return the share of equal entries; ``None`` without rows."""
    return float(np.mean(truth == predicted)) if len(truth) else None


def r_squared(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> float | None:
    """Return the coefficient of determination, which may be negative; ``None`` if ``truth`` does not vary."""
    if len(truth) < 2:
        return None
    spread = float(np.sum((truth - truth.mean()) ** 2))
    if spread == 0:
        return None
    return 1.0 - float(np.sum((truth - predicted) ** 2)) / spread


def half_mse(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> float | None:
    """Return half the mean squared error; ``None`` without rows."""
    return float(np.mean((truth - predicted) ** 2)) / 2 if len(truth) else None


def out_of_bag(
    forest: Forest,
    features: NDArray[np.float32],
    truth: NDArray[np.float64],
    *,
    drew: Callable[[int], NDArray[np.bool_]],
    classification: bool,
) -> tuple[float | None, int]:
    """Score each row by the trees that did not draw it.

    Args:
        forest: A checked forest.
        features: Shape ``(n, d)``.
        truth: Class indices or targets, shape ``(n,)``.
        drew: For a tree number, which rows it trained on, shape ``(n,)``.
        classification: Accuracy, else R².

    Returns:
        The score, ``None`` if undefined, and the number of rows that at least one tree could vote on.
    """
    total, weight = votes(forest, features, skip=drew)
    scored = weight > 0
    rows = int(scored.sum())
    if classification:
        return accuracy(truth[scored], np.argmax(total[scored], axis=1).astype(np.float64)), rows
    return r_squared(truth[scored], total[scored, 0] / weight[scored]), rows


def scores(truth: NDArray[np.float64], guess: NDArray[np.float64], *, classification: bool) -> dict[str, float | None]:
    """Return ``accuracy`` and ``loss`` = 1 − accuracy, or ``r2`` and ``loss`` = half the mean squared error."""
    if classification:
        share = accuracy(truth, guess)
        return {"accuracy": share, "loss": None if share is None else 1 - share}
    return {"r2": _finite(r_squared(truth, guess)), "loss": _finite(half_mse(truth, guess))}


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
