"""What travels in a sharded session beyond updates: the file that a phase starts from, and a hold-out's score.

A phase's file is a safetensors document whose metadata holds what all parts agreed on, so a node that joins late needs
nothing else. Tensors whose name begins with ``agreed.`` are the common scaling; the others are the model, or a request.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.limits import MAX_HEADER_BYTES, MAX_UPDATE_BYTES
from parity_fl.models.base import Scaling
from parity_fl.privacy.secure_part import SumTerms
from parity_fl.shards import ShardAgreement
from parity_fl.tensors import Tensor, decode_tensors, encode_tensors, take
from parity_protocol import strict_json
from parity_protocol.errors import BadDocument

__all__ = [
    "SECURE",
    "Base",
    "HoldoutScore",
    "decode_base",
    "decode_json",
    "encode_base",
    "merged_scores",
    "opaque",
    "raw_bytes",
]

SECURE: Final = "secure"  # the tensor that holds the request of a secure sum's later phase
MAX_ANSWER_BYTES: Final = 4 << 20  # of a summary or a score, JSON

_FORMAT: Final = "parity.shards/1"
_PREFIX: Final = "agreed."
_MOST_TARGET: Final = 1e150  # above, the square of a mean is no finite number
_SCORE_MEMBERS: Final = {"rows", "loss", "right", "sse", "mean", "spread"}


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """What a phase starts from.

    Attributes:
        agreement: What all parts agreed on; None while they are asked for a summary.
        scaling: What features and targets are scaled with; None before it was agreed on.
        tensors: The model by name, or a request; empty before there is one.
        terms: Of the round's secure sum; None without secure aggregation.
    """

    agreement: ShardAgreement | None = None
    scaling: Scaling | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    terms: SumTerms | None = None


def encode_base(base: Base) -> bytes:
    """Return a phase's file; equal ones give equal bytes."""
    tensors: dict[str, Tensor] = dict(base.tensors)
    if base.scaling is not None:
        scale = base.scaling
        tensors[f"{_PREFIX}mean"], tensors[f"{_PREFIX}deviation"] = scale.mean, scale.deviation
        tensors[f"{_PREFIX}target"] = np.array([scale.target_mean, scale.target_deviation])
    agreed = "null" if base.agreement is None else json.dumps(base.agreement.to_dict(), ensure_ascii=False)
    terms = {} if base.terms is None else {"terms": json.dumps(base.terms.to_dict())}
    return encode_tensors(tensors, {"format": _FORMAT, "agreement": agreed, **terms})


def decode_base(data: bytes | memoryview) -> Base:
    """Read a phase's file.

    Raises:
        BadDocument: It is none.
        TooLarge: Over the cap of an update.
    """
    tensors, metadata = decode_tensors(data, max_bytes=MAX_UPDATE_BYTES)
    if metadata.get("format") != _FORMAT or set(metadata) - {"terms"} != {"format", "agreement"}:
        _fail(f"not a phase of a sharded session: the format must be {_FORMAT}")
    raw = strict_json.loads(metadata["agreement"].encode(), max_bytes=MAX_HEADER_BYTES, max_depth=3)
    agreement = None if raw is None else ShardAgreement.from_dict(raw)
    agreed = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_PREFIX)}
    scaling = None
    if agreed:
        mean, deviation, target = (take(agreed, _PREFIX + name, "F64", 1) for name in ("mean", "deviation", "target"))
        width = 0 if agreement is None else agreement.n_features
        if len(mean) != width or len(deviation) != width or len(target) != 2:
            _fail(f"the scaling must be of {width} columns")
        if not (deviation > 0).all() or target[1] <= 0:
            _fail("deviations must be above 0")
        scaling = Scaling(mean, deviation, float(target[0]), float(target[1]))
    terms = None
    if "terms" in metadata:
        terms = SumTerms.from_dict(
            strict_json.loads(metadata["terms"].encode(), max_bytes=MAX_HEADER_BYTES, max_depth=2)
        )
    return Base(agreement, scaling, tensors, terms)


def opaque(data: bytes) -> Tensor:
    """Return bytes as a tensor, for what has a format of its own."""
    return np.frombuffer(data, dtype=np.int8)


def raw_bytes(tensors: Mapping[str, Tensor], name: str) -> bytes:
    """Return what ``opaque`` was given.

    Raises:
        BadDocument: There is no such tensor.
    """
    return take(tensors, name, "I8", 1).tobytes()


def decode_json(data: bytes | memoryview) -> object:
    """Read a summary's or a score's JSON.

    Raises:
        BadDocument: It is not JSON that is accepted here, or over its cap.
    """
    return strict_json.loads(bytes(data[: MAX_ANSWER_BYTES + 1]), max_bytes=MAX_ANSWER_BYTES, max_depth=3)


