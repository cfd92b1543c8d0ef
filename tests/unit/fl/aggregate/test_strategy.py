"""Choosing a rule: names, ranges, bounds against the quorum, and what is reported as ignored."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from parity_fl.strategy import (
    STRATEGIES,
    StrategyConfig,
    borne_updates,
    check_strategy,
    client_learning_rate,
    fewest_updates,
    read_strategy,
)
from parity_protocol.errors import BadField


@pytest.mark.parametrize(("name", "shown"), STRATEGIES.items())
def test_a_rule_is_known_under_the_spellings_that_are_in_use(name: str, shown: str) -> None:
    for spelling in (name, shown, shown.upper(), shown.lower(), name.replace("_", "-")):
        assert read_strategy(spelling).strategy == name


@pytest.mark.parametrize("raw", [None, {}])
def test_without_a_choice_it_is_fedavg(raw: object) -> None:
    assert read_strategy(raw) == StrategyConfig()


def test_parameters_are_read_under_the_names_of_the_environment_too() -> None:
    seed = read_strategy({"FL_STRATEGY": "FedAdam", "FL_SERVER_LR": 0.03, "FL_CLIENT_LR": 0.1})

    assert seed == read_strategy({"strategy": "fedadam", "server_lr": 0.03, "client_lr": 0.1})


def test_a_parameter_that_is_given_twice_is_refused() -> None:
    with pytest.raises(BadField, match="trim_beta is given twice"):
        read_strategy({"FL_TRIM_BETA": 0.1, "trim_beta": 0.1})


def test_a_config_comes_back_from_its_json() -> None:
    config = read_strategy({"strategy": "FedTrimmedAvg", "trim_beta": 0.3, "pre_aggregation": "nnm", "clip": "median"})

    assert read_strategy(config.to_dict()) == config


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("strategy", "FedBest", "strategy must be one of FedAvg, FedProx, .* got 'FedBest'"),
        ("strategy", 3, "strategy must be one of"),
        ("proximal_mu", -0.1, "proximal_mu must be at least 0, got -0.1"),
        ("proximal_mu", float("nan"), "proximal_mu must be a finite number"),
        ("server_lr", 0, "server_lr must be above 0, got 0"),
        ("client_lr", -1, "client_lr must be above 0, got -1"),
        ("num_malicious", -1, "num_malicious must be from 0"),
        ("num_malicious", 1.0, "num_malicious must be a whole number"),
        ("num_malicious", True, "num_malicious must be a whole number"),
        ("trim_beta", 0.5, r"trim_beta must be above 0 and below 0\.5, got 0\.5"),
        ("trim_beta", 0, r"trim_beta must be above 0 and below 0\.5, got 0"),
        ("beta_1", 1, "beta_1 must be at least 0 and below 1"),
        ("beta_2", -0.5, "beta_2 must be at least 0 and below 1"),
        ("tau", 0, "tau must be above 0"),
        ("server_momentum", 1, "server_momentum must be at least 0 and below 1"),
        ("keep", 0, "keep must be from 1"),
        ("max_norm_ratio", 1, "max_norm_ratio must be above 1"),
        ("weighting", "claims", "weighting must be one of"),
        ("pre_aggregation", "bucketing", "pre_aggregation must be one of none, nnm"),
        ("clip", "fixed", "clip must be one of none, median"),
        ("trimm_beta", 0.1, "unknown field"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(member: str, value: object, message: str) -> None:
    with pytest.raises(BadField, match=message) as caught:
        read_strategy({member: value})

    assert caught.value.field == f"strategy_config.{member}"


@pytest.mark.parametrize(
    ("raw", "least"),
    [
        ({"strategy": "FedAvg"}, 1),
        ({"strategy": "FedMedian"}, 3),
        ({"strategy": "Krum", "num_malicious": 0}, 3),
        ({"strategy": "Krum", "num_malicious": 2}, 7),
        ({"strategy": "MultiKrum", "num_malicious": 3}, 9),
        ({"strategy": "Bulyan", "num_malicious": 2}, 11),
        ({"strategy": "FedTrimmedAvg", "trim_beta": 0.2}, 5),
        ({"strategy": "FedTrimmedAvg", "trim_beta": 0.1}, 10),
        ({"strategy": "FedTrimmedAvg", "trim_beta": 0.45}, 3),
        ({"strategy": "FedAvg", "pre_aggregation": "nnm", "num_malicious": 2}, 5),
        ({"strategy": "FedTrimmedAvg", "pre_aggregation": "nnm", "num_malicious": 4, "trim_beta": 0.3}, 9),
    ],
)
def test_a_quorum_below_the_rules_bound_is_refused_at_creation(raw: dict[str, Any], least: int) -> None:
    config = read_strategy(raw)

    assert fewest_updates(config) == least
    check_strategy(config, quorum=least, partition_strategy="random")
    with pytest.raises(BadField, match=rf"\b{least}\b") as caught:
        check_strategy(config, quorum=least - 1, partition_strategy="random")
    assert caught.value.field == "min_available_clients"


@pytest.mark.parametrize("partition", ["non_iid", "label_skew"])
@pytest.mark.parametrize("strategy", ["Krum", "Bulyan"])
def test_krum_on_uneven_data_warns(strategy: str, partition: str) -> None:
    config = read_strategy({"strategy": strategy, "num_malicious": 1})

    (warning,) = check_strategy(config, quorum=11, partition_strategy=partition)

    assert f"{strategy} follows few nodes and loses accuracy on {partition}" in warning
    assert check_strategy(config, quorum=11, partition_strategy="random") == []


@pytest.mark.parametrize(
    ("strategy", "ignored", "value"),
    [
        ("FedAvg", "proximal_mu", 0.1),
        ("FedAvg", "server_lr", 0.1),
        ("FedAvgM", "client_lr", 0.1),
        ("FedAdam", "num_malicious", 1),
        ("Krum", "trim_beta", 0.1),
        ("Krum", "keep", 2),
        ("FedMedian", "weighting", "samples"),
        ("FedYogi", "server_momentum", 0.5),
        ("FedAvgM", "tau", 0.5),
    ],
)
def test_a_parameter_of_another_rule_is_reported_as_ignored(strategy: str, ignored: str, value: object) -> None:
    config = read_strategy({"strategy": strategy, ignored: value})

    warnings = check_strategy(config, quorum=11, partition_strategy="random")

    assert any(line.startswith(f"{ignored} is ignored: it belongs to ") for line in warnings)


@pytest.mark.parametrize(
    "raw",
    [
        {"strategy": "FedAdam", "server_lr": 0.03, "client_lr": 0.1, "beta_1": 0.8, "beta_2": 0.9, "tau": 0.1},
        {"strategy": "FedTrimmedAvg", "trim_beta": 0.2, "pre_aggregation": "nnm", "num_malicious": 2},
        {"strategy": "MultiKrum", "num_malicious": 2, "keep": 3},
        {"strategy": "FedAvg", "weighting": "uniform", "clip": "median"},
    ],
)
def test_a_rules_own_parameters_pass_without_a_word(raw: dict[str, Any]) -> None:
    assert check_strategy(read_strategy(raw), quorum=11, partition_strategy="random") == []


def test_fedprox_says_who_must_add_the_proximal_term() -> None:
    config = read_strategy({"strategy": "FedProx", "proximal_mu": 0.5})

    assert config.mu == 0.5
    assert any("proximal term" in line for line in check_strategy(config, quorum=2, partition_strategy="random"))
    assert read_strategy({"strategy": "FedAvg", "proximal_mu": 0.5}).mu == 0


def test_multikrum_cannot_keep_more_than_the_honest() -> None:
    config = read_strategy({"strategy": "MultiKrum", "num_malicious": 2, "keep": 8})

    with pytest.raises(BadField, match="keep must be at most n - f = 7"):
        check_strategy(config, quorum=9, partition_strategy="random")


def test_mixing_needs_a_number_to_tolerate() -> None:
    with pytest.raises(BadField, match="pre_aggregation nnm needs num_malicious of at least 1"):
        check_strategy(read_strategy({"pre_aggregation": "nnm"}), quorum=5, partition_strategy="random")


def test_the_nodes_learning_rate_has_one_source() -> None:
    adam = read_strategy({"strategy": "FedAdam", "client_lr": 0.05})

    assert client_learning_rate(adam, None) == 0.05
    assert client_learning_rate(adam, 0.05) == 0.05
    assert client_learning_rate(read_strategy("FedAdam"), None) is None  # never defaulted
    assert client_learning_rate(read_strategy({"client_lr": 0.05}), 0.2) == 0.2  # FedAvg ignores it
    with pytest.raises(BadField, match=r"client_lr 0\.05 and learning_rate 0\.1 both say"):
        client_learning_rate(adam, 0.1)


def test_checking_a_choice_needs_no_numpy() -> None:
    script = "import sys, parity_fl.strategy; sys.exit('numpy' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("raw", "n", "borne"),
    [
        ({"strategy": "fedavg"}, 9, 0),
        ({"strategy": "fedavg", "num_malicious": 2}, 9, 0),  # it means nothing to it
        ({"strategy": "fedavg", "num_malicious": 2, "pre_aggregation": "nnm"}, 9, 2),
        ({"strategy": "krum", "num_malicious": 2}, 9, 2),
        ({"strategy": "bulyan", "num_malicious": 1}, 9, 1),
        ({"strategy": "fedtrimmedavg", "trim_beta": 0.25}, 9, 2),
        ({"strategy": "fedmedian"}, 9, 4),
        ({"strategy": "fedmedian"}, 4, 1),
    ],
)
def test_so_many_rejected_updates_are_not_missed_as_the_rule_outweighs(raw: dict[str, Any], n: int, borne: int) -> None:
    assert borne_updates(read_strategy(raw), n) == borne
