"""The envelope of one part's contribution: tensors, and metadata that binds them to one session, round and part (FL7)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from parity_fl.limits import MAX_ID_CHARS, MAX_PARTS, MAX_UPDATE_BYTES
from parity_fl.tensors import Tensor, decode_tensors, encode_tensors
from parity_protocol import strict_json
from parity_protocol.errors import BadDocument

__all__ = ["FlUpdate", "decode_update", "encode_update"]

_FORMAT: Final = "parity.fl-update/1"
_MAX_METRICS: Final = 32
_WHOLE: Final = re.compile(r"0|[1-9][0-9]{0,9}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True, eq=False)
class FlUpdate:
    """One part's contribution to one round.

    Attributes:
        model_type: ``random_forest`` or ``linear_regression``.
        assignment_hash: The plan's; says which cut of which data this was trained on.
        base_hash: SHA-256, hex, of the model that training started from; empty when it started from none.
        n_samples: Rows trained on.
        metrics: What the node says about itself; shown, never used to weigh or pay.
        tensors: The model's.
    """

    model_type: str
    session_id: str
    round_id: str
    part: int
    total_parts: int
    assignment_hash: str
    base_hash: str
    n_samples: int
    metrics: Mapping[str, float | None]
    tensors: Mapping[str, Tensor]


def encode_update(update: FlUpdate) -> bytes:
    """Return the update as a safetensors document; equal updates give equal bytes."""
    metadata = {
        "format": _FORMAT,
        "model_type": update.model_type,
        "session_id": update.session_id,
        "round_id": update.round_id,
        "part": str(update.part),
        "total_parts": str(update.total_parts),
        "assignment_hash": update.assignment_hash,
        "base_hash": update.base_hash,
        "n_samples": str(update.n_samples),
        "metrics": json.dumps(dict(update.metrics), sort_keys=True, allow_nan=False),
    }
    return encode_tensors(update.tensors, metadata)


def decode_update(data: bytes, *, max_bytes: int = MAX_UPDATE_BYTES) -> FlUpdate:
    """Read an update from a node. The tensors are well-formed and finite only after the model's own decoder.

    Raises:
        TooLarge: Over ``max_bytes``.
        BadDocument: It is not exactly an update.
    """
    tensors, metadata = decode_tensors(data, max_bytes=max_bytes)
    if metadata.get("format") != _FORMAT:
        _fail(f"format must be {_FORMAT}")
    if set(metadata) != _MEMBERS:
        _fail(f"metadata must be {', '.join(sorted(_MEMBERS))}")
    model_type = metadata["model_type"]
    if model_type not in {"random_forest", "linear_regression"}:
        _fail("unknown model_type")
    for name in ("session_id", "round_id"):
        if not 0 < len(metadata[name]) <= MAX_ID_CHARS:
            _fail(f"{name} must have 1 to {MAX_ID_CHARS} characters")
    if not _HASH.fullmatch(metadata["assignment_hash"]):
        _fail("assignment_hash must be 64 lower-case hex characters")
    if metadata["base_hash"] and not _HASH.fullmatch(metadata["base_hash"]):
        _fail("base_hash must be empty or 64 lower-case hex characters")
    total_parts = _whole(metadata, "total_parts", MAX_PARTS)
    return FlUpdate(
        model_type=model_type,
        session_id=metadata["session_id"],
        round_id=metadata["round_id"],
        part=_whole(metadata, "part", total_parts - 1),
        total_parts=total_parts,
        assignment_hash=metadata["assignment_hash"],
        base_hash=metadata["base_hash"],
        n_samples=_whole(metadata, "n_samples", (1 << 32) - 1),
        metrics=_metrics(metadata["metrics"]),
        tensors=tensors,
    )


_MEMBERS: Final = {
    "format",
    "model_type",
    "session_id",
    "round_id",
    "part",
    "total_parts",
    "assignment_hash",
    "base_hash",
    "n_samples",
    "metrics",
}


def _whole(metadata: Mapping[str, str], name: str, high: int) -> int:
    if not _WHOLE.fullmatch(metadata[name]) or int(metadata[name]) > high:
        _fail(f"{name} must be a whole number up to {high}")
    return int(metadata[name])


def _metrics(text: str) -> dict[str, float | None]:
    raw = strict_json.loads(text.encode(), max_depth=1)
    if not isinstance(raw, dict) or len(raw) > _MAX_METRICS:
        _fail(f"metrics must be an object of at most {_MAX_METRICS} members")
    metrics: dict[str, float | None] = {}
    for name, value in raw.items():
        if not _NAME.fullmatch(name) or isinstance(value, (bool, str, list, dict)):
            _fail("each metric must be a plain name with a number or null")
        metrics[name] = None if value is None else float(value)
    return metrics


def _fail(message: str) -> NoReturn:
    raise BadDocument(f"not an update: {message}")
