"""A finished perceptron: weights, and the scaling that turns the data's own units into what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.limits import MAX_CLASSES, MAX_HIDDEN_LAYERS, MAX_PARAMETERS
from parity_fl.models.base import Matrix, Scaling, Weights
from parity_fl.models.layout import Layout
from parity_fl.models.mlp import Mlp
from parity_fl.neural_config import ACTIVATIONS, NeuralConfig, parameter_count
from parity_fl.tensors import Tensor, take
from parity_protocol.errors import BadDocument

__all__ = ["NeuralModel", "neural_from_tensors", "neural_tensors"]

_SCALING: Final = ("mean", "deviation", "target")


@dataclass(frozen=True, eq=False)
class NeuralModel:
    """A perceptron to predict with.

    Attributes:
        widths: Width of every layer, from features to outputs.
        activation: Of the hidden layers.
        n_classes: 0 for regression.
        weights: Parameters by name.
        scaling: What it was trained with.
    """

    widths: tuple[int, ...]
    activation: str
    n_classes: int
    weights: Weights
    scaling: Scaling

    def predict(self, features: Matrix) -> NDArray[np.float64]:
        """Return class indices or values, float64 ``(n,)``, for features of shape ``(n, d)`` in the data's own units."""
        return self._network.predict(self.weights, features)

    def probabilities(self, features: Matrix) -> NDArray[np.float64]:
        """Return each class's probability, float64 ``(n, classes)``; only for classification."""
        return self._network.probabilities(self.weights, features)

    @cached_property
    def _network(self) -> Mlp:
        config = NeuralConfig(
            hidden_layers=self.widths[1:-1],
            input_size=self.widths[0],
            output_size=self.widths[-1],
            activation=self.activation,
            task="classification" if self.n_classes else "regression",
        )
        return Mlp(config, n_features=self.widths[0], n_classes=self.n_classes, scaling=self.scaling)


def neural_tensors(model: NeuralModel) -> dict[str, Tensor]:
    """Return the wire tensors: the layers F32, ``mean, deviation`` F64 ``(d,)``, ``target`` F64 = mean, deviation."""
    return {
        **model.weights,
        "mean": model.scaling.mean,
        "deviation": model.scaling.deviation,
        "target": np.array([model.scaling.target_mean, model.scaling.target_deviation], dtype=np.float64),
    }


def neural_from_tensors(
    tensors: Mapping[str, Tensor], *, activation: str, n_features: int, n_classes: int
) -> NeuralModel:
    """Check tensors that somebody else made and return the model they are.

    Raises:
        BadDocument: Names, shapes or types differ, or a value is not finite.
    """
    if activation not in ACTIVATIONS:
        _refuse(f"activation must be one of {', '.join(ACTIVATIONS)}")
    layers = (len(tensors) - len(_SCALING)) // 2
    if not 2 <= layers <= MAX_HIDDEN_LAYERS + 1 or len(tensors) != 2 * layers + len(_SCALING):
        _refuse(
            f"expected 2 to {MAX_HIDDEN_LAYERS + 1} layers, a bias and a weight for each, and {', '.join(_SCALING)}"
        )
    widths = [n_features]
    for layer in range(layers):
        weight = take(tensors, f"layer_{layer:02d}.weight", "F32", 2)
        bias = take(tensors, f"layer_{layer:02d}.bias", "F32", 1)
        if weight.shape[0] != widths[-1] or weight.shape[1] != len(bias) or len(bias) == 0:
            _refuse(f"layer {layer} does not fit the one before it")
        widths.append(len(bias))
    last = widths[-1]
    if last != max(1, n_classes) and not (last == 1 and n_classes == 2):
        _refuse(f"{last} outputs for {n_classes} classes")
    if n_classes == 1 or last > MAX_CLASSES or parameter_count(widths) > MAX_PARAMETERS:
        _refuse("there are too many parameters, or one class only")
    mean, deviation, target = (take(tensors, name, "F64", 1) for name in _SCALING)
    if len(mean) != n_features or len(deviation) != n_features or len(target) != 2:
        _refuse("the scaling has another shape")
    if (deviation <= 0).any() or target[1] <= 0 or (n_classes and target.tolist() != [0, 1]):
        _refuse("deviations must be positive, and classes have no scale")
    layout = Layout(tuple(widths))
    weights = {name: tensors[name] for name in layout.shapes}
    scaling = Scaling(mean, deviation, float(target[0]), float(target[1]))
    return NeuralModel(layout.widths, activation, n_classes, weights, scaling)


def _refuse(message: str) -> NoReturn:
    raise BadDocument(f"not a neural network: {message}")
