from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity_fl import resolve_fl_spec
from parity_fl.spec import ForestConfig, LinearConfig
from parity_protocol.errors import BadField


def test_forest_settings_get_the_documented_defaults(forest_raw):
    del forest_raw["model_config"]

    spec = resolve_fl_spec(forest_raw)

    assert spec.model == ForestConfig(
        num_trees=100,
        max_depth=10,
        min_samples_split=2,
        min_samples_leaf=1,
        max_features=0,
        subsample=1.0,
        bootstrap_samples=True,
        oob_score=True,
        num_classes=0,
        random_state=42,
        criterion="gini",
        mode="union",
        task="classification",
    )
    assert spec.train is None
    assert spec.is_classification


def test_the_seeds_own_forest_example_is_accepted():
    spec = resolve_fl_spec(
        {
            "session_id": "rf_session_1",
            "round_id": "round_1",
            "model_type": "random_forest",
            "dataset_cid": "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
            "data_format": "csv",
            "model_config": {
                "num_trees": 100,
                "max_depth": 10,
                "min_samples_split": 2,
                "min_samples_leaf": 1,
                "max_features": 0,
                "subsample": 1.0,
                "random_state": 42,
                "bootstrap_samples": True,
                "oob_score": True,
                "num_classes": 0,
            },
            "train_config": {"epochs": 1, "batch_size": 32, "learning_rate": 0.01},
            "partition_config": {"strategy": "random", "total_parts": 3, "part_index": 0, "min_samples": 10},
            "output_format": "json",
        }
    )

    assert spec.part_index == 0
    assert spec.partition.holdout_fraction == 0.2


@pytest.mark.parametrize("name", ["forest_raw", "linear_raw"])
def test_resolving_again_changes_nothing(name, request):
    spec = resolve_fl_spec(request.getfixturevalue(name))

    assert resolve_fl_spec(json.loads(json.dumps(spec.to_dict()))) == spec


def test_linear_settings_keep_every_training_parameter(linear_raw):
    spec = resolve_fl_spec(linear_raw)

    assert spec.model == LinearConfig(input_size=10, standardize=True)
    assert (spec.train.epochs, spec.train.batch_size, spec.train.learning_rate) == (100, 32, 0.02)


def test_missing_members_are_named_in_the_networks_order(linear_raw):
    messages = []
    raw = {"model_config": {}, "partition_config": {}}
    order = ["model_type", "dataset_cid", "data_format", "session_id", "round_id"]
    for name in [*order, "model_config", "partition_config"]:
        with pytest.raises(BadField) as caught:
            resolve_fl_spec(raw)
        messages.append(caught.value.message)
        raw[name] = linear_raw[name]
    with pytest.raises(BadField) as caught:
        resolve_fl_spec(raw)
    messages.append(caught.value.message)

    assert messages == [
        "model_type is required",
        "dataset_cid is required",
        "data_format is required",
        "session_id is required",
        "round_id is required",
        "input_size is required in linear regression configuration",
        "partition strategy is required",
        "training configuration is incomplete: epochs, batch_size, learning_rate are required",
    ]


LINEAR_FAULTS = [
    ("model_type", "svm", "model_type", "unsupported model type: svm"),
    ("model_type", 5, "model_type", "model_type must be a string"),
    ("data_format", "parquet", "data_format", "unsupported data format: parquet"),
    ("session_id", "", "session_id", "session_id is required"),
    ("session_id", "a\x00b", "session_id", "printable"),
    ("session_id", "\ud800", "session_id", "printable"),
    ("session_id", "x" * 257, "session_id", "at most 256"),
    ("output_format", "xml", "output_format", "output_format must be json"),
    ("epoch", 5, "epoch", "unknown field"),
    ("model_config", [], "model_config", "must be an object"),
    ("model_config.input_size", 0, "model_config.input_size", "invalid input size"),
    ("model_config.input_size", "10", "model_config.input_size", "invalid input size"),
    ("model_config.input_size", 10**9, "model_config.input_size", "invalid input size"),
    ("model_config.standardize", 1, "model_config.standardize", "must be true or false"),
    ("model_config.hidden_size", 8, "model_config.hidden_size", "unknown field"),
    ("partition_config", ..., "partition_config.strategy", "partition strategy is required"),
    ("partition_config.strategy", ..., "partition_config.strategy", "partition strategy is required"),
    ("partition_config.strategy", [], "partition_config.strategy", "strategy must be a string"),
    ("partition_config.strategy", "by_moon", "partition_config.strategy", "unsupported partitioning strategy: by_moon"),
    ("partition_config.strategy", "non_iid", "partition_config.alpha", "alpha parameter is required for non_iid"),
    ("partition_config.min_samples", ..., "partition_config.min_samples", "min_samples must be provided and positive"),
    ("partition_config.min_samples", 0, "partition_config.min_samples", "min_samples must be provided and positive"),
    ("partition_config.min_samples", True, "partition_config.min_samples", "min_samples must be provided and positive"),
    ("partition_config.total_parts", 0, "partition_config.total_parts", "from 1 to"),
    ("partition_config.total_parts", 10**40, "partition_config.total_parts", "more than 64 bits"),
    ("partition_config.part_index", 3, "partition_config.part_index", "from 0 to 2"),
    ("partition_config.overlap_ratio", 1.0, "partition_config.overlap_ratio", "below 1"),
    ("partition_config.holdout_fraction", -0.1, "partition_config.holdout_fraction", "at least 0"),
    ("partition_config.holdout_fraction", float("nan"), "partition_config.holdout_fraction", "finite"),
    ("train_config.epochs", 1.5, "train_config.epochs", "whole number"),
    ("train_config.epochs", True, "train_config.epochs", "whole number"),
    ("train_config.epochs", 10**6, "train_config.epochs", "from 1 to"),
    ("train_config.batch_size", 0, "train_config.batch_size", "from 1 to"),
    ("train_config.learning_rate", 0, "train_config.learning_rate", "learning rate must be positive, got 0.0"),
    ("train_config.learning_rate", 1.5, "train_config.learning_rate", "learning rate is too high (1.5)"),
    ("train_config.learning_rate", float("inf"), "train_config.learning_rate", "finite"),
    ("train_config.momentum", 0.9, "train_config.momentum", "unknown field"),
]


