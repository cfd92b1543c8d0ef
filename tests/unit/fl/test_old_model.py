"""Finished models in the Parity network's JSON: what is written predicts the same when it is read back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_iris

from parity_fl.forest import train_forest
from parity_fl.linear import FeatureScale, LinearModel
from parity_fl.model import TrainedModel
from parity_fl.models.base import Scaling
from parity_fl.models.mlp import Mlp
from parity_fl.networks import Network
from parity_fl.neural_config import NeuralConfig
from parity_fl.old_model import old_model_document, read_old_model, write_old_layers_of
from parity_fl.spec import ForestConfig
from parity_protocol.errors import BadDocument, BadField

IRIS = load_iris()
ROWS: NDArray[np.float64] = IRIS.data


def line() -> TrainedModel:
    scale = FeatureScale(np.zeros(4), np.ones(4))
    return TrainedModel(LinearModel(np.array([0.1, -2.5, 3.0, 1e-9]), 0.25, scale), (), 4, ("a", "b", "c", "d"))


def network(*hidden: int, task: str = "classification") -> TrainedModel:
    rng = np.random.default_rng(3)
    config = NeuralConfig(hidden_layers=hidden or (5,), task=task)
    n_classes = 3 if task == "classification" else 0
    scaling = Scaling(ROWS.mean(axis=0), ROWS.std(axis=0), 0.0, 1.0)
    if task == "regression":
        scaling = Scaling(ROWS.mean(axis=0), ROWS.std(axis=0), 4.0, 2.5)
    shapes = Mlp(config, n_features=4, n_classes=n_classes, scaling=scaling).shapes()
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    names = ("x", "y", "z") if n_classes else ()
    return TrainedModel(Network(config, weights, scaling, n_classes), names, 4)


def forest(*, task: str = "classification", names: tuple[str, ...] = ("10", "20", "30")) -> TrainedModel:
    config = ForestConfig(num_trees=4, max_depth=5, task=task, criterion="gini" if names else "squared_error")
    grown = train_forest(ROWS, IRIS.target.astype(float), config, n_classes=len(names), part=0, n_trees=4).forest
    return TrainedModel(grown, names, 4)


def again(model: TrainedModel, **changes: Any) -> TrainedModel:
    document = json.loads(json.dumps({**old_model_document(model, metrics={}), **changes}, allow_nan=False))
    return read_old_model(document)


def test_a_line_is_read_back_to_the_same_bits() -> None:
    found = again(line())

    np.testing.assert_array_equal(found.predict(ROWS), line().predict(ROWS))
    assert found.feature_names == ("a", "b", "c", "d")


@pytest.mark.parametrize("hidden", [(5,), (4, 3)])
def test_a_networks_scaling_is_in_its_layers_afterwards(hidden: tuple[int, ...]) -> None:
    model = network(*hidden)

    found = again(model)

    assert found.predict_labels(ROWS) == model.predict_labels(ROWS)
    assert isinstance(found.fitted, Network)
    assert not found.fitted.config.standardize


def test_a_networks_targets_are_in_their_own_unit_afterwards() -> None:
    model = network(task="regression")

    np.testing.assert_allclose(again(model).predict(ROWS), model.predict(ROWS), rtol=1e-4, atol=1e-4)


def test_one_hidden_layer_has_the_old_names() -> None:
    assert set(write_old_layers_of(network(5))) == {
        "input_to_hidden_weights",
        "hidden_bias",
        "hidden_to_output_weights",
        "output_bias",
    }


def test_without_our_notes_a_networks_shape_is_taken_from_its_lists() -> None:
    model = network(5)

    found = again(model, model_info=None)

    assert found.n_features == 4
    np.testing.assert_array_equal(found.predict(ROWS), model.predict(ROWS))
    assert found.class_names == ("0", "1", "2")


@pytest.mark.parametrize("names", [("10", "20", "30"), ("setosa", "versicolor", "virginica")])
def test_a_forest_whose_leaves_are_pure_predicts_the_same(names: tuple[str, ...]) -> None:
    model = forest(names=names)

    found = again(model)

    same = np.mean(
        [one == two for one, two in zip(found.predict_labels(ROWS), model.predict_labels(ROWS), strict=True)]
    )
    assert same > 0.97  # trees vote for one class each now
    assert found.class_names == names


def test_labels_that_are_numbers_are_the_trees_values() -> None:
    numbers = write_old_layers_of(forest())["trees"]

    leaves = {value for value in numbers if value in (10.0, 20.0, 30.0)}
    assert leaves == {10.0, 20.0, 30.0}


def test_a_regression_forest_is_read_back() -> None:
    model = forest(task="regression", names=())

    np.testing.assert_allclose(again(model).predict(ROWS), model.predict(ROWS), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model_type": "tree"}, "model_type"),
        ({"model_data": None}, "model_data"),
        ({"model_data": {"weights": [1]}}, "model_data.weights"),
        ({"model_data": {"weights": {"layer_weights": []}}}, "model_data.weights.layer_weights"),
        (
            {"model_data": {"weights": {"layer_weights": [1, "2"]}}, "model_info": None},
            "model_data.weights.layer_weights",
        ),
        ({"model_data": {"weights": {"layer_weights": [1.0]}}, "model_info": None}, "model_info.n_features"),
        ({"model_info": {"n_features": 3}}, "model_data.weights.layer_weights"),
        ({"model_info": {"n_features": 1 << 30}}, "model_info.n_features"),
        ({"model_info": {"feature_names": ["a"]}}, "model_info.feature_names"),
        ({"model_info": {"feature_names": [1, 2, 3, 4]}}, "model_info.feature_names"),
        ({"model_info": []}, "model_info"),
    ],
)
def test_what_is_no_model_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as caught:
        again(line(), **changes)

    assert caught.value.field == field


def test_trees_that_are_none_are_refused() -> None:
    with pytest.raises(BadDocument, match="not a list of trees"):
        again(forest(), model_data={"weights": {"trees": [1, 2, 3]}})
