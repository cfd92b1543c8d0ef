"""A round from its updates to the next model, whatever the rule: the gate, order, memory, state."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_fl.aggregate import Aggregated, Update, make_strategy, read_strategy
from parity_fl.models.base import Weights
from parity_fl.strategy import STRATEGIES
from parity_protocol.errors import BadDocument, Internal, TooFewUpdates, Unprocessable

ALL = list(STRATEGIES.values())
SHAPES = {"b": (7,), "w": (11, 5)}


def model(seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def honest(n: int, seed: int = 1) -> list[Update]:
    rng = np.random.default_rng(seed)
    common = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return [
        Update(
            part,
            10.0 + part,
            {n: (common[n] + 0.3 * rng.normal(size=shape)).astype(np.float32) * 0.01 for n, shape in SHAPES.items()},
        )
        for part in range(n)
    ]


def run(strategy: str, updates: list[Update], base: Weights | None = None, **parameters: Any) -> Aggregated:
    made = make_strategy(read_strategy({"strategy": strategy, "num_malicious": 1, **parameters}))
    return made.aggregate(base or model(), lambda: iter(updates), len(updates))


def changed(update: Update, **members: Any) -> Update:
    delta = {name: tensor.copy() for name, tensor in update.delta.items()}
    return Update(members.get("part", update.part), members.get("weight", update.weight), members.get("delta", delta))


def scaled(update: Update, factor: float) -> Update:
    return changed(update, delta={name: tensor * np.float32(factor) for name, tensor in update.delta.items()})


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("poison", ["nan", "inf", "scaled", "shape", "name", "weight", "type"])
def test_one_bad_update_leaves_the_model_as_if_it_had_not_come(strategy: str, poison: str) -> None:
    updates = honest(8)
    bad = changed(updates[3])
    match poison:
        case "nan":
            bad.delta["w"][10, 4] = np.nan
        case "inf":
            bad.delta["b"][0] = -np.inf
        case "scaled":
            bad = scaled(bad, 1e6)
        case "shape":
            bad.delta["w"] = bad.delta["w"].T
        case "name":
            bad.delta["extra"] = bad.delta["b"]
        case "type":
            bad.delta["w"] = bad.delta["w"].astype(np.int32)
        case _:
            bad = changed(bad, weight=float("nan"))
    # A trimmed mean that has lost one of its outliers cuts one side's worth less: hold it at the same number.
    parameters = {"trim_beta": 0.3} if strategy == "FedTrimmedAvg" else {}
    others = [update for update in updates if update.part != 3]

    with_bad = run(strategy, [*updates[:3], bad, *updates[4:]], **parameters)
    without = run(strategy, others, **parameters)

    assert list(with_bad.rejected) == [3]
    assert with_bad.accepted == without.accepted == (0, 1, 2, 4, 5, 6, 7)
    if strategy in {"Krum", "MultiKrum", "Bulyan"}:
        return  # the caught one was the one to tolerate; the next test looks at them
    for name in SHAPES:
        np.testing.assert_array_equal(with_bad.weights[name], without.weights[name])


@pytest.mark.parametrize("strategy", ["Krum", "MultiKrum", "Bulyan"])
def test_a_node_that_sends_nan_cannot_stop_a_session_at_its_bound(strategy: str) -> None:
    n = 7 if strategy == "Bulyan" else 5
    updates = honest(n)
    updates[2].delta["w"][:] = np.nan

    made = run(strategy, updates)

    assert list(made.rejected) == [2]
    assert made.metrics["tolerated"] == 0


@pytest.mark.parametrize("strategy", ["Krum", "MultiKrum", "Bulyan"])
def test_more_bad_updates_than_were_to_be_tolerated_end_the_round_with_a_reason(strategy: str) -> None:
    n = 7 if strategy == "Bulyan" else 5
    updates = honest(n)
    for update in updates[2 : 2 + n - 2]:
        update.delta["w"][:] = np.nan

    with pytest.raises(TooFewUpdates, match="part 2: not_finite") as caught:
        run(strategy, updates)

    assert list(caught.value.rejected) == list(range(2, n))


@pytest.mark.parametrize("strategy", ALL)
def test_a_round_without_any_usable_update_fails(strategy: str) -> None:
    updates = honest(3)
    for update in updates:
        update.delta["b"][0] = np.nan

    with pytest.raises(TooFewUpdates, match="no usable update among 3"):
        run(strategy, updates)


def test_a_node_that_returns_the_old_model_is_named() -> None:
    updates = honest(5)
    updates[1] = scaled(updates[1], 0)

    made = run("FedAvg", updates)

    assert made.rejected[1].startswith("echo: ")


def test_training_that_has_come_to_rest_is_no_echo() -> None:
    updates = [scaled(update, 0) for update in honest(3)]

    made = run("FedAvg", updates)

    assert made.accepted == (0, 1, 2)
    np.testing.assert_array_equal(made.weights["w"], model()["w"])


def test_the_second_of_two_equal_updates_is_named() -> None:
    updates = honest(5)
    updates[4] = changed(updates[1], part=4, weight=99.0)

    made = run("FedAvg", updates)

    assert made.rejected == {4: "duplicate: the update equals that of part 1"}


def test_updates_of_equal_length_that_differ_are_no_copies() -> None:
    updates = honest(4)
    updates[3] = scaled(updates[1], -1)
    updates[3] = changed(updates[3], part=3)

    assert run("FedAvg", updates).rejected == {}


def test_of_two_nodes_the_one_a_million_times_too_long_is_refused() -> None:
    first, second = honest(2)

    made = run("FedAvg", [scaled(first, 1e6), second])

    assert list(made.rejected) == [0]
    assert made.rejected[0].startswith("too_long: ")


def test_lengths_are_compared_with_earlier_rounds_too() -> None:
    strategy = make_strategy(read_strategy({"strategy": "FedAvg"}))
    for seed in range(3):
        earlier = honest(4, seed)
        strategy.aggregate(model(), lambda earlier=earlier: iter(earlier), 4)
    small = [scaled(update, 1e-3) for update in honest(3, 9)]
    updates = [*small[:2], scaled(small[2], 1000)]

    made = strategy.aggregate(model(), lambda: iter(updates), 3)

    assert made.rejected == {}  # as long as updates used to be, though the two others are short


def test_clipping_scales_long_updates_to_the_median_and_leaves_short_ones() -> None:
    updates = honest(3)
    lengths = [1.0, 2.0, 10.0]
    for i, update in enumerate(updates):
        norm = np.sqrt(sum(float((tensor.astype(np.float64) ** 2).sum()) for tensor in update.delta.values()))
        updates[i] = scaled(update, lengths[i] / norm)

    made = run("FedAvg", updates, clip="median", weighting="uniform")

    expected = [updates[0], updates[1], scaled(updates[2], 2.0 / 10.0)]
    mean = np.mean([update.delta["w"].astype(np.float64) for update in expected], axis=0)
    np.testing.assert_allclose(made.weights["w"], model()["w"] + mean, atol=1e-6)
    assert made.metrics["clipped"] == 1


def test_fedavg_weighs_by_rows() -> None:
    updates = honest(3)

    made = run("FedAvg", updates)

    expected = sum(update.weight * update.delta["w"].astype(np.float64) for update in updates) / 33
    np.testing.assert_allclose(made.weights["w"], model()["w"] + expected, atol=1e-7)
    assert made.influence == pytest.approx({0: 10 / 33, 1: 11 / 33, 2: 12 / 33})


def test_a_mean_of_updates_is_right_to_the_last_bit_of_float32() -> None:
    # A hundred thousand thirds in float32 would drift; the sum runs in float64 and is rounded once.
    base = {"w": np.zeros(3, np.float32)}
    updates = [Update(part, 1.0, {"w": np.full(3, 1 / 3 + part * 1e-7, np.float32)}) for part in range(1000)]

    made = make_strategy(read_strategy(None)).aggregate(base, lambda: iter(updates), 1000)

    exact = np.mean([update.delta["w"].astype(np.float64) for update in updates], axis=0)
    np.testing.assert_array_equal(made.weights["w"], exact.astype(np.float32))


@pytest.mark.parametrize("strategy", [name for name in ALL if name in {"Krum", "MultiKrum", "Bulyan"}])
def test_a_rule_that_chooses_ignores_far_outliers(strategy: str) -> None:
    updates = honest(11)
    for part in (4, 9):
        updates[part] = scaled(updates[part], -8)

    made = run(strategy, updates, num_malicious=2)
    clean = run("FedAvg", [update for update in updates if update.part not in (4, 9)], weighting="uniform")

    assert made.rejected == {}
    assert all(made.influence.get(part, 0) == 0 for part in (4, 9))
    for name in SHAPES:
        np.testing.assert_allclose(made.weights[name], clean.weights[name], atol=0.012)


@pytest.mark.parametrize("strategy", ALL)
def test_mixing_keeps_far_outliers_out_of_every_rule(strategy: str) -> None:
    updates = honest(11)
    for part in (4, 9):
        updates[part] = scaled(updates[part], -8)
    parameters = {"num_malicious": 2, "pre_aggregation": "nnm"}
    if strategy in {"FedAvg", "FedProx", "FedAdam", "FedYogi", "FedAvgM"}:
        return  # a mean of mixed updates still holds 2 / 11 of the outliers: mixing helps robust rules

    made = run(strategy, updates, **parameters)
    clean = run("FedAvg", [update for update in updates if update.part not in (4, 9)], weighting="uniform")

    for name in SHAPES:
        np.testing.assert_allclose(made.weights[name], clean.weights[name], atol=0.006)


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(range(11)),
    # Bulyan's last choices are between updates that are each other's nearest: a tie, which the order of parts breaks.
    strategy=st.sampled_from([name for name in ALL if name != "Bulyan"]),
    nnm=st.booleans(),
)
def test_which_part_sent_what_does_not_change_the_model(order: list[int], strategy: str, nnm: bool) -> None:
    updates = honest(11)
    dealt = [changed(updates[source], part=part) for part, source in enumerate(order)]
    parameters: dict[str, Any] = {"num_malicious": 2, "pre_aggregation": "nnm" if nnm else "none"}

    first, second = run(strategy, updates, **parameters), run(strategy, dealt, **parameters)

    for name in SHAPES:
        np.testing.assert_allclose(first.weights[name], second.weights[name], atol=1e-7)


@pytest.mark.parametrize(
    ("strategy", "nnm"),
    [("FedAvg", "none"), ("FedAdam", "nnm"), ("Krum", "none"), ("Bulyan", "none"), ("FedTrimmedAvg", "nnm")],
)
def test_memory_does_not_grow_with_the_updates(strategy: str, nnm: str, tmp_path: Path) -> None:
    size, n = 200_000, 80
    values = np.random.default_rng(0).standard_normal(size + n, dtype=np.float32) * 0.01
    (tmp_path / "spool").write_bytes(values.tobytes())
    base = {"w": np.zeros(size, np.float32)}

    def spool() -> Iterator[Update]:
        for part in range(n):
            yield Update(part, 1.0, {"w": np.memmap(tmp_path / "spool", np.float32, "r", 4 * part, (size,))})

    made = make_strategy(read_strategy({"strategy": strategy, "num_malicious": 2, "pre_aggregation": nnm}))
    tracemalloc.start()
    try:
        made.aggregate(base, spool, n)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    # All updates are 64 MB; the model with its moments is 8 MB; pieces of the updates are the rest.
    assert peak < 32 << 20


def test_a_spool_of_half_precision_is_read_as_it_is() -> None:
    updates = honest(3)
    halves = [
        changed(update, delta={name: tensor.astype(np.float16) for name, tensor in update.delta.items()})
        for update in updates
    ]
    widened = [
        changed(update, delta={name: tensor.astype(np.float32) for name, tensor in update.delta.items()})
        for update in halves
    ]

    np.testing.assert_array_equal(run("FedMedian", halves).weights["w"], run("FedMedian", widened).weights["w"])


@pytest.mark.parametrize("strategy", ALL)
def test_a_restored_strategy_goes_on_to_the_same_bits(strategy: str) -> None:
    config = read_strategy({"strategy": strategy, "num_malicious": 1, "clip": "median"})
    through, first = make_strategy(config), make_strategy(config)
    weights = model()
    for seed in range(2):
        updates = honest(8, seed)
        next_weights = through.aggregate(weights, lambda updates=updates: iter(updates), 8).weights
        first.aggregate(weights, lambda updates=updates: iter(updates), 8)
        weights = next_weights
    second = make_strategy(config)
    second.restore(first.state())
    last = honest(8, 7)

    expected = through.aggregate(weights, lambda: iter(last), 8)
    resumed = second.aggregate(weights, lambda: iter(last), 8)

    for name in SHAPES:
        np.testing.assert_array_equal(expected.weights[name], resumed.weights[name])
    assert expected.metrics == resumed.metrics


def test_a_failed_round_leaves_the_optimizer_as_it_was() -> None:
    strategy = make_strategy(read_strategy("FedAdam"))
    updates = honest(3)
    strategy.aggregate(model(), lambda: iter(updates), 3)
    before = strategy.state()
    huge = {name: np.full(shape, 3e38, np.float32) for name, shape in SHAPES.items()}
    steep = [
        Update(part, 1.0, {name: np.full(shape, 3e38 - part * 1e36, np.float32) for name, shape in SHAPES.items()})
        for part in range(2)
    ]

    with pytest.raises(Unprocessable, match="NaN or Inf"):
        make_strategy(read_strategy(None)).aggregate(huge, lambda: iter(steep), 2)
    with pytest.raises(TooFewUpdates):
        strategy.aggregate(model(), lambda: iter([]), 0)

    after = strategy.state()
    assert before.keys() == after.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(array, after[key])


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"norms": np.array([1.0])},
        {"norms": np.array([-1.0]), "optimizer.rounds": np.array([0.0])},
        {"norms": np.array([np.nan]), "optimizer.rounds": np.array([0.0])},
        {"norms": np.ones(6), "optimizer.rounds": np.array([0.0])},
        {"norms": np.ones(1), "optimizer.rounds": np.array([0.5])},
        {"norms": np.ones(1), "optimizer.rounds": np.array([1.0])},
        {"norms": np.ones(1), "optimizer.rounds": np.array([0.0]), "else": np.ones(1)},
        {"norms": np.ones(1), "optimizer.rounds": np.array([1.0]), "optimizer.first.w": np.ones(3)},
        {
            "norms": np.ones(1),
            "optimizer.rounds": np.array([1.0]),
            "optimizer.first.w": np.array([np.inf]),
            "optimizer.second.w": np.ones(1),
        },
    ],
)
def test_a_state_of_something_else_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(BadDocument):
        make_strategy(read_strategy("FedAdam")).restore(broken)


def test_moments_of_another_model_are_refused() -> None:
    strategy = make_strategy(read_strategy("FedAdam"))
    strategy.restore(
        {
            "norms": np.ones(1),
            "optimizer.rounds": np.ones(1),
            "optimizer.first.w": np.ones(3),
            "optimizer.second.w": np.ones(3),
        }
    )
    updates = honest(3)

    with pytest.raises(BadDocument, match="another shape"):
        strategy.aggregate(model(), lambda: iter(updates), 3)


@pytest.mark.parametrize("order", [[1, 0], [0, 0]])
def test_a_spool_out_of_order_is_our_own_mistake(order: list[int]) -> None:
    updates = [changed(honest(2)[0], part=part) for part in order]

    with pytest.raises(Internal, match="ascending"):
        run("FedAvg", updates)


def test_a_spool_that_lost_an_update_is_our_own_mistake() -> None:
    updates = honest(3)

    with pytest.raises(Internal, match="gave 3 updates, 4 were announced"):
        make_strategy(read_strategy(None)).aggregate(model(), lambda: iter(updates), 4)
