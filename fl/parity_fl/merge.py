"""One model from all parts' contributions.

Weights come from the plan's own row counts, never from what a node says about itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parity_fl.linear import FeatureScale, LinearModel
from parity_fl.trees import Forest

__all__ = ["merge_linear", "merge_union"]


def merge_union(forests: Sequence[Forest], samples: Sequence[int]) -> Forest:
    """Put all parts' trees into one forest.

    The vote rule: a tree of a part with ``n`` rows and ``t`` trees has weight ``n / t``, normalised to sum 1, so that a
    part counts by its rows however many trees it grew. A tree votes with its leaf's class shares (or mean); the class
    with the largest sum wins, the lower index on a tie. Importances are averaged by rows.

    Args:
        forests: Checked forests over the same features and classes, in part order.
        samples: Rows that each was trained on, all positive.
    """
    starts = np.cumsum([0] + [len(forest.feature) for forest in forests])
    shifted = [
        forest.tree_starts[:-1].astype(np.int64) + int(start)
        for forest, start in zip(forests, starts[:-1], strict=True)
    ]
    weight = np.concatenate(
        [np.full(forest.n_trees, rows / forest.n_trees) for forest, rows in zip(forests, samples, strict=True)]
    )
    importance: NDArray[np.float64] = np.average(
        np.stack([forest.importance for forest in forests]), axis=0, weights=np.array(samples, dtype=np.float64)
    )
    total = float(importance.sum())
    return Forest(
        tree_starts=np.concatenate([*shifted, [starts[-1]]]).astype(np.uint32),
        feature=np.concatenate([forest.feature for forest in forests]),
        threshold=np.concatenate([forest.threshold for forest in forests]),
        left=np.concatenate([forest.left for forest in forests]),
        right=np.concatenate([forest.right for forest in forests]),
        value=np.concatenate([forest.value for forest in forests]),
        n=np.concatenate([forest.n for forest in forests]),
        tree_weight=weight / weight.sum(),
        importance=importance / total if total > 0 else importance,
    )


def merge_linear(models: Sequence[LinearModel], samples: Sequence[int]) -> LinearModel:
    """Average models by rows, in the data's own units (one round of FedAvg; McMahan et al., 2017).

    Args:
        models: Checked models over the same features, in part order.
        samples: Rows that each was trained on, all positive.
    """
    rows = np.array(samples, dtype=np.float64)

    def mean(tensors: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        averaged: NDArray[np.float64] = np.average(np.stack(tensors), axis=0, weights=rows)
        return averaged

    return LinearModel(
        weights=mean([model.weights for model in models]),
        bias=float(np.average([model.bias for model in models], weights=rows)),
        scale=FeatureScale(
            mean=mean([model.scale.mean for model in models]),
            deviation=mean([model.scale.deviation for model in models]),
        ),
    )
