"""Epsilon of Gaussian noise, against Google's accountant, closed forms and plain integration."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from parity_fl.privacy.accountant import ORDERS, epsilon_of, rdp_of_gaussian
from parity_protocol.errors import InvalidInput

RECORDED = json.loads((Path(__file__).parents[3] / "vectors" / "fl" / "rdp.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("z", sorted({case["noise_multiplier"] for case in RECORDED["cases"]}))
def test_epsilon_equals_that_of_googles_accountant(z: float) -> None:
    for case in RECORDED["cases"]:
        if case["noise_multiplier"] != z:
            continue
        rdp = [case["rounds"] * one for one in rdp_of_gaussian(z, case["sampling_rate"])]
        at_whole_orders = [
            one if order in RECORDED["whole_orders"] else math.inf for order, one in zip(ORDERS, rdp, strict=True)
        ]

        assert epsilon_of(at_whole_orders, case["delta"]) == pytest.approx(case["epsilon"], rel=1e-6)
        assert epsilon_of(rdp, case["delta"]) <= case["epsilon_default"] * (1 + 1e-6)


@pytest.mark.parametrize(("z", "q"), [(0.5, 0.5), (1.1, 0.01), (4.0, 0.3)])
@pytest.mark.parametrize("order", [1.1, 1.5, 2.5, 7.3])
def test_fractional_orders_equal_the_integral(z: float, q: float, order: float) -> None:
    low, high = -15 * z - 5, order + 15 * z + 5
    x = np.linspace(low, high, 400_001)
    density = np.exp(-x * x / (2 * z * z)) / (z * math.sqrt(2 * math.pi))
    ratio = (1 - q) + q * np.exp((2 * x - 1) / (2 * z * z))
    moment = float(np.sum(density * ratio**order) * (high - low) / 400_000)

    found = rdp_of_gaussian(z, q)[ORDERS.index(order)]

    assert found == pytest.approx(math.log(moment) / (order - 1), rel=1e-7)


def test_without_sampling_the_divergence_is_the_closed_form() -> None:
    assert rdp_of_gaussian(2.0) == tuple(order / 8 for order in ORDERS)


def test_sampling_half_of_the_parts_costs_less_than_all() -> None:
    assert epsilon_of(rdp_of_gaussian(1.0, 0.5), 1e-5) < epsilon_of(rdp_of_gaussian(1.0), 1e-5)


@pytest.mark.parametrize(("z", "q"), [(0.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, 1.5)])
def test_noise_and_rate_out_of_range_are_refused(z: float, q: float) -> None:
    with pytest.raises(InvalidInput):
        rdp_of_gaussian(z, q)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0])
def test_a_delta_that_is_no_probability_is_refused(delta: float) -> None:
    with pytest.raises(InvalidInput):
        epsilon_of(rdp_of_gaussian(1.0), delta)
