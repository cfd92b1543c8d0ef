"""What travels in a round: the model that nodes start from, and the update that a node sends."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parity_fl.limits import MAX_UPDATE_BYTES
from parity_fl.models.base import Weights
from parity_fl.rounds_config import UpdateFormat
from parity_fl.tensors import decode_tensors, encode_tensors
from parity_protocol.errors import BadDocument

__all__ = ["decode_delta", "decode_weights", "encode_delta", "encode_weights"]


def encode_weights(weights: Weights) -> bytes:
    """Return a model's file; equal models give equal bytes."""
    return encode_tensors({name: weights[name] for name in sorted(weights)}, {})


def decode_weights(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """Read a model's file.

    Raises:
        BadDocument: It is not one of this session: other names, shapes or types, or values that are not finite.
        TooLarge: Over the cap.
    """
    tensors, _ = decode_tensors(data, max_bytes=MAX_UPDATE_BYTES)
    if set(tensors) != set(shapes):
        raise BadDocument(f"expected the tensors {', '.join(sorted(shapes))}"[:300])
    found: Weights = {}
    for name in sorted(shapes):
        tensor = tensors[name]
        if tensor.dtype != np.float32 or tensor.shape != tuple(shapes[name]):
            raise BadDocument(f"tensor {name} must be float32 of shape {tuple(shapes[name])}")
        if not np.isfinite(tensor).all():
            raise BadDocument(f"tensor {name} has NaN or Inf values")
        found[name] = tensor
    return found


def encode_delta(
    delta: Weights, update_format: UpdateFormat, *, left: Weights | None = None
) -> tuple[bytes, Weights | None]:
    """Return an update's body, and what its format could not carry, to be added to the next one."""
    del update_format, left
    return encode_weights(delta), None


def decode_delta(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """Read an update's body in whatever format it came.

    Raises:
        BadDocument: It is not one of this session's.
        TooLarge: Over the cap.
    """
    return decode_weights(data, shapes)
