"""Privacy switches of sessions at the market: refused at creation in words, joined to the rounds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from parity_fl.settings import FlSettings
from parity_market.domain.federation import new_session
from parity_protocol.errors import BadField
from parity_protocol.task import FederatedLearningSpec, parse_spec

SECURE = {"secure_aggregation": True}
NOISY = {"differential_privacy": True, "noise_multiplier": 1.0, "l2_norm_clip": 1.0}


def order(parts: int = 4, **members: Any) -> FederatedLearningSpec:
    spec = parse_spec(
        json.dumps(
            {
                "type": "federated_learning",
                "model_type": "neural_network",
                "data_mode": "sharded",
                "data_format": "csv",
                "shards": [f"{part:064x}" for part in range(parts)],
                "train_config": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
                "total_rounds": 2,
                **members,
            }
        )
    )
    assert isinstance(spec, FederatedLearningSpec)
    return spec


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"privacy": SECURE, "strategy_config": {"strategy": "Krum"}}, "Krum compares single updates"),
        ({"privacy": NOISY, "strategy_config": {"strategy": "FedMedian"}}, "needs a rule that is a mean"),
        ({"privacy": NOISY, "rounds_config": {"fraction": 0.5}}, "needs fraction 1"),
        ({"privacy": {"noise_multiplier": 1.0}}, "does nothing while differential_privacy is off"),
        ({"privacy": SECURE, "engine": "flower"}, "engine flower carries plain updates"),
        (
            {"privacy": SECURE, "data_mode": "partitioned", "shards": [], "dataset_cid": "bafy"},
            "privacy needs data_mode sharded",
        ),
        (
            {
                "privacy": SECURE,
                "data_mode": "partitioned",
                "shards": [],
                "dataset_cid": "bafy",
                "model_type": "random_forest",
                "total_rounds": 1,
            },
            "privacy needs data_mode sharded",
        ),
    ],
)
def test_an_impossible_session_is_refused_at_creation_in_words(members: dict[str, Any], said: str) -> None:
    with pytest.raises(BadField, match=said):
        new_session(order(**members), "00" * 32, FlSettings())


@pytest.mark.parametrize("privacy", [SECURE, NOISY, {**SECURE, **NOISY}])
def test_a_private_session_is_taken_and_its_switches_are_in_the_settings(privacy: dict[str, Any]) -> None:
    made = new_session(order(privacy=privacy), "00" * 32, FlSettings())

    assert made.spec.privacy.to_dict() == privacy


def test_the_networks_name_of_the_setting_is_read() -> None:
    spec = order(privacy_config=SECURE)

    assert spec.privacy == SECURE
    assert spec.session()["privacy"] == SECURE
