"""What each part gave to a round's model: the loss on the hold-out without it, or its Shapley value.

The Shapley value of a part is what it adds to the value of those that come before it, over all orders of the parts; it
alone is symmetric, gives nothing to a part that adds nothing, and adds up to what the round gained (Shapley, 1953).
All orders are too many, so some are drawn: truncated Monte Carlo as in GTG-Shapley (Liu et al., 2022, algorithm 1), with
its truncation within a round and between rounds, and its guided sampling. A sub-model is made of the updates that came:
nobody trains again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Final, Literal, TypeAlias

import numpy as np

from parity_fl.prng import Sha256Stream, derive_key, shuffled

__all__ = ["Credit", "Method", "Shapley", "shapley"]

Method: TypeAlias = Literal["leave_one_out", "shapley"]

_WITHIN: Final = 0.01  # of the round's gain: an order is cut once what is left could not add more
_BETWEEN: Final = 1e-9  # a round that gained less than this is nobody's merit
_SETTLED: Final = 0.01  # mean change of the values from one cycle of orders to the next, as a share of them
_SETTLED_CYCLES: Final = 2


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Credit:
    """How the parts of a round are scored.

    Attributes:
        method: ``leave_one_out``: the round without the part. ``shapley``: over orders of parts.
        seed: 32 bytes from which the orders follow; of ``shapley``.
        max_permutations: Orders at most.
        is_over: Says that no more time may be spent; asked before each sub-model.
    """

    method: Method
    seed: bytes = b""
    max_permutations: int = 100
    is_over: Callable[[], bool] = _never


@dataclass(frozen=True, slots=True)
class Shapley:
    """Values of all players, and what was spent on them.

    Attributes:
        values: By player; empty when the time was over before one order was done.
        permutations: Orders that are in them.
        evaluations: Sub-models that were made.
        is_exact: All orders are in them, and none was cut.
    """

    values: dict[int, float]
    permutations: int
    evaluations: int
    is_exact: bool


def shapley(players: Sequence[int], value: Callable[[frozenset[int]], float], credit: Credit) -> Shapley:
    """Return the players' Shapley values, exactly where there are no more orders than may be tried.

    Args:
        players: Distinct numbers, in a fixed order.
        value: Of a set of players, finite; larger is better. Called once for a set.
        credit: Bounds, and the seed of the orders: the same seed gives the same values.
    """
    known: dict[frozenset[int], float] = {}

    def worth(group: frozenset[int]) -> float:
        if group not in known:
            if credit.is_over():
                raise _OutOfTime
            known[group] = value(group)
        return known[group]

    everybody, nobody = frozenset(players), frozenset[int]()
    n = len(players)
    is_all = math.factorial(n) <= credit.max_permutations if n <= 12 else False
    sums = dict.fromkeys(players, 0.0)
    done, is_cut, steady, last = 0, False, 0, dict(sums)
    try:
        start, end = worth(nobody), worth(everybody)
        if abs(end - start) <= _BETWEEN:
            return Shapley(dict(sums), 0, len(known), is_exact=False)
        tolerance = 0.0 if is_all else _WITHIN * abs(end - start)
        orders = iter(permutations(players)) if is_all else _guided(players, credit.seed)
        for order in orders:
            if done >= credit.max_permutations or steady >= _SETTLED_CYCLES:
                break
            gained, was_cut = _walk(order, worth, start, end, tolerance)
            is_cut |= was_cut
            done += 1
            for player, gain in gained.items():
                sums[player] += gain
            if not is_all and done % n == 0:
                now = {player: sums[player] / done for player in players}
                moved = sum(abs(now[player] - last[player]) for player in players)
                steady = steady + 1 if moved <= _SETTLED * sum(map(abs, now.values())) else 0
                last = now
    except _OutOfTime:
        pass
    values = {player: sums[player] / done for player in players} if done else {}
    return Shapley(values, done, len(known), is_exact=is_all and done == math.factorial(n) and not is_cut)


class _OutOfTime(Exception):
    """The bound of time; never leaves this module."""


def _walk(
    order: Sequence[int], worth: Callable[[frozenset[int]], float], start: float, end: float, tolerance: float
) -> tuple[dict[int, float], bool]:
    """Return what each player adds in one order, and whether the rest was taken for nothing."""
    gained: dict[int, float] = {}
    group, before = frozenset[int](), start
    for player in order:
        if tolerance and abs(end - before) <= tolerance:
            return gained, True
        group |= {player}
        after = worth(group)
        gained[player] = after - before
        before = after
    return gained, False


def _guided(players: Sequence[int], seed: bytes) -> Iterator[tuple[int, ...]]:
    """Yield orders without end; of each ``n`` in a row every player is the first of one (Liu et al., 2022, §4.2)."""
    stream = Sha256Stream(derive_key("shapley", seed))
    while True:
        for first in players:
            rest = np.array([player for player in players if player != first], dtype=np.uint32)
            yield (first, *shuffled(rest, stream).tolist())
