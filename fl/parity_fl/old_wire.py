"""The Parity network's JSON form of an update: ``weights`` and ``gradients`` as flat lists by layer.

An old runner sends its weights under both names. Ours sends the true difference to the round's model as ``gradients``.
Where ``weights`` are there, the update is therefore their difference to the model; ``gradients`` count only alone.

Layers of a network with one hidden layer and of a linear regression have the old names: ``input_to_hidden_weights``,
``hidden_bias``, ``hidden_to_output_weights``, ``output_bias``; ``layer_weights`` is the bias and then one weight per
feature. Other models keep ours. Matrices are row by row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.limits import MAX_ID_CHARS, MAX_UPDATE_BYTES
from parity_fl.models.base import Weights
from parity_fl.models.layout import LEGACY_NAMES
from parity_protocol import strict_json
from parity_protocol.errors import BadField

__all__ = ["OldUpdate", "read_old_layers", "read_old_update", "write_old_layers", "write_old_update"]

Shapes = Mapping[str, tuple[int, ...]]

_LINEAR: Final = "layer_weights"
_OTHER_LINEAR: Final = "linear_weights"  # the old trainer's own name
_LINEAR_SHAPES: Final = frozenset({"bias", "weights"})
_MAX_COUNT: Final = 1 << 40
_MAX_OTHER_VALUES: Final = 10_000  # beside the two lists


@dataclass(frozen=True, slots=True, eq=False)
class OldUpdate:
    """What an update in the old form says. All but ``delta`` is the node's own word.

    Attributes:
        delta: The difference to the round's model, float32.
        data_size: Rows; never a weight in a mean.
        training_time_ms: Under either of its two names; 0 when it is not there.
    """

    session_id: str
    round_id: str
    runner_id: str
    delta: Weights
    data_size: int
    loss: float
    accuracy: float
    training_time_ms: int


def read_old_update(data: bytes, base: Weights, *, max_bytes: int = MAX_UPDATE_BYTES) -> OldUpdate:
    """Read an update from a runner of the Parity network. Members that it does not know are passed over.

    Args:
        data: The request's body.
        base: The round's model.
        max_bytes: Cap on its length.

    Raises:
        BadDocument: It is not JSON.
        TooLarge: Over ``max_bytes``, or more values than two models have.
        BadField: A required member is missing or wrong; ``field`` names it.
    """
    values = 2 * sum(tensor.size for tensor in base.values())
    raw = strict_json.loads(data, max_bytes=max_bytes, max_depth=8, max_values=values + _MAX_OTHER_VALUES)
    if not isinstance(raw, dict):
        raise BadField("Invalid request body", field="")
    shapes = {name: base[name].shape for name in sorted(base)}
    weights, gradients = raw.get("weights"), raw.get("gradients")
    if weights is None and gradients is None:
        raise BadField("gradients is required", field="gradients")
    if weights is not None and weights != {}:
        trained = read_old_layers(weights, shapes, field="weights")
        delta = {name: trained[name] - base[name] for name in shapes}
    else:
        delta = read_old_layers(gradients, shapes, field="gradients")
    return OldUpdate(
        session_id=_text(raw, "session_id"),
        round_id=_text(raw, "round_id"),
        runner_id=_text(raw, "runner_id"),
        delta=delta,
        data_size=int(_number(raw, "data_size")),
        loss=_number(raw, "loss"),
        accuracy=_number(raw, "accuracy"),
        training_time_ms=int(_number(raw, "training_time_ms") or _number(raw, "training_time")),
    )


def write_old_update(update: OldUpdate, base: Weights, *, now: datetime) -> dict[str, object]:
    """Return the update in the old form, JSON-ready: ``gradients`` are the true differences.

    Args:
        update: What to say.
        base: The model that training started from.
        now: With a time zone; the old form counts whole seconds.
    """
    trained = {name: base[name] + update.delta[name] for name in base}
    return {
        "session_id": update.session_id,
        "round_id": update.round_id,
        "runner_id": update.runner_id,
        "gradients": write_old_layers(update.delta),
        "weights": write_old_layers(trained),
        "update_type": "gradients",
        "data_size": update.data_size,
        "loss": update.loss,
        "accuracy": update.accuracy,
        "training_time": update.training_time_ms,
        "metadata": {"submission_time": int(now.timestamp())},
    }


def write_old_layers(weights: Mapping[str, NDArray[np.float32] | NDArray[np.float64]]) -> dict[str, list[float]]:
    """Return a model or an update as flat lists under the old names."""
    if set(weights) == _LINEAR_SHAPES:
        return {_LINEAR: [*weights["bias"].tolist(), *weights["weights"].tolist()]}
    names = _names(weights)
    return {names[name]: weights[name].reshape(-1).tolist() for name in sorted(weights)}


def read_old_layers(raw: object, shapes: Shapes, *, field: str) -> Weights:
    """Read flat lists under the old names.

    Args:
        raw: Parsed JSON.
        shapes: Of the session's model.
        field: Name of ``raw``, for messages.

    Raises:
        BadField: Layers, lengths or values are not those of the model.
    """
    if not isinstance(raw, dict):
        raise BadField(f"{field} must be an object of lists", field=field)
    if set(shapes) == _LINEAR_SHAPES:
        (width,) = shapes["weights"]
        both = _layers(raw, {_OTHER_LINEAR if _OTHER_LINEAR in raw else _LINEAR: 1 + width}, field)
        (flat,) = both.values()
        return {"bias": flat[:1], "weights": flat[1:]}
    names = _names(shapes)
    sizes = {names[name]: math.prod(shapes[name]) for name in shapes}
    found = _layers(raw, sizes, field)
    return {name: found[names[name]].reshape(shapes[name]) for name in sorted(shapes)}


def _names(known: Mapping[str, object]) -> Mapping[str, str]:
    return LEGACY_NAMES if set(known) == set(LEGACY_NAMES) else {name: name for name in known}


def _layers(raw: dict[str, object], sizes: Mapping[str, int], field: str) -> dict[str, NDArray[np.float32]]:
    if set(raw) != set(sizes):
        raise BadField(f"{field} must have the layers {', '.join(sizes)}"[:300], field=field)
    found: dict[str, NDArray[np.float32]] = {}
    for name, size in sizes.items():
        values = raw[name]
        place = f"{field}.{name}"
        if not isinstance(values, list) or len(values) != size:
            came = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
            raise BadField(f"{place} must be a list of {size} numbers, got {came}", field=place)
        if not all(type(value) in (int, float) for value in values):
            raise BadField(f"{place} must be a list of numbers", field=place)
        with np.errstate(over="ignore"):
            found[name] = np.array(values, dtype=np.float64).astype(np.float32)
        if not np.isfinite(found[name]).all():
            raise BadField(f"{place} has NaN or Inf values", field=place)
    return found


def _text(raw: Mapping[str, object], name: str) -> str:
    value = raw.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS or not value.isprintable():
        raise BadField(f"{name} is required", field=name)
    return value


def _number(raw: Mapping[str, object], name: str) -> float:
    value = raw.get(name)
    if value is None:
        return 0.0
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < _MAX_COUNT:
        raise BadField(f"{name} must be a number", field=name)
    return float(value)
