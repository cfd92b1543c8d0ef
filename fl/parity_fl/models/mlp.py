"""A multi-layer perceptron that trains in rounds, on whichever kernel suits its size."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.engines.choice import large_kernel
from parity_fl.models.base import Matrix, Scaling, Trained, Weights
from parity_fl.models.dense import Problem, diverged, outputs, train_dense
from parity_fl.models.layout import Layout, first_weights
from parity_fl.neural_config import NeuralConfig
from parity_fl.scoring import r_squared
from parity_fl.spec import TrainConfig
from parity_protocol.errors import BadField, ExecutionFailed, FailureReason

__all__ = ["Mlp"]

_FEATURES_AT_ONCE: Final = 1 << 20  # values scaled at a time; the float64 in between is thrown away


class Mlp:
    """A perceptron of one session: see ``RoundModel``."""

    def __init__(
        self,
        config: NeuralConfig,
        *,
        n_features: int,
        n_classes: int,
        scaling: Scaling | None = None,
        kernel: str = "auto",
    ) -> None:
        """Fit the settings to the data.

        Args:
            config: Resolved settings.
            n_features: Columns of the data.
            n_classes: Classes of the data; ignored for regression.
            scaling: See ``round_model``.
            kernel: ``numpy``, ``torch`` or ``auto``.

        Raises:
            BadField: Settings and data do not fit.
        """
        layout = Layout(config.layers(n_features=n_features, n_classes=n_classes))
        loss = "squared"
        if config.task == "classification":
            loss = "sigmoid" if layout.widths[-1] == 1 else "softmax"
        self.problem = Problem(layout, config.activation, loss)
        self._scaling, self._kernel, self._n_classes = scaling, kernel, n_classes

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See ``RoundModel``."""
        return self.problem.layout.shapes

    def init(self, seed: bytes) -> Weights:
        """See ``RoundModel``; the rule is in ``first_weights``."""
        return first_weights(self.problem.layout, seed, activation=self.problem.activation)

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
        """See ``RoundModel``."""
        inputs, wanted = self._inputs(features), self._wanted(truth)
        if len(inputs) == 0:
            raise ExecutionFailed(FailureReason.DATA_INVALID, "empty training data")
        if len(inputs) != len(wanted):
            raise BadField(f"feature and label count mismatch: {len(inputs)} and {len(wanted)}", field="truth")
        layout = self.problem.layout
        start = layout.flatten(weights)
        batch = min(config.batch_size, len(inputs))
        kernel = large_kernel(self._kernel, layout.size * batch) or train_dense
        flat, steps = kernel(self.problem, start, inputs, wanted, config, seed=seed, proximal_mu=proximal_mu)
        loss = self._loss(outputs(self.problem, layout.pairs(flat), inputs), truth)
        if not np.isfinite(loss):
            diverged(config.epochs, -(-len(inputs) // batch))
        views = layout.views(flat)
        return Trained({name: views[name] for name in sorted(views)}, loss, len(inputs), steps)

    def evaluate(self, weights: Weights, features: Matrix, truth: NDArray[np.float64]) -> dict[str, float]:
        """See ``RoundModel``; ``loss`` is the mean cross-entropy, or half the mean squared error in own units."""
        found = outputs(self.problem, self.problem.layout.checked(weights), self._inputs(features))
        loss = self._loss(found, truth)
        guess = self._decide(found)
        if self.problem.loss != "squared":
            return {"loss": loss, "accuracy": float(np.mean(guess == truth)) if len(truth) else 0.0}
        scores = {"loss": loss, "mse": 2 * loss}
        share = r_squared(truth, guess)
        return scores if share is None else {**scores, "r2": share}

    def predict(self, weights: Weights, features: Matrix) -> NDArray[np.float64]:
        """See ``RoundModel``."""
        return self._decide(outputs(self.problem, self.problem.layout.checked(weights), self._inputs(features)))

    def probabilities(self, weights: Weights, features: Matrix) -> NDArray[np.float64]:
        """Return each class's probability, float64 ``(n, classes)``; only for classification."""
        found = outputs(self.problem, self.problem.layout.checked(weights), self._inputs(features)).astype(np.float64)
        if self.problem.loss == "sigmoid":
            second = 0.5 * (1 + np.tanh(found[:, 0] / 2))
            return np.stack([1 - second, second], axis=1)
        shifted = np.exp(found - found.max(axis=1, keepdims=True))
        share: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
        return share

    def _inputs(self, features: Matrix) -> NDArray[np.float32]:
        width = self.problem.layout.widths[0]
        if features.ndim != 2 or features.shape[1] != width:
            shape = "x".join(map(str, features.shape))
            raise BadField(f"feature size mismatch: expected {width} columns, got shape {shape}", field="features")
        # What is too large for float32 becomes Inf, and is found where the gradient is.
        with np.errstate(over="ignore", invalid="ignore"):
            if self._scaling is None:
                return np.ascontiguousarray(features, dtype=np.float32)
            found = np.empty(features.shape, dtype=np.float32)
            rows = max(1, _FEATURES_AT_ONCE // width)
            for first in range(0, len(features), rows):
                some = features[first : first + rows]
                found[first : first + rows] = (some - self._scaling.mean) / self._scaling.deviation
            return found

    def _wanted(self, truth: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.problem.loss == "squared":
            scaled: NDArray[np.float64] = (truth - self._target_mean) / self._target_deviation
            return scaled
        if len(truth) and not (truth.min() >= 0 and truth.max() < self._n_classes):
            raise BadField(f"class indices must be from 0 to {self._n_classes - 1}", field="truth")
        return np.asarray(truth, dtype=np.float64)

    def _loss(self, found: NDArray[np.float32], truth: NDArray[np.float64]) -> float:
        """Return the mean loss in the data's own units, in float64; 0 without rows."""
        if len(truth) == 0:
            return 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            out = found.astype(np.float64)
            if self.problem.loss == "squared":
                guess = out[:, 0] * self._target_deviation + self._target_mean
                return float(np.mean((guess - truth) ** 2) / 2)
            if self.problem.loss == "sigmoid":
                return float(np.mean(np.logaddexp(0, out[:, 0]) - truth * out[:, 0]))
            highest = out.max(axis=1)
            total = np.log(np.exp(out - highest[:, None]).sum(axis=1)) + highest
            return float(np.mean(total - out[np.arange(len(out)), truth.astype(np.intp)]))

    def _decide(self, found: NDArray[np.float32]) -> NDArray[np.float64]:
        if self.problem.loss == "softmax":
            best: NDArray[np.float64] = np.argmax(found, axis=1).astype(np.float64)
            return best
        if self.problem.loss == "sigmoid":
            return (found[:, 0] > 0).astype(np.float64)
        return found[:, 0].astype(np.float64) * self._target_deviation + self._target_mean

    @property
    def _target_mean(self) -> float:
        return self._scaling.target_mean if self._scaling else 0.0

    @property
    def _target_deviation(self) -> float:
        return self._scaling.target_deviation if self._scaling else 1.0
