"""The ``FL_*`` names: read, checked together, and filled in where a session says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_fl.settings import FlSettings, load_fl_settings
from parity_protocol.errors import BadField, ConfigInvalid


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.chdir(tmp_path)
    for name in FlSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def test_without_anything_said_it_is_three_rounds_of_fedavg_without_checkpoints(
    environment: pytest.MonkeyPatch,
) -> None:
    found = load_fl_settings()

    assert found.fl_strategy == "FedAvg"
    assert (found.fl_num_rounds, found.fl_min_available_clients) == (3, 2)
    assert not found.fl_checkpoint_enabled
    assert found.fl_checkpoint_interval == 5
    assert found.notes() == []


def test_each_name_is_read(environment: pytest.MonkeyPatch) -> None:
    for name, value in {
        "FL_STRATEGY": "fedadam",
        "FL_NUM_ROUNDS": "20",
        "FL_MIN_AVAILABLE_CLIENTS": "4",
        "FL_SERVER_LR": "0.03",
        "FL_CLIENT_LR": "0.1",
        "FL_CHECKPOINT_ENABLED": "YES",
        "FL_CHECKPOINT_PATH": "/var/lib/checkpoints",
        "FL_CHECKPOINT_INTERVAL": "2",
    }.items():
        environment.setenv(name, value)

    found = load_fl_settings()

    assert found.fl_strategy == "FedAdam"
    assert (found.strategy().server_lr, found.strategy().client_lr) == (0.03, 0.1)
    assert found.fl_checkpoint_enabled
    assert found.fl_checkpoint_path == Path("/var/lib/checkpoints")
    assert (found.fl_num_rounds, found.fl_min_available_clients, found.fl_checkpoint_interval) == (20, 4, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"FL_STRATEGY": "FedBest"}, "must be one of FedAvg"),
        ({"FL_PROXIMAL_MU": "-1"}, "proximal_mu must be at least 0"),
        ({"FL_SERVER_LR": "0"}, "server_lr must be above 0"),
        ({"FL_CLIENT_LR": "0"}, "client_lr must be above 0"),
        ({"FL_NUM_MALICIOUS": "-1"}, "num_malicious must be from 0"),
        ({"FL_TRIM_BETA": "0.5"}, "trim_beta must be above 0 and below 0.5"),
        ({"FL_CHECKPOINT_KEEP": "0"}, "greater than or equal to 1"),
        ({"FL_CHECKPOINT_INTERVAL": "0"}, "greater than or equal to 1"),
        ({"FL_CHECKPOINT_ENABLED": "perhaps"}, "boolean"),
        (
            {"FL_STRATEGY": "Krum", "FL_NUM_MALICIOUS": "2", "FL_MIN_AVAILABLE_CLIENTS": "6"},
            "FL_STRATEGY Krum needs FL_MIN_AVAILABLE_CLIENTS of at least 7, got 6",
        ),
        (
            {"FL_STRATEGY": "Bulyan", "FL_NUM_MALICIOUS": "2", "FL_MIN_AVAILABLE_CLIENTS": "10"},
            "FL_STRATEGY Bulyan needs FL_MIN_AVAILABLE_CLIENTS of at least 11, got 10",
        ),
    ],
)
def test_a_mistake_is_named(environment: pytest.MonkeyPatch, values: dict[str, str], message: str) -> None:
    for name, value in values.items():
        environment.setenv(name, value)

    with pytest.raises(ConfigInvalid) as caught:
        load_fl_settings()

    assert message in str(caught.value)


def test_all_mistakes_are_named_at_once(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("FL_TRIM_BETA", "0.7")
    environment.setenv("FL_NUM_ROUNDS", "0")

    with pytest.raises(ConfigInvalid) as caught:
        load_fl_settings()

    assert "FL_TRIM_BETA" in str(caught.value)
    assert "FL_NUM_ROUNDS" in str(caught.value)


def test_a_parameter_of_another_rule_is_noted_by_its_name(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("FL_TRIM_BETA", "0.1")

    (note,) = load_fl_settings().notes()

    assert note == "FL_TRIM_BETA is ignored: it belongs to FedTrimmedAvg, not to FedAvg"


def test_krum_on_uneven_data_is_noted(environment: pytest.MonkeyPatch) -> None:
    found = load_fl_settings(fl_strategy="Krum", fl_num_malicious=1, fl_min_available_clients=5)

    assert any("non_iid" in note for note in found.notes(partition_strategy="non_iid"))


def test_a_sessions_own_members_win_and_the_rest_is_filled_in(environment: pytest.MonkeyPatch) -> None:
    found = load_fl_settings(fl_strategy="FedTrimmedAvg", fl_trim_beta=0.3, fl_min_available_clients=5)

    assert found.strategy({}).trim_beta == 0.3
    assert found.strategy({"trim_beta": 0.1}).trim_beta == 0.1
    assert found.strategy({"FL_TRIM_BETA": 0.1}).trim_beta == 0.1
    assert found.strategy({"strategy": "FedMedian"}).trim_beta is None
    assert found.strategy({"FL_STRATEGY": "FedMedian"}).strategy == "fedmedian"
    with pytest.raises(BadField, match="trim_beta"):
        found.strategy({"trim_beta": 0.9})
