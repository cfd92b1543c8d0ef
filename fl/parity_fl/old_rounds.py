"""A training round as a runner of the Parity network sees it: the model as lists, and its update as one of ours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity_fl.codec import encode_weights
from parity_fl.limits import MAX_UPDATE_BYTES
from parity_fl.models.base import Weights
from parity_fl.old_wire import read_old_update, write_old_layers
from parity_fl.tensors import decode_tensors
from parity_protocol.errors import BadDocument, TooLarge

__all__ = ["MAX_OLD_VALUES", "OldRoundUpdate", "old_base", "old_update"]

MAX_OLD_VALUES = 200_000  # parameters of a model that travels as JSON, some twenty characters each


@dataclass(frozen=True, slots=True)
class OldRoundUpdate:
    """An update that was read.

    Attributes:
        body: The update as every other one travels, in single precision.
        session_id: As it was written; so the next two.
        numbers: What the runner says of itself: ``loss``, ``accuracy``, ``samples``, ``train_s``.
    """

    body: bytes
    session_id: str
    round_id: str
    runner_id: str
    numbers: dict[str, float]


def old_base(model: bytes) -> dict[str, list[float]]:
    """Return a round's model file as lists by layer.

    Raises:
        TooLarge: It has more than ``MAX_OLD_VALUES`` parameters.
    """
    return write_old_layers(_read(model))


def old_update(model: bytes, data: bytes) -> OldRoundUpdate:
    """Read a runner's update to a round.

    Args:
        model: The round's model file.
        data: The request's body.

    Raises:
        BadField: Layers, lengths or values are not those of the model; ``field`` names the place.
        BadDocument: ``data`` is not JSON; ``TooLarge`` likewise, or the model has too many parameters.
    """
    found = read_old_update(data, _read(model))
    numbers = {
        "loss": found.loss,
        "accuracy": found.accuracy,
        "samples": float(found.data_size),
        "train_s": found.training_time_ms / 1000,
    }
    return OldRoundUpdate(encode_weights(found.delta), found.session_id, found.round_id, found.runner_id, numbers)


def _read(model: bytes) -> Weights:
    tensors, _ = decode_tensors(model, max_bytes=MAX_UPDATE_BYTES)
    if any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise BadDocument("not a round's model")
    total = sum(tensor.size for tensor in tensors.values())
    if total > MAX_OLD_VALUES:
        raise TooLarge(
            f"the model has {total} parameters, at most {MAX_OLD_VALUES} travel as JSON", field="model_config"
        )
    return tensors
