"""What every update must pass before any rule sees it: shape, finite values, length, and not being a copy.

One NaN would turn the mean, the median and every optimizer into NaN without an error, and one update a million times
too long replaces the model under FedAvg. Both are refused here, under every rule alike.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from parity_fl.aggregate.base import Updates
from parity_fl.aggregate.layout import Layout, pieces, take_block
from parity_protocol.errors import Internal

__all__ = ["Measure", "Screening", "middle", "screen", "square_of"]

Measure: TypeAlias = Callable[[Mapping[int, float]], dict[int, float]]
"""Returns the squared length of each update, by part, of the parts that have a weight."""


@dataclass(frozen=True, slots=True)
class Screening:
    """The outcome of the checks; the first three run in parallel, in ascending order of parts.

    Attributes:
        parts: Accepted parts.
        weights: Their weights, above 0.
        norms: Their Euclidean lengths.
        rejected: Reason by part; starts with a code: ``wrong_shape``, ``bad_weight``, ``not_finite``, ``too_long``,
            ``echo`` or ``duplicate``.
        median: Low median of the accepted lengths above 0, or 0.
        running: Low median of this median and the earlier rounds', or 0.
    """

    parts: tuple[int, ...]
    weights: tuple[float, ...]
    norms: tuple[float, ...]
    rejected: dict[int, str]
    median: float
    running: float


def screen(
    layout: Layout,
    updates: Updates,
    n: int,
    *,
    history: Sequence[float],
    max_ratio: float,
    arbiter: Callable[[Sequence[tuple[int, ...]]], dict[int, str]] | None = None,
    measure: Measure | None = None,
) -> Screening:
    """Check all updates of a round.

    Args:
        layout: The model's.
        updates: ``n`` updates in ascending order of parts.
        n: How many updates must come.
        history: Medians of earlier rounds.
        max_ratio: An update is too long above this many medians.
        arbiter: Returns why parts are refused, of groups that sent equal updates; None keeps each group's first.
        measure: Measures the updates, by somebody who reads them anyway; None reads them for that alone.

    Raises:
        Internal: The spool gives another number of updates, or not in ascending order.
    """
    weights: dict[int, float] = {}
    rejected: dict[int, str] = {}
    last = -1
    for update in updates():
        if update.part <= last:
            raise Internal(f"updates must come in ascending order of parts, got {update.part} after {last}")
        last = update.part
        if problem := layout.mismatch(update.delta):
            rejected[update.part] = f"wrong_shape: {problem}"
        elif not (math.isfinite(update.weight) and update.weight > 0):
            rejected[update.part] = f"bad_weight: the weight must be above 0, got {update.weight}"
        else:
            weights[update.part] = update.weight
    if len(rejected) + len(weights) != n:
        raise Internal(f"the spool gave {len(rejected) + len(weights)} updates, {n} were announced")
    squares = (measure or partial(_squares, layout, updates))(weights)
    for part in [part for part, square in squares.items() if not math.isfinite(square)]:
        rejected[part] = "not_finite: the update has NaN or Inf values"
        del squares[part]

    # An update of nothing but zeros is a node that sent the old model back, unless training has come to rest.
    if any(squares.values()):
        for part in [part for part, square in squares.items() if square == 0]:
            rejected[part] = "echo: the update is zero: the round's model came back untrained"
            del squares[part]
    if copies := _copies(layout, updates, squares):
        rejected |= _all_but_first(copies) if arbiter is None else arbiter(copies)
    norms = {part: math.sqrt(square) for part, square in squares.items() if part not in rejected}
    # The low median: of two lengths the shorter counts, so that one attacker among two cannot raise it.
    median = middle([norm for norm in norms.values() if norm > 0])
    running = middle([*history, median] if median > 0 else list(history))
    limit = max_ratio * max(median, running)
    for part, norm in norms.items():
        if norm > limit > 0:
            rejected[part] = f"too_long: the update has length {norm:.3g}, at most {limit:.3g} is allowed"
    kept = [part for part in norms if part not in rejected]
    median = middle([norms[part] for part in kept if norms[part] > 0])
    return Screening(
        parts=tuple(kept),
        weights=tuple(weights[part] for part in kept),
        norms=tuple(norms[part] for part in kept),
        rejected=dict(sorted(rejected.items())),
        median=median,
        running=middle([*history, median] if median > 0 else list(history)),
    )


def middle(values: Sequence[float]) -> float:
    """Return the low median; 0 of nothing."""
    return sorted(values)[(len(values) - 1) // 2] if values else 0.0


def square_of(values: NDArray[np.float64], room: NDArray[np.float64]) -> float:
    """Return the squared length of a piece; one is finite exactly when every value is, for no sum of float32 overflows.

    NumPy's own sum: a BLAS may split it over threads, and then its last bits depend on their number.

    Args:
        values: Shape ``(c,)``.
        room: At least as long; overwritten.
    """
    return float(np.square(values, out=room[: len(values)]).sum())


def _squares(layout: Layout, updates: Updates, weights: Mapping[int, float]) -> dict[int, float]:
    """Return squared lengths in float64.

    Block by block over all updates, so that of a mapped file no more than a block is in memory.
    """
    totals = dict.fromkeys(weights, 0.0)
    for block in layout.blocks():
        for update in updates():
            if update.part not in totals:
                continue
            values, found = take_block(update, block), 0.0
            for piece in pieces(block.size):
                wide = values[piece].astype(np.float64)
                found += square_of(wide, wide)
            totals[update.part] += found
    return totals


def _copies(layout: Layout, updates: Updates, squares: dict[int, float]) -> list[tuple[int, ...]]:
    """Return the parts that sent equal updates, group by group. Only those of equal length are looked at again."""
    same: defaultdict[float, int] = defaultdict(int)
    for square in squares.values():
        same[square] += 1
    suspects = {part for part, square in squares.items() if square > 0 and same[square] > 1}
    if not suspects:
        return []
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    for update in updates():
        if update.part in suspects:
            digest = hashlib.sha256()
            for name in layout.shapes:
                flat = update.delta[name].reshape(-1)
                for piece in pieces(len(flat)):
                    digest.update(flat[piece].astype("<f4").tobytes())
            groups[digest.digest()].append(update.part)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _all_but_first(groups: Sequence[tuple[int, ...]]) -> dict[int, str]:
    return {part: f"duplicate: the update equals that of part {group[0]}" for group in groups for part in group[1:]}