@dataclass(frozen=True, slots=True)
class HoldoutScore:
    """A model on the hold-out of one part, as sums: those of all parts make the score of their rows together.

    Attributes:
        rows: Rows scored.
        loss: Sum over them; None if the model has none, or it is not finite.
        right: Rows with the right class; None for a regression.
        sse: Sum of squared errors; None for classes, or if not finite.
        mean: Of the targets; 0 for classes.
        spread: ``Σ (y - mean)²``; 0 for classes.
    """

    rows: int
    loss: float | None = None
    right: int | None = None
    sse: float | None = None
    mean: float = 0.0
    spread: float = 0.0

    @classmethod
    def of(cls, found: Mapping[str, float], truth: NDArray[np.float64], *, classification: bool) -> HoldoutScore:
        """Return the sums behind a model's means.

        Args:
            found: ``accuracy`` or ``mse``, and ``loss`` if the model has one.
            truth: Class indices or targets of the rows, shape ``(n,)``.
        """
        rows = len(truth)
        if rows == 0:
            return cls(0, right=0) if classification else cls(0, sse=0.0)
        loss = _finite(found.get("loss", math.nan) * rows)
        if classification:
            return cls(rows, loss, right=round(found["accuracy"] * rows))
        mean = float(truth.mean())
        return cls(rows, loss, sse=_finite(found["mse"] * rows), mean=mean, spread=float(((truth - mean) ** 2).sum()))

    def encode(self) -> bytes:
        """Return the answer to ``score``, JSON; ``decode`` reads it back to an equal score."""
        return json.dumps({name: getattr(self, name) for name in sorted(_SCORE_MEMBERS)}).encode()

    @classmethod
    def decode(cls, data: bytes | memoryview, *, rows: int, classification: bool) -> HoldoutScore:
        """Check a score that somebody else made.

        Args:
            rows: Of the part's hold-out.

        Raises:
            BadDocument: It is none of these rows, or no model scores so.
        """
        raw = decode_json(data)
        if not isinstance(raw, dict) or set(raw) != _SCORE_MEMBERS:
            _fail(f"a score must have exactly {', '.join(sorted(_SCORE_MEMBERS))}")
        if raw["rows"] != rows or type(raw["rows"]) is not int:
            _fail(f"the part's hold-out has {rows} rows")
        numbers = {name: _number(raw[name], name) for name in ("loss", "sse", "mean", "spread")}
        right = raw["right"]
        if classification and (type(right) is not int or not 0 <= right <= rows):
            _fail(f"right must be a whole number from 0 to {rows}")
        mean, spread = numbers["mean"], numbers["spread"]
        if mean is None or spread is None or spread < 0 or abs(mean) > _MOST_TARGET:
            _fail("no rows have these targets")
        if any((numbers[name] or 0.0) < 0 for name in ("loss", "sse")):
            _fail("no model has an error below 0")
        if not classification:
            right = None
        return cls(rows, numbers["loss"], right if isinstance(right, int) else None, numbers["sse"], mean, spread)


def merged_scores(parts: Sequence[HoldoutScore], *, classification: bool) -> dict[str, float]:
    """Return the score of all parts' rows together: ``loss`` with ``accuracy``, or with ``mse`` and ``r2``.

    What cannot be said is left out. Spreads are merged as Chan, Golub and LeVeque (1983) do, in part order.
    """
    rows = sum(part.rows for part in parts)
    if rows == 0:
        return {}
    found: dict[str, float] = {}
    losses = [part.loss for part in parts if part.rows and part.loss is not None]
    if len(losses) == sum(part.rows > 0 for part in parts):
        found["loss"] = sum(losses) / rows
    if classification:
        return _finite_ones({**found, "accuracy": sum(part.right or 0 for part in parts) / rows})
    errors = [part.sse for part in parts if part.rows]
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return {}
    n, mean, spread = 0, 0.0, 0.0
    for part in parts:
        if part.rows:
            total, step = n + part.rows, part.mean - mean
            # Not a power: a product overflows to infinity, a power raises.
            spread += part.spread + step * step * (n * part.rows / total)
            mean += step * part.rows / total
            n = total
    found["mse"] = sum(known) / rows
    if rows >= 2 and spread > 0:
        found["r2"] = 1.0 - sum(known) / spread
    return _finite_ones(found)


def _finite_ones(found: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(value: object, name: str) -> float | None:
    if value is None:
        return None
    # A whole number may be longer than any float; it is compared as it is.
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        _fail(f"{name} must be a finite number")
    return float(value)


def _fail(message: str) -> NoReturn:
    raise BadDocument(message)
