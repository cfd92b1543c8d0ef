"""The finished model as a file: the tensors of its kind, and what is needed to use it on new rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parity_fl.limits import MAX_CLASSES, MAX_FEATURES, MAX_HEADER_BYTES, MAX_LABEL_CHARS, MAX_UPDATE_BYTES
from parity_fl.linear import LinearModel, linear_from_tensors, linear_tensors
from parity_fl.networks import Network, network_from_tensors, network_settings, network_tensors
from parity_fl.tensors import decode_tensors, encode_tensors
from parity_fl.trees import Forest, as_forest_features, forest_from_tensors, forest_tensors, predict
from parity_protocol import strict_json
from parity_protocol.errors import BadDocument, BadField

__all__ = ["TrainedModel", "decode_model", "encode_model"]

_FORMAT: Final = "parity.model/1"

_Fitted: TypeAlias = Forest | LinearModel | Network


@dataclass(frozen=True, slots=True, eq=False)
class TrainedModel:
    """A model to predict with.

    Attributes:
        fitted: The forest, the linear model or the network.
        class_names: Classes in index order; empty for regression.
        n_features: Columns that it expects.
        feature_names: Their names, if the data had any.
    """

    fitted: _Fitted
    class_names: tuple[str, ...]
    n_features: int
    feature_names: tuple[str, ...] | None = None

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return class indices or values, float64 ``(n,)``, for finite features of shape ``(n, d)``.

        Raises:
            BadField: The features have another shape, or NaN or Inf values.
        """
        if features.ndim != 2 or features.shape[1] != self.n_features:
            shape = "x".join(map(str, features.shape))
            raise BadField(
                f"feature size mismatch: expected {self.n_features} columns, got shape {shape}", field="features"
            )
        if not np.isfinite(features).all():
            raise BadField("input features contain NaN or Inf values", field="features")
        if isinstance(self.fitted, LinearModel | Network):
            return self.fitted.predict(features)
        return predict(self.fitted, as_forest_features(features), classification=bool(self.class_names))

    def predict_labels(self, features: NDArray[np.float64]) -> list[str] | list[float]:
        """Return class names, or values for regression."""
        found = self.predict(features)
        if not self.class_names:
            return [float(value) for value in found]
        return [self.class_names[int(index)] for index in found]


def encode_model(model: TrainedModel) -> bytes:
    """Return the model's safetensors document; equal models give equal bytes."""
    fitted = model.fitted
    metadata = {
        "format": _FORMAT,
        "model_type": _type_of(fitted),
        "class_names": _listed(model.class_names),
        "n_features": str(model.n_features),
        "feature_names": "null" if model.feature_names is None else _listed(model.feature_names),
    }
    if isinstance(fitted, Network):
        return encode_tensors(network_tensors(fitted), {**metadata, _SETTINGS: network_settings(fitted)})
    if isinstance(fitted, LinearModel):
        return encode_tensors(linear_tensors(fitted), metadata)
    return encode_tensors(forest_tensors(fitted), metadata)


def decode_model(data: bytes, *, max_bytes: int = MAX_UPDATE_BYTES) -> TrainedModel:
    """Read a model that somebody else made.

    Raises:
        TooLarge: Over ``max_bytes``.
        BadDocument: It is not exactly a model.
    """
    tensors, metadata = decode_tensors(data, max_bytes=max_bytes)
    settings = metadata.pop(_SETTINGS, "")
    if metadata.get("format") != _FORMAT or set(metadata) != _MEMBERS:
        _fail(f"metadata must be {', '.join(sorted(_MEMBERS))}, with format {_FORMAT}")
    size = metadata["n_features"]
    if not size.isascii() or not size.isdecimal() or len(size) > 6 or not 1 <= int(size) <= MAX_FEATURES:
        _fail(f"n_features must be 1 to {MAX_FEATURES}")
    n_features = int(size)
    class_names = _words(metadata["class_names"], "class_names", MAX_CLASSES)
    named = metadata["feature_names"] != "null"
    feature_names = _words(metadata["feature_names"], "feature_names", n_features) if named else None
    if feature_names is not None and len(feature_names) != n_features:
        _fail(f"feature_names must be {n_features} strings")

    fitted: _Fitted
    match metadata["model_type"]:
        case "linear_regression":
            if class_names:
                _fail("a linear regression has no classes")
            fitted = linear_from_tensors(tensors, n_features=n_features)
        case "neural_network":
            fitted = network_from_tensors(tensors, settings, n_features=n_features, n_classes=len(class_names))
        case "random_forest":
            outputs = max(1, len(class_names))
            fitted = forest_from_tensors(
                tensors, n_features=n_features, n_outputs=outputs, classification=bool(class_names)
            )
        case _:
            _fail("unknown model_type")
    return TrainedModel(fitted, class_names, n_features, feature_names)


_SETTINGS: Final = "model_config"  # of a network only
_MEMBERS: Final = {"format", "model_type", "class_names", "n_features", "feature_names"}


def _type_of(fitted: _Fitted) -> str:
    if isinstance(fitted, Network):
        return "neural_network"
    return "linear_regression" if isinstance(fitted, LinearModel) else "random_forest"


def _listed(words: tuple[str, ...]) -> str:
    return json.dumps(list(words), ensure_ascii=False)


def _words(text: str, name: str, most: int) -> tuple[str, ...]:
    raw = strict_json.loads(text.encode(), max_bytes=MAX_HEADER_BYTES, max_depth=1)
    if not isinstance(raw, list) or len(raw) > most:
        _fail(f"{name} must be a list of at most {most} strings")
    words = tuple(word for word in raw if isinstance(word, str) and len(word) <= MAX_LABEL_CHARS and word.isprintable())
    if len(words) != len(raw):
        _fail(f"{name} must be strings of at most {MAX_LABEL_CHARS} printable characters")
    return words


def _fail(message: str) -> NoReturn:
    raise BadDocument(f"not a model: {message}")
