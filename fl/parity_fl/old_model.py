"""A finished model in the Parity network's JSON: flat lists by layer, under three names that mean the same.

``model_data`` is what ``GET …/sessions/{id}/model`` answers there. Old models do not scale their rows, so scaling is worked
into the first and the last layer. ``model_info`` is ours: with it a model is read back as it was, but that a forest's trees
vote for one class each (see ``forest_wire``); without it, its shape is taken from the lists.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.fields import Section
from parity_fl.forest_wire import read_old_trees, write_old_trees
from parity_fl.limits import MAX_CLASSES, MAX_FEATURES, MAX_LABEL_CHARS
from parity_fl.linear import FeatureScale, LinearModel
from parity_fl.model import TrainedModel
from parity_fl.models.base import Scaling
from parity_fl.models.layout import LEGACY_NAMES
from parity_fl.models.mlp import Mlp
from parity_fl.networks import Network
from parity_fl.neural_config import NEURAL_FIELDS, NeuralConfig, neural_config
from parity_fl.old_wire import read_old_layers, write_old_layers
from parity_fl.spec import ForestConfig
from parity_protocol.errors import BadField

__all__ = ["old_model_document", "read_old_model", "write_old_layers_of"]

_LINEAR: Final = "layer_weights"
_TREES: Final = "trees"
_IMPORTANCE: Final = "feature_importance"


def write_old_layers_of(model: TrainedModel) -> dict[str, list[float]]:
    """Return a finished model's lists: for a network or a line those of its layers, for a forest its trees.

    They are float64: an old model computes in double precision.
    """
    fitted = model.fitted
    if isinstance(fitted, LinearModel):
        return {_LINEAR: [fitted.bias, *fitted.weights.tolist()]}
    if isinstance(fitted, Network):
        return write_old_layers(_unscaled(fitted))
    labels = _numbers_of(model.class_names)
    return {
        _TREES: write_old_trees(fitted, ForestConfig(), labels=labels),
        _IMPORTANCE: fitted.importance.tolist(),
    }


def old_model_document(
    model: TrainedModel, *, metrics: Mapping[str, float], rounds: int = 1, participants: int = 0, method: str = "fedavg"
) -> dict[str, Any]:
    """Return a finished model as the old network's client saves it, JSON-ready.

    Args:
        metrics: Of the hold-out.
        rounds: That it was trained in.
        participants: Parts whose updates are in it.
        method: The rule that combined them.
    """
    layers = write_old_layers_of(model)
    fitted = model.fitted
    info: dict[str, Any] = {
        "n_features": model.n_features,
        "class_names": list(model.class_names),
        "feature_names": None if model.feature_names is None else list(model.feature_names),
    }
    if isinstance(fitted, Network):
        info["model_config"] = {**fitted.config.to_dict(), "standardize": False}
    return {
        "model_type": _type_of(model),
        "total_rounds": rounds,
        "model_data": {
            "aggregated_model": layers,
            "global_metrics": dict(metrics),
            "gradients": layers,
            "method": method,
            "participant_count": participants,
            "round_summary": f"Round {rounds} completed with {participants} participants",
            "weights": layers,
        },
        "model_info": info,
    }


def read_old_model(document: object) -> TrainedModel:
    """Read a model that the old network, or ``old_model_document``, wrote.

    Args:
        document: Parsed JSON.

    Raises:
        BadField: A member is missing or wrong; ``field`` names it.
        BadDocument: The trees are not a forest.
    """
    if not isinstance(document, dict):
        raise BadField("expected an object", field="model")
    data = document.get("model_data")
    if not isinstance(data, dict):
        raise BadField("model_data is required", field="model_data")
    layers, field = next(
        ((data[name], f"model_data.{name}") for name in ("weights", "aggregated_model") if data.get(name)),
        ({}, "model_data.weights"),
    )
    if not isinstance(layers, dict):
        raise BadField(f"{field} must be an object of lists", field=field)
    info = document.get("model_info")
    if info is None:
        info = {}
    if not isinstance(info, dict):
        raise BadField("model_info must be an object", field="model_info")
    match document.get("model_type"):
        case "linear_regression":
            return _read_line(layers, info, field)
        case "neural_network":
            return _read_network(layers, info, field)
        case "random_forest":
            return _read_forest(layers, info, field)
        case _:
            raise BadField("model_type must be linear_regression, neural_network or random_forest", field="model_type")


def _read_line(layers: dict[str, object], info: dict[str, object], field: str) -> TrainedModel:
    width = len(_list_of(layers, _LINEAR, field)) - 1
    n_features = _n_features(info, width)
    read_old_layers(layers, {"bias": (1,), "weights": (n_features,)}, field=field)
    flat = np.array(layers[_LINEAR], dtype=np.float64)  # checked above; that was in single precision
    fitted = LinearModel(flat[1:], float(flat[0]), FeatureScale(np.zeros(n_features), np.ones(n_features)))
    return TrainedModel(fitted, (), n_features, _names(info, n_features))


def _read_network(layers: dict[str, object], info: dict[str, object], field: str) -> TrainedModel:
    raw = info.get("model_config")
    if raw is None:
        first, bias = LEGACY_NAMES["layer_00.weight"], LEGACY_NAMES["layer_00.bias"]
        hidden = len(_list_of(layers, bias, field))
        n_features = _n_features(info, len(_list_of(layers, first, field)) // max(1, hidden))
        outputs = len(_list_of(layers, LEGACY_NAMES["layer_01.bias"], field))
        raw = {"hidden_layers": [hidden], "input_size": n_features, "output_size": outputs, "standardize": False}
        n_classes = max(2, outputs)
    else:
        n_features, n_classes = _n_features(info, 0), len(_classes(info))
    config: NeuralConfig = neural_config(Section.open(raw, "model_info.model_config", NEURAL_FIELDS))
    scaling = Scaling(np.zeros(n_features), np.ones(n_features), 0.0, 1.0)
    shapes = Mlp(config, n_features=n_features, n_classes=n_classes, scaling=scaling).shapes()
    weights = read_old_layers(layers, shapes, field=field)
    names = _classes(info) or (tuple(str(one) for one in range(n_classes)) if config.task == "classification" else ())
    return TrainedModel(Network(config, weights, scaling, n_classes), names, n_features, _names(info, n_features))


def _read_forest(layers: dict[str, object], info: dict[str, object], field: str) -> TrainedModel:
    numbers = _numbers(layers, _TREES, field)
    shares = layers.get(_IMPORTANCE)
    importance = None if shares is None else np.array(_numbers(layers, _IMPORTANCE, field), dtype=np.float64)
    n_features = _n_features(info, 0 if importance is None else len(importance))
    names = _classes(info)
    forest = read_old_trees(numbers, n_features=n_features, labels=_numbers_of(names), importance=importance)
    return TrainedModel(forest, names, n_features, _names(info, n_features))


def _unscaled(network: Network) -> dict[str, NDArray[np.float64]]:
    """Return a network's parameters, float64, for rows that nobody scales: ((x - m)/s)W + b = x(W/s) + (b - (m/s)W)."""
    scaling = network.scaling
    weights = {name: tensor.astype(np.float64) for name, tensor in network.weights.items()}
    layers = sorted({name.partition(".")[0] for name in weights})
    first, last = layers[0], layers[-1]
    scaled = weights[f"{first}.weight"] / scaling.deviation[:, None]
    weights[f"{first}.bias"] = weights[f"{first}.bias"] - scaling.mean @ scaled
    weights[f"{first}.weight"] = scaled
    if network.n_classes == 0:
        weights[f"{last}.weight"] = weights[f"{last}.weight"] * scaling.target_deviation
        weights[f"{last}.bias"] = weights[f"{last}.bias"] * scaling.target_deviation + scaling.target_mean
    return weights


