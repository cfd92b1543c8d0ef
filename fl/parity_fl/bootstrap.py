"""Which rows a tree draws. Own draws, not scikit-learn's, so that anyone with the seed can repeat them.

The market repeats them to score every tree on the rows that it did not draw, on any node.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from parity_fl.prng import Sha256Stream, below, derive_key, shuffled
from parity_fl.spec import ForestConfig

__all__ = ["draw_counts", "leaves_rows_out", "split_trees", "tree_state"]


def split_trees(total: int, parts: int) -> list[int]:
    """Return how many of the forest's trees each part grows; the first parts take the left-over ones."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def draw_counts(config: ForestConfig, *, part: int, tree: int, rows: int) -> NDArray[np.int64]:
    """Return how often a tree drew each row of its part.

    The stream is ``tree`` keyed by (random_state as 8 bytes, part as 4, tree as 4, big-endian). With bootstrap, it draws
    ``max(1, round_half_up(subsample * rows))`` row numbers; without, it shuffles the rows and keeps the first so many.

    Args:
        config: The forest's settings.
        part: Part number.
        tree: Tree number within the part.
        rows: Rows of the part.

    Returns:
        Counts, shape ``(rows,)``, int64.
    """
    wanted = Fraction(str(config.subsample)) * rows
    draws = max(1, (2 * wanted.numerator + wanted.denominator) // (2 * wanted.denominator))
    stream = Sha256Stream(_key("tree", config, part, tree))
    if config.bootstrap_samples:
        drawn = below(stream, np.full(draws, rows, dtype=np.int64))
        return np.bincount(drawn, minlength=rows).astype(np.int64)
    if draws == rows:
        return np.ones(rows, dtype=np.int64)
    kept = shuffled(np.arange(rows, dtype=np.uint32), stream)[:draws]
    return np.bincount(kept, minlength=rows).astype(np.int64)


def leaves_rows_out(config: ForestConfig) -> bool:
    """Whether trees have out-of-bag rows at all."""
    return config.bootstrap_samples or config.subsample < 1


def tree_state(config: ForestConfig, *, part: int, tree: int) -> int:
    """Return the 32-bit seed of a tree's split search."""
    return int.from_bytes(_key("split", config, part, tree)[:4], "big")


def _key(purpose: str, config: ForestConfig, part: int, tree: int) -> bytes:
    return derive_key(purpose, config.random_state.to_bytes(8, "big"), part.to_bytes(4, "big"), tree.to_bytes(4, "big"))
