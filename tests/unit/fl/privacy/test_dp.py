"""Clipping, noise and what they cost: one part changes the sum by C at most, and the numbers told are the numbers used."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from parity_fl.aggregate import Update
from parity_fl.averaging import Averaged, average
from parity_fl.models.base import Weights
from parity_fl.privacy.accountant import epsilon_of, rdp_of_gaussian
from parity_fl.privacy.config import read_privacy
from parity_fl.privacy.dp import NoiseSetup, PrivateMean
from parity_fl.privacy.noise import GaussianNoise, KeyStream
from parity_fl.round_bodies import encode_delta
from parity_fl.rounds_config import UpdateFormat
from parity_fl.strategy import read_strategy
from parity_protocol.errors import BadDocument, BadField, TooFewUpdates

KEY = bytes(range(32))
SHAPES = {"b": (3,), "w": (40, 5)}
TINY = 1e-9  # a noise multiplier under which the arithmetic shows


def model(value: float = 0.0) -> Weights:
    return {name: np.full(shape, value, dtype=np.float32) for name, shape in SHAPES.items()}


def update(part: int, length: float, seed: int = 0) -> Update:
    rng = np.random.default_rng(seed + part)
    raw = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    norm = math.sqrt(sum(float(np.square(one).sum()) for one in raw.values()))
    return Update(part, 10.0, {name: (one * length / norm).astype(np.float32) for name, one in raw.items()})


def private(strategy: str = "FedAvg", n: float = 4, key: bytes = KEY, q: float = 1.0, **members: Any) -> PrivateMean:
    config = read_privacy({"differential_privacy": True, "noise_multiplier": 1.0, "l2_norm_clip": 1.0, **members})
    return PrivateMean(read_strategy(strategy), config, n=n, key=key, sampling_rate=q)


def step_of(rule: PrivateMean, updates: list[Update]) -> np.ndarray:
    done = rule.aggregate(model(), lambda: iter(updates), len(updates))
    return np.concatenate([done.weights[name].reshape(-1) for name in SHAPES]).astype(np.float64)


def flat(one: Update) -> np.ndarray:
    return np.concatenate([one.delta[name].reshape(-1) for name in SHAPES]).astype(np.float64)


def test_the_mean_of_clipped_updates_comes_out_when_there_is_hardly_any_noise() -> None:
    updates = [update(0, 0.5), update(1, 3.0), update(2, 100.0), update(3, 0.0)]

    step = step_of(private(noise_multiplier=TINY), updates)

    expected = (flat(updates[0]) + flat(updates[1]) / 3 + flat(updates[2]) / 100) / 4
    assert np.abs(step - expected).max() < 1e-7


def test_one_part_more_moves_the_sum_by_no_more_than_the_clip_norm_whatever_it_sends() -> None:
    updates = [update(part, 0.7) for part in range(3)]
    without = step_of(private(noise_multiplier=TINY), updates)

    with_it = step_of(private(noise_multiplier=TINY), [*updates, update(3, 1e12)])

    assert np.linalg.norm(with_it - without) * 4 == pytest.approx(1.0, abs=1e-4)


def test_a_part_that_is_missing_does_not_change_the_denominator() -> None:
    assert step_of(private(noise_multiplier=TINY, n=10), [update(0, 1.0)]) == pytest.approx(
        flat(update(0, 1.0)) / 10, abs=1e-7
    )


def test_weights_of_parts_do_not_count() -> None:
    heavy = [Update(one.part, 1000.0 * (one.part + 1), one.delta) for one in (update(0, 0.5), update(1, 0.5))]
    light = [update(0, 0.5), update(1, 0.5)]

    assert (step_of(private(), heavy) == step_of(private(), light)).all()


def test_noise_has_the_deviation_that_was_told() -> None:
    rule = private(noise_multiplier=2.0, l2_norm_clip=3.0, n=5)

    base = {"w": np.zeros((1000, 200), dtype=np.float32)}
    delta = {"w": np.zeros((1000, 200), dtype=np.float32)}
    done = rule.aggregate(base, lambda: iter([Update(0, 1.0, delta)]), 1)

    assert done.metrics["noise_stddev"] == pytest.approx(2.0 * 3.0 / 5)
    assert float(done.weights["w"].std()) == pytest.approx(1.2, rel=0.02)
    assert abs(float(done.weights["w"].mean())) < 0.02


def test_epsilon_is_told_after_every_round_and_is_that_of_the_accountant() -> None:
    rule, told = private(noise_multiplier=1.5, delta=1e-6), []
    for _ in range(3):
        updates = [update(0, 1.0), update(1, 1.0)]
        told.append(rule.aggregate(model(), lambda: iter(updates), 2).metrics["epsilon"])  # noqa: B023 - used at once

    expected = [epsilon_of([number * one for one in rdp_of_gaussian(1.5)], 1e-6) for number in (1, 2, 3)]
    assert told == pytest.approx(expected, rel=1e-12)


def test_poisson_sampling_is_counted() -> None:
    sampled, whole = private(q=0.1), private()

    for rule in (sampled, whole):
        rule.aggregate(model(), lambda: iter([update(0, 1.0)]), 1)

    assert sampled.accountant.epsilon(1e-5) < whole.accountant.epsilon(1e-5) / 2


def test_a_round_that_nobody_was_drawn_for_is_noise_and_counts() -> None:
    rule = private(q=0.1)

    step = step_of(rule, [])

    assert step.any()
    assert rule.accountant.rounds == 1


def test_the_same_round_again_is_the_same_bits_and_another_sum_has_other_noise() -> None:
    updates = [update(0, 0.5), update(1, 0.5)]
    once, again = step_of(private(), updates), step_of(private(), updates)
    other = step_of(private(), [update(0, 0.5), update(1, 0.5001)])

    assert (once == again).all()
    assert np.abs(once - other).mean() > 0.05  # with one noise under both, their difference would be the update's


def test_another_key_gives_other_noise() -> None:
    updates = [update(0, 0.5)]

    assert (step_of(private(), updates) != step_of(private(key=bytes(32)), updates)).mean() > 0.9


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_left_out_by_name(poison: float) -> None:
    bad = update(1, 1.0)
    bad.delta["w"][3, 2] = poison

    done = private().aggregate(model(), lambda: iter([update(0, 1.0), bad]), 2)

    assert done.accepted == (0,)
    assert done.rejected[1].startswith("not_finite")
    assert all(np.isfinite(one).all() for one in done.weights.values())


def test_a_round_with_nothing_but_garbage_is_refused() -> None:
    bad = update(1, 1.0)
    bad.delta["w"][0, 0] = math.nan

    with pytest.raises(TooFewUpdates, match="not_finite"):
        private().aggregate(model(), lambda: iter([bad]), 1)


def test_the_clip_norm_comes_to_the_wanted_quantile() -> None:
    rule = private(adaptive=True, l2_norm_clip=0.01, noise_multiplier=0.3, n=200, clip_learning_rate=0.5)
    updates = [update(part, 0.5 + part / 200) for part in range(200)]

    for _ in range(60):
        rule.aggregate(model(), lambda: iter(updates), len(updates))

    assert rule.accountant.clip == pytest.approx(1.0, rel=0.15)  # the median of 0.5 … 1.5


def test_the_noises_on_sum_and_count_together_cost_the_noise_multiplier() -> None:
    config = read_privacy({"differential_privacy": True, "adaptive": True, "noise_multiplier": 1.0})

    on_sum, on_count = config.sum_noise(100), config.count_noise(100)

    # Two Gaussian releases of sensitivities 1 and 1/2 compose to one with z: 1/z² = 1/z_Δ² + (1/2)²/σ_b².
    assert on_sum**-2 + (0.5 / on_count) ** 2 == pytest.approx(1.0)
    assert on_count == 5.0


def test_a_count_without_enough_noise_is_refused() -> None:
    with pytest.raises(BadField, match=r"count_stddev must be above noise_multiplier / 2 = 0\.5, got 0\.5"):
        private(adaptive=True, count_stddev=0.5)


@pytest.mark.parametrize("strategy", ["FedAvg", "FedAdam", "FedAvgM"])
def test_a_restored_rule_goes_on_with_the_same_bits(strategy: str) -> None:
    updates = [update(0, 2.0), update(1, 0.1)]
    rule = private(strategy, adaptive=True)
    step_of(rule, updates)
    copy = private(strategy, adaptive=True)
    copy.restore(rule.state())

    assert (step_of(rule, updates) == step_of(copy, updates)).all()
    assert copy.accountant == rule.accountant


def test_the_state_does_not_hold_the_key() -> None:
    rule = private(key=b"\x07" * 32)
    step_of(rule, [update(0, 1.0)])

    assert set(rule.state()) == {"privacy.clip", "privacy.rounds", "privacy.rdp", "optimizer.rounds"}


@pytest.mark.parametrize("name", ["privacy.clip", "privacy.rdp", "privacy.rounds"])
def test_a_state_of_something_else_is_refused(name: str) -> None:
    rule = private()
    good = rule.state()

    with pytest.raises(BadDocument):
        rule.restore({**good, name: np.array([-1.0])})
    with pytest.raises(BadDocument):
        rule.restore({key: value for key, value in good.items() if key != name})
    with pytest.raises(BadDocument):
        rule.restore({**good, "norms": np.array([1.0])})


def test_normal_numbers_are_normal() -> None:
    found = GaussianNoise(KEY, b"x").standard(200_001)

    assert float(found.mean()) == pytest.approx(0, abs=0.01)
    assert float(found.std()) == pytest.approx(1, abs=0.01)
    assert float((np.abs(found) > 1.96).mean()) == pytest.approx(0.05, abs=0.005)
    assert abs(float(np.corrcoef(found[:100_000], found[100_000:200_000])[0, 1])) < 0.02


def test_a_noisy_value_lies_on_a_grid_that_does_not_depend_on_the_value() -> None:
    for value in (0.1, 0.1 + 2**-50, 1e-30):
        noisy = GaussianNoise(KEY, value.hex().encode()).added_to(np.full(50, value), 1.0)

        assert (noisy * 2.0**40 == np.rint(noisy * 2.0**40)).all()


def test_the_key_stream_is_chacha20() -> None:
    # RFC 8439, appendix A.1, test vector 1: a key and a nonce of zeros.
    assert KeyStream(bytes(32)).words(2).tobytes().hex() == "76b8e0ada0f13d90"


@pytest.mark.parametrize("update_format", ["fp32", "fp16", "int8"])
def test_updates_are_read_in_every_format_that_they_travel_in(update_format: UpdateFormat) -> None:
    updates = [update(0, 0.5), update(1, 3.0)]
    bodies = {one.part: encode_delta(one.delta, update_format)[0].__bytes__ for one in updates}
    config = read_privacy({"differential_privacy": True, "noise_multiplier": TINY, "l2_norm_clip": 1.0})

    done = average(
        read_strategy("FedAvg"),
        SHAPES,
        model(),
        None,
        bodies,
        weight=lambda _: 1.0,
        score=lambda _: {},
        private=NoiseSetup(config, 2.0, KEY),
    )

    assert isinstance(done, Averaged)
    found = np.concatenate([done.weights[name].reshape(-1) for name in SHAPES])
    assert np.abs(found - (flat(updates[0]) + flat(updates[1]) / 3) / 2).max() < 3e-3
    assert done.metrics["epsilon"] > 0
