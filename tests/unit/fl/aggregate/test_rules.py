"""The arithmetic of each rule against its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from parity_fl.aggregate.distances import bulyan_selection, krum_order, mixing, squared_distances
from parity_fl.aggregate.rules import _network, closest_to_median, median, sort_columns, trimmed_mean


@pytest.mark.parametrize("n", range(1, 13))
def test_the_network_sorts_every_sequence(n: int) -> None:
    # Knuth's zero-one principle: what sorts all sequences of 0 and 1 sorts all sequences.
    columns = np.array(list(itertools.product((0.0, 1.0), repeat=n))).T.copy()

    ordered = np.array(sort_columns(columns.copy()))

    np.testing.assert_array_equal(ordered, np.sort(columns, axis=0))


@pytest.mark.parametrize("n", [13, 31, 48, 49, 100])
def test_many_updates_are_sorted_too(n: int) -> None:
    columns = np.random.default_rng(n).normal(size=(n, 50))

    np.testing.assert_array_equal(np.array(sort_columns(columns.copy())), np.sort(columns, axis=0))


def test_ten_updates_take_no_more_comparisons_than_batcher() -> None:
    assert len(_network(10)) <= 32


def test_a_trimmed_mean_is_the_mean_of_what_is_left() -> None:
    rows = np.array([[5.0, -100.0], [1.0, 2.0], [1000.0, 4.0], [3.0, 3.0], [-1.0, 900.0]])

    np.testing.assert_allclose(trimmed_mean(rows, 1), [3.0, 3.0])


@pytest.mark.parametrize(("values", "expected"), [([3.0, 1.0, 2.0], 2.0), ([4.0, 1.0, 3.0, 2.0], 2.5), ([7.0], 7.0)])
def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two(values: list[float], expected: float) -> None:
    assert median(np.array(values)[:, None])[0] == expected


@pytest.mark.parametrize("seed", range(20))
def test_bulyans_second_step_averages_the_values_nearest_to_the_median(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m = int(rng.integers(3, 12))
    keep = m - 2 * int(rng.integers(0, (m + 1) // 2))  # Bulyan's: with another parity the middle two tie
    rows = rng.normal(size=(m, 30))
    expected = []
    for column in rows.T:
        nearest = sorted(column, key=lambda value: abs(value - np.median(column)))[:keep]
        expected.append(np.mean(nearest))

    np.testing.assert_allclose(closest_to_median(rows.copy(), keep), expected, atol=1e-12)


def test_krum_scores_the_nearest_others_by_hand() -> None:
    # Points on a line at 0, 1, 2, 10, 11 with f = 1: each score sums the 2 nearest squared distances.
    points = np.array([0.0, 1.0, 2.0, 10.0, 11.0])
    distances = (points[:, None] - points[None, :]) ** 2

    # Scores: 1+4=5, 1+1=2, 1+4=5, 1+64=65, 1+81=82.
    assert krum_order(distances, 1).tolist() == [1, 0, 2, 3, 4]


def test_bulyan_chooses_again_among_those_left_by_hand() -> None:
    # 0, 1, 2, 10, 11, 12, 13 with f = 1. Scores over the 4 nearest are least for 10; then over 3, 2, 1 and 1 nearest.
    points = np.array([0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 13.0])
    left, expected = list(range(7)), []
    for _ in range(5):
        count = max(1, min(len(left) - 3, len(left) - 1))
        scores = [
            sum(sorted((points[i] - points[j]) ** 2 for j in left if j != i)[:count]) if len(left) > 1 else 0
            for i in left
        ]
        expected.append(left.pop(int(np.argmin(scores))))

    chosen = bulyan_selection((points[:, None] - points[None, :]) ** 2, 1)

    assert chosen == sorted(expected)


def test_mixing_averages_each_update_with_its_nearest() -> None:
    points = np.array([0.0, 1.0, 2.0, 100.0])

    mixed = mixing((points[:, None] - points[None, :]) ** 2, 1) @ points

    np.testing.assert_allclose(mixed, [1.0, 1.0, 1.0, (100 + 2 + 1) / 3])


def test_distances_come_out_of_the_gram_matrix_and_are_never_negative() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 40))
    rows[3] = rows[2]

    distances = squared_distances(rows @ rows.T)

    expected = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(distances, expected, atol=1e-11)
    assert (distances >= 0).all()
