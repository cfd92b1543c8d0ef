"""What holds of the ``FL_*`` names: the session's word, else the market's variable, else the documented default."""

from __future__ import annotations

from typing import Any

import pytest

from parity_fl.defaults import filled, read_resolved, resolve_defaults
from parity_fl.session import resolve_session
from parity_fl.settings import FlSettings
from parity_protocol.errors import BadField

NETWORK: dict[str, Any] = {
    "model_type": "neural_network",
    "dataset_cid": "bafy",
    "data_format": "csv",
    "model_config": {"hidden_size": 4},
    "train_config": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
    "partition_config": {"strategy": "random", "total_parts": 5, "min_samples": 1},
    "rounds_config": {},
    "strategy_config": {},
}


def market(**given: Any) -> FlSettings:
    """Return an operator's settings; nothing comes from this machine."""
    return FlSettings(_env_file=None, **given)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FlSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_what_nobody_says_is_the_documented_default() -> None:
    assert resolve_defaults(NETWORK, market(), parts=5) == {
        "FL_STRATEGY": ("FedAvg", "default"),
        "FL_NUM_ROUNDS": (3, "default"),
        "FL_MIN_AVAILABLE_CLIENTS": (2, "default"),
    }


def test_the_markets_variables_hold_where_the_session_says_nothing() -> None:
    found = resolve_defaults(
        NETWORK,
        market(fl_strategy="FedProx", fl_num_rounds=20, fl_min_available_clients=4, fl_proximal_mu=0.3),
        parts=5,
    )

    assert found == {
        "FL_STRATEGY": ("FedProx", "market"),
        "FL_PROXIMAL_MU": (0.3, "market"),
        "FL_NUM_ROUNDS": (20, "market"),
        "FL_MIN_AVAILABLE_CLIENTS": (4, "market"),
    }
    made = filled(NETWORK, found)
    assert made["strategy_config"] == {"strategy": "FedProx", "proximal_mu": 0.3}
    assert (made["total_rounds"], made["rounds_config"]) == (20, {"min_available_clients": 4})


def test_what_the_session_says_wins_over_the_market() -> None:
    session = {
        **NETWORK,
        "total_rounds": 2,
        "rounds_config": {"min_available_clients": 1},
        "strategy_config": {"FL_STRATEGY": "fedtrimmedavg", "trim_beta": 0.25},
    }
    found = resolve_defaults(
        session,
        market(fl_strategy="FedProx", fl_num_rounds=20, fl_trim_beta=0.4, fl_min_available_clients=4),
        parts=5,
    )

    assert found == {
        "FL_STRATEGY": ("FedTrimmedAvg", "session"),
        "FL_TRIM_BETA": (0.25, "session"),
        "FL_NUM_ROUNDS": (2, "session"),
        "FL_MIN_AVAILABLE_CLIENTS": (1, "session"),
    }
    made = filled(session, found)
    assert {**made, "strategy_config": session["strategy_config"]} == session


def test_a_variable_of_another_rule_is_not_filled_in() -> None:
    session = {**NETWORK, "strategy_config": {"strategy": "FedAdam", "client_lr": 0.1}}

    found = resolve_defaults(session, market(fl_trim_beta=0.4, fl_server_lr=0.02), parts=5)

    assert found["FL_SERVER_LR"] == (0.02, "market")
    assert "FL_TRIM_BETA" not in found


def test_a_session_of_fewer_parts_waits_for_all_of_them_and_no_more() -> None:
    assert resolve_defaults(NETWORK, market(fl_min_available_clients=9), parts=3)["FL_MIN_AVAILABLE_CLIENTS"][0] == 3


def test_the_markets_client_rate_is_the_nodes_where_the_session_names_none() -> None:
    session = {**NETWORK, "train_config": {"epochs": 1, "batch_size": 8}, "strategy_config": {"strategy": "FedAdam"}}
    settings = resolve_defaults(session, market(fl_client_lr=0.05), parts=5)

    assert settings["FL_CLIENT_LR"] == (0.05, "market")
    spec = resolve_session(session, session_id="s", round_id="1", settings=settings)
    assert spec.train is not None
    assert spec.train.learning_rate == 0.05


def test_the_markets_client_rate_does_not_contradict_a_learning_rate() -> None:
    session = {**NETWORK, "strategy_config": {"strategy": "FedAdam"}}

    assert "FL_CLIENT_LR" not in resolve_defaults(session, market(fl_client_lr=0.05), parts=5)


@pytest.mark.parametrize(
    "session",
    [
        {**NETWORK, "model_type": "random_forest", "model_config": {}},
        {**NETWORK, "model_type": "random_forest", "model_config": {"mode": "histogram"}},
        {**NETWORK, "model_type": "linear_regression", "model_config": {"input_size": 2}},
    ],
)
def test_a_model_that_is_made_at_once_is_left_as_it_is(session: dict[str, Any]) -> None:
    found = resolve_defaults(session, market(fl_num_rounds=20, fl_strategy="FedProx"), parts=5)

    assert found == {}
    assert filled(session, found) == session


def test_a_plan_does_not_overrule_what_was_signed() -> None:
    for name, value in (("FL_STRATEGY", "FedAvg"), ("FL_NUM_ROUNDS", 9), ("FL_MIN_AVAILABLE_CLIENTS", 1)):
        session = {
            **NETWORK,
            "total_rounds": 2,
            "strategy_config": {"strategy": "Krum"},
            "rounds_config": {"min_available_clients": 5},
        }
        with pytest.raises(BadField, match=f"fills in {name}, which the session says itself"):
            filled(session, {name: (value, "market")})


@pytest.mark.parametrize(
    "raw",
    [
        [],
        {"FL_EPOCHS": [1, "market"]},
        {"FL_STRATEGY": "FedAvg"},
        {"FL_STRATEGY": ["FedAvg"]},
        {"FL_STRATEGY": ["FedAvg", "somebody"]},
        {"FL_NUM_ROUNDS": [True, "market"]},
        {"FL_NUM_ROUNDS": [[1], "market"]},
    ],
)
def test_settings_of_a_plan_that_are_none_are_refused(raw: object) -> None:
    with pytest.raises(BadField):
        read_resolved(raw)
