from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from parity_fl import resolve_fl_spec
from parity_fl.data import label_classes, parse_csv
from parity_fl.model import decode_model, encode_model
from parity_fl.partition import assign
from parity_fl.plan import PartitionPlan
from parity_fl.runner import audit_update, check_update, finish, max_update_bytes, plan_session, train
from parity_fl.tensors import decode_tensors, encode_tensors
from parity_fl.update import decode_update, encode_update
from parity_protocol.errors import BadDocument, BadField, ExecutionFailed, TooLarge

SEED = "5a" * 32


@pytest.fixture
def session(run_session):
    def run(raw, data, seed=SEED):
        return run_session(raw, data, seed)

    return run


# -- forests -------------------------------------------------------------------------------------------------------


def test_federated_forest_is_as_good_as_the_central_one(session, forest_raw, breast_cancer):
    differences = []
    for number in range(3):
        spec, plan, updates = session(forest_raw, breast_cancer, f"{number:064x}")
        data = parse_csv(breast_cancer)
        cut, truth = assign(plan, data.labels), label_classes(data.labels).index
        rows = np.concatenate(cut.parts)
        central = RandomForestClassifier(100, max_depth=10, random_state=0).fit(data.features[rows], truth[rows])
        reference = central.score(data.features[cut.holdout], truth[cut.holdout])
        differences.append(finish(spec, plan, breast_cancer, updates).metrics["accuracy"] - reference)

    assert max(map(abs, differences)) <= 0.02


def test_forest_result_reports_the_three_named_numbers(session, forest_raw, breast_cancer):
    spec, plan, updates = session(forest_raw, breast_cancer)

    metrics = finish(spec, plan, breast_cancer, updates).metrics

    assert 0.9 < metrics["accuracy"] <= 1
    assert 0.9 < metrics["oob_local_mean"] < 1
    assert 0.9 < metrics["oob_federated"] < 1
    assert metrics["tree_count"] == 100
    assert metrics["train_samples"] + metrics["holdout_samples"] == 569
    assert sum(metrics["feature_importance"].values()) == pytest.approx(1)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_market_finds_the_out_of_bag_score_that_an_honest_node_reported(forest_raw, breast_cancer):
    forest_raw["partition_config"]["total_parts"] = 1
    spec = resolve_fl_spec(forest_raw)
    plan = plan_session(spec, breast_cancer, SEED)
    outcome = train(spec, plan, breast_cancer, 0)

    metrics = finish(spec, plan, breast_cancer, [outcome.update_bytes]).metrics

    # With one part, its own score and the federation's are the same thing.
    assert metrics["oob_local_mean"] == metrics["oob_federated"] == outcome.metrics["oob_local"]


def test_a_node_that_lies_about_its_scores_changes_nothing(forest, breast_cancer):
    spec, plan, updates = forest
    liar = dataclasses.replace(decode_update(updates[0]), metrics={"accuracy": 1.0, "oob_local": 1.0})

    told = finish(spec, plan, breast_cancer, [encode_update(liar), *updates[1:]])

    assert told == finish(spec, plan, breast_cancer, updates)


def test_the_order_of_updates_does_not_matter(forest, breast_cancer):
    spec, plan, updates = forest

    assert finish(spec, plan, breast_cancer, updates[::-1]) == finish(spec, plan, breast_cancer, updates)


def test_a_part_trained_again_gives_the_same_bytes(forest, breast_cancer):
    spec, plan, updates = forest

    assert train(spec, plan, breast_cancer, 1).update_bytes == updates[1]


def test_overlapping_parts_still_score_each_row_by_trees_that_did_not_draw_it(
    session, forest_raw, breast_cancer, changed
):
    _, plan, _ = made = session(changed(forest_raw, "partition_config.overlap_ratio", 0.5), breast_cancer)
    spec, plan, updates = made

    metrics = finish(spec, plan, breast_cancer, updates).metrics

    assert plan.part_size(0) == 228
    assert 0.9 < metrics["oob_federated"] < 0.99


@pytest.mark.parametrize("strategy", ["random", "sequential"])
def test_other_strategies_train_every_tree(session, forest_raw, breast_cancer, changed, strategy):
    spec, plan, updates = session(changed(forest_raw, "partition_config.strategy", strategy), breast_cancer)

    assert finish(spec, plan, breast_cancer, updates).metrics["accuracy"] > 0.9


def test_text_labels_come_back_as_their_names(session, forest_raw):
    rows = [f"{value},{'malignant' if value > 50 else 'benign'}" for value in range(100)]
    spec, plan, updates = session(forest_raw, "\n".join(rows).encode())

    model = decode_model(finish(spec, plan, "\n".join(rows).encode(), updates).model_bytes)

    assert model.predict_labels(np.array([[3.0], [97.0]])) == ["benign", "malignant"]


