"""Federated sessions as the Parity network's client describes them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from parity_protocol.errors import BadField
from parity_protocol.parity_session import read_old_session
from parity_protocol.task import FederatedLearningSpec, parse_spec

CID = "QmPDMQkDoS6jiA6aJFQRpqtdnpbFD5zxn3CQQxMwQvjCHX"
BODY: dict[str, Any] = {
    "name": "lr1",
    "description": "",
    "model_type": "linear_regression",
    "total_rounds": 3,
    "min_participants": 4,
    "creator_address": "0x90F79bf6EB2c4f870365E785982E1f101E93b906",
    "training_data": {
        "dataset_cid": CID,
        "dataset_size": 3941,
        "data_format": "csv",
        "features": ["feature1"],
        "labels": ["label"],
        "split_strategy": "non_iid",
        "metadata": {"alpha": 0.5, "min_samples": 5, "overlap_ratio": 0},
    },
    "config": {
        "aggregation_method": "fedadam",
        "learning_rate": 0.01,
        "batch_size": 16,
        "local_epochs": 5,
        "client_selection": "random",
        "model_config": {"input_size": 4, "output_size": 1},
    },
}


def body(**changes: Any) -> dict[str, Any]:
    """Return the description with some members changed, those of its objects by ``object__name``; ... removes one."""
    found = json.loads(json.dumps(BODY))
    for path, value in changes.items():
        *places, name = path.split("__")
        inner = found
        for place in places:
            inner = inner[place]
        inner[name] = value
        if value is ...:
            del inner[name]
    return found


def spec(**changes: Any) -> FederatedLearningSpec:
    found = parse_spec(json.dumps(read_old_session(body(**changes)).spec))
    assert isinstance(found, FederatedLearningSpec)
    return found


def test_every_setting_arrives() -> None:
    found = spec()

    assert (found.title, found.model_type, found.dataset_cid, found.data_format) == (
        "lr1",
        "linear_regression",
        CID,
        "csv",
    )
    assert found.train_config == {"epochs": 5, "batch_size": 16, "learning_rate": 0.01}
    assert found.partition_config == {
        "strategy": "non_iid",
        "total_parts": 4,
        "alpha": 0.5,
        "min_samples": 5,
        "overlap_ratio": 0,
    }
    assert found.strategy_config == {"strategy": "fedadam"}
    assert found.rounds_config["min_available_clients"] == 4
    assert found.model_settings == {"input_size": 4, "standardize": False}
    assert found.total_rounds == 3


def test_nobody_is_two_participants() -> None:
    assert spec(min_participants=0).partition_config["total_parts"] == 2
    assert spec(min_participants=...).partition_config["total_parts"] == 2


def test_a_training_parameter_of_zero_is_missing() -> None:
    assert spec(config__learning_rate=0, config__batch_size=...).train_config == {"epochs": 5}


def test_privacy_is_asked_for_under_the_same_names() -> None:
    asked = {"differential_privacy": True, "noise_multiplier": 1.1, "l2_norm_clip": 0.5, "secure_aggregation": False}

    assert spec(config__privacy_config=asked).privacy == {
        "differential_privacy": True,
        "noise_multiplier": 1.1,
        "l2_norm_clip": 0.5,
    }
    assert spec(config__privacy_config={"differential_privacy": False, "noise_multiplier": 0}).privacy == {}
    assert read_old_session(body(config__privacy_config=asked)).config["privacy_config"] == asked


def test_a_forest_has_neither_rounds_nor_a_rule() -> None:
    found = spec(
        model_type="random_forest",
        total_rounds=1,
        config__model_config={"num_trees": 10},
        config__aggregation_method="fedavg",
    )

    assert (found.strategy_config, found.rounds_config, found.model_settings) == ({}, {}, {"num_trees": 10})


def test_the_address_is_kept_as_it_was_written_and_compared_in_lower_case() -> None:
    found = read_old_session(body())

    assert found.creator == BODY["creator_address"].lower()
    assert found.creator_address == BODY["creator_address"]


def test_what_the_old_server_does_not_know_is_passed_over() -> None:
    assert read_old_session(body(colour="red", config__colour="red")).spec == read_old_session(body()).spec


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": 7}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"model_type": ...}, "model_type"),
        ({"total_rounds": 0}, "total_rounds"),
        ({"total_rounds": 1.5}, "total_rounds"),
        ({"total_rounds": True}, "total_rounds"),
        ({"min_participants": -1}, "min_participants"),
        ({"creator_address": "me"}, "creator_address"),
        ({"creator_address": ...}, "creator_address"),
        ({"training_data": ...}, "training_data"),
        ({"training_data": []}, "training_data"),
        ({"training_data__dataset_cid": ""}, "training_data.dataset_cid"),
        ({"training_data__metadata": [1]}, "training_data.metadata"),
        ({"config": {}}, "config"),
        ({"config__model_config": {}}, "config.model_config"),
        ({"config__client_selection": "best"}, "config.client_selection"),
        ({"config__privacy_config": [True]}, "config.privacy_config"),
        ({"model_type": "random_forest", "config__aggregation_method": "krum"}, "config.aggregation_method"),
    ],
)
def test_what_is_missing_or_has_no_meaning_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as caught:
        read_old_session(body(**changes))

    assert caught.value.field == field


@pytest.mark.parametrize("document", [None, [], "x", 1])
def test_what_is_no_object_is_refused(document: object) -> None:
    with pytest.raises(BadField):
        read_old_session(document)
