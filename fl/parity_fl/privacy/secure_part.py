"""A part's side of a round under secure aggregation: clip, weigh, encode, and answer one phase after the other."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from parity_fl.models.base import Weights, weights_digest
from parity_fl.privacy.config import PrivacyConfig
from parity_fl.privacy.fixed_point import FixedPoint, Words
from parity_fl.privacy.secagg import PHASES, Phase, SumSetup
from parity_fl.privacy.secagg_client import SecureClient
from parity_fl.privacy.secagg_messages import absent
from parity_fl.tensors import decode_tensors
from parity_protocol.errors import BadDocument, ParityError

__all__ = ["SumPart", "SumTerms", "absent", "update_part"]

_MAX_REQUEST_BYTES: Final = 16 << 20
_BOUNDS: Final = {"number": (0, 1 << 53), "clip": (1e-12, 1e12), "full_weight": (1, 1 << 62)}
_MARGIN: Final = 1 + 1e-6  # of float32, in which a clipped update may be longer by a little


@dataclass(frozen=True, slots=True)
class SumTerms:
    """What changes from sum to sum, told by the market with the round's model.

    Attributes:
        number: How many sums there were before.
        clip: C of this round under adaptive clipping; None where the session says how nodes clip.
        full_weight: Rows of a part that counts fully, a power of two; None when every part counts the same.
    """

    number: int = 0
    clip: float | None = None
    full_weight: float | None = None

    def to_dict(self) -> dict[str, float]:
        """Return the members that are there, JSON-ready."""
        found = {"number": float(self.number), "clip": self.clip, "full_weight": self.full_weight}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def from_dict(cls, raw: object) -> SumTerms:
        """Read terms that a market sent.

        Raises:
            BadDocument: A member is unknown, or no number in its range.
        """
        if not isinstance(raw, Mapping) or not set(raw) <= set(_BOUNDS) or "number" not in raw:
            raise BadDocument(f"the terms of a secure sum are {', '.join(sorted(_BOUNDS))}")
        for name, value in raw.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            low, high = _BOUNDS[name]
            if not (is_number and low <= value <= high):
                raise BadDocument(f"{name} of a secure sum must be a number from {low:g} to {high:g}")
        clip, weight = raw.get("clip"), raw.get("full_weight")
        return cls(int(raw["number"]), None if clip is None else float(clip), None if weight is None else float(weight))

    def setup(self, privacy: PrivacyConfig, base: Weights, *, session_id: str, parts: int) -> SumSetup:
        """Return the sum over differences to a round's model."""
        head = f"parity-fl/secure-mean/1 {session_id} {self.number} {weights_digest(base)} {self.to_dict()!r}"
        size = sum(tensor.size for tensor in base.values()) + privacy.adaptive
        return SumSetup(hashlib.sha256(head.encode()).digest(), parts, privacy.shares(parts), size)

    def point(self, privacy: PrivacyConfig, *, parts: int) -> FixedPoint:
        """Return how a coordinate is written as a whole number."""
        norm = self.norm(privacy)
        return FixedPoint(privacy.range if norm is None else norm * _MARGIN, parts)

    def norm(self, privacy: PrivacyConfig) -> float | None:
        """Return the length that updates are cut to; None when single coordinates are."""
        if privacy.adaptive:
            return privacy.first_clip if self.clip is None else self.clip
        return privacy.l2_norm_clip


class SumPart:
    """One part in one secure sum, from its vector on.

    Args:
        setup: The sum.
        part: Which part this is.
        vector: What it adds, shape ``(size,)``.
        randomness: Gives so many secret random bytes.
    """

    def __init__(self, setup: SumSetup, part: int, vector: Words, randomness: Callable[[int], bytes]) -> None:
        self._client, self._vector = SecureClient(setup, part, randomness), vector

    @property
    def has_opened(self) -> bool:
        """Whether this part has given away shares that open the sum."""
        return self._client.has_opened

    def keys(self) -> bytes:
        """Answer the first phase."""
        return self._client.keys()

    def answer(self, request: bytes) -> bytes:
        """Answer a later phase; what this part refuses becomes an answer that says why, and it is out of this sum."""
        try:
            return self._client.answer(_phase_of(request), request, self._vector)
        except ParityError as exc:
            return absent(exc.message)


def update_part(
    privacy: PrivacyConfig,
    terms: SumTerms,
    base: Weights,
    delta: Weights,
    *,
    session_id: str,
    parts: int,
    part: int,
    rows: int,
    randomness: Callable[[int], bytes],
) -> SumPart:
    """Return one part in the sum of a round's updates: the update is clipped, weighed and written in whole numbers.

    Args:
        privacy: The session's switches, as they were signed.
        terms: What the market says of this sum.
        base: The round's model.
        delta: The part's update.
        session_id: The session.
        parts: How many it has.
        part: Which one this is.
        rows: That it trains on.
        randomness: Gives so many secret random bytes.
    """
    setup, point, norm = (
        terms.setup(privacy, base, session_id=session_id, parts=parts),
        terms.point(privacy, parts=parts),
        terms.norm(privacy),
    )
    flat = [np.asarray(delta[name], dtype=np.float32).reshape(-1) for name in sorted(delta)]
    scale = 1.0 if terms.full_weight is None else min(rows, terms.full_weight) / terms.full_weight
    is_short = True
    if norm is not None:
        square = sum(float(np.square(piece.astype(np.float64)).sum()) for piece in flat)
        length = math.sqrt(square) if math.isfinite(square) else math.inf
        is_short = length <= norm
        if math.isinf(length):  # no direction is left in it: it counts as nothing
            flat, scale = [np.zeros_like(piece) for piece in flat], 1.0
        elif length > norm:
            scale *= norm / length
    vector, at = np.empty(setup.size, dtype=setup.dtype), 0
    for piece in flat:
        # A coordinate is cut before it is weighed: a part with few rows has no wider range than others.
        cut = piece if norm is not None else np.clip(piece, -point.largest, point.largest)
        point.encode(cut * np.float32(scale), out=vector[at : at + len(piece)])
        at += len(piece)
    if privacy.adaptive:
        point.encode(np.array([point.largest if is_short else 0.0]), out=vector[at:])
    return SumPart(setup, part, vector, randomness)


def _phase_of(request: bytes) -> Phase:
    _, said = decode_tensors(request, max_bytes=_MAX_REQUEST_BYTES)
    phase = next((one for one in PHASES if one == said.get("phase")), None)
    if phase is None:
        raise BadDocument("not a phase of a secure sum")
    return phase