def test_a_regression_forest_is_scored_by_r_squared(session, forest_raw, diabetes, changed):
    spec, plan, updates = session(changed(forest_raw, "model_config.task", "regression"), diabetes)

    metrics = finish(spec, plan, diabetes, updates).metrics

    assert 0.2 < metrics["r2"] < 0.7
    assert "accuracy" not in metrics
    assert 0.2 < metrics["oob_federated"] < 0.7


def test_without_a_hold_out_the_score_is_none(session, forest_raw, breast_cancer, changed):
    spec, plan, updates = session(changed(forest_raw, "partition_config.holdout_fraction", 0), breast_cancer)

    assert finish(spec, plan, breast_cancer, updates).metrics["accuracy"] is None


# -- linear regression -----------------------------------------------------------------------------------------------


def test_federated_regression_is_near_the_closed_form(linear, diabetes):
    spec, plan, updates = linear
    data = parse_csv(diabetes)
    cut = assign(plan, data.labels)
    rows = np.concatenate(cut.parts)
    design = np.c_[data.features, np.ones(len(data.labels))]
    solution, *_ = np.linalg.lstsq(design[rows], data.labels[rows], rcond=None)
    truth, guess = data.labels[cut.holdout], design[cut.holdout] @ solution
    closed = 1 - ((truth - guess) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()

    metrics = finish(spec, plan, diabetes, updates).metrics

    assert metrics["r2"] == pytest.approx(closed, abs=0.05)
    assert metrics["holdout_samples"] == len(truth)


def test_final_loss_is_half_the_mean_squared_error_on_the_hold_out(linear, diabetes):
    spec, plan, updates = linear
    data = parse_csv(diabetes)
    held = assign(plan, data.labels).holdout

    final = finish(spec, plan, diabetes, updates)

    guess = decode_model(final.model_bytes).predict(data.features[held])
    assert final.metrics["loss"] == pytest.approx(np.mean((guess - data.labels[held]) ** 2) / 2)


def test_r_squared_may_be_negative(session, linear_raw, diabetes, changed):
    raw = changed(linear_raw, "train_config", {"epochs": 1, "batch_size": 1000, "learning_rate": 1e-6})
    spec, plan, updates = session(raw, diabetes)

    assert finish(spec, plan, diabetes, updates).metrics["r2"] < -1


def test_a_linear_part_trained_again_gives_the_same_bytes(linear, diabetes):
    spec, plan, updates = linear

    assert train(spec, plan, diabetes, 2).update_bytes == updates[2]


# -- planning -------------------------------------------------------------------------------------------------------


def test_plan_refuses_columns_that_differ_from_input_size(linear_raw, diabetes, changed):
    with pytest.raises(BadField, match="feature size mismatch: expected 4, got 10"):
        plan_session(resolve_fl_spec(changed(linear_raw, "model_config.input_size", 4)), diabetes, SEED)


def test_plan_refuses_another_number_of_classes(forest_raw, breast_cancer, changed):
    with pytest.raises(BadField, match="num_classes is 3, the data have 2 classes"):
        plan_session(resolve_fl_spec(changed(forest_raw, "model_config.num_classes", 3)), breast_cancer, SEED)


def test_plan_refuses_a_single_class(forest_raw):
    with pytest.raises(BadField, match="one class only"):
        plan_session(resolve_fl_spec(forest_raw), b"1,0\n" * 100, SEED)


def test_plan_refuses_text_labels_for_a_regression(linear_raw, changed):
    spec = resolve_fl_spec(changed(linear_raw, "model_config.input_size", 1))

    with pytest.raises(ExecutionFailed, match="invalid label at sample 0: 'a' is not a number"):
        plan_session(spec, b"1,a\n2,b\n" * 50, SEED)


@pytest.mark.parametrize("seed", ["", "zz" * 32, "AB" * 32, "ab" * 31])
def test_plan_refuses_a_seed_of_another_form(forest_raw, breast_cancer, seed):
    with pytest.raises(BadField, match="seed must be 64 lower-case hex"):
        plan_session(resolve_fl_spec(forest_raw), breast_cancer, seed)


# -- what the node refuses --------------------------------------------------------------------------------------------


def test_training_on_other_data_than_planned_is_refused(forest, breast_cancer):
    spec, plan, _ = forest
    rows = breast_cancer.splitlines(keepends=True)
    swapped = b"".join([rows[0], *rows[:0:-1]])

    with pytest.raises(ExecutionFailed) as caught:
        train(spec, plan, swapped, 0)

    assert caught.value.reason == "data_invalid"


def test_training_by_a_plan_of_other_settings_is_refused(forest, linear, breast_cancer):
    with pytest.raises(ExecutionFailed) as caught:
        train(forest[0], linear[1], breast_cancer, 0)

    assert caught.value.reason == "spec_invalid"


@pytest.mark.parametrize("part", [-1, 3])
def test_training_a_part_that_does_not_exist_is_refused(forest, breast_cancer, part):
    with pytest.raises(ExecutionFailed, match="there is no part"):
        train(forest[0], forest[1], breast_cancer, part)


def test_training_another_part_than_the_task_says_is_refused(forest, breast_cancer):
    spec = dataclasses.replace(forest[0], part_index=1)

    with pytest.raises(ExecutionFailed, match="the task says part 1"):
        train(spec, forest[1], breast_cancer, 0)


# -- what the market refuses -----------------------------------------------------------------------------------------


def test_honest_updates_pass_and_stay_under_their_cap(forest, linear):
    for spec, plan, updates in (forest, linear):
        for part, update in enumerate(updates):
            check_update(spec, plan, update, part)
            assert len(update) <= max_update_bytes(spec, plan, part)


def rewritten(update: bytes, **metadata: str) -> bytes:
    tensors, found = decode_tensors(update, max_bytes=1 << 24)
    return encode_tensors(tensors, {**found, **metadata})


@pytest.mark.parametrize(
    "metadata",
    [
        {"session_id": "session-2"},
        {"session_id": ""},
        {"round_id": "round-2"},
        {"part": "1"},
        {"part": "-1"},
        {"part": "00"},
        {"part": "٠"},
        {"part": "99999999999999999999"},
        {"total_parts": "0"},
        {"total_parts": "4"},
        {"n_samples": "152000"},
        {"assignment_hash": "0" * 64},
        {"assignment_hash": "x"},
        {"base_hash": "0" * 64},
        {"base_hash": "x"},
        {"model_type": "linear_regression"},
        {"model_type": "svm"},
        {"format": "parity.fl-update/2"},
        {"metrics": "[]"},
        {"metrics": "{"},
        {"metrics": '{"a": NaN}'},
        {"metrics": '{"a": true}'},
        {"metrics": '{"a": "b"}'},
        {"metrics": '{"A b": 1}'},
        {"metrics": json.dumps({f"m{i}": 0 for i in range(33)})},
        {"surprise": "1"},
    ],
)
def test_an_update_of_anything_else_is_refused(forest, metadata):
    spec, plan, updates = forest

    with pytest.raises(BadDocument):
        check_update(spec, plan, rewritten(updates[0], **metadata), 0)


def test_trees_of_too_few_too_many_or_unequal_weight_are_refused(forest):
    spec, plan, updates = forest
    other = dataclasses.replace(spec, model=dataclasses.replace(spec.model, num_trees=15))
    tensors, metadata = decode_tensors(updates[0], max_bytes=1 << 24)
    heavy = np.array([0.7, 0.1, 0.1, 0.1])

    for judge, data in (
        (other, updates[0]),
        (spec, encode_tensors({**tensors, "tree_weight": heavy}, metadata)),
        (dataclasses.replace(spec, model=dataclasses.replace(spec.model, max_depth=1)), updates[0]),
    ):
        with pytest.raises((BadDocument, TooLarge)):
            check_update(judge, plan, data, 0)


def test_honest_forests_pass_the_recount(session, forest, forest_raw, breast_cancer, diabetes, changed):
    overlapping = changed(forest_raw, "partition_config.overlap_ratio", 0.3)
    subsampled = changed(forest_raw, "model_config", {"subsample": 0.4, "bootstrap_samples": False, "num_trees": 6})
    regression = changed(forest_raw, "model_config", {"task": "regression", "num_trees": 6})
    cases = [(forest, breast_cancer), (session(regression, diabetes), diabetes)]
    cases += [(session(raw, breast_cancer), breast_cancer) for raw in (overlapping, subsampled)]

    for (spec, plan, updates), data in cases:
        for part, update in enumerate(updates):
            audit_update(spec, plan, data, update, part)


def test_an_honest_linear_model_passes_the_audit(linear, diabetes):
    audit_update(*linear[:2], diabetes, linear[2][0], 0)


def changed_tensor(update: bytes, name: str, change: object) -> bytes:
    tensors, metadata = decode_tensors(update, max_bytes=1 << 24)
    tensor = tensors[name].copy()
    change(tensor, tensors)
    return encode_tensors({**tensors, name: tensor}, metadata)


def swap_a_leafs_classes(value, tensors):
    leaf = np.flatnonzero((tensors["feature"] == -1) & (value[:, 0] != 0.5))[0]
    value[leaf] = value[leaf, ::-1]


def move_a_threshold(threshold, _tensors):
    threshold[0] -= 5


def use_another_feature(feature, _tensors):
    feature[0] = (feature[0] + 7) % 30


@pytest.mark.parametrize(
    ("name", "change"),
    [("value", swap_a_leafs_classes), ("threshold", move_a_threshold), ("feature", use_another_feature)],
)
def test_well_formed_trees_that_were_made_up_fail_the_recount(forest, breast_cancer, name, change):
    spec, plan, updates = forest
    forged = changed_tensor(updates[0], name, change)
    check_update(spec, plan, forged, 0)

    with pytest.raises(BadDocument, match="not trained on this part"):
        audit_update(spec, plan, breast_cancer, forged, 0)


def test_trees_of_another_part_fail_the_recount(forest, breast_cancer):
    spec, plan, updates = forest
    copied = rewritten(updates[2], part="1", n_samples=str(plan.part_size(1)))
    check_update(spec, plan, copied, 1)

    with pytest.raises(BadDocument, match="not trained on this part"):
        audit_update(spec, plan, breast_cancer, copied, 1)


def test_a_forged_regression_value_fails_the_recount(session, forest_raw, diabetes, changed):
    spec, plan, updates = session(changed(forest_raw, "model_config", {"task": "regression", "num_trees": 3}), diabetes)

    def raise_a_value(value, _tensors):
        value[-1] += 1

    with pytest.raises(BadDocument, match="value is not what"):
        audit_update(spec, plan, diabetes, changed_tensor(updates[0], "value", raise_a_value), 0)


@pytest.mark.parametrize("data", [b"", b"garbage" * 100, b"\x80\x04\x95cos\nsystem\n(S'id'\ntR."])
def test_garbage_is_refused(forest, linear, data):
    for spec, plan, _ in (forest, linear):
        with pytest.raises(BadDocument):
            check_update(spec, plan, data, 0)


def test_an_oversized_update_is_refused_before_it_is_read(linear):
    spec, plan, _ = linear

    with pytest.raises(TooLarge):
        check_update(spec, plan, bytes(max_update_bytes(spec, plan, 0) + 1), 0)


def test_a_missing_or_doubled_part_is_refused(forest, breast_cancer):
    spec, plan, updates = forest

    with pytest.raises(BadDocument, match="expected one update for each of 3 parts"):
        finish(spec, plan, breast_cancer, updates[:2])
    with pytest.raises(BadDocument, match="two updates for part 0"):
        finish(spec, plan, breast_cancer, [updates[0], updates[0], updates[1]])


def test_an_update_that_claims_a_part_beyond_the_plan_is_refused(forest, breast_cancer):
    spec, plan, updates = forest
    stray = rewritten(updates[2], part="700", total_parts="1000")

    with pytest.raises(BadDocument, match="there is no part 700"):
        finish(spec, plan, breast_cancer, [*updates[:2], stray])


# -- documents ------------------------------------------------------------------------------------------------------


def test_an_update_survives_its_bytes(forest):
    update = decode_update(forest[2][0])

    assert encode_update(update) == forest[2][0]
    assert update.metrics["oob_local"] > 0.8


def test_a_model_survives_its_bytes(forest, linear, breast_cancer, diabetes):
    for (spec, plan, updates), data in ((forest, breast_cancer), (linear, diabetes)):
        final = finish(spec, plan, data, updates)
        model = decode_model(final.model_bytes)

        assert encode_model(model) == final.model_bytes
        assert model.feature_names == parse_csv(data).feature_names


@pytest.mark.parametrize(
    "metadata",
    [
        {"format": "x"},
        {"n_features": "0"},
        {"n_features": "31"},
        {"n_features": "9999999"},
        {"n_features": "-30"},
        {"class_names": "[]"},
        {"class_names": '["0","1","2"]'},
        {"class_names": '["0",1]'},
        {"class_names": "{"},
        {"feature_names": '["a"]'},
        {"model_type": "linear_regression"},
        {"model_type": "svm"},
        {"surprise": "1"},
    ],
)
def test_a_hostile_model_document_is_refused(forest, breast_cancer, metadata):
    model = finish(*forest[:2], breast_cancer, forest[2]).model_bytes

    with pytest.raises(BadDocument):
        decode_model(rewritten(model, **metadata))


@pytest.mark.parametrize("features", [np.zeros((2, 29)), np.zeros(30), np.full((1, 30), np.nan)])
def test_a_model_refuses_rows_of_another_shape_or_not_finite(forest, breast_cancer, features):
    model = decode_model(finish(*forest[:2], breast_cancer, forest[2]).model_bytes)

    with pytest.raises(BadField):
        model.predict(features)


def test_class_names_of_any_script_survive(session, forest_raw):
    smile, sharp = '"😀 ""é"', "ß"
    quoted = "\n".join(f"{value},{smile if value % 2 else sharp}" for value in range(100)).encode()
    spec, plan, updates = session(forest_raw, quoted)

    model = decode_model(finish(spec, plan, quoted, updates).model_bytes)

    assert model.class_names == ("ß", '😀 "é')


def test_a_plan_survives_json(forest):
    plan = forest[1]

    assert PartitionPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
