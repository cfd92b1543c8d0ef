"""A submitted session's rule, checked against its rounds and its training parameters."""

from __future__ import annotations

from typing import Any

import pytest

from parity_fl.rounds_config import read_rounds, session_strategy
from parity_protocol.errors import BadField


def checked(session: dict[str, Any], *, parts: int = 11, **rounds: Any) -> Any:
    config = read_rounds(rounds, total_rounds=3, parts=parts)
    return session_strategy(session, config, partition_strategy="random")


def test_the_quorum_must_carry_the_rule() -> None:
    session = {"strategy_config": {"strategy": "Bulyan", "num_malicious": 2}}

    strategy, warnings = checked(session, quorum=11)

    assert (strategy.strategy, warnings) == ("bulyan", [])
    with pytest.raises(BadField, match=r"Bulyan needs n >= 4f \+ 3 = 11 updates .* close with 8 updates"):
        checked(session)  # two thirds of 11


def test_a_session_that_says_nothing_is_fedavg() -> None:
    assert checked({})[0].strategy == "fedavg"
    assert checked({"strategy_config": {}})[0].strategy == "fedavg"


def test_two_learning_rates_that_differ_are_refused() -> None:
    adam = {"strategy": "FedAdam", "client_lr": 0.05}

    assert checked({"strategy_config": adam, "train_config": {"learning_rate": 0.05}})[0].client_lr == 0.05
    with pytest.raises(BadField, match="both say how nodes train"):
        checked({"strategy_config": adam, "train_config": {"learning_rate": 0.1}})


@pytest.mark.parametrize("training", [None, [], {}, {"learning_rate": "0.1"}])
def test_wrong_training_parameters_are_left_to_their_own_check(training: object) -> None:
    checked({"strategy_config": {"strategy": "FedAdam", "client_lr": 0.05}, "train_config": training})
