"""Shares of a secret, and numbers that masks can be put on."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from parity_fl.privacy.fixed_point import FixedPoint
from parity_fl.privacy.shamir import PRIME, SHARE_BYTES, Lagrange, split
from parity_protocol.errors import InvalidInput

SECRET = bytes(range(100, 132))
RANDOM = np.random.default_rng(5)


def test_the_field_is_the_least_prime_above_two_to_the_256() -> None:
    assert all(pow(base, PRIME - 1, PRIME) == 1 for base in (2, 3, 5, 7, 11))
    assert all(any(pow(base, n - 1, n) != 1 for base in (2, 3, 5)) for n in range((1 << 256) + 1, PRIME, 2))


def test_every_set_of_threshold_shares_gives_the_secret() -> None:
    shares = split(SECRET, range(1, 7), 4, RANDOM.bytes)

    assert all(len(share) == SHARE_BYTES for share in shares.values())
    for places in combinations(range(1, 7), 4):
        assert Lagrange(places).secret(shares) == SECRET


def test_fewer_shares_than_the_threshold_give_something_else() -> None:
    shares = split(SECRET, range(1, 7), 4, RANDOM.bytes)

    assert all(Lagrange(places).secret(shares) != SECRET for places in combinations(range(1, 7), 3))


def test_a_changed_share_gives_another_secret_or_none() -> None:
    shares = split(SECRET, range(1, 5), 3, RANDOM.bytes)
    shares[2] = bytes([shares[2][0] ^ 1]) + shares[2][1:]

    assert Lagrange([1, 2, 3]).secret(shares) != SECRET


@pytest.mark.parametrize(
    ("secret", "places", "threshold"),
    [(b"\xff" * 33, [1, 2], 2), (SECRET, [1, 1], 2), (SECRET, [0, 1], 2), (SECRET, [1, 2], 3), (SECRET, [1], 0)],
)
def test_arguments_out_of_range_are_refused(secret: bytes, places: list[int], threshold: int) -> None:
    with pytest.raises(InvalidInput):
        split(secret, places, threshold, RANDOM.bytes)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("parts", [3, 100, 256])
def test_a_sum_of_encoded_values_is_the_sum_of_the_values(bits: int, parts: int) -> None:
    point = FixedPoint(2.5, parts, 64 if bits == 64 else 32)
    values = RANDOM.uniform(-2.5, 2.5, size=(parts, 200))
    values[:, 0], values[:, 1] = 2.5, -2.5  # the largest sums

    total = np.sum([point.encode(row) for row in values], axis=0, dtype=point.dtype)

    assert np.abs(point.decode(total) - values.sum(axis=0)).max() <= parts * point.step / 2 + 1e-9


def test_values_beyond_the_range_and_nan_are_cut() -> None:
    point = FixedPoint(1.0, 3)
    found = point.decode(point.encode(np.array([7.0, -7.0, np.nan, np.inf, -np.inf], dtype=np.float32)))

    assert found == pytest.approx([1, -1, 0, 1, -1], abs=1e-6)


def test_float32_and_pieces_make_no_difference() -> None:
    point = FixedPoint(1.0, 10)
    values = RANDOM.uniform(-1, 1, 600_000).astype(np.float32)

    assert (point.encode(values)[::97] == point.encode(values[::97])).all()


@pytest.mark.parametrize(("largest", "parts"), [(0.0, 3), (-1.0, 3), (np.inf, 3), (1.0, 0)])
def test_a_range_that_holds_nothing_is_refused(largest: float, parts: int) -> None:
    with pytest.raises(InvalidInput):
        FixedPoint(largest, parts)
