"""Rules that look at one coordinate of all updates at a time: trimmed mean, median, Bulyan's second step.

All start from the values in order. Few updates are sorted by a network of comparisons, each of which is two NumPy
calls over many coordinates at once; that is several times faster than sorting many short rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["closest_to_median", "median", "sort_columns", "trimmed_mean"]

Rows = NDArray[np.float64]

_NETWORK_ROWS: Final = 48  # above, the network's n·log²n comparisons cost more than a sort


def trimmed_mean(rows: Rows, cut: int) -> NDArray[np.float64]:
    """Return the mean of each column without its ``cut`` lowest and ``cut`` highest values (Yin et al., 2018).

    Args:
        rows: Shape ``(m, c)``; overwritten.
        cut: At least 0 and below ``m / 2``.
    """
    ordered = sort_columns(rows)
    return _mean(ordered[cut : len(ordered) - cut])


def median(rows: Rows) -> NDArray[np.float64]:
    """Return the median of each column; ``rows`` of shape ``(m, c)`` is overwritten."""
    return _median(sort_columns(rows))


def closest_to_median(rows: Rows, keep: int) -> NDArray[np.float64]:
    """Return the mean of each column's ``keep`` values nearest to its median (El Mhamdi et al., 2018, §4).

    Args:
        rows: Shape ``(m, c)``; overwritten.
        keep: 1 to ``m``.
    """
    ordered = sort_columns(rows)
    centre = _median(ordered)
    # In order, the nearest values stand side by side: of all windows of `keep`, the one that reaches least far.
    best = np.full(len(centre), np.inf)
    out = np.empty_like(centre)
    for start in range(len(ordered) - keep + 1):
        window = ordered[start : start + keep]
        reach = np.maximum(centre - window[0], window[-1] - centre)
        is_better = reach < best
        np.copyto(out, _mean(window), where=is_better)
        np.copyto(best, reach, where=is_better)
    return out


def sort_columns(rows: Rows) -> list[NDArray[np.float64]]:
    """Return the values of each column in ascending order, as ``m`` rows; ``rows`` is overwritten."""
    if len(rows) > _NETWORK_ROWS:
        return list(np.ascontiguousarray(np.sort(np.ascontiguousarray(rows.T), axis=1).T))
    lanes = list(rows)
    spare = np.empty_like(lanes[0])
    for low, high in _network(len(lanes)):
        np.minimum(lanes[low], lanes[high], out=spare)
        np.maximum(lanes[low], lanes[high], out=lanes[high])
        lanes[low], spare = spare, lanes[low]
    return lanes


@lru_cache(maxsize=64)
def _network(n: int) -> tuple[tuple[int, int], ...]:
    """Return the comparisons of Batcher's odd-even merge sort (Knuth, TAOCP 3, §5.2.2, algorithm M)."""
    steps: list[tuple[int, int]] = []
    run = 1
    while run < n:
        gap = run
        while gap >= 1:
            for begin in range(gap % run, n - gap, 2 * gap):
                steps += [
                    (low, low + gap)
                    for low in range(begin, begin + min(gap, n - begin - gap))
                    if low // (2 * run) == (low + gap) // (2 * run)
                ]
            gap //= 2
        run *= 2
    return tuple(steps)


def _median(ordered: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    upper = ordered[len(ordered) // 2]
    return upper.copy() if len(ordered) % 2 else (ordered[len(ordered) // 2 - 1] + upper) / 2


def _mean(rows: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    total = rows[0].copy()
    for row in rows[1:]:
        total += row
    total /= len(rows)
    return total
