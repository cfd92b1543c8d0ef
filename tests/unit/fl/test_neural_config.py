from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity_fl import resolve_fl_spec
from parity_fl.rounds_config import is_in_rounds
from parity_fl.spec import LinearConfig, NeuralConfig, TrainConfig
from parity_protocol.errors import BadField


@pytest.fixture
def neural_raw(linear_raw):
    return {
        **linear_raw,
        "model_type": "neural_network",
        "model_config": {"input_size": 784, "hidden_size": 128, "output_size": 10},
        "train_config": {"epochs": 5, "batch_size": 32, "learning_rate": 0.001},
    }


def test_the_seeds_own_network_example_gets_the_documented_defaults(neural_raw):
    spec = resolve_fl_spec(neural_raw)

    assert spec.model == NeuralConfig((128,), 784, 10, activation="relu", task="classification", standardize=True)
    assert spec.train == TrainConfig(5, 32, 0.001, optimizer="sgd", momentum=0.9)
    assert spec.model_type == "neural_network"
    assert spec.is_classification


@pytest.mark.parametrize("hidden", [{"hidden_size": 8}, {"hidden_layers": [8]}, {"hidden_layers": [8, 4, 2]}])
def test_resolving_a_network_again_changes_nothing(neural_raw, hidden):
    neural_raw["model_config"] = hidden
    neural_raw["train_config"] |= {"optimizer": "adam"}

    spec = resolve_fl_spec(neural_raw)

    assert resolve_fl_spec(spec.to_dict()) == spec
    assert resolve_fl_spec(json.loads(json.dumps(spec.to_dict()))) == spec


def test_one_hidden_layer_goes_by_the_networks_name(neural_raw, changed):
    one = resolve_fl_spec(changed(neural_raw, "model_config", {"hidden_layers": [8]})).to_dict()
    two = resolve_fl_spec(changed(neural_raw, "model_config", {"hidden_layers": [8, 4]})).to_dict()

    assert one["model_config"]["hidden_size"] == 8
    assert "hidden_layers" not in one["model_config"]
    assert two["model_config"]["hidden_layers"] == [8, 4]


FAULTS = [
    ("model_config", {}, "model_config.hidden_size", "hidden_size is required in neural network configuration"),
    ("model_config.hidden_size", 0, "model_config.hidden_size", "from 1 to"),
    ("model_config.hidden_size", -5, "model_config.hidden_size", "from 1 to"),
    ("model_config.hidden_size", 1.5, "model_config.hidden_size", "whole number"),
    ("model_config.hidden_size", 10**6, "model_config.hidden_size", "from 1 to"),
    ("model_config.hidden_layers", [8], "model_config.hidden_layers", "give one of them"),
    ("model_config", {"hidden_layers": []}, "model_config.hidden_layers", "list of 1 to 16"),
    ("model_config", {"hidden_layers": [1] * 17}, "model_config.hidden_layers", "list of 1 to 16"),
    ("model_config", {"hidden_layers": 8}, "model_config.hidden_layers", "list of 1 to 16"),
    ("model_config", {"hidden_layers": [8, True]}, "model_config.hidden_layers", "whole numbers"),
    ("model_config", {"hidden_layers": [8, 0]}, "model_config.hidden_layers", "whole numbers"),
    ("model_config", {"hidden_layers": [65536, 65536]}, "model_config.hidden_size", "parameters, at most"),
    ("model_config.input_size", "784", "model_config.input_size", "invalid input size"),
    ("model_config.input_size", -1, "model_config.input_size", "invalid input size"),
    ("model_config.output_size", -1, "model_config.output_size", "from 0 to"),
    ("model_config.activation", "gelu", "model_config.activation", "must be one of relu, tanh, sigmoid"),
    ("model_config.task", "ranking", "model_config.task", "must be one of"),
    ("model_config.task", "regression", "model_config.output_size", "must be 1 for regression, got 10"),
    ("model_config.dropout", 0.5, "model_config.dropout", "unknown field"),
    ("train_config.optimizer", "lion", "train_config.optimizer", "must be one of sgd, momentum, adam"),
    ("train_config.momentum", 1.0, "train_config.momentum", "below 1"),
    ("train_config.epochs", 0, "train_config.epochs", "from 1 to"),
    ("train_config.learning_rate", -1, "train_config.learning_rate", "learning rate must be positive, got -1.0"),
]


@pytest.mark.parametrize(("place", "value", "field", "words"), FAULTS)
def test_a_wrong_network_setting_is_refused_by_name(neural_raw, changed, place, value, field, words):
    with pytest.raises(BadField) as caught:
        resolve_fl_spec(changed(neural_raw, place, value))

    assert words in caught.value.message
    assert caught.value.field == field
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("missing", [("epochs",), ("batch_size",), ("learning_rate",), ("epochs", "learning_rate")])
def test_a_networks_missing_training_parameters_are_all_named(neural_raw, missing):
    for name in missing:
        del neural_raw["train_config"][name]

    with pytest.raises(BadField) as caught:
        resolve_fl_spec(neural_raw)

    verb = "is" if len(missing) == 1 else "are"
    assert caught.value.message == f"training configuration is incomplete: {', '.join(missing)} {verb} required"


@pytest.mark.parametrize(
    ("member", "field"), [("optimizer", "train_config.optimizer"), ("momentum", "train_config.momentum")]
)
def test_a_linear_model_has_no_optimizer_settings(linear_raw, changed, member, field):
    with pytest.raises(BadField) as caught:
        resolve_fl_spec(changed(linear_raw, f"train_config.{member}", 0.5))

    assert caught.value.field == field


def test_the_exact_solver_needs_no_training_parameters(linear_raw, changed):
    raw = changed(changed(linear_raw, "model_config.solver", "exact"), "train_config", ...)

    spec = resolve_fl_spec(raw)

    assert spec.model == LinearConfig(10, solver="exact")
    assert spec.train is None
    assert resolve_fl_spec(spec.to_dict()) == spec


def test_too_many_features_for_the_exact_solver_are_refused(linear_raw, changed):
    raw = changed(changed(linear_raw, "model_config.solver", "exact"), "model_config.input_size", 5000)

    with pytest.raises(BadField, match="at most 4096 features, got 5000: use sgd") as caught:
        resolve_fl_spec(raw)

    assert caught.value.field == "model_config.solver"


def test_the_exact_solver_is_not_in_rounds(linear_raw):
    session = {"model_type": "linear_regression", "total_rounds": 5, "model_config": linear_raw["model_config"]}

    assert is_in_rounds(session)
    assert not is_in_rounds({**session, "model_config": {"input_size": 10, "solver": "exact"}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PLACES = [
    "model_config", "model_config.hidden_size", "model_config.hidden_layers", "model_config.input_size",
    "model_config.output_size", "model_config.activation", "model_config.task", "model_config.standardize",
    "train_config", "train_config.optimizer", "train_config.momentum", "train_config.batch_size",
]  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(PLACES), value=JSON)
def test_any_json_value_anywhere_is_accepted_or_named(neural_raw, changed, place, value):
    try:
        spec = resolve_fl_spec(changed(neural_raw, place, value))
    except BadField as refused:
        assert refused.field  # noqa: PT017 - either outcome is right, an unnamed field is not
    else:
        assert resolve_fl_spec(spec.to_dict()) == spec
