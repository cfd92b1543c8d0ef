"""Scoring a sharded session's model on rows, by whoever has them: a node on its hold-out, the market on data of its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from parity_fl.forest_rounds import decode_forest
from parity_fl.linear import linear_from_tensors
from parity_fl.models.base import Scaling, round_model
from parity_fl.sharded.bodies import raw_bytes
from parity_fl.spec import FlSpec, ForestConfig, LinearConfig
from parity_fl.tensors import Tensor
from parity_fl.trees import as_forest_features, predict

__all__ = ["evaluate"]


def evaluate(
    spec: FlSpec,
    tensors: Mapping[str, Tensor],
    scaling: Scaling,
    features: NDArray[np.float64],
    truth: NDArray[np.float64],
    *,
    n_classes: int,
) -> dict[str, float]:
    """Return a model's scores: ``accuracy`` or ``mse`` and ``r2``; ``loss`` where the model has one. Empty without rows.

    Args:
        spec: Resolved settings.
        tensors: The model, as it travels.
        scaling: What all parts agreed on.
        features: Shape ``(n, d)``, in the data's own units.
        truth: Class indices or targets, shape ``(n,)``.
        n_classes: Of the session; 0 for a regression.

    Raises:
        BadDocument: It is no model of this session.
    """
    if len(truth) == 0:
        return {}
    width = features.shape[1]
    if isinstance(spec.model, ForestConfig):
        forest, _ = decode_forest(raw_bytes(tensors, "forest"), spec.model, n_features=width, n_classes=n_classes)
        guess = predict(forest, as_forest_features(features), classification=spec.is_classification)
    elif isinstance(spec.model, LinearConfig) and spec.model.solver == "exact":
        guess = linear_from_tensors(tensors, n_features=width).predict(features)
    else:
        model = round_model(spec, n_features=width, n_classes=n_classes, scaling=scaling)
        weights = {name: np.asarray(value, dtype=np.float32) for name, value in tensors.items()}
        return model.evaluate(weights, features, truth)
    if spec.is_classification:
        return {"accuracy": float(np.mean(guess == truth))}
    error = float(np.sum((guess - truth) ** 2))
    spread = float(np.sum((truth - truth.mean()) ** 2))
    found = {"mse": error / len(truth)}
    return {**found, "r2": 1.0 - error / spread} if spread > 0 and len(truth) > 1 else found
