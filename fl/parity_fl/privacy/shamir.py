"""Shamir's secret sharing (1979) of 32-byte secrets over the prime field of 2²⁵⁶ + 297 elements.

A share at place ``x`` is a field element, 36 bytes little-endian with room to spare. Any t of them give the secret, fewer
give nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from parity_protocol.errors import InvalidInput

__all__ = ["PRIME", "SHARE_BYTES", "Lagrange", "split"]

PRIME: Final = (1 << 256) + 297  # the least prime above 2**256
SHARE_BYTES: Final = 36
_WIDE_BYTES: Final = 48  # drawn per coefficient: reduced, it is uniform but for 2**-128


def split(secret: bytes, places: Sequence[int], threshold: int, randomness: Callable[[int], bytes]) -> dict[int, bytes]:
    """Return a share for each place.

    Args:
        secret: At most 32 bytes.
        places: Different numbers from 1.
        threshold: How many shares give the secret back, from 1 to the number of places.
        randomness: Gives so many secret random bytes.

    Raises:
        InvalidInput: An argument is out of range.
    """
    value = int.from_bytes(secret, "big")
    if value >= PRIME:
        raise InvalidInput("a secret to share has at most 32 bytes")
    if len(set(places)) != len(places) or any(not 0 < place < PRIME for place in places):
        raise InvalidInput("places of shares must differ and be above 0")
    if not 1 <= threshold <= len(places):
        raise InvalidInput(f"threshold must be from 1 to {len(places)}, got {threshold}")
    wide = randomness(_WIDE_BYTES * (threshold - 1))
    coefficients = [
        int.from_bytes(wide[at : at + _WIDE_BYTES], "big") % PRIME for at in range(0, len(wide), _WIDE_BYTES)
    ]
    shares: dict[int, bytes] = {}
    for place in places:
        total = 0
        for coefficient in coefficients:
            total = (total + coefficient) * place % PRIME
        shares[place] = ((total + value) % PRIME).to_bytes(SHARE_BYTES, "little")
    return shares


class Lagrange:
    """Puts secrets together whose shares lie at the same places: the interpolation at 0 is worked out once.

    Args:
        places: Different numbers from 1; as many as the threshold.
    """

    def __init__(self, places: Sequence[int]) -> None:
        self._factors: dict[int, int] = {}
        for place in places:
            above = below = 1
            for other in places:
                if other != place:
                    above = above * other % PRIME
                    below = below * (other - place) % PRIME
            self._factors[place] = above * pow(below, -1, PRIME) % PRIME

    def secret(self, shares: Mapping[int, bytes]) -> bytes | None:
        """Return the 32-byte secret, or None when these shares belong to none.

        Args:
            shares: By place; those of the constructor are used.
        """
        total = sum(factor * int.from_bytes(shares[place], "little") for place, factor in self._factors.items()) % PRIME
        return total.to_bytes(32, "big") if total < 1 << 256 else None
