"""The settings of a session's rounds, and who is asked in each."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from parity_fl.rounds_config import (
    RoundsConfig,
    cohort_of,
    is_in_rounds,
    read_rounds,
    read_session_rounds,
    session_strategy,
)
from parity_protocol.errors import BadField

SEED = "ab" * 32


def test_without_settings_every_part_is_needed_and_two_thirds_are_enough_at_the_deadline() -> None:
    config = read_rounds({}, total_rounds=3, parts=6)

    assert (config.min_available_clients, config.needed(6), config.quorum) == (2, 6, 4)
    assert cohort_of(config, parts=6, seed=SEED, number=1) == (0, 1, 2, 3, 4, 5)
    assert RoundsConfig.from_dict(json.loads(json.dumps(config.to_dict())), parts=6) == config


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"fraction": 0}, "rounds_config.fraction"),
        ({"fraction": 1.1}, "rounds_config.fraction"),
        ({"quorum": 7}, "rounds_config.quorum"),
        ({"fraction": 0.5, "quorum": 4}, "rounds_config.quorum"),
        ({"min_available_clients": 7}, "rounds_config.min_available_clients"),
        ({"round_timeout_s": 0.5}, "rounds_config.round_timeout_s"),
        ({"update_format": "json"}, "rounds_config.update_format"),
        ({"base_share": -0.1}, "rounds_config.base_share"),
        ({"total_rounds": 4}, "rounds_config.total_rounds"),
    ],
)
def test_a_wrong_setting_is_named(raw: dict[str, object], field: str) -> None:
    with pytest.raises(BadField) as refused:
        read_rounds(raw, total_rounds=3, parts=6)

    assert refused.value.field == field


def test_a_fraction_asks_different_parts_in_each_round_and_all_about_as_often() -> None:
    config = read_rounds({"fraction": 0.3, "over_selection": 0.34}, total_rounds=300, parts=10)

    cohorts = [cohort_of(config, parts=10, seed=SEED, number=number) for number in range(1, 301)]

    assert {len(cohort) for cohort in cohorts} == {5}  # 3 are needed, a third more are asked, rounded up
    assert all(list(cohort) == sorted(set(cohort)) for cohort in cohorts)
    asked = Counter(part for cohort in cohorts for part in cohort)
    assert min(asked.values()) > 110
    assert cohort_of(config, parts=10, seed=SEED, number=7) == cohorts[6]
    assert cohort_of(config, parts=10, seed="cd" * 32, number=7) != cohorts[6]


def test_networks_and_linear_models_of_several_rounds_and_forests_in_phases_train_in_rounds() -> None:
    assert is_in_rounds({"model_type": "neural_network"})
    assert is_in_rounds({"model_type": "linear_regression", "total_rounds": 2})
    assert is_in_rounds({"model_type": "linear_regression", "rounds_config": {"quorum": 1}})
    assert is_in_rounds({"model_type": "random_forest", "model_config": {"mode": "histogram"}})

    assert not is_in_rounds({"model_type": "linear_regression", "total_rounds": 1})
    assert not is_in_rounds({"model_type": "linear_regression", "total_rounds": 2, "model_config": {"solver": "exact"}})
    assert not is_in_rounds({"model_type": "random_forest", "model_config": {"mode": "union"}})


def test_a_forest_in_phases_needs_every_part() -> None:
    forest = {"model_type": "random_forest", "model_config": {"mode": "histogram"}, "total_rounds": 1}

    config = read_session_rounds(forest, parts=4)

    assert (config.quorum, config.min_available_clients) == (4, 4)
    with pytest.raises(BadField, match="every part"):
        read_session_rounds({**forest, "rounds_config": {"quorum": 3}}, parts=4)


def test_a_rule_that_the_quorum_cannot_carry_is_refused_and_an_ignored_parameter_is_said() -> None:
    config = read_rounds({"quorum": 3}, total_rounds=2, parts=5)

    with pytest.raises(BadField, match=r"2f \+ 3"):
        session_strategy(
            {"strategy_config": {"strategy": "Krum", "num_malicious": 1}}, config, partition_strategy="random"
        )
    strategy, warnings = session_strategy(
        {"strategy_config": {"strategy": "FedAvg", "trim_beta": 0.1}}, config, partition_strategy="random"
    )

    assert strategy.strategy == "fedavg"
    assert any("trim_beta is ignored" in warning for warning in warnings)
