"""A federation in one process: the same results as market and nodes, attackers, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LinearRegression

from parity_fl.attacks import ATTACKS, Attack, parse_attack
from parity_fl.contribution import Method
from parity_fl.models import weights_digest
from parity_fl.partition import rows_of_part
from parity_fl.privacy.accountant import epsilon_of, rdp_of_gaussian
from parity_fl.privacy.combinations import WAIVED
from parity_fl.privacy.config import read_privacy
from parity_fl.round_bodies import decode_weights, encode_weights
from parity_fl.rounds import Reduced, RoundServer, RoundTrainer
from parity_fl.rounds_config import UpdateFormat
from parity_fl.runner import finish, plan_session, train
from parity_fl.session import resolve_session
from parity_fl.simulate import simulate
from parity_fl.spec import FlSpec, ForestConfig
from parity_fl.strategy import StrategyConfig
from parity_fl.table import Table
from parity_fl.training import SessionModel
from parity_protocol.errors import BadField, ExecutionFailed, Internal

from .conftest import to_csv

SEED = "5" * 64
SOME = load_digits()
DIGITS = to_csv(SOME.data[:700], SOME.target[:700], [f"p{i}" for i in range(64)])
ROBUST = StrategyConfig(strategy="fedtrimmedavg", pre_aggregation="nnm", num_malicious=2)


def random_bytes(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def network(parts: int = 4, *, strategy: str = "random", **partition: Any) -> FlSpec:
    members = {
        "model_type": "neural_network",
        "dataset_cid": "x",
        "data_format": "csv",
        "model_config": {"hidden_size": 16},
        "train_config": {"epochs": 2, "batch_size": 16, "learning_rate": 0.1},
        "partition_config": {"strategy": strategy, "total_parts": parts, "min_samples": 5, **partition},
    }
    return resolve_session(members, session_id="s", round_id="r")


def linear(parts: int = 3, **model: Any) -> FlSpec:
    members = {
        "model_type": "linear_regression",
        "dataset_cid": "x",
        "data_format": "csv",
        "model_config": {"input_size": 10, **model},
        "train_config": {"epochs": 5, "batch_size": 16, "learning_rate": 0.05},
        "partition_config": {"strategy": "random", "total_parts": parts, "min_samples": 5},
    }
    return resolve_session(members, session_id="s", round_id="r")


def forest(parts: int = 3) -> FlSpec:
    members = {
        "model_type": "random_forest",
        "dataset_cid": "x",
        "data_format": "csv",
        "model_config": {"num_trees": 9, "max_depth": 6},
        "partition_config": {"strategy": "non_iid", "alpha": 0.5, "total_parts": parts, "min_samples": 5},
    }
    return resolve_session(members, session_id="s", round_id="r")


def test_a_simulation_ends_with_the_weights_that_market_and_nodes_make() -> None:
    spec, strategy = network(), StrategyConfig(strategy="fedadam", server_lr=0.05)
    plan = plan_session(spec, DIGITS, SEED)
    server = RoundServer(spec, plan, DIGITS, strategy)
    nodes = [RoundTrainer(spec, plan, DIGITS, part) for part in range(4)]
    file, state = encode_weights(SessionModel.load(spec, plan, DIGITS).first()), None
    for number in (1, 2, 3):
        made = [node.train(file, number=number).update for node in nodes]
        bodies = {part: partial(made.__getitem__, part) for part in range(4)}
        reduced = server.reduce(file, state, bodies, number=number)
        file, state = reduced.model, reduced.state
    shapes = SessionModel.load(spec, plan, DIGITS).model.shapes()

    report = simulate(spec, DIGITS, seed=SEED, strategy=strategy, rounds=3)

    assert report.model_hash == weights_digest(decode_weights(file, shapes))
    assert report.accuracy == reduced.metrics["accuracy"]


def test_a_simulation_of_halved_models_ends_with_the_weights_that_market_and_nodes_make(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("parity_fl.codec._HALVED_BYTES", 1)
    spec = network()
    plan = plan_session(spec, DIGITS, SEED)
    server = RoundServer(spec, plan, DIGITS, StrategyConfig())
    nodes = [RoundTrainer(spec, plan, DIGITS, part) for part in range(4)]
    file, state = server.first(), None
    for number in (1, 2, 3):
        sent = server.sent(file, "fp16")
        assert len(sent) < len(file)
        made = [node.train(sent, number=number, update_format="fp16").update for node in nodes]
        bodies = {part: partial(made.__getitem__, part) for part in range(4)}
        reduced = server.reduce(file, state, bodies, number=number)
        assert isinstance(reduced, Reduced)
        file, state = reduced.model, reduced.state

    report = simulate(spec, DIGITS, seed=SEED, rounds=3, update_format="fp16")

    assert report.model_hash == weights_digest(
        decode_weights(file, SessionModel.load(spec, plan, DIGITS).model.shapes())
    )
    monkeypatch.undo()
    assert simulate(spec, DIGITS, seed=SEED, rounds=3, update_format="fp16").model_hash != report.model_hash


def test_updates_too_small_for_16_bits_of_the_model_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity_fl.codec._HALVED_BYTES", 1)
    spec = network()
    assert spec.train is not None
    spec = replace(spec, train=replace(spec.train, learning_rate=1e-5))

    halved = simulate(spec, DIGITS, seed=SEED, rounds=30, update_format="fp16")
    exact = simulate(spec, DIGITS, seed=SEED, rounds=30)

    first, last = (exact.rounds[at].scores["loss"] for at in (0, -1))
    assert halved.rounds[-1].scores["loss"] - last < 0.1 * (first - last)


def test_one_node_is_central_training() -> None:
    spec = network(1)
    session = SessionModel.load(spec, plan_session(spec, DIGITS, SEED), DIGITS)
    weights = session.first()
    for number in (1, 2):
        delta = session.train(0, weights, number).delta
        weights = {name: (weights[name] + delta[name].astype(np.float64)).astype(np.float32) for name in weights}

    report = simulate(spec, DIGITS, seed=SEED, rounds=2)

    assert report.model_hash == weights_digest(weights)


def test_a_report_is_json_and_the_same_again() -> None:
    first, second, other = (
        json.dumps(simulate(network(), DIGITS, seed=seed, rounds=2).to_dict(), allow_nan=False)
        for seed in (SEED, SEED, "6" * 64)
    )

    assert first == second
    told = json.loads(first)
    assert [each["round"] for each in told["rounds"]] == [1, 2]
    assert told["accuracy"] == told["rounds"][-1]["accuracy"]
    assert told["assignment_hash"] == plan_session(network(), DIGITS, SEED).assignment_hash
    assert told["model_hash"] != json.loads(other)["model_hash"]
    assert told["partition"]["part_sizes"] == [140] * 4


def test_rounds_are_told_as_they_happen() -> None:
    seen: list[int] = []

    simulate(network(), DIGITS, seed=SEED, rounds=3, on_round=lambda record: seen.append(record.number))

    assert seen == [1, 2, 3]


def test_more_rounds_learn_more() -> None:
    report = simulate(network(), DIGITS, seed=SEED, rounds=8)

    accuracies = [record.scores["accuracy"] for record in report.rounds]
    assert accuracies[-1] > max(0.88, accuracies[0] + 0.05)
    losses = [record.train_loss for record in report.rounds]
    assert all(after < before for before, after in pairwise(losses))


def test_a_fraction_of_the_nodes_is_asked_and_not_always_the_same() -> None:
    report = simulate(network(10), DIGITS, seed=SEED, rounds=6, fraction=0.3)

    cohorts = [record.cohort for record in report.rounds]
    assert {len(cohort) for cohort in cohorts} == {3}
    assert len(set(cohorts)) > 1


@pytest.mark.parametrize("update_format", ["fp16", "int8"])
def test_short_formats_of_updates_change_little(update_format: Any) -> None:
    exact = simulate(network(), DIGITS, seed=SEED, rounds=5)

    short = simulate(network(), DIGITS, seed=SEED, rounds=5, update_format=update_format)

    assert short.accuracy == pytest.approx(exact.accuracy, abs=0.015)


# -- one round ------------------------------------------------------------------------------------------------------


def test_a_forest_is_what_nodes_and_market_make_of_it() -> None:
    spec = forest()
    plan = plan_session(spec, DIGITS, SEED)
    made = finish(spec, plan, DIGITS, [train(spec, plan, DIGITS, part).update_bytes for part in range(3)])

    report = simulate(spec, DIGITS, seed=SEED)

    assert report.accuracy == made.metrics["accuracy"]
    assert report.scores["oob_federated"] == made.metrics["oob_federated"]
    assert report.scores["holdout"] == report.scores["accuracy"] == made.metrics["holdout"]
    assert report.to_dict()["feature_importance"] == made.metrics["feature_importance"]
    assert report.strategy == "union"
    assert len(report.rounds) == 1


def test_a_histogram_forest_of_many_nodes_is_that_of_one() -> None:
    def grown(parts: int) -> FlSpec:
        spec = forest(parts)
        assert isinstance(spec.model, ForestConfig)
        return replace(spec, model=replace(spec.model, mode="histogram"))

    one, four = (simulate(grown(parts), DIGITS, seed=SEED) for parts in (1, 4))

    assert one.model_hash == four.model_hash
    assert one.scores == four.scores
    assert four.accuracy > 0.75
    assert four.rounds[0].metrics["phases"] > 3


def test_counting_leaves_again_repairs_a_forest_of_unlike_parts() -> None:
    spec = forest(5)
    assert isinstance(spec.model, ForestConfig)

    union = simulate(spec, DIGITS, seed=SEED)
    refit = simulate(replace(spec, model=replace(spec.model, mode="leaf_refit")), DIGITS, seed=SEED)

    assert refit.strategy == "leaf_refit"
    assert refit.accuracy > union.accuracy
    assert refit.rounds[0].metrics["phases"] == 3
    assert sum(refit.feature_importance.values()) == pytest.approx(1)


def test_the_exact_solver_is_least_squares_on_all_training_rows(diabetes: bytes) -> None:
    spec = linear(solver="exact")
    plan = plan_session(spec, diabetes, SEED)
    held = Table.load(spec, plan, diabetes).assignment.holdout
    features, target = load_diabetes(return_X_y=True)
    kept = np.setdiff1d(np.arange(len(target)), held)
    central = LinearRegression().fit(features[kept], target[kept])

    report = simulate(spec, diabetes, seed=SEED)

    assert report.r2 == pytest.approx(central.score(features[held], target[held]), abs=1e-9)
    assert report.strategy == "exact"


def test_linear_regression_in_rounds_comes_near_least_squares(diabetes: bytes) -> None:
    exact = simulate(linear(solver="exact"), diabetes, seed=SEED)

    stepwise = simulate(linear(), diabetes, seed=SEED, rounds=10)

    assert stepwise.r2 == pytest.approx(exact.r2, abs=0.03)
    assert stepwise.accuracy is None


# -- attackers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nan", "inf", "scale"])
def test_an_update_out_of_bounds_is_rejected_by_name_and_the_model_is_that_of_the_others(name: str) -> None:
    report = simulate(network(5), DIGITS, seed=SEED, rounds=4, attack=Attack(name))

    (bad,) = report.malicious
    assert all(set(record.rejected) == {bad} for record in report.rounds)
    assert report.accuracy > 0.8


@pytest.mark.parametrize("update_format", ["fp32", "int8"])
def test_who_copies_is_refused_and_whom_it_copied_is_in_the_model(update_format: UpdateFormat) -> None:
    attack = Attack("copy", 2)
    report = simulate(network(5), DIGITS, seed=SEED, rounds=4, attack=attack, update_format=update_format)

    honest = tuple(sorted(set(range(5)) - set(report.malicious)))
    for record in report.rounds:
        assert record.accepted == honest
        assert {reason.partition(":")[0] for reason in record.rejected.values()} == {"duplicate"}
        assert set(record.rejected) == set(report.malicious)


@pytest.mark.parametrize("name", ["sign_flip", "sign_flip_x5", "noise", "label_flip"])
def test_mixing_and_trimming_outlive_two_of_eleven(name: str) -> None:
    spec = network(11)

    report = simulate(spec, DIGITS, seed=SEED, rounds=8, strategy=ROBUST, attack=Attack(name, 2))

    clean = simulate(spec, DIGITS, seed=SEED, rounds=8, strategy=ROBUST)
    assert len(report.malicious) == 2
    assert report.accuracy > clean.accuracy - 0.06


def test_averaging_does_not_outlive_a_fivefold_opposite() -> None:
    report = simulate(network(11), DIGITS, seed=SEED, rounds=8, attack=Attack("sign_flip_x5", 2))

    assert report.accuracy < 0.6


@pytest.mark.parametrize("method", ["leave_one_out", "shapley"])
def test_a_malicious_node_contributes_less_than_any_honest_one(method: Method) -> None:
    report = simulate(network(5), DIGITS, seed=SEED, rounds=3, attack=Attack("sign_flip"), contribution=method)

    (bad,) = report.malicious
    for record in report.rounds:
        assert set(record.contributions) == set(range(5))
        assert min(record.contributions, key=record.contributions.__getitem__) == bad


def test_the_seed_decides_who_is_malicious() -> None:
    chosen = {Attack("nan", 2).attackers(10, f"{seed:064x}") for seed in range(20)}

    assert len(chosen) > 10
    assert all(len(each) == 2 and each <= set(range(10)) for each in chosen)


def test_noise_is_ten_times_as_long_as_the_update_and_follows_from_seed_round_and_part() -> None:
    delta = {"a": np.full((3, 50), 0.5, dtype=np.float32), "b": np.ones(7, dtype=np.float32)}

    noise = Attack("noise").update(delta, seed=SEED, number=1, part=2)

    def length(update: dict[str, np.ndarray]) -> float:
        return float(np.sqrt(sum((tensor.astype(float) ** 2).sum() for tensor in update.values())))

    assert length(noise) == pytest.approx(10 * length(delta), rel=1e-5)
    again = Attack("noise").update(delta, seed=SEED, number=1, part=2)
    other = Attack("noise").update(delta, seed=SEED, number=2, part=2)
    assert all(np.array_equal(noise[name], again[name]) for name in delta)
    assert not np.array_equal(noise["a"], other["a"])
    assert noise["a"].shape == (3, 50)


@pytest.mark.parametrize(
    ("text", "attack"), [("nan", Attack("nan", 1)), ("sign_flip_x5:12", Attack("sign_flip_x5", 12))]
)
def test_an_attack_is_written_as_name_and_count(text: str, attack: Attack) -> None:
    assert parse_attack(text) == attack


@pytest.mark.parametrize("text", ["", "sign", "nan:", "nan:0", "nan:-1", "nan:99999", "nan:2:3", "NAN"])
def test_what_is_no_attack_is_refused(text: str) -> None:
    with pytest.raises(BadField) as caught:
        parse_attack(text)

    assert caught.value.field == "attack"


def test_every_attack_but_label_flip_and_copies_changes_what_is_sent() -> None:
    delta = {"a": np.ones(4, dtype=np.float32)}
    for name in ATTACKS:
        sent = Attack(name).update(delta, seed=SEED, number=1, part=0)
        assert np.array_equal(sent["a"], delta["a"]) == (name in {"label_flip", "copy"})
    assert Attack("label_flip").labels(np.array([0.0, 1.0, 4.0])).tolist() == [4.0, 3.0, 0.0]


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "options", "field"),
    [
        (network(), {"rounds": 0}, "rounds"),
        (network(), {"fraction": 0.0}, "fraction"),
        (network(), {"fraction": 1.5}, "fraction"),
        (network(), {"attack": Attack("nan", 5)}, "attack"),
        (network(), {"strategy": StrategyConfig(strategy="krum", num_malicious=1)}, "min_available_clients"),
        (forest(), {"rounds": 2}, "rounds"),
        (forest(), {"attack": Attack("nan")}, "attack"),
    ],
)
def test_what_cannot_be_simulated_is_refused_by_field(spec: FlSpec, options: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as caught:
        simulate(spec, DIGITS, seed=SEED, **options)

    assert caught.value.field == field


def test_a_choice_that_works_badly_is_warned_about() -> None:
    spec = network(5, strategy="non_iid", alpha=0.5)

    report = simulate(spec, DIGITS, seed=SEED, strategy=StrategyConfig(strategy="krum", num_malicious=1))

    assert any("non_iid" in text for text in report.warnings)


def test_a_part_that_diverges_is_left_out_with_its_reason_and_a_round_of_nobody_fails(diabetes: bytes) -> None:
    raw = linear().to_dict()
    features, target = load_diabetes(return_X_y=True)
    spec = resolve_session(
        {
            **{name: raw[name] for name in ("model_type", "dataset_cid", "data_format", "partition_config")},
            "model_config": {"input_size": 10, "standardize": False},
            "train_config": {"epochs": 30, "batch_size": 1, "learning_rate": 1.0},
        },
        session_id="s",
        round_id="r",
    )
    plan = plan_session(spec, diabetes, SEED)
    wild = features.copy()
    wild[rows_of_part(plan, target, 1)] *= 1e6

    report = simulate(spec, to_csv(wild, target, [f"f{i}" for i in range(10)]), seed=SEED, rounds=2)

    assert [set(record.rejected) for record in report.rounds] == [{1}, {1}]
    assert all(record.rejected[1].startswith("numerical_instability") for record in report.rounds)
    with pytest.raises(ExecutionFailed, match="no node could train round 1"):
        simulate(spec, to_csv(features * 1e6, target, [f"f{i}" for i in range(10)]), seed=SEED)


# -- privacy ---------------------------------------------------------------------------------------------------------

DP = read_privacy({"differential_privacy": True, "noise_multiplier": 0.5, "l2_norm_clip": 1.0})


def test_a_simulation_with_noise_learns_and_tells_what_it_spent() -> None:
    done = simulate(network(10), DIGITS, seed=SEED, rounds=8, privacy=DP, randomness=random_bytes(1))

    plain = simulate(network(10), DIGITS, seed=SEED, rounds=8)
    assert done.accuracy is not None
    assert done.accuracy > 0.6
    assert done.model_hash != plain.model_hash
    assert [record.metrics["epsilon"] for record in done.rounds] == [
        pytest.approx(epsilon_of([number * one for one in rdp_of_gaussian(0.5)], 1e-5)) for number in range(1, 9)
    ]
    assert all(record.train_loss is None for record in done.rounds)


def test_the_same_randomness_gives_the_same_model_and_other_randomness_another() -> None:
    models = [
        simulate(network(), DIGITS, seed=SEED, privacy=DP, randomness=random_bytes(seed)).model_hash
        for seed in (1, 1, 2)
    ]

    assert models[0] == models[1] != models[2]


def test_poisson_sampling_draws_by_secret_coins() -> None:
    done = simulate(network(20), DIGITS, seed=SEED, rounds=6, fraction=0.3, privacy=DP, randomness=random_bytes(3))

    assert len({record.cohort for record in done.rounds}) > 3
    assert len({len(record.cohort) for record in done.rounds}) > 1
    whole = epsilon_of([6 * one for one in rdp_of_gaussian(0.5)], 1e-5)
    assert done.rounds[-1].metrics["epsilon"] < whole / 1.5


def test_privacy_without_randomness_is_refused() -> None:
    with pytest.raises(Internal):
        simulate(network(), DIGITS, seed=SEED, privacy=DP)


def test_privacy_of_a_model_without_rounds_is_refused(diabetes: bytes) -> None:
    with pytest.raises(BadField, match="the exact solver has none"):
        simulate(linear(solver="exact"), diabetes, seed=SEED, privacy=DP, randomness=random_bytes(1))


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam"])
def test_masked_updates_give_the_model_of_plain_ones(strategy: Any) -> None:
    rule = StrategyConfig(strategy=strategy)
    secure = read_privacy({"secure_aggregation": True})

    masked = simulate(
        network(5), DIGITS, seed=SEED, rounds=3, strategy=rule, privacy=secure, randomness=random_bytes(1)
    )

    plain = simulate(network(5), DIGITS, seed=SEED, rounds=3, strategy=rule)
    assert masked.accuracy == pytest.approx(plain.accuracy, abs=0.01)
    assert masked.scores["loss"] == pytest.approx(plain.scores["loss"], rel=1e-2)
    assert masked.rounds[-1].metrics["summed"] == 5
    assert WAIVED in masked.warnings
    assert all(record.train_loss is None for record in masked.rounds)
