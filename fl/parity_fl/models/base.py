"""What a model that trains in rounds is to the market, the node and the simulation.

All weights are float32 arrays by name. The market starts from ``init``, sends the weights out, and every node answers
with what ``train`` made of them; how the answers are combined is the strategy's affair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parity_fl.linear import feature_scale
from parity_fl.spec import FlSpec, ForestConfig, LinearConfig, TrainConfig
from parity_protocol.errors import BadField

__all__ = ["Matrix", "RoundModel", "Scaling", "Trained", "Weights", "round_model", "scaling_of", "weights_digest"]

Weights: TypeAlias = dict[str, NDArray[np.float32]]  # parameters by name; iterated in sorted order of names
Matrix: TypeAlias = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trained:
    """What one part's training made.

    Attributes:
        weights: The whole model after training, not the difference.
        loss: On the part's own rows, after training.
        n_samples: Rows trained on.
        steps: Optimizer steps taken.
    """

    weights: Weights
    loss: float
    n_samples: int
    steps: int


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """Statistics that all parts share: a model sees ``(x - mean) / deviation``, and of the target the same.

    Attributes:
        mean: Shape ``(d,)``, float64.
        deviation: Shape ``(d,)``, float64, above 0.
        target_mean: 0 for classification.
        target_deviation: 1 for classification; above 0.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    target_mean: float = 0.0
    target_deviation: float = 1.0


class RoundModel(Protocol):
    """A model that trains in rounds.

    ``features`` are in the data's own units, shape ``(n, d)``; ``truth`` is class indices or targets, shape ``(n,)``.
    Methods MUST be pure: equal arguments give equal results on one machine with one BLAS thread.
    """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every parameter's shape, in sorted order of names."""

    def init(self, seed: bytes) -> Weights:
        """Return the first weights, the same on every machine for the same 32 bytes."""

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
        """Train from ``weights``, which are left as they are.

        Args:
            weights: The round's model.
            features: The part's rows.
            truth: Their class indices or targets.
            config: Epochs, batch size, learning rate, optimizer.
            seed: 32 bytes that key the order of rows: ``derive_key("train", session, round, part)``.
            proximal_mu: FedProx's term ``mu/2 · ‖w − weights‖²`` is added to the loss; 0 turns it off.

        Raises:
            ExecutionFailed: ``data_invalid`` without rows; ``numerical_instability`` when training diverges.
            BadField: The weights are not this model's.
        """

    def evaluate(self, weights: Weights, features: Matrix, truth: NDArray[np.float64]) -> dict[str, float]:
        """Return ``loss, accuracy`` for classification, else ``loss, mse`` and, if the truth varies, ``r2``."""

    def predict(self, weights: Weights, features: Matrix) -> NDArray[np.float64]:
        """Return class indices or values, float64 ``(n,)``."""


def round_model(
    spec: FlSpec, *, n_features: int, n_classes: int, scaling: Scaling | None = None, kernel: str = "auto"
) -> RoundModel:
    """Return the model that a session trains in rounds.

    Args:
        spec: Resolved settings; must fit the data.
        n_features: Columns of the data.
        n_classes: Classes of the data; ignored for regression.
        scaling: From ``scaling_of``, the same for all parts; without it features are taken as they are.
        kernel: ``numpy``, ``torch``, or ``auto``, which takes torch for large batches where it is installed.

    Raises:
        BadField: The settings do not fit the data, or the model has no rounds (a forest).
    """
    if isinstance(spec.model, ForestConfig):
        raise BadField("a random forest is not averaged in rounds", field="model_type")
    if isinstance(spec.model, LinearConfig):
        from parity_fl.models.linear_sgd import LinearSgd  # here, because it imports this module

        return LinearSgd(spec.model, n_features=n_features, scaling=scaling)
    from parity_fl.models.mlp import Mlp

    return Mlp(spec.model, n_features=n_features, n_classes=n_classes, scaling=scaling, kernel=kernel)


def scaling_of(spec: FlSpec, features: NDArray[np.float64], truth: NDArray[np.float64]) -> Scaling:
    """Return the statistics that the session's model trains with.

    Args:
        spec: Resolved settings; without ``standardize`` nothing is scaled.
        features: All rows that any part trains on, shape ``(n, d)``; never the hold-out.
        truth: Their class indices or targets.

    Raises:
        ExecutionFailed: ``numerical_instability``: a column is too large for its statistics.
    """
    standardize = not isinstance(spec.model, ForestConfig) and spec.model.standardize
    scale = feature_scale(features, standardize=standardize)
    if not standardize or spec.is_classification:
        return Scaling(scale.mean, scale.deviation)
    target = feature_scale(truth[:, None], standardize=True)
    return Scaling(scale.mean, scale.deviation, float(target.mean[0]), float(target.deviation[0]))


def weights_digest(weights: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256, hex, that names a round's model: what an update says it started from.

    It covers names, shapes and the little-endian float32 values, in sorted order of names, and so does not depend on
    how the model travelled.
    """
    digest = hashlib.sha256(b"parity-fl/weights/1\x00")
    for name in sorted(weights):
        shape = ",".join(map(str, weights[name].shape))
        digest.update(f"{name}:{shape}\x00".encode())
        digest.update(np.ascontiguousarray(weights[name], dtype="<f4").data)
    return digest.hexdigest()
