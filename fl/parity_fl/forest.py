"""Growing a part's trees with scikit-learn; the only module that needs it, and only inside the function."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parity_fl.bootstrap import draw_counts, leaves_rows_out, tree_state
from parity_fl.scoring import out_of_bag
from parity_fl.spec import ForestConfig
from parity_fl.trees import Forest, as_forest_features
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["ForestUpdate", "train_forest"]


@dataclass(frozen=True, slots=True, eq=False)
class ForestUpdate:
    """What one part contributes.

    Attributes:
        forest: Its trees, equally weighted, and the mean of their importances.
        n_samples: Rows it trained on.
        oob_local: Score of its own rows by its own trees that did not draw them; ``None`` if undefined or not asked for.
        oob_rows: Rows behind ``oob_local``.
    """

    forest: Forest
    n_samples: int
    oob_local: float | None
    oob_rows: int


def train_forest(
    features: NDArray[np.float64],
    truth: NDArray[np.float64],
    config: ForestConfig,
    *,
    n_classes: int,
    part: int,
    n_trees: int,
) -> ForestUpdate:
    """Grow ``n_trees`` trees on one part's rows.

    Randomness comes only from (random_state, part, tree number), so a part that is trained again gives equal bytes
    on the same scikit-learn.

    Args:
        features: Shape ``(n, d)``.
        truth: Global class indices (a part may lack some), or targets; shape ``(n,)``.
        config: The forest's settings.
        n_classes: Classes of the whole data set; ignored for regression.
        part: Part number.
        n_trees: Trees of this part.

    Raises:
        ExecutionFailed: ``data_invalid``: there are no rows, or a value does not fit a 32-bit float.
    """
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor  # here, because the market never trains

    rows, width = features.shape
    if rows == 0:
        raise ExecutionFailed(FailureReason.DATA_INVALID, "empty training data")
    classification = config.task == "classification"
    if not classification and np.abs(truth).max() > np.finfo(np.float32).max:
        raise ExecutionFailed(FailureReason.DATA_INVALID, "a label is too large for a forest (over 3.4e38)")
    grow = DecisionTreeClassifier if classification else DecisionTreeRegressor
    tried = min(width, config.max_features) or max(1, math.isqrt(width))
    inputs = as_forest_features(features)
    drawn = [draw_counts(config, part=part, tree=tree, rows=rows) for tree in range(n_trees)]

    blocks: list[_Nodes] = []
    importances = np.zeros(width, dtype=np.float64)
    for tree, counts in enumerate(drawn):
        model = grow(
            criterion=config.criterion,
            max_depth=config.max_depth,
            min_samples_split=config.min_samples_split,
            min_samples_leaf=config.min_samples_leaf,
            max_features=tried,
            random_state=tree_state(config, part=part, tree=tree),
        )
        # Weights instead of repeated rows: min_samples_* then count rows, as in scikit-learn's own forest.
        model.fit(inputs, truth.astype(np.int64) if classification else truth, sample_weight=counts.astype(np.float64))
        columns = model.classes_.astype(np.int64) if classification else np.zeros(1, dtype=np.int64)
        blocks.append(_flatten(model.tree_, columns, n_classes if classification else 1))
        importances += model.feature_importances_

    total = float(importances.sum())
    forest = Forest(
        tree_starts=np.concatenate([[0], np.cumsum([len(block.feature) for block in blocks])]).astype(np.uint32),
        feature=np.concatenate([block.feature for block in blocks]),
        threshold=np.concatenate([block.threshold for block in blocks]),
        left=np.concatenate([block.left for block in blocks]),
        right=np.concatenate([block.right for block in blocks]),
        value=np.concatenate([block.value for block in blocks]),
        n=np.concatenate([block.n for block in blocks]),
        tree_weight=np.full(n_trees, 1 / n_trees, dtype=np.float64),
        importance=importances / total if total > 0 else importances,
    )
    if not (config.oob_score and leaves_rows_out(config)):
        return ForestUpdate(forest, rows, None, 0)
    score, scored = out_of_bag(forest, inputs, truth, drew=lambda tree: drawn[tree] > 0, classification=classification)
    return ForestUpdate(forest, rows, score, scored)


@dataclass(frozen=True, slots=True, eq=False)
class _Nodes:
    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: NDArray[np.float32]
    n: NDArray[np.uint32]


def _flatten(tree: object, columns: NDArray[np.int64], width: int) -> _Nodes:
    """Read scikit-learn's arrays into the wire format; ``columns`` are the global classes of its value columns."""
    left = np.asarray(tree.children_left)  # type: ignore[attr-defined]  # scikit-learn ships no types
    leaf = left == -1
    local = np.asarray(tree.value)[:, 0, :]  # type: ignore[attr-defined]
    value = np.zeros((len(left), width), dtype=np.float32)
    value[:, columns] = local
    return _Nodes(
        feature=np.where(leaf, -1, tree.feature).astype(np.int32),  # type: ignore[attr-defined]
        threshold=np.where(leaf, 0.0, tree.threshold).astype(np.float64),  # type: ignore[attr-defined]
        left=left.astype(np.int32),
        right=np.asarray(tree.children_right).astype(np.int32),  # type: ignore[attr-defined]
        value=value,
        n=np.rint(tree.weighted_n_node_samples).astype(np.uint32),  # type: ignore[attr-defined]
    )
