from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from parity_fl.linear import feature_scale, linear_from_tensors, linear_tensors, train_linear
from parity_fl.merge import merge_linear
from parity_fl.scoring import r_squared
from parity_fl.spec import TrainConfig
from parity_protocol.errors import BadDocument, ExecutionFailed, FailureReason

DIABETES = load_diabetes()


def least_squares(features: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, float]:
    solution, *_ = np.linalg.lstsq(np.c_[features, np.ones(len(features))], truth, rcond=None)
    return solution[:-1], float(solution[-1])


def exact_table(rows: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free data, so that every mini-batch has the same minimum and SGD reaches it exactly."""
    rng = np.random.default_rng(7)
    features = rng.normal(size=(rows, 3)) * [1, 50, 0.01] + [0, 1000, 5]
    return features, features @ [2.0, -0.1, 30.0] + 4.0


def fit(features, truth, *, epochs=400, batch=16, rate=0.1, standardize=True, seed=1):
    scale = feature_scale(features, standardize=standardize)
    return train_linear(features, truth, TrainConfig(epochs, batch, rate), scale=scale, seed=seed)


def test_sgd_reaches_the_closed_form_in_the_datas_own_units():
    features, truth = exact_table()
    weights, bias = least_squares(features, truth)

    model = fit(features, truth)

    np.testing.assert_allclose(model.weights, weights, rtol=1e-6)
    assert model.bias == pytest.approx(bias, rel=1e-6)


def test_without_standardising_the_closed_form_is_reached_too():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(60, 2))
    truth = features @ [1.5, -2.0] + 0.5

    model = fit(features, truth, standardize=False)

    np.testing.assert_allclose(model.weights, [1.5, -2.0], rtol=1e-9)
    assert model.bias == pytest.approx(0.5)
    assert model.scale.mean.tolist() == [0, 0]
    assert model.scale.deviation.tolist() == [1, 1]


def test_one_full_batch_step_is_gradient_descent_by_hand():
    features, truth = np.array([[1.0], [3.0]]), np.array([2.0, 4.0])

    model = fit(features, truth, epochs=1, batch=2, rate=0.1, standardize=False)

    assert model.weights[0] == pytest.approx(0.1 * (1 * 2 + 3 * 4) / 2)
    assert model.bias == pytest.approx(0.1 * (2 + 4) / 2)


def test_a_last_short_batch_counts_by_its_own_size():
    features, truth = np.ones((3, 1)), np.ones(3)

    model = fit(features, truth, epochs=1, batch=2, rate=0.5, standardize=False)

    # two rows, then one: w = b = 0.5, then the error is 0
    assert model.weights[0] == pytest.approx(0.5)
    assert model.bias == pytest.approx(0.5)


def test_r_squared_on_real_data_is_near_the_closed_form():
    weights, bias = least_squares(DIABETES.data, DIABETES.target)
    best = r_squared(DIABETES.target, DIABETES.data @ weights + bias)

    model = fit(DIABETES.data, DIABETES.target, epochs=200, batch=64, rate=0.02)

    assert r_squared(DIABETES.target, model.predict(DIABETES.data)) == pytest.approx(best, abs=0.01)


def test_equal_seeds_give_equal_models_and_others_other_ones():
    first, again, other = (fit(DIABETES.data, DIABETES.target, epochs=2, seed=seed) for seed in (1, 1, 2))

    np.testing.assert_array_equal(first.weights, again.weights)
    assert not np.array_equal(first.weights, other.weights)


def test_a_constant_column_is_left_in_its_units():
    features = np.c_[np.full(10, 0.1), np.arange(10.0)]

    model = fit(features, 3 * np.arange(10.0))

    assert model.scale.deviation[0] == 1
    np.testing.assert_allclose(model.predict(features), 3 * np.arange(10.0), atol=1e-6)


def test_divergence_is_refused_in_the_networks_words():
    features, truth = exact_table()

    with pytest.raises(ExecutionFailed, match="training produced NaN/Inf loss at epoch 1, batch") as caught:
        fit(features * 1e80, truth, rate=1.0, standardize=False)

    assert caught.value.reason is FailureReason.NUMERICAL_INSTABILITY
    assert "this indicates numerical instability" in caught.value.message
    assert "standardize" in caught.value.hint()


def test_a_column_too_large_for_its_statistics_is_refused():
    with pytest.raises(ExecutionFailed, match="feature 1 is too large to standardize"):
        feature_scale(np.array([[1.0, 1e308], [1.0, -1e308], [0.0, 1e308]]), standardize=True)


def test_no_rows_are_refused():
    scale = feature_scale(np.ones((2, 1)), standardize=False)

    with pytest.raises(ExecutionFailed, match="empty training data"):
        train_linear(np.zeros((0, 1)), np.zeros(0), TrainConfig(1, 1, 0.1), scale=scale, seed=0)


def test_models_are_averaged_by_rows_in_the_datas_units():
    features, truth = exact_table()
    first, second = fit(features, truth), fit(features, truth + 100, standardize=True)

    merged = merge_linear([first, second], [30, 10])

    np.testing.assert_allclose(merged.weights, 0.75 * first.weights + 0.25 * second.weights)
    expected = 0.75 * first.predict(features) + 0.25 * second.predict(features)
    np.testing.assert_allclose(merged.predict(features), expected)


def test_a_model_survives_its_tensors():
    model = fit(DIABETES.data, DIABETES.target, epochs=1)

    read = linear_from_tensors(linear_tensors(model), n_features=10)

    np.testing.assert_array_equal(read.predict(DIABETES.data), model.predict(DIABETES.data))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("weights", np.zeros(3), "weights must have 2 entries"),
        ("weights", np.zeros((2, 1)), "dimensions"),
        ("weights", np.zeros(2, dtype=np.float32), "F64"),
        ("weights", np.array([0, np.nan]), "NaN or Inf"),
        ("weights", np.array([0, 1e31]), "a weight is over"),
        ("bias", np.array([-1e31]), "a weight is over"),
        ("bias", np.zeros(0), "bias must have 1 entries"),
        ("deviation", np.array([1.0, 0.0]), "deviation must be positive"),
        ("mean", None, "expected the tensors"),
        ("extra", np.zeros(1), "expected the tensors"),
    ],
)
def test_a_hostile_model_is_refused(name, value, words):
    tensors = {"weights": np.zeros(2), "bias": np.zeros(1), "mean": np.zeros(2), "deviation": np.ones(2), name: value}
    tensors = {key: tensor for key, tensor in tensors.items() if tensor is not None}

    with pytest.raises(BadDocument, match=words):
        linear_from_tensors(tensors, n_features=2)
