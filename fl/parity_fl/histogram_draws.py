"""Random choices of a histogram forest: how often a tree draws a row, and which features a node tries.

A draw depends on (random_state, tree, global row id) alone, so it does not matter which part holds a row, in which
order, or which node answers for the part. Integers only; on every machine and NumPy version the same:

- ``key`` = ``parity_fl.prng.derive_key(purpose, random_state as 8 bytes, tree as 4 bytes)``, read as four 64-bit words
  ``k0 … k3``, big-endian; ``purpose`` is ``histogram-draw`` or ``histogram-features``.
- ``word(i) = mix(mix(i * G + k0) ^ k1)`` modulo 2^64, with ``G = 0x9E3779B97F4A7C15`` and ``mix`` the finaliser of
  SplitMix64 (Steele, Lea, Flood, 2014).
- Bootstrap: the number of ``c`` in the list ``floor(2^64 * P(X <= 0)), floor(2^64 * P(X <= 1)), …`` (15 entries) with
  ``c <= word(row)``, ``X`` Poisson with mean ``subsample``. This is the limit of drawing rows with replacement, and needs
  no knowledge of how many rows there are (Oza and Russell, 2001).
- No bootstrap: 1 if ``word(row) < floor(2^64 * subsample)``, else 0.
- A node's features in the order in which they are tried: by ``word(node * d + feature)``, smallest first, equal words by
  feature.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.prng import derive_key

__all__ = ["MAX_DRAWS", "Drawing", "feature_order", "row_draws"]

MAX_DRAWS: Final = 15  # of one row by one tree; a larger number has probability 2e-14 and is cut off
_GOLDEN: Final = np.uint64(0x9E37_79B9_7F4A_7C15)
_MIX_1: Final = np.uint64(0xBF58_476D_1CE4_E5B9)
_MIX_2: Final = np.uint64(0x94D0_49BB_1331_11EB)
_TWO64: Final = 1 << 64
_TERMS: Final = 40  # of the series of e^-mean, mean <= 1: the rest is below 2^-150
_WORDS_PER_STEP: Final = 1 << 20


class Drawing:
    """How trees draw rows.

    Args:
        random_state: The forest's, in ``0 … 2^53``.
        subsample: Draws per tree as a fraction of the rows, in (0, 1]; its decimal text counts, not its binary value.
        bootstrap: With replacement.
    """

    def __init__(self, *, random_state: int, subsample: float, bootstrap: bool) -> None:
        self._random_state = random_state
        self._rate = Fraction(str(subsample))
        self._bootstrap = bootstrap

    def counts(self, tree: int, rows: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return how often ``tree`` draws each row, int64 ``(n,)``, for global row ids ``(n,)``."""
        if not self._bootstrap and self._rate == 1:
            return np.ones(len(rows), dtype=np.int64)
        words = _words(_key("histogram-draw", self._random_state, tree), rows.astype(np.uint64))
        if not self._bootstrap:
            return (words < np.uint64(self._rate.numerator * _TWO64 // self._rate.denominator)).astype(np.int64)
        return np.searchsorted(_poisson(self._rate), words, side="right").astype(np.int64)


def row_draws(drawing: Drawing, tree: int, rows: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions in ``rows`` that a tree draws at least once, and how often."""
    counts = drawing.counts(tree, rows)
    drawn = np.flatnonzero(counts)
    return drawn, counts[drawn]


def feature_order(
    random_state: int, tree: int, nodes: NDArray[np.int64], features: NDArray[np.int64], *, n_features: int
) -> NDArray[np.int64]:
    """Return the order in which each node tries features.

    Args:
        random_state: The forest's.
        tree: Tree number.
        nodes: Node numbers, shape ``(m,)``.
        features: The features that vary at all, ascending, shape ``(f,)``.
        n_features: Columns of the data.

    Returns:
        Features, shape ``(m, f)``, int64.
    """
    key = _key("histogram-features", random_state, tree)
    step = max(1, _WORDS_PER_STEP // max(1, len(features)))
    orders = [
        features[np.argsort(_words(key, some[:, None] * n_features + features[None, :]), axis=1, kind="stable")]
        for some in (nodes[start : start + step] for start in range(0, len(nodes), step))
    ]
    return np.concatenate(orders) if orders else np.empty((0, len(features)), dtype=np.int64)


def _key(purpose: str, random_state: int, tree: int) -> tuple[np.uint64, np.uint64]:
    key = derive_key(purpose, random_state.to_bytes(8, "big"), tree.to_bytes(4, "big"))
    return np.uint64(int.from_bytes(key[:8], "big")), np.uint64(int.from_bytes(key[8:16], "big"))


def _words(key: tuple[np.uint64, np.uint64], numbers: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed: NDArray[np.uint64] = _mix(_mix(numbers.astype(np.uint64) * _GOLDEN + key[0]) ^ key[1])
    return mixed


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))


@lru_cache(maxsize=16)
def _poisson(mean: Fraction) -> NDArray[np.uint64]:
    """Return ``floor(2^64 * P(X <= k))`` for ``k = 0 … 14``, with exact arithmetic."""
    term, series = Fraction(1), Fraction(0)
    for number in range(1, _TERMS):
        series += term
        term = -term * mean / number
    chance, below = series, Fraction(0)
    limits = []
    for number in range(MAX_DRAWS):
        below += chance
        limits.append(min(_TWO64 - 1, below.numerator * _TWO64 // below.denominator))
        chance = chance * mean / (number + 1)
    return np.array(limits, dtype=np.uint64)
