"""Numbers as whole numbers modulo 2³² or 2⁶⁴, so that masks cancel exactly and a sum of all parts cannot overflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from parity_protocol.errors import InvalidInput

__all__ = ["FixedPoint", "Words"]

Words = NDArray[Any]  # of uint32 or uint64

_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """How values travel under masks.

    Attributes:
        largest: Values are cut to ± this.
        parts: At most so many vectors are added up.
        bits: 32 for updates, 64 for statistics.
    """

    largest: float
    parts: int
    bits: Literal[32, 64] = 32

    def __post_init__(self) -> None:
        if not (np.isfinite(self.largest) and self.largest > 0 and self.parts >= 1):
            raise InvalidInput(f"fixed point needs a range above 0 and parts, got {self.largest} and {self.parts}")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the whole numbers."""
        return np.dtype("<u4" if self.bits == 32 else "<u8")

    @property
    def scale(self) -> float:
        """What a value is multiplied by. ``parts`` values of the largest size, each rounded up, stay below 2^(bits−1)."""
        top = 2.0**31 - 1 if self.bits == 32 else 2.0**62  # float64 holds no whole number near 2**63 exactly
        return (top / self.parts - 0.5) / self.largest

    @property
    def step(self) -> float:
        """Distance of two values that differ; rounding is wrong by half of it at most."""
        return 1 / self.scale

    def encode(self, values: NDArray[np.floating[Any]], out: Words | None = None) -> Words:
        """Return whole numbers, shape ``(d,)``. NaN counts as 0 and infinity as the largest.

        Args:
            values: Shape ``(d,)``.
            out: Where to write them.
        """
        found = np.empty(len(values), dtype=self.dtype) if out is None else out
        signed = found.view("<i4" if self.bits == 32 else "<i8")
        scale, limit = self.scale, self.largest
        for begin in range(0, len(values), _CHUNK):
            wide = values[begin : begin + _CHUNK].astype(np.float64)
            np.nan_to_num(wide, copy=False, nan=0.0, posinf=limit, neginf=-limit)
            np.clip(wide, -limit, limit, out=wide)
            wide *= scale
            signed[begin : begin + _CHUNK] = np.rint(wide, out=wide)
        return found

    def decode(self, words: Words) -> NDArray[np.float64]:
        """Return the values of a sum of encoded vectors, shape ``(d,)``."""
        return words.view("<i4" if self.bits == 32 else "<i8").astype(np.float64) / self.scale
