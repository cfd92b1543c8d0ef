"""A finished neural network as tensors: its weights, and what its rows were scaled by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.fields import Section
from parity_fl.models.base import Scaling, Weights
from parity_fl.models.mlp import Mlp
from parity_fl.neural_config import NEURAL_FIELDS, NeuralConfig, neural_config
from parity_fl.tensors import Tensor
from parity_protocol import strict_json
from parity_protocol.errors import BadDocument, BadField

__all__ = ["Network", "network_from_tensors", "network_settings", "network_tensors"]

_WEIGHT: Final = "w."
_MEAN: Final = "scale_mean"
_DEVIATION: Final = "scale_deviation"
_TARGET: Final = "scale_target"


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A perceptron to predict with.

    Attributes:
        config: Its settings.
        weights: Its parameters by name.
        scaling: What it was trained with.
        n_classes: 0 for regression.
    """

    config: NeuralConfig
    weights: Weights
    scaling: Scaling
    n_classes: int

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return class indices or values, float64 ``(n,)``, for features of shape ``(n, d)``."""
        return self._model(features.shape[1]).predict(self.weights, features)

    def _model(self, n_features: int) -> Mlp:
        return Mlp(self.config, n_features=n_features, n_classes=self.n_classes, scaling=self.scaling)


def network_settings(network: Network) -> str:
    """Return the settings as JSON text, for a model's metadata."""
    return json.dumps(network.config.to_dict(), sort_keys=True)


def network_tensors(network: Network) -> dict[str, Tensor]:
    """Return everything that is numbers."""
    scaling = network.scaling
    return {
        **{_WEIGHT + name: weights for name, weights in network.weights.items()},
        _MEAN: scaling.mean,
        _DEVIATION: scaling.deviation,
        _TARGET: np.array([scaling.target_mean, scaling.target_deviation]),
    }


def network_from_tensors(tensors: Mapping[str, Tensor], settings: str, *, n_features: int, n_classes: int) -> Network:
    """Read what ``network_tensors`` and ``network_settings`` wrote.

    Raises:
        BadDocument: It is not exactly a network for so many features and classes.
    """
    try:
        raw = strict_json.loads(settings.encode(), max_depth=2)
        config = neural_config(Section.open(raw, "model_config", NEURAL_FIELDS))
        layout = Mlp(config, n_features=n_features, n_classes=n_classes).shapes()
    except BadField as exc:
        raise BadDocument(f"not a network: {exc.message}") from exc
    if (config.task == "classification") != (n_classes > 0):
        _fail("its task and its classes contradict each other")
    sizes: dict[str, tuple[tuple[int, ...], type[np.floating]]] = {
        **{_WEIGHT + name: (shape, np.float32) for name, shape in layout.items()},
        _MEAN: ((n_features,), np.float64),
        _DEVIATION: ((n_features,), np.float64),
        _TARGET: ((2,), np.float64),
    }
    if set(tensors) != set(sizes):
        _fail(f"tensors must be {', '.join(sorted(sizes))}"[:300])
    for name, (shape, kind) in sizes.items():
        tensor = tensors[name]
        if tensor.dtype != kind or tensor.shape != shape or not np.isfinite(tensor).all():
            _fail(f"tensor {name} must be finite, {np.dtype(kind).name} of shape {shape}")
    mean, deviation, target = tensors[_MEAN], tensors[_DEVIATION], tensors[_TARGET]
    if not (deviation > 0).all() or not target[1] > 0:
        _fail("deviations must be above 0")
    weights: Weights = {name: tensors[_WEIGHT + name] for name in layout}
    return Network(config, weights, Scaling(mean, deviation, float(target[0]), float(target[1])), n_classes)


def _fail(message: str) -> NoReturn:
    raise BadDocument(f"not a network: {message}")
