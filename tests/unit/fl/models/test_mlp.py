from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits

from parity_fl.engines.choice import LARGE_STEP, large_kernel, torch_is_there
from parity_fl.models.base import Scaling, weights_digest
from parity_fl.models.layout import Layout, first_weights
from parity_fl.models.linear_sgd import LinearSgd
from parity_fl.models.mlp import Mlp
from parity_fl.neural_config import NeuralConfig, parameter_count
from parity_fl.scoring import r_squared
from parity_fl.spec import LinearConfig, TrainConfig
from parity_protocol.errors import BadField, ExecutionFailed, FailureReason

SEED, OTHER = b"\x01" * 32, b"\x02" * 32


def two_moons(rows: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    truth = (np.arange(rows) % 2).astype(np.float64)
    angle = rng.uniform(0, np.pi, rows)
    features = np.c_[np.cos(angle) + truth, np.sin(angle) * (1 - 2 * truth) + 0.3 * truth]
    return features + rng.normal(scale=0.05, size=features.shape), truth


def scaling(features: np.ndarray, target: np.ndarray | None = None) -> Scaling:
    deviation = features.std(axis=0)
    deviation[deviation == 0] = 1
    if target is None:
        return Scaling(features.mean(axis=0), deviation)
    return Scaling(features.mean(axis=0), deviation, float(target.mean()), float(target.std()))


def loss_of(model: Mlp, weights, features, truth) -> float:
    return model.evaluate(weights, features, truth)["loss"]


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize(
    ("task", "outputs", "classes"), [("classification", 0, 3), ("classification", 1, 2), ("regression", 0, 0)]
)
def test_a_full_batch_step_follows_the_numerical_gradient(activation, task, outputs, classes):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(9, 3))
    truth = rng.integers(0, classes, 9).astype(float) if classes else rng.normal(size=9)
    config = NeuralConfig((5, 4), output_size=outputs, activation=activation, task=task)
    model = Mlp(config, n_features=3, n_classes=classes, kernel="numpy")
    start, rate = model.init(SEED), 0.5

    stepped = model.train(start, features, truth, TrainConfig(1, 9, rate), seed=OTHER).weights

    for name, value in start.items():
        for place in np.ndindex(value.shape):
            shift = 1e-2
            up, down = ({key: array.copy() for key, array in start.items()} for _ in range(2))
            up[name][place] += shift
            down[name][place] -= shift
            slope = (loss_of(model, up, features, truth) - loss_of(model, down, features, truth)) / (2 * shift)
            assert (value[place] - stepped[name][place]) / rate == pytest.approx(slope, abs=2e-3)


def test_digits_are_learnt_by_one_node_as_well_as_by_a_central_one():
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    features, truth = found.data[order], found.target[order].astype(float)
    train, held = slice(0, 1437), slice(1437, None)
    model = Mlp(NeuralConfig((128,)), n_features=64, n_classes=10, scaling=scaling(features[train]))

    trained = model.train(model.init(SEED), features[train], truth[train], TrainConfig(20, 32, 0.1), seed=OTHER)

    assert model.evaluate(trained.weights, features[held], truth[held])["accuracy"] >= 0.96
    assert trained.steps == 20 * 45
    assert trained.n_samples == 1437


@pytest.mark.parametrize("outputs", [0, 1])
def test_two_classes_are_learnt_by_softmax_and_by_a_single_sigmoid(outputs):
    features, truth = two_moons()
    model = Mlp(NeuralConfig((16,), output_size=outputs), n_features=2, n_classes=2)

    trained = model.train(model.init(SEED), features, truth, TrainConfig(150, 16, 0.3), seed=OTHER)

    scores = model.evaluate(trained.weights, features, truth)
    chance = model.probabilities(trained.weights, features)
    assert scores["accuracy"] > 0.97
    assert trained.loss == scores["loss"]
    assert scores["loss"] == pytest.approx(-np.mean(np.log(chance[np.arange(120), truth.astype(int)])), rel=1e-5)
    np.testing.assert_allclose(chance.sum(axis=1), 1)
    np.testing.assert_array_equal(model.predict(trained.weights, features), np.argmax(chance, axis=1))


