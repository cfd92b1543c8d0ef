"""Linear regression by mini-batch SGD in rounds: float32 between rounds, float64 within one.

The weights live in the scaled space that all parts share; ``own_units`` turns a finished model into the data's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parity_fl.linear import FeatureScale, LinearModel
from parity_fl.models.base import Matrix, Scaling, Trained, Weights
from parity_fl.models.dense import diverged, epoch_order
from parity_fl.models.layout import check_weights
from parity_fl.scoring import r_squared
from parity_fl.spec import LinearConfig, TrainConfig
from parity_protocol.errors import BadField, ExecutionFailed, FailureReason

__all__ = ["LinearSgd"]


class LinearSgd:
    """A linear regression of one session: see ``RoundModel``. Parameters: ``bias`` ``(1,)``, ``weights`` ``(d,)``."""

    def __init__(self, config: LinearConfig, *, n_features: int, scaling: Scaling | None = None) -> None:
        """Fit the settings to the data.

        Raises:
            BadField: ``input_size`` is not the number of columns.
        """
        if config.input_size != n_features:
            raise BadField(
                f"feature size mismatch: expected {config.input_size}, got {n_features}",
                field="model_config.input_size",
            )
        self._width = n_features
        self._scaling = scaling or Scaling(np.zeros(n_features), np.ones(n_features))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See ``RoundModel``."""
        return {"bias": (1,), "weights": (self._width,)}

    def init(self, seed: bytes) -> Weights:  # noqa: ARG002 - a convex problem starts from 0 whatever the seed
        """See ``RoundModel``: zeros."""
        return {"bias": np.zeros(1, dtype=np.float32), "weights": np.zeros(self._width, dtype=np.float32)}

    def train(
        self,
        weights: Weights,
        features: Matrix,
        truth: NDArray[np.float64],
        config: TrainConfig,
        *,
        seed: bytes,
        proximal_mu: float = 0.0,
    ) -> Trained:
        """See ``RoundModel``; minimises half the mean squared error; ``loss`` is in the data's own units."""
        check_weights(weights, self.shapes())
        rows = len(features)
        if rows == 0:
            raise ExecutionFailed(FailureReason.DATA_INVALID, "empty training data")
        if rows != len(truth):
            raise BadField(f"feature and label count mismatch: {rows} and {len(truth)}", field="truth")
        inputs = self._inputs(features)
        wanted = (truth - self._scaling.target_mean) / self._scaling.target_deviation
        anchor = np.append(weights["weights"].astype(np.float64), np.float64(weights["bias"][0]))
        slope, bias = anchor[:-1].copy(), float(anchor[-1])
        batch, steps = min(config.batch_size, rows), 0
        with np.errstate(over="ignore", invalid="ignore"):
            for epoch in range(1, config.epochs + 1):
                order = epoch_order(seed, epoch, rows)
                for number, start in enumerate(range(0, rows, batch), 1):
                    some = order[start : start + batch]
                    x = inputs[some]
                    error = x @ slope + bias - wanted[some]
                    if not np.isfinite(error @ error):
                        diverged(epoch, number)
                    down = (error @ x) / len(some) + proximal_mu * (slope - anchor[:-1])
                    bias -= config.learning_rate * (float(error.mean()) + proximal_mu * (bias - float(anchor[-1])))
                    slope = slope - config.learning_rate * down
                    steps += 1
            trained: Weights = {"bias": np.array([bias], dtype=np.float32), "weights": slope.astype(np.float32)}
            finite = all(np.isfinite(value).all() for value in trained.values())
            loss = self.evaluate(trained, features, truth)["loss"] if finite else float("nan")
        if not np.isfinite(loss):
            diverged(config.epochs, -(-rows // batch))
        return Trained(trained, loss, rows, steps)

    def evaluate(self, weights: Weights, features: Matrix, truth: NDArray[np.float64]) -> dict[str, float]:
        """See ``RoundModel``; ``loss`` is half the mean squared error."""
        guess = self.predict(weights, features)
        if len(truth) == 0:
            return {"loss": 0.0, "mse": 0.0}
        with np.errstate(over="ignore", invalid="ignore"):
            mse = float(np.mean((guess - truth) ** 2))
            share = r_squared(truth, guess)
        scores = {"loss": mse / 2, "mse": mse}
        return scores if share is None else {**scores, "r2": share}

    def predict(self, weights: Weights, features: Matrix) -> NDArray[np.float64]:
        """See ``RoundModel``."""
        check_weights(weights, self.shapes())
        with np.errstate(over="ignore", invalid="ignore"):
            guess: NDArray[np.float64] = self._inputs(features) @ weights["weights"].astype(np.float64)
            return (guess + float(weights["bias"][0])) * self._scaling.target_deviation + self._scaling.target_mean

    def own_units(self, weights: Weights) -> LinearModel:
        """Return the model in the data's own units, as it is stored and shown."""
        check_weights(weights, self.shapes())
        scale = self._scaling
        own = weights["weights"].astype(np.float64) * scale.target_deviation / scale.deviation
        bias = float(weights["bias"][0]) * scale.target_deviation + scale.target_mean - float(own @ scale.mean)
        return LinearModel(own, bias, FeatureScale(scale.mean, scale.deviation))

    def _inputs(self, features: Matrix) -> NDArray[np.float64]:
        if features.ndim != 2 or features.shape[1] != self._width:
            shape = "x".join(map(str, features.shape))
            raise BadField(
                f"feature size mismatch: expected {self._width} columns, got shape {shape}", field="features"
            )
        scaled: NDArray[np.float64] = (features - self._scaling.mean) / self._scaling.deviation
        return scaled