def _type_of(model: TrainedModel) -> str:
    if isinstance(model.fitted, LinearModel):
        return "linear_regression"
    return "neural_network" if isinstance(model.fitted, Network) else "random_forest"


def _numbers_of(names: Sequence[str]) -> list[float]:
    """Return the number that stands for each class: its own name, if every one is a number of its own, or its index."""
    try:
        found = [float(name) for name in names]
    except ValueError:
        found = []
    usable = len(set(found)) == len(names) and all(math.isfinite(one) for one in found)
    return found if usable else [float(index) for index in range(len(names))]


def _list_of(layers: Mapping[str, object], name: str, field: str) -> list[object]:
    value = layers.get(name)
    if not isinstance(value, list) or not value:
        raise BadField(f"{field}.{name} must be a list of numbers", field=f"{field}.{name}")
    return value


def _numbers(layers: Mapping[str, object], name: str, field: str) -> list[float]:
    found = _list_of(layers, name, field)
    if not all(type(one) in (int, float) for one in found):
        raise BadField(f"{field}.{name} must be a list of numbers", field=f"{field}.{name}")
    return [float(one) for one in found]  # type: ignore[arg-type]  # checked above


def _n_features(info: Mapping[str, object], guess: int) -> int:
    value = info.get("n_features", guess)
    if type(value) is not int or not 1 <= value <= MAX_FEATURES:
        raise BadField(f"model_info.n_features must be from 1 to {MAX_FEATURES}", field="model_info.n_features")
    return value


def _classes(info: Mapping[str, object]) -> tuple[str, ...]:
    return _texts(info, "class_names", MAX_CLASSES)


def _names(info: Mapping[str, object], n_features: int) -> tuple[str, ...] | None:
    found = _texts(info, "feature_names", n_features)
    if found and len(found) != n_features:
        raise BadField(f"model_info.feature_names must be {n_features} texts", field="model_info.feature_names")
    return found or None


def _texts(info: Mapping[str, object], name: str, most: int) -> tuple[str, ...]:
    value = info.get(name)
    if value is None:
        return ()
    found = [one for one in value if isinstance(one, str)] if isinstance(value, list) else None
    if found is None or found != value or len(found) > most or any(len(one) > MAX_LABEL_CHARS for one in found):
        raise BadField(f"model_info.{name} must be at most {most} texts", field=f"model_info.{name}")
    return tuple(found)