def test_a_regression_predicts_and_is_scored_in_the_datas_own_units():
    data = load_diabetes()
    scale = scaling(data.data, data.target)
    model = Mlp(NeuralConfig((16,), task="regression"), n_features=10, n_classes=0, scaling=scale)

    trained = model.train(model.init(SEED), data.data, data.target, TrainConfig(40, 32, 0.02), seed=OTHER)

    guess = model.predict(trained.weights, data.data)
    scores = model.evaluate(trained.weights, data.data, data.target)
    assert scores["r2"] == pytest.approx(r_squared(data.target, guess))
    assert scores["r2"] > 0.5
    assert scores["mse"] == pytest.approx(np.mean((guess - data.target) ** 2))
    assert scores["loss"] == pytest.approx(scores["mse"] / 2)


def test_training_leaves_its_arguments_alone_and_repeats_bit_for_bit():
    features, truth = two_moons()
    model = Mlp(NeuralConfig((8,)), n_features=2, n_classes=2)
    start = model.init(SEED)
    before, rows = weights_digest(start), features.copy()

    first = model.train(start, features, truth, TrainConfig(3, 7, 0.1), seed=OTHER)
    again = model.train(start, features, truth, TrainConfig(3, 7, 0.1), seed=OTHER)
    other = model.train(start, features, truth, TrainConfig(3, 7, 0.1), seed=SEED)

    assert weights_digest(start) == before
    np.testing.assert_array_equal(features, rows)
    assert weights_digest(first.weights) == weights_digest(again.weights) != weights_digest(other.weights)


def test_a_batch_over_the_parts_rows_takes_all_of_them_and_the_last_batch_is_smaller():
    features, truth = two_moons(10)
    model = Mlp(NeuralConfig((4,)), n_features=2, n_classes=2)

    whole = model.train(model.init(SEED), features, truth, TrainConfig(2, 1000, 0.1), seed=OTHER)
    uneven = model.train(model.init(SEED), features, truth, TrainConfig(2, 4, 0.1), seed=OTHER)

    assert (whole.steps, uneven.steps) == (2, 6)


def test_gathering_rows_in_blocks_changes_nothing(monkeypatch):
    features, truth = two_moons()
    model = Mlp(NeuralConfig((8,)), n_features=2, n_classes=2)
    whole = model.train(model.init(SEED), features, truth, TrainConfig(2, 8, 0.1), seed=OTHER)
    monkeypatch.setattr("parity_fl.models.dense._BLOCK_FLOATS", 40)

    blocks = model.train(model.init(SEED), features, truth, TrainConfig(2, 8, 0.1), seed=OTHER)

    assert weights_digest(blocks.weights) == weights_digest(whole.weights)
    assert blocks.steps == whole.steps


def test_scoring_in_chunks_changes_nothing(monkeypatch):
    features, truth = two_moons()
    model = Mlp(NeuralConfig((8, 8)), n_features=2, n_classes=2)
    start = model.init(SEED)
    whole = model.evaluate(start, features, truth)
    monkeypatch.setattr("parity_fl.models.dense._CHUNK_FLOATS", 64)

    assert model.evaluate(start, features, truth) == pytest.approx(whole)


def test_the_proximal_term_pulls_towards_the_rounds_model():
    features, truth = two_moons()
    model = Mlp(NeuralConfig((8,)), n_features=2, n_classes=2)
    start = model.init(SEED)

    def distance(mu: float) -> float:
        weights = model.train(start, features, truth, TrainConfig(20, 16, 0.1), seed=OTHER, proximal_mu=mu).weights
        return sum(float(np.sum((weights[name] - start[name]) ** 2)) for name in start)

    assert distance(0) > 1.2 * distance(0.1) > 1.44 * distance(1)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_divergence_names_the_step(task):
    features, truth = two_moons()
    truth = truth if task == "classification" else truth * 1e30
    model = Mlp(NeuralConfig((8,), task=task), n_features=2, n_classes=2)

    with pytest.raises(
        ExecutionFailed, match=r"training produced NaN/Inf loss at epoch \d+, batch \d+ - this"
    ) as caught:
        model.train(model.init(SEED), features * 1e25, truth, TrainConfig(50, 16, 1.0), seed=OTHER)

    assert caught.value.reason is FailureReason.NUMERICAL_INSTABILITY


