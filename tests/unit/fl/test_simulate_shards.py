"""A sharded session in one process: the same as a market and its nodes make of it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from parity_fl.session import resolve_session
from parity_fl.simulate_shards import simulate_shards
from parity_fl.simulation_report import RoundRecord
from parity_fl.spec import FlSpec
from parity_fl.strategy import StrategyConfig
from parity_protocol.errors import BadField

SEED = "3" * 64


def shards(rows: int = 500, parts: int = 4) -> list[bytes]:
    found = load_digits()
    owner = (found.target[:rows] + np.arange(rows) // 5) % parts
    made = []
    for part in range(parts):
        mine = owner == part
        lines = [",".join([*(f"p{at}" for at in range(64)), "target"])]
        lines += [
            ",".join([*(f"{value:g}" for value in row), str(label)])
            for row, label in zip(found.data[:rows][mine], found.target[:rows][mine], strict=True)
        ]
        made.append(("\n".join(lines) + "\n").encode())
    return made


def settings(parts: int = 4, **changes: object) -> FlSpec:
    members: dict[str, object] = {
        "data_mode": "sharded",
        "shards": ["0" * 64] * parts,
        "model_type": "neural_network",
        "data_format": "csv",
        "model_config": {"hidden_size": 16},
        "train_config": {"epochs": 4, "batch_size": 16, "learning_rate": 0.1},
        **changes,
    }
    return resolve_session(members, session_id="s", round_id="r")


def test_shards_learn_together_and_every_round_is_told() -> None:
    seen: list[RoundRecord] = []

    report = simulate_shards(settings(), shards(), seed=SEED, rounds=8, on_round=seen.append)

    assert report.accuracy is not None
    assert report.accuracy > 0.8
    assert [one.number for one in report.rounds] == list(range(1, 9))
    assert tuple(seen) == report.rounds
    assert report.rounds[-1].scores["accuracy"] == report.accuracy
    assert report.rounds[-1].train_loss is not None
    assert report.rounds[-1].train_loss < (report.rounds[0].train_loss or 0)
    told = report.to_dict()
    assert told["partition"]["strategy"] == "sharded"
    assert sum(told["partition"]["part_sizes"]) + told["partition"]["holdout_size"] == 500


def test_the_same_seed_gives_the_same_model_and_another_one_another() -> None:
    first, again = (simulate_shards(settings(), shards(200), seed=SEED, rounds=2) for _ in range(2))
    other = simulate_shards(settings(), shards(200), seed="4" * 64, rounds=2)

    assert first.model == again.model
    assert first.model_hash != other.model_hash
    assert first.to_dict()["assignment_hash"] == again.to_dict()["assignment_hash"]


def test_a_fraction_of_the_shards_is_asked_in_a_round() -> None:
    report = simulate_shards(settings(), shards(200), seed=SEED, rounds=4, fraction=0.5)

    assert {len(one.cohort) for one in report.rounds} == {2}
    assert len({one.cohort for one in report.rounds}) > 1


@pytest.mark.parametrize("mode", ["union", "histogram"])
def test_a_forest_is_made_of_shards_in_one_round(mode: str) -> None:
    spec = settings(
        model_type="random_forest", model_config={"mode": mode, "num_trees": 8, "max_depth": 6}, train_config={}
    )

    report = simulate_shards(spec, shards(), seed=SEED)

    assert report.strategy == mode
    assert report.accuracy is not None
    assert report.accuracy > 0.6
    with pytest.raises(BadField, match="rounds must be from 1 to 1"):
        simulate_shards(spec, shards(), seed=SEED, rounds=2)


def test_what_people_should_know_of_the_rule_is_told() -> None:
    rule = StrategyConfig("krum", num_malicious=1)

    with pytest.raises(BadField):
        simulate_shards(settings(), shards(200), seed=SEED, rounds=1, strategy=rule)


def test_a_shard_that_does_not_fit_is_named_and_nothing_is_simulated_without_it() -> None:
    narrow = b"p0,target\n" + b"1,0\n2,1\n" * 10

    with pytest.raises(BadField, match="part 3: does_not_fit: its columns number 1, those of most parts 64"):
        simulate_shards(settings(), [*shards()[:3], narrow], seed="ab" * 32)
