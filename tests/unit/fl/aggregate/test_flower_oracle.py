"""Our rules against what the real Flower 1.41 made of the same rounds, and better where it is wrong.

``scripts/record-aggregation-vectors`` wrote the file; no Flower is needed here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_fl.aggregate import Aggregated, Update, check_strategy, make_strategy, read_strategy
from parity_fl.models.base import Weights
from parity_protocol.errors import BadField, TooFewUpdates

VECTORS = json.loads((Path(__file__).resolve().parents[3] / "vectors" / "fl" / "aggregation.json").read_text())
CASES = VECTORS["cases"]
DEFECTS = VECTORS["defects"]
SHAPES = {"bias": (3,), "kernel": (4, 3)}
# The gate would refuse some recorded updates as too long: lengths are not what these cases are about.
ANY_LENGTH = {"max_norm_ratio": 1e9}


def read(raw: dict[str, list[float]]) -> Weights:
    return {name: np.array(raw[name], dtype=np.float32).reshape(SHAPES[name]) for name in sorted(raw)}


def updates_of(base: Weights, clients: list[Weights], counts: list[int]) -> list[Update]:
    return [
        Update(part, float(count), {name: client[name] - base[name] for name in base})
        for part, (client, count) in enumerate(zip(clients, counts, strict=True))
    ]


def run(strategy: str, base: Weights, clients: list[Weights], counts: list[int], **parameters: Any) -> Aggregated:
    made = make_strategy(read_strategy({"strategy": strategy, **ANY_LENGTH, **parameters}))
    updates = updates_of(base, clients, counts)
    return made.aggregate(base, lambda: iter(updates), len(updates))


def name_of(case: dict[str, Any]) -> str:
    return f"{case['strategy']}-{len(case['counts'])}-{case['parameters']}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_rule_makes_of_a_round_what_flower_makes_of_it(case: dict[str, Any]) -> None:
    strategy = make_strategy(read_strategy({"strategy": case["strategy"], **ANY_LENGTH, **case["parameters"]}))

    for recorded in case["rounds"]:
        base = read(recorded["base"])
        updates = updates_of(base, [read(client) for client in recorded["clients"]], case["counts"])
        made = strategy.aggregate(base, lambda updates=updates: iter(updates), len(updates))

        for name, expected in read(recorded["expected"]).items():
            np.testing.assert_allclose(made.weights[name], expected, rtol=0, atol=1e-5)
        assert made.rejected == {}


def test_every_rule_has_a_recorded_case() -> None:
    assert {case["strategy"] for case in CASES} == {
        "FedAvg", "FedProx", "FedAdam", "FedYogi", "FedAvgM",
        "Krum", "MultiKrum", "Bulyan", "FedTrimmedAvg", "FedMedian",
    }  # fmt: skip


@pytest.mark.parametrize("strategy", ["FedAvg", "FedProx", "FedAdam", "FedMedian"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_one_client_with_nan_or_inf_ends_a_model_of_flowers_and_not_ours(strategy: str, poison: float) -> None:
    rng = np.random.default_rng(11)
    base = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    honest = [
        {name: (base[name] + rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}
        for _ in range(4)
    ]
    bad = {name: tensor.copy() for name, tensor in honest[0].items()}
    bad["kernel"][3, 2] = poison

    made = run(strategy, base, [*honest, bad], [10] * 5)
    clean = run(strategy, base, honest, [10] * 4)

    assert DEFECTS["nan"][strategy] is True
    assert made.rejected[4].startswith("not_finite")
    for name in SHAPES:
        np.testing.assert_array_equal(made.weights[name], clean.weights[name])


@pytest.mark.parametrize("seed", DEFECTS["krum_picks_a_colluder"])
def test_krum_picks_no_colluder_where_flowers_distances_cancel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = {"kernel": rng.normal(size=400).astype(np.float32)}
    step = rng.normal(size=400) * 1e-4
    deltas = [step + rng.normal(size=400) * 2e-5 for _ in range(5)]
    deltas += [-step + rng.normal(size=400) * 3e-5 for _ in range(2)]
    updates = [Update(part, 10.0, {"kernel": delta.astype(np.float32)}) for part, delta in enumerate(deltas)]

    made = make_strategy(read_strategy({"strategy": "Krum", "num_malicious": 2})).aggregate(
        base, lambda: iter(updates), 7
    )

    picked = next(part for part, share in made.influence.items() if share == 1)
    assert picked < 5


def test_there_are_rounds_in_which_flowers_krum_picks_a_colluder() -> None:
    assert len(DEFECTS["krum_picks_a_colluder"]) >= 3


def test_bulyan_chooses_one_by_one_as_in_the_paper_where_flower_chooses_in_one_pass() -> None:
    case = DEFECTS["bulyan_in_one_pass"]
    base, clients = read(case["base"]), [read(client) for client in case["clients"]]

    made = run("Bulyan", base, clients, [10] * 7, num_malicious=1)

    np.testing.assert_allclose(made.weights["bias"], read(case["paper"])["bias"], rtol=0, atol=1e-5)
    assert not np.allclose(made.weights["bias"], read(case["flower"])["bias"], atol=1e-4)


def test_krum_without_its_majority_is_refused_where_flower_goes_on() -> None:
    config = read_strategy({"strategy": "Krum", "num_malicious": 2})

    with pytest.raises(BadField, match=r"Krum needs n >= 2f \+ 3 = 7 updates for num_malicious 2"):
        check_strategy(config, quorum=4, partition_strategy="random")
    with pytest.raises(TooFewUpdates, match="Krum needs 7 updates"):
        run("Krum", *small_round(4), num_malicious=2)
    assert DEFECTS["krum_without_a_majority"] is True


def test_bulyan_without_its_bound_is_refused_where_flower_skips_the_round() -> None:
    config = read_strategy({"strategy": "Bulyan", "num_malicious": 1})

    with pytest.raises(BadField, match=r"Bulyan needs n >= 4f \+ 3 = 7 updates for num_malicious 1"):
        check_strategy(config, quorum=6, partition_strategy="random")
    with pytest.raises(TooFewUpdates, match="Bulyan needs 7 updates"):
        run("Bulyan", *small_round(4), num_malicious=1)
    assert DEFECTS["bulyan_skips_the_round"] is True


def test_a_trimmed_mean_that_would_trim_nothing_is_refused_where_flower_follows_the_outlier() -> None:
    config = read_strategy({"strategy": "FedTrimmedAvg", "trim_beta": 0.2})

    with pytest.raises(BadField, match="needs 5 updates to trim anything"):
        check_strategy(config, quorum=4, partition_strategy="random")
    with pytest.raises(TooFewUpdates, match="FedTrimmedAvg needs 5 updates"):
        run("FedTrimmedAvg", *small_round(4), trim_beta=0.2)
    assert DEFECTS["trimming_nothing_moves_the_mean_by"] > 100


def test_the_first_step_of_adam_is_corrected_for_one_round_and_not_for_two() -> None:
    base = {"bias": np.zeros(1, np.float32)}
    updates = [Update(0, 1.0, {"bias": np.ones(1, np.float32)})]

    made = make_strategy(read_strategy("FedAdam")).aggregate(base, lambda: iter(updates), 1)

    # Kingma & Ba, algorithm 1: after one step both corrected moments are the gradient's own, so the step is η.
    assert made.weights["bias"][0] == pytest.approx(0.1, rel=0.02)
    assert DEFECTS["adam_first_step"] == pytest.approx(0.0735, abs=1e-3)


def small_round(n: int) -> tuple[Weights, list[Weights], list[int]]:
    rng = np.random.default_rng(n)
    base = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    clients = [{name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()} for _ in range(n)]
    return base, clients, [10] * n