@pytest.mark.parametrize("kind", ["network", "line"])
def test_features_beyond_float32_are_a_named_divergence_and_no_warning(kind):
    features, truth = two_moons(16)
    model = (
        Mlp(NeuralConfig((8,)), n_features=2, n_classes=2)
        if kind == "network"
        else LinearSgd(LinearConfig(2), n_features=2)
    )

    with pytest.raises(ExecutionFailed, match="numerical instability"):
        model.train(model.init(SEED), features * 1e300, truth, TrainConfig(2, 4, 0.1), seed=OTHER)


def test_no_rows_are_refused():
    model = Mlp(NeuralConfig((8,)), n_features=2, n_classes=2)

    with pytest.raises(ExecutionFailed, match="empty training data"):
        model.train(model.init(SEED), np.zeros((0, 2)), np.zeros(0), TrainConfig(1, 1, 0.1), seed=OTHER)


@pytest.mark.parametrize(
    ("features", "truth", "words"),
    [
        (np.zeros((4, 3)), np.zeros(4), "feature size mismatch: expected 2 columns, got shape 4x3"),
        (np.zeros((4, 2)), np.zeros(3), "feature and label count mismatch"),
        (np.zeros((4, 2)), np.array([0, 1, 2, 0.0]), "class indices must be from 0 to 1"),
        (np.zeros((4, 2)), np.array([0, 1, -1, 0.0]), "class indices must be from 0 to 1"),
        (np.zeros((4, 2)), np.array([0, 1, np.nan, 0.0]), "class indices must be from 0 to 1"),
    ],
)
def test_rows_that_do_not_fit_are_refused(features, truth, words):
    model = Mlp(NeuralConfig((8,)), n_features=2, n_classes=2)

    with pytest.raises(BadField, match=words):
        model.train(model.init(SEED), features, truth, TrainConfig(1, 1, 0.1), seed=OTHER)


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("layer_00.weight", None, "weights"),
        ("extra", np.zeros(1, dtype=np.float32), "weights"),
        ("layer_00.weight", np.zeros((8, 2), dtype=np.float32), "weights.layer_00.weight"),
        ("layer_01.bias", np.zeros(2, dtype=np.int32), "weights.layer_01.bias"),
        ("layer_01.bias", np.array([0, np.inf], dtype=np.float32), "weights.layer_01.bias"),
    ],
)
def test_weights_that_are_not_this_models_are_refused(name, value, field):
    model = Mlp(NeuralConfig((8,)), n_features=2, n_classes=2)
    weights = {**model.init(SEED), name: value}
    weights = {key: array for key, array in weights.items() if array is not None}

    with pytest.raises(BadField) as caught:
        model.predict(weights, np.zeros((1, 2)))

    assert caught.value.field == field


def test_first_weights_fill_their_bounds_and_differ_by_seed_and_layer():
    layout = Layout((50, 40, 40, 3))

    made, other = (first_weights(layout, seed, activation="relu") for seed in (SEED, OTHER))

    for name, bound in (("layer_00", np.sqrt(6 / 50)), ("layer_01", np.sqrt(6 / 40)), ("layer_02", np.sqrt(6 / 43))):
        values = made[f"{name}.weight"]
        assert 0.9 * bound < np.abs(values).max() <= bound
        assert abs(values.mean()) < 0.1 * bound
        assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
        assert not made[f"{name}.bias"].any()
        assert not np.array_equal(values, other[f"{name}.weight"])
    assert list(made) == sorted(made) == list(layout.shapes)
    assert sum(value.size for value in made.values()) == layout.size == parameter_count(layout.widths)


def test_small_steps_stay_with_numpy_and_an_engine_that_is_not_there_is_named(monkeypatch):
    assert large_kernel("numpy", 10 * LARGE_STEP) is None
    assert large_kernel("auto", LARGE_STEP - 1) is None

    monkeypatch.setattr("parity_fl.engines.choice.torch_is_there", lambda: False)

    assert large_kernel("auto", 10 * LARGE_STEP) is None
    with pytest.raises(BadField, match="extra"):
        large_kernel("torch", 1)


def test_asking_whether_torch_is_there_imports_nothing():
    loaded = "torch" in sys.modules

    torch_is_there()

    assert ("torch" in sys.modules) == loaded
