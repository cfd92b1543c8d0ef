"""The settings of a neural network: a multi-layer perceptron, checked in the network's words.

Imports no NumPy, because admission reads settings in the idle node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from parity_fl.fields import Section, fail
from parity_fl.limits import MAX_CLASSES, MAX_FEATURES, MAX_HIDDEN_LAYERS, MAX_HIDDEN_SIZE, MAX_PARAMETERS

__all__ = ["ACTIVATIONS", "NEURAL_FIELDS", "NeuralConfig", "neural_config", "parameter_count"]

ACTIVATIONS: Final = ("relu", "tanh", "sigmoid")
NEURAL_FIELDS: Final = (
    "input_size",
    "hidden_size",
    "hidden_layers",
    "output_size",
    "activation",
    "task",
    "standardize",
)
_STANDARDIZE: Final = True


@dataclass(frozen=True, slots=True)
class NeuralConfig:
    """A multi-layer perceptron.

    Attributes:
        hidden_layers: Width of each hidden layer, at least one; required, ``hidden_size`` names a single one.
        input_size: Number of features; default 0 takes what the data have.
        output_size: Outputs; default 0 takes the number of classes, or 1 for regression. 1 with two classes is a
            single sigmoid output, more are a softmax.
        activation: Of the hidden layers: ``relu`` (default), ``tanh`` or ``sigmoid``.
        task: ``classification`` (default; cross-entropy) or ``regression`` (mean squared error).
        standardize: Train on features, and targets of a regression, scaled to mean 0 and deviation 1, with the
            statistics of all training rows; default true. Predictions are in the data's own units either way.
    """

    hidden_layers: tuple[int, ...]
    input_size: int = 0
    output_size: int = 0
    activation: str = "relu"
    task: str = "classification"
    standardize: bool = _STANDARDIZE

    def layers(self, *, n_features: int, n_classes: int) -> tuple[int, ...]:
        """Return the width of every layer, from features to outputs.

        Args:
            n_features: Columns of the data.
            n_classes: Classes of the data; ignored for regression.

        Raises:
            BadField: The settings do not fit the data.
        """
        if self.input_size not in {0, n_features}:
            fail("model_config.input_size", f"feature size mismatch: expected {self.input_size}, got {n_features}")
        outputs = 1
        if self.task == "classification":
            if n_classes < 2:
                fail("dataset_cid", "the labels have one class only: there is nothing to learn")
            outputs = self.output_size or n_classes
            if outputs != n_classes and not (outputs == 1 and n_classes == 2):
                fail("model_config.output_size", f"output_size is {outputs}, the data have {n_classes} classes")
        widths = (n_features, *self.hidden_layers, outputs)
        _check_size(widths)
        return widths

    def to_dict(self) -> dict[str, object]:
        """Return the wire members; one hidden layer goes by the Parity network's name."""
        hidden: dict[str, object] = {"hidden_layers": list(self.hidden_layers)}
        if len(self.hidden_layers) == 1:
            hidden = {"hidden_size": self.hidden_layers[0]}
        return {
            "input_size": self.input_size,
            **hidden,
            "output_size": self.output_size,
            "activation": self.activation,
            "task": self.task,
            "standardize": self.standardize,
        }


def parameter_count(widths: Sequence[int]) -> int:
    """Return the parameters of a perceptron with these layer widths, from features to outputs."""
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(widths))


def neural_config(section: Section) -> NeuralConfig:
    """Read ``model_config`` of a neural network.

    Raises:
        BadField: The first thing that is wrong.
    """
    hidden = _hidden(section)
    input_size = section.get("input_size", 0)
    if type(input_size) is not int or not 0 <= input_size <= MAX_FEATURES:
        fail("model_config.input_size", f"invalid input size: must be a whole number from 1 to {MAX_FEATURES}")
    task = section.choice("task", ("classification", "regression"), "classification")
    output_size = section.whole("output_size", 0, MAX_CLASSES, 0)
    if task == "regression" and output_size > 1:
        section.refuse("output_size", f"must be 1 for regression, got {output_size}")
    config = NeuralConfig(
        hidden_layers=hidden,
        input_size=input_size,
        output_size=output_size,
        activation=section.choice("activation", ACTIVATIONS, "relu"),
        task=task,
        standardize=section.flag("standardize", _STANDARDIZE),
    )
    _check_size((max(1, input_size), *hidden, max(1, output_size)))
    return config


def _hidden(section: Section) -> tuple[int, ...]:
    size, layers = section.get("hidden_size"), section.get("hidden_layers")
    if size is None and layers is None:
        fail("model_config.hidden_size", "hidden_size is required in neural network configuration")
    if size is not None and layers is not None:
        section.refuse("hidden_layers", "and hidden_size say the same thing: give one of them")
    if layers is None:
        return (section.whole("hidden_size", 1, MAX_HIDDEN_SIZE, 1),)
    if not isinstance(layers, list) or not 1 <= len(layers) <= MAX_HIDDEN_LAYERS:
        section.refuse("hidden_layers", f"must be a list of 1 to {MAX_HIDDEN_LAYERS} whole numbers")
    widths: list[int] = []
    for width in layers:
        if type(width) is not int or not 1 <= width <= MAX_HIDDEN_SIZE:
            section.refuse("hidden_layers", f"must be whole numbers from 1 to {MAX_HIDDEN_SIZE}")
        widths.append(width)
    return tuple(widths)


def _check_size(widths: tuple[int, ...]) -> None:
    count = parameter_count(widths)
    if count > MAX_PARAMETERS:
        fail("model_config.hidden_size", f"the network has {count} parameters, at most {MAX_PARAMETERS} are allowed")
