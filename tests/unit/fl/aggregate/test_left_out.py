"""A round's model without each of its updates: the same as a round that this update never came to, and cheaper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pytest

from parity_fl.aggregate import Update, make_strategy, read_strategy
from parity_fl.models.base import Weights
from parity_fl.strategy import STRATEGIES

SHAPES = {"b": (7,), "w": (11, 5)}
PARTS = 9
SUMS = ["FedAvg", "FedProx", "FedAdam", "FedYogi", "FedAvgM"]


def tensors(seed: int, size: float) -> Weights:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(scale=size, size=shape).astype(np.float32) for name, shape in SHAPES.items()}


class Spool:
    """A round's updates; counts who is read."""

    def __init__(self, seed: int) -> None:
        self.updates = [Update(part, 10.0 + part, tensors(100 * seed + part, 0.1)) for part in range(PARTS)]
        self.read: Counter[int] = Counter()

    def of(self, parts: Collection[int]) -> Iterator[Update]:
        for part in sorted(parts):
            self.read[part] += 1
            yield self.updates[part]


def after_two_rounds(strategy: str, **parameters: Any) -> Any:
    """Return a rule that has moments and a history."""
    rule = make_strategy(read_strategy({"strategy": strategy, "num_malicious": 1, **parameters}))
    for seed in (1, 2):
        rule.aggregate(tensors(seed, 1.0), lambda seed=seed: Spool(seed).of(range(PARTS)), PARTS)
    return rule


@pytest.mark.parametrize("parameters", [{}, {"clip": "median"}, {"pre_aggregation": "nnm"}], ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_a_model_without_a_part_is_that_of_a_round_without_it(strategy: str, parameters: dict[str, Any]) -> None:
    base, spool = tensors(7, 1.0), Spool(3)

    found = dict(after_two_rounds(strategy, **parameters).without_each(base, spool.of, range(PARTS)))

    assert sorted(found) == list(range(PARTS))
    for part, weights in found.items():
        others = [other for other in range(PARTS) if other != part]
        alone = after_two_rounds(strategy, **parameters).aggregate(
            base, lambda others=others: Spool(3).of(others), len(others)
        )
        for name in SHAPES:
            np.testing.assert_allclose(weights[name], alone.weights[name], rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("strategy", SUMS)
def test_a_sum_reads_no_update_once_for_each_of_the_others(strategy: str) -> None:
    spool = Spool(3)

    list(after_two_rounds(strategy).without_each(tensors(7, 1.0), spool.of, range(PARTS)))

    assert max(spool.read.values()) <= 3


@pytest.mark.parametrize("strategy", SUMS)
def test_looking_at_a_round_without_a_part_leaves_the_state_as_it_was(strategy: str) -> None:
    rule = after_two_rounds(strategy)
    before = rule.state()

    list(rule.without_each(tensors(7, 1.0), Spool(3).of, range(PARTS)))

    after = rule.state()
    assert list(after) == list(before)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def test_a_part_that_the_rule_cannot_miss_is_left_out() -> None:
    rule = make_strategy(read_strategy({"strategy": "Krum", "num_malicious": 1}))

    assert list(rule.without_each(tensors(7, 1.0), Spool(3).of, range(5))) == []