@pytest.mark.parametrize(("place", "value", "field", "words"), LINEAR_FAULTS)
def test_a_wrong_linear_setting_is_refused_by_name(linear_raw, changed, place, value, field, words):
    with pytest.raises(BadField) as caught:
        resolve_fl_spec(changed(linear_raw, place, value))

    assert words in caught.value.message
    assert caught.value.field == field
    assert len(caught.value.message) < 300


FOREST_FAULTS = [
    ("num_trees", 0),
    ("num_trees", 10**7),
    ("num_trees", 2),  # three parts
    ("max_depth", 0),
    ("max_depth", 65),
    ("min_samples_split", 1),
    ("min_samples_leaf", 0),
    ("max_features", -1),
    ("subsample", 0),
    ("subsample", 1.01),
    ("bootstrap_samples", "yes"),
    ("num_classes", -1),
    ("random_state", 2**53),
    ("criterion", "squared_error"),
    ("mode", "boosted"),
    ("max_bins", 1),
    ("task", "ranking"),
    ("trees", 100),
]


@pytest.mark.parametrize(("name", "value"), FOREST_FAULTS)
def test_a_wrong_forest_setting_is_refused_by_name(forest_raw, changed, name, value):
    with pytest.raises(BadField) as caught:
        resolve_fl_spec(changed(forest_raw, f"model_config.{name}", value))

    assert caught.value.field == f"model_config.{name}"


@pytest.mark.parametrize("missing", ["epochs", "batch_size", "learning_rate"])
def test_a_missing_training_parameter_is_named_in_the_seeds_words(linear_raw, changed, missing):
    with pytest.raises(BadField) as caught:
        resolve_fl_spec(changed(linear_raw, f"train_config.{missing}", ...))

    assert caught.value.message == f"training configuration is incomplete: {missing} is required"
    assert caught.value.field == f"train_config.{missing}"


def test_alpha_of_zero_is_refused_in_the_seeds_words(linear_raw):
    linear_raw["partition_config"] = {"strategy": "non_iid", "alpha": 0.0, "min_samples": 5}

    with pytest.raises(BadField) as caught:
        resolve_fl_spec(linear_raw)

    assert caught.value.message == "alpha parameter must be positive for non-IID partitioning, got 0.000000"


def test_iid_is_another_word_for_random(linear_raw, changed):
    assert resolve_fl_spec(changed(linear_raw, "partition_config.strategy", "IID")).partition.strategy == "random"


def test_a_regression_forest_splits_by_squared_error(forest_raw, changed):
    spec = resolve_fl_spec(changed(forest_raw, "model_config.task", "regression"))

    assert spec.model.criterion == "squared_error"
    assert not spec.is_classification


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PLACES = [
    "session_id", "data_format", "model_config", "partition_config", "train_config", "model_config.num_trees",
    "model_config.subsample", "model_config.task", "partition_config.strategy", "partition_config.alpha",
    "partition_config.min_samples", "partition_config.part_index", "train_config.learning_rate",
]  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(PLACES), value=JSON)
def test_any_json_value_anywhere_is_accepted_or_named(forest_raw, changed, place, value):
    forest_raw.setdefault("train_config", {})

    try:
        spec = resolve_fl_spec(changed(forest_raw, place, value))
    except BadField as refused:
        assert refused.field  # noqa: PT017 - either outcome is right, an unnamed field is not
    else:
        assert resolve_fl_spec(spec.to_dict()) == spec


@pytest.mark.parametrize("raw", [None, [], "x", 3])
def test_settings_that_are_no_object_are_refused(raw):
    with pytest.raises(BadField):
        resolve_fl_spec(raw)


def test_checking_settings_imports_no_numpy_and_the_market_no_scikit_learn():
    code = (
        "import sys, parity_fl; assert 'numpy' not in sys.modules;"
        "import parity_fl.runner; assert 'sklearn' not in sys.modules and 'scipy' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
