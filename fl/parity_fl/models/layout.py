"""How a perceptron's parameters lie in one flat vector: by sorted names, so that an optimizer steps over all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.prng import Sha256Stream, derive_key
from parity_protocol.errors import BadField

__all__ = ["LEGACY_NAMES", "Layout", "check_weights", "first_weights"]

# What the Parity network calls the parameters of a network with one hidden layer.
LEGACY_NAMES: Final[Mapping[str, str]] = {
    "layer_00.weight": "input_to_hidden_weights",
    "layer_00.bias": "hidden_bias",
    "layer_01.weight": "hidden_to_output_weights",
    "layer_01.bias": "output_bias",
}
_HALF_RANGE: Final = float(1 << 31)
_DRAWN_AT_ONCE: Final = 1 << 16  # words; what they become in between is six times as large


@dataclass(frozen=True, slots=True)
class Layout:
    """The parameters of layers with these widths, from features to outputs.

    Layer ``l`` has ``layer_ll.bias`` of shape ``(fan_out,)`` and ``layer_ll.weight`` of shape ``(fan_in, fan_out)``.
    """

    widths: tuple[int, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's shape, in sorted order of names."""
        found: dict[str, tuple[int, ...]] = {}
        for layer, (fan_in, fan_out) in enumerate(pairwise(self.widths)):
            found[f"layer_{layer:02d}.bias"] = (fan_out,)
            found[f"layer_{layer:02d}.weight"] = (fan_in, fan_out)
        return found

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(self.widths))

    def views(self, flat: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the parameters as views of a flat vector of shape ``(size,)``."""
        found: dict[str, NDArray[np.float32]] = {}
        begin = 0
        for name, shape in self.shapes.items():
            end = begin + int(np.prod(shape))
            found[name] = flat[begin:end].reshape(shape)
            begin = end
        return found

    def pairs(self, flat: NDArray[np.float32]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Return each layer's ``(weight, bias)`` as views of a flat vector."""
        views = self.views(flat)
        layers = range(len(self.widths) - 1)
        return [(views[f"layer_{layer:02d}.weight"], views[f"layer_{layer:02d}.bias"]) for layer in layers]

    def checked(self, weights: Mapping[str, NDArray[Any]]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Return each layer's ``(weight, bias)`` as they are, without a copy of what is float32.

        Raises:
            BadField: They are not parameters of this layout.
        """
        check_weights(weights, self.shapes)
        names = (f"layer_{layer:02d}" for layer in range(len(self.widths) - 1))
        return [
            (np.asarray(weights[f"{name}.weight"], np.float32), np.asarray(weights[f"{name}.bias"], np.float32))
            for name in names
        ]

    def flatten(self, weights: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return checked weights as a new flat vector.

        Raises:
            BadField: They are not parameters of this layout.
        """
        check_weights(weights, self.shapes)
        return np.concatenate([np.asarray(weights[name], dtype=np.float32).ravel() for name in self.shapes])


def check_weights(weights: Mapping[str, NDArray[Any]], shapes: Mapping[str, Sequence[int]]) -> None:
    """Compare names, shapes and kinds with what a model has, and refuse values that are not finite.

    Raises:
        BadField: They differ; ``field`` is ``weights.<name>``.
    """
    if set(weights) != set(shapes):
        expected = ", ".join(sorted(shapes)[:8])
        raise BadField(f"not this model's weights: expected {expected}, got {len(weights)} others", field="weights")
    for name, shape in shapes.items():
        value = weights[name]
        if value.dtype.kind != "f" or value.shape != tuple(shape):
            raise BadField(
                f"not this model's weights: {name} must be floats of shape {tuple(shape)}, got {value.shape}",
                field=f"weights.{name}",
            )
        # Not ``isfinite(value)``, which is a quarter of the model's size; a NaN is its least and its greatest value.
        if value.size and not (np.isfinite(value.min()) and np.isfinite(value.max())):
            raise BadField(f"not this model's weights: {name} has NaN or Inf values", field=f"weights.{name}")


def first_weights(layout: Layout, seed: bytes, *, activation: str) -> dict[str, NDArray[np.float32]]:
    """Draw the first weights: He's bound before ReLU, Glorot's elsewhere; biases are 0.

    Glorot and Bengio (2010), eq. 16; He et al. (2015), §2.2, both as uniform laws. Entry ``i`` of a layer, row by row,
    is ``((word_i + 0.5) / 2**31 - 1) * bound`` in float64, rounded once to float32, with the words of the stream keyed
    ``derive_key("layer", seed, layer)``. Every step is exactly rounded by IEEE 754, so all machines agree bit for bit.

    Args:
        layout: The layers.
        seed: 32 bytes.
        activation: Of the hidden layers.
    """
    weights: dict[str, NDArray[np.float32]] = {}
    last = len(layout.widths) - 2
    for layer, (fan_in, fan_out) in enumerate(pairwise(layout.widths)):
        he = activation == "relu" and layer != last
        bound = float(np.sqrt(6.0 / fan_in)) if he else float(np.sqrt(6.0 / (fan_in + fan_out)))
        stream = Sha256Stream(derive_key("layer", seed, layer.to_bytes(4, "big")))
        values = np.empty(fan_in * fan_out, dtype=np.float32)
        for begin in range(0, len(values), _DRAWN_AT_ONCE):
            piece = values[begin : begin + _DRAWN_AT_ONCE]
            words = stream.peek(len(piece)).astype(np.float64)
            piece[:] = ((words + 0.5) / _HALF_RANGE - 1.0) * bound
            stream.skip(len(piece))
        weights[f"layer_{layer:02d}.bias"] = np.zeros(fan_out, dtype=np.float32)
        weights[f"layer_{layer:02d}.weight"] = values.reshape(fan_in, fan_out)
    return weights
