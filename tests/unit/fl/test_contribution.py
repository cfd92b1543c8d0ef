"""Shapley values against their definition, and within their bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_fl.contribution import Credit, shapley

Value = Callable[[frozenset[int]], float]
SEED = b"\x07" * 32


def exact(players: list[int], value: Value) -> dict[int, float]:
    """Return Shapley values by the formula over all groups (Shapley, 1953)."""
    n = len(players)
    found = {}
    for player in players:
        others = [one for one in players if one != player]
        found[player] = sum(
            math.factorial(size)
            * math.factorial(n - size - 1)
            / math.factorial(n)
            * (value(frozenset({*group, player})) - value(frozenset(group)))
            for size in range(n)
            for group in combinations(others, size)
        )
    return found


def game(seed: int, n: int) -> tuple[list[int], Value]:
    """Return players with a value that is not a sum: some help only together, one spoils."""
    rng = np.random.default_rng(seed)
    alone, pairs = rng.normal(1.0, 0.5, n), rng.normal(0.0, 0.3, (n, n))
    players = [3 * number + 1 for number in range(n)]

    def value(group: frozenset[int]) -> float:
        inside = [players.index(player) for player in sorted(group)]
        return float(np.tanh(0.3 * (alone[inside].sum() + sum(pairs[a, b] for a in inside for b in inside if a < b))))

    return players, value


def credit(**changes: object) -> Credit:
    return Credit("shapley", SEED, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_few_parts_get_their_exact_values(n: int) -> None:
    players, value = game(n, n)

    found = shapley(players, value, credit())

    assert found.is_exact
    assert found.values == pytest.approx(exact(players, value), abs=1e-12)


@pytest.mark.parametrize("n", [5, 6])
def test_more_orders_than_may_be_tried_are_sampled_near_the_exact_values(n: int) -> None:
    for seed in range(5):
        players, value = game(seed, n)

        found = shapley(players, value, credit(max_permutations=100))

        truth = exact(players, value)
        assert not found.is_exact
        assert found.permutations <= 100
        assert max(abs(found.values[one] - truth[one]) for one in players) < 0.06 * sum(map(abs, truth.values()))


@pytest.mark.parametrize("n", [3, 6, 9])
def test_values_add_up_to_what_the_round_gained(n: int) -> None:
    players, value = game(11, n)
    gain = value(frozenset(players)) - value(frozenset())

    found = shapley(players, value, credit())

    assert sum(found.values.values()) == pytest.approx(gain, rel=0.011)


def test_a_part_that_adds_nothing_gets_nothing_and_equal_parts_get_the_same() -> None:
    worth = {1: 1.0, 2: 1.0, 3: 0.0, 4: -0.5}

    found = shapley([1, 2, 3, 4], lambda group: sum(worth[one] for one in group), credit())

    assert found.values == pytest.approx(worth)


def test_the_same_seed_gives_the_same_values_and_another_one_others() -> None:
    players, value = game(5, 8)
    few = credit(max_permutations=8)

    first, again = shapley(players, value, few), shapley(players, value, few)
    other = shapley(players, value, Credit("shapley", b"\x08" * 32, 8))

    assert first == again
    assert first.values != other.values


def test_a_round_without_a_gain_is_nobodys_merit_and_costs_two_models() -> None:
    found = shapley([1, 2, 3], lambda _: 0.25, credit())

    assert found.values == {1: 0.0, 2: 0.0, 3: 0.0}
    assert found.evaluations == 2


def test_an_order_is_cut_once_the_rest_could_add_no_more() -> None:
    calls = []

    def value(group: frozenset[int]) -> float:
        calls.append(group)
        return 1.0 if 0 in group else 0.0

    found = shapley(list(range(9)), value, credit(max_permutations=9))

    assert found.values == {0: 1.0, **dict.fromkeys(range(1, 9), 0.0)}
    assert len(calls) == found.evaluations < 9 * 9


def test_it_stops_when_the_values_have_settled() -> None:
    found = shapley(list(range(9)), lambda group: float(sum(group)), credit(max_permutations=10_000))

    assert found.permutations == 3 * 9
    assert found.values == pytest.approx({one: float(one) for one in range(9)}, abs=0.3)


@given(after=st.integers(0, 60))
def test_when_the_time_is_over_only_whole_orders_count(after: int) -> None:
    left = [after]

    def is_over() -> bool:
        left[0] -= 1
        return left[0] < 0

    players, value = game(3, 7)
    found = shapley(players, value, credit(is_over=is_over))

    assert found.evaluations <= after
    assert (found.values == {}) == (found.permutations == 0)
    if found.permutations:
        gain = value(frozenset(players)) - value(frozenset())
        assert sum(found.values.values()) == pytest.approx(gain, rel=0.011)
