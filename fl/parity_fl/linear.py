"""Linear regression by mini-batch SGD.

Minimises half the mean squared error from weights 0 and bias 0. With ``standardize`` the steps are taken on features
scaled by statistics that all parts share; the model is stored in the data's own units either way, so models of
different parts can be averaged whatever statistics they used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.spec import TrainConfig
from parity_fl.tensors import Tensor, take
from parity_protocol.errors import BadDocument, ExecutionFailed, FailureReason

__all__ = [
    "FeatureScale",
    "LinearModel",
    "feature_scale",
    "linear_from_tensors",
    "linear_tensors",
    "scale_from",
    "train_linear",
]

_MAX_WEIGHT: Final = 1e30  # far above any model that can be scored, far below what overflows a sum of squares


@dataclass(frozen=True, slots=True, eq=False)
class FeatureScale:
    """Statistics for standardising: ``(x - mean) / deviation``, each of shape ``(d,)``, float64, deviation > 0."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class LinearModel:
    """``y = x @ weights + bias`` in the data's own units.

    Attributes:
        weights: Shape ``(d,)``, float64.
        bias: Value at ``x = 0``.
        scale: The statistics that it was trained with: zeros and ones when not standardised.
    """

    weights: NDArray[np.float64]
    bias: float
    scale: FeatureScale

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return predictions, shape ``(n,)``, for features of shape ``(n, d)``."""
        predicted: NDArray[np.float64] = features @ self.weights + self.bias
        return predicted


def feature_scale(features: NDArray[np.float64], *, standardize: bool) -> FeatureScale:
    """Return the statistics of training rows; a constant column keeps deviation 1.

    Args:
        features: All rows that any part trains on, shape ``(n, d)``; never the hold-out.
        standardize: Without it the scale changes nothing.

    Raises:
        ExecutionFailed: ``numerical_instability``: a column is too large for its statistics.
    """
    width = features.shape[1]
    if not standardize:
        return FeatureScale(np.zeros(width), np.ones(width))
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = features.mean(axis=0), features.std(axis=0)
    return scale_from(mean, deviation)


def scale_from(mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> FeatureScale:
    """Return the scale of columns with these statistics, each of shape ``(d,)``; a constant column keeps deviation 1.

    Raises:
        ExecutionFailed: ``numerical_instability``: a statistic is not finite.
    """
    bad = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(deviation)))
    if len(bad):
        raise ExecutionFailed(
            FailureReason.NUMERICAL_INSTABILITY,
            f"feature {int(bad[0])} is too large to standardize: its mean or deviation is not finite",
        )
    # A column of equal values has a deviation of rounding errors, not of information.
    flat = deviation <= 1e-12 * np.maximum(np.abs(mean), np.finfo(np.float64).tiny)
    return FeatureScale(mean, np.where(flat, 1.0, deviation))


def train_linear(
    features: NDArray[np.float64],
    truth: NDArray[np.float64],
    config: TrainConfig,
    *,
    scale: FeatureScale,
    seed: int,
) -> LinearModel:
    """Run the configured epochs of shuffled mini-batch SGD.

    Args:
        features: One part's rows, shape ``(n, d)``, in the data's own units.
        truth: Targets, shape ``(n,)``.
        config: Epochs, batch size (at most ``n`` is used) and learning rate.
        scale: From ``feature_scale``.
        seed: Keys the order of rows; equal seeds give equal models on one machine.

    Raises:
        ExecutionFailed: ``data_invalid`` without rows; ``numerical_instability`` when the loss is no longer finite.
    """
    rows, width = features.shape
    if rows == 0:
        raise ExecutionFailed(FailureReason.DATA_INVALID, "empty training data")
    inputs = (features - scale.mean) / scale.deviation
    weights, bias = np.zeros(width, dtype=np.float64), 0.0
    order = np.random.Generator(np.random.PCG64(seed))
    batch = min(config.batch_size, rows)

    with np.errstate(over="ignore", invalid="ignore"):
        for epoch in range(1, config.epochs + 1):
            shuffle = order.permutation(rows)
            for number, start in enumerate(range(0, rows, batch), 1):
                some = shuffle[start : start + batch]
                x = inputs[some]
                error = x @ weights + bias - truth[some]
                if not np.isfinite(error @ error):
                    _diverged(epoch, number)
                weights = weights - config.learning_rate * (error @ x) / len(some)
                bias -= config.learning_rate * float(error.mean())
        own = weights / scale.deviation
        model = LinearModel(own, bias - float(own @ scale.mean), scale)
        final = model.predict(features) - truth
        if not (np.isfinite(model.weights).all() and np.isfinite(model.bias) and np.isfinite(final @ final)):
            _diverged(config.epochs, -(-rows // batch))
    return model


def linear_tensors(model: LinearModel) -> dict[str, Tensor]:
    """Return the wire tensors: ``weights, mean, deviation`` F64 ``(d,)`` and ``bias`` F64 ``(1,)``."""
    return {
        "weights": model.weights,
        "bias": np.array([model.bias], dtype=np.float64),
        "mean": model.scale.mean,
        "deviation": model.scale.deviation,
    }


def linear_from_tensors(tensors: Mapping[str, Tensor], *, n_features: int) -> LinearModel:
    """Check tensors that somebody else made and return the model they are.

    Raises:
        BadDocument: Names, shapes or types differ, or a value is not finite or out of all proportion.
    """
    lengths = {"weights": n_features, "bias": 1, "mean": n_features, "deviation": n_features}
    if set(tensors) != set(lengths):
        raise BadDocument(f"not a linear model: expected the tensors {', '.join(lengths)}")
    found = {name: take(tensors, name, "F64", 1) for name in lengths}
    for name, length in lengths.items():
        if len(found[name]) != length:
            raise BadDocument(f"not a linear model: {name} must have {length} entries, got {len(found[name])}")
    if max(np.abs(found["weights"]).max(), abs(float(found["bias"][0]))) > _MAX_WEIGHT:
        raise BadDocument(f"not a linear model: a weight is over {_MAX_WEIGHT:g}")
    if (found["deviation"] <= 0).any():
        raise BadDocument("not a linear model: deviation must be positive")
    return LinearModel(found["weights"], float(found["bias"][0]), FeatureScale(found["mean"], found["deviation"]))


def _diverged(epoch: int, batch: int) -> NoReturn:
    raise ExecutionFailed(
        FailureReason.NUMERICAL_INSTABILITY,
        f"training produced NaN/Inf loss at epoch {epoch}, batch {batch} - this indicates numerical instability",
        hint="Lower learning_rate, or set standardize.",
    )
