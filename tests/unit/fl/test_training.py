"""One session's model: what node, market and simulation share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from parity_fl.finishing import audit_update, check_update, finish
from parity_fl.linear import LinearModel
from parity_fl.model import decode_model
from parity_fl.models.base import weights_digest
from parity_fl.networks import Network
from parity_fl.runner import plan_session, train
from parity_fl.spec import TrainConfig, resolve_fl_spec
from parity_fl.training import SessionModel, first_model, train_seed
from parity_fl.update import decode_update, encode_update
from parity_protocol.errors import BadDocument, BadField, ExecutionFailed

SEED = "5a" * 32


def neural(raw, **model):
    return {
        **raw,
        "model_type": "neural_network",
        "model_config": {"hidden_size": 8, **model},
        "train_config": {"epochs": 2, "batch_size": 32, "learning_rate": 0.1},
    }


def load(raw, data) -> SessionModel:
    spec = resolve_fl_spec(raw)
    return SessionModel.load(spec, plan_session(spec, data, SEED), data)


def test_the_first_model_needs_no_data_and_is_the_same_everywhere(linear_raw, breast_cancer):
    session = load(neural(linear_raw), breast_cancer)

    assert weights_digest(first_model(session.spec, session.plan)) == weights_digest(session.first())


def test_an_update_is_the_difference_to_a_named_base_and_can_be_made_again(linear_raw, breast_cancer):
    session = load(neural(linear_raw), breast_cancer)
    base = session.first()

    update = session.train(1, base, 3)
    again = load(neural(linear_raw), breast_cancer).train(1, base, 3)

    assert update.base_hash == weights_digest(base)
    assert weights_digest(update.delta) == weights_digest(again.delta)
    assert update.n_samples == session.plan.part_size(1)
    trained = {name: base[name] + update.delta[name] for name in base}
    features, truth = session.rows(1)
    assert update.metrics["accuracy"] == session.model.evaluate(trained, features, truth)["accuracy"]
    assert list(update.delta) == sorted(base)


def test_rounds_and_parts_have_seeds_of_their_own(linear_raw, breast_cancer):
    plan = load(neural(linear_raw), breast_cancer).plan

    assert len({train_seed(plan, part, number) for part in range(3) for number in range(1, 4)}) == 9


def test_the_strategys_client_rate_takes_the_place_of_the_sessions(linear_raw, breast_cancer):
    session = load(neural(linear_raw), breast_cancer)
    base = session.first()

    own = session.train(0, base, 1)
    slower = session.train(0, base, 1, config=TrainConfig(2, 32, 0.01))

    assert np.abs(slower.delta["layer_00.weight"]).max() < 0.5 * np.abs(own.delta["layer_00.weight"]).max()


def test_scaling_comes_from_training_rows_and_never_from_the_holdout(linear_raw, breast_cancer):
    session = load(neural(linear_raw), breast_cancer)
    rows = session.table.training_rows()

    np.testing.assert_array_equal(session.scaling.mean, session.table.dataset.features[rows].mean(axis=0))
    assert len(rows) == session.plan.n_rows - session.plan.holdout_size


def test_a_regressions_targets_are_scaled_and_its_scores_are_not(linear_raw, diabetes):
    session = load(neural(linear_raw, task="regression"), diabetes)
    targets = session.table.truth[session.table.training_rows()]

    update = session.train(0, session.first(), 1)

    assert session.scaling.target_mean == pytest.approx(targets.mean())
    assert session.scaling.target_deviation == pytest.approx(targets.std())
    assert update.metrics["mse"] > 100  # of targets near 150


def test_without_standardize_nothing_is_scaled(linear_raw, diabetes):
    scaling = load(neural(linear_raw, task="regression", standardize=False), diabetes).scaling

    assert (scaling.target_mean, scaling.target_deviation) == (0, 1)
    assert not scaling.mean.any()
    assert (scaling.deviation == 1).all()


def test_a_finished_network_and_a_finished_line_predict_as_their_session_scores(linear_raw, diabetes):
    for raw, kind in ((neural(linear_raw, task="regression"), Network), (linear_raw, LinearModel)):
        session = load(raw, diabetes)
        base = session.first()
        update = session.train(0, base, 1)
        weights = {name: base[name] + update.delta[name] for name in base}
        held = session.table.assignment.holdout

        fitted = session.finished(weights)

        assert isinstance(fitted, kind)
        guess = fitted.predict(session.table.dataset.features[held])
        mse = float(np.mean((guess - session.table.truth[held]) ** 2))
        assert mse == pytest.approx(session.score(weights)["mse"], rel=1e-6)


def test_what_does_not_fit_is_refused(linear_raw, forest_raw, breast_cancer):
    session = load(neural(linear_raw), breast_cancer)

    with pytest.raises(ExecutionFailed, match="there is no part 3 of 3"):
        session.train(3, session.first(), 1)
    with pytest.raises(BadField, match="not this model's weights"):
        session.train(0, {"layer_00.bias": np.zeros(8, dtype=np.float32)}, 1)
    with pytest.raises(BadField, match="not averaged in rounds"):
        load(forest_raw, breast_cancer)


@pytest.mark.parametrize(
    ("member", "value", "field", "words"),
    [
        ("input_size", 31, "model_config.input_size", "feature size mismatch: expected 31, got 30"),
        ("output_size", 3, "model_config.output_size", "output_size is 3, the data have 2 classes"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused_when_they_are_cut(
    linear_raw, breast_cancer, member, value, field, words
):
    spec = resolve_fl_spec(neural(linear_raw, **{member: value}))

    with pytest.raises(BadField, match=words) as caught:
        plan_session(spec, breast_cancer, SEED)

    assert caught.value.field == field


def test_labels_of_one_class_are_refused(linear_raw):
    with pytest.raises(BadField, match="one class only"):
        plan_session(resolve_fl_spec(neural(linear_raw)), b"1,0\n" * 100, SEED)


def exact(raw, **changes):
    return {**raw, "model_config": {**raw["model_config"], "solver": "exact"}, "train_config": {}, **changes}


@pytest.mark.parametrize("strategy", ["random", "sequential"])
def test_the_exact_solver_gives_the_central_solution_whatever_the_partition(linear_raw, diabetes, strategy):
    raw = exact(linear_raw, partition_config={"strategy": strategy, "total_parts": 5, "min_samples": 10})
    spec = resolve_fl_spec(raw)
    plan = plan_session(spec, diabetes, SEED)

    updates = [train(spec, plan, diabetes, part).update_bytes for part in range(5)]
    final = finish(spec, plan, diabetes, updates)

    session = SessionModel.load(
        resolve_fl_spec(linear_raw | {"partition_config": raw["partition_config"]}), plan, diabetes
    )
    rows = session.table.training_rows()
    features, truth = session.table.dataset.features[rows], session.table.truth[rows]
    central, *_ = np.linalg.lstsq(np.c_[features, np.ones(len(rows))], truth, rcond=None)
    fitted = decode_model(final.model_bytes).fitted
    assert isinstance(fitted, LinearModel)
    np.testing.assert_allclose([*fitted.weights, fitted.bias], central, rtol=1e-8)
    assert final.metrics["ridge"] == 0
    assert final.metrics["r2"] > 0.3


def test_sums_of_another_part_are_refused(linear_raw, diabetes):
    raw = exact(linear_raw, partition_config={"strategy": "random", "total_parts": 3, "min_samples": 10})
    spec = resolve_fl_spec(raw)
    plan = plan_session(spec, diabetes, SEED)
    update = train(spec, plan, diabetes, 0).update_bytes

    check_update(spec, plan, update, 0)
    with pytest.raises(BadDocument, match="part must be"):
        check_update(spec, plan, update, 1)


def test_the_audit_of_sums_passes_the_parts_own_and_refuses_other_rows(linear_raw, diabetes):
    raw = exact(linear_raw, partition_config={"strategy": "random", "total_parts": 2, "min_samples": 10})
    spec = resolve_fl_spec(raw)
    plan = plan_session(spec, diabetes, SEED)
    honest = decode_update(train(spec, plan, diabetes, 0).update_bytes)
    grown = {**honest.tensors, "moment": honest.tensors["moment"] * (1 + 1e-6)}
    lie = encode_update(replace(honest, tensors=grown))

    audit_update(spec, plan, diabetes, encode_update(honest), 0)
    check_update(spec, plan, lie, 0)
    with pytest.raises(BadDocument, match="the sums are not those of its rows"):
        audit_update(spec, plan, diabetes, lie, 0)


def test_a_network_has_no_single_round(linear_raw, breast_cancer):
    spec = resolve_fl_spec(neural(linear_raw))
    plan = plan_session(spec, breast_cancer, SEED)

    with pytest.raises(ExecutionFailed, match="trains in rounds"):
        train(spec, plan, breast_cancer, 0)
    with pytest.raises(BadDocument, match="trains in rounds"):
        check_update(spec, plan, b"", 0)
