"""Linear regression in rounds, and from sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes

from parity_fl.linear import FeatureScale, feature_scale
from parity_fl.models.base import Scaling, weights_digest
from parity_fl.models.linear_exact import (
    linear_statistics,
    solve_linear,
    statistics_bytes,
    statistics_from_tensors,
    statistics_tensors,
    sum_statistics,
)
from parity_fl.models.linear_sgd import LinearSgd
from parity_fl.spec import LinearConfig, TrainConfig
from parity_protocol.errors import BadDocument, BadField, ExecutionFailed, FailureReason

DIABETES = load_diabetes()
SEED = b"\x07" * 32


def least_squares(features: np.ndarray, truth: np.ndarray) -> np.ndarray:
    solution, *_ = np.linalg.lstsq(np.c_[features, np.ones(len(features))], truth, rcond=None)
    return solution


def scaling(features: np.ndarray) -> Scaling:
    return Scaling(features.mean(axis=0), features.std(axis=0))


def exact_table(rows: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free data, so that every mini-batch has the same minimum."""
    rng = np.random.default_rng(7)
    features = rng.normal(size=(rows, 3)) * [1, 50, 0.01] + [0, 1000, 5]
    return features, features @ [2.0, -0.1, 30.0] + 4.0


@pytest.mark.parametrize("target", [(0.0, 1.0), (-60.0, 25.0)])
def test_rounds_of_averaged_sgd_reach_the_closed_form_however_the_target_is_scaled(target):
    features, truth = exact_table()
    scale = Scaling(features.mean(axis=0), features.std(axis=0), *target)
    model = LinearSgd(LinearConfig(3), n_features=3, scaling=scale)
    weights = model.init(SEED)

    for number in range(40):
        parts = [
            model.train(weights, features[p::2], truth[p::2], TrainConfig(5, 8, 0.1), seed=bytes([number]) * 32)
            for p in (0, 1)
        ]
        weights = {name: np.mean([part.weights[name] for part in parts], axis=0) for name in weights}

    own = model.own_units(weights)
    np.testing.assert_allclose([*own.weights, own.bias], least_squares(features, truth), rtol=1e-4)
    np.testing.assert_allclose(own.predict(features), model.predict(weights, features), rtol=1e-6)


def test_one_full_batch_step_in_rounds_is_gradient_descent_by_hand():
    model = LinearSgd(LinearConfig(1), n_features=1)
    start = {"bias": np.array([1.0], np.float32), "weights": np.array([2.0], np.float32)}

    trained = model.train(
        start, np.array([[1.0], [3.0]]), np.array([2.0, 4.0]), TrainConfig(2, 2, 0.1), seed=SEED, proximal_mu=0.5
    )

    # errors 1, 3: slope 5, bias 2; then errors -0.5 + 0.3 = 0 … with the proximal pull 0.5 · (−0.5, −0.2)
    weight, bias = 2 - 0.1 * 5, 1 - 0.1 * 2
    errors = [weight + bias - 2, 3 * weight + bias - 4]
    weight -= 0.1 * ((errors[0] + 3 * errors[1]) / 2 + 0.5 * (weight - 2))
    bias -= 0.1 * ((errors[0] + errors[1]) / 2 + 0.5 * (bias - 1))
    assert trained.weights["weights"][0] == pytest.approx(weight, rel=1e-6)
    assert trained.weights["bias"][0] == pytest.approx(bias, rel=1e-6)
    assert (trained.steps, trained.n_samples) == (2, 2)
    assert start["weights"][0] == 2


def test_scores_in_rounds_are_mse_and_r2():
    model = LinearSgd(LinearConfig(1), n_features=1)
    weights = {"bias": np.array([0.0], np.float32), "weights": np.array([1.0], np.float32)}

    scores = model.evaluate(weights, np.array([[1.0], [2.0]]), np.array([2.0, 4.0]))

    assert scores == {"loss": 1.25, "mse": 2.5, "r2": -1.5}


def test_equal_seeds_give_equal_linear_models():
    model = LinearSgd(LinearConfig(10), n_features=10, scaling=scaling(DIABETES.data))
    config = TrainConfig(3, 16, 0.05)

    first, again, other = (
        model.train(model.init(SEED), DIABETES.data, DIABETES.target, config, seed=seed).weights
        for seed in (SEED, SEED, b"\x08" * 32)
    )

    assert weights_digest(first) == weights_digest(again) != weights_digest(other)


def test_linear_rounds_refuse_what_does_not_fit_and_name_divergence():
    with pytest.raises(BadField, match="feature size mismatch: expected 3, got 2"):
        LinearSgd(LinearConfig(3), n_features=2)
    model = LinearSgd(LinearConfig(2), n_features=2)
    config = TrainConfig(30, 4, 1.0)

    with pytest.raises(BadField, match="not this model's weights"):
        model.predict({"weights": np.zeros(2, np.float32)}, np.zeros((1, 2)))
    with pytest.raises(BadField, match="expected 2 columns"):
        model.predict(model.init(SEED), np.zeros((1, 3)))
    with pytest.raises(ExecutionFailed, match="empty training data"):
        model.train(model.init(SEED), np.zeros((0, 2)), np.zeros(0), config, seed=SEED)
    with pytest.raises(ExecutionFailed, match=r"NaN/Inf loss at epoch \d+, batch \d+") as caught:
        model.train(model.init(SEED), np.full((8, 2), 1e30), np.ones(8), config, seed=SEED)
    assert caught.value.reason is FailureReason.NUMERICAL_INSTABILITY


def solved(features: np.ndarray, truth: np.ndarray, cuts: list[int], *, standardize: bool) -> tuple[np.ndarray, float]:
    scale = feature_scale(features, standardize=standardize)
    rows = np.split(np.arange(len(truth)), cuts)
    parts = [linear_statistics(features[part], truth[part], scale) for part in rows]
    solution = solve_linear(sum_statistics(parts), scale)
    return np.array([*solution.model.weights, solution.model.bias]), solution.ridge


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("cuts", [[], [200], [1, 2, 30, 31, 400]])
def test_sums_of_parts_have_the_central_solution_to_1e_8(cuts, standardize):
    found, ridge = solved(DIABETES.data, DIABETES.target, cuts, standardize=standardize)

    np.testing.assert_allclose(found, least_squares(DIABETES.data, DIABETES.target), rtol=1e-8)
    assert ridge == 0


def test_columns_of_very_different_size_keep_the_central_solution_to_1e_8():
    rng = np.random.default_rng(11)
    features = rng.normal(size=(300, 4)) * [1e-6, 1, 1e3, 1e6] + [0, 10, -1e4, 5e6]
    truth = features @ [1e6, 2.0, 1e-3, 1e-6] + rng.normal(size=300)
    scale = feature_scale(features, standardize=True)
    central = least_squares((features - scale.mean) / scale.deviation, truth)
    weights = central[:-1] / scale.deviation

    found, ridge = solved(features, truth, [100, 200], standardize=True)

    np.testing.assert_allclose(found[:-1], weights, rtol=1e-8)
    assert ridge == 0


@given(rows=st.integers(8, 60), width=st.integers(1, 6), seed=st.integers(0, 2**32 - 1), cut=st.floats(0.1, 0.9))
@settings(max_examples=60, deadline=None)
def test_any_cut_of_any_regular_table_has_the_central_solution(rows, width, seed, cut):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows + width, width))
    truth = rng.normal(size=rows + width)

    found, _ = solved(features, truth, [max(1, int(cut * rows))], standardize=True)

    np.testing.assert_allclose(found, least_squares(features, truth), rtol=1e-7, atol=1e-9)


def test_a_singular_problem_gets_a_ridge_and_says_so():
    rng = np.random.default_rng(2)
    x = rng.normal(size=50)
    features = np.c_[x, 2 * x, np.ones(50)]
    truth = 3 * x + 1

    found, ridge = solved(features, truth, [20], standardize=True)

    assert ridge > 0
    np.testing.assert_allclose(features @ found[:-1] + found[-1], truth, rtol=1e-6)
    assert found[2] == 0  # a column of one value says nothing


def test_fewer_rows_than_features_is_singular_too():
    rng = np.random.default_rng(3)
    features, truth = rng.normal(size=(4, 9)), rng.normal(size=4)

    found, ridge = solved(features, truth, [2], standardize=False)

    assert ridge > 0
    assert np.isfinite(found).all()


def test_sums_that_overflow_and_parts_without_rows_are_refused():
    scale = FeatureScale(np.zeros(1), np.ones(1))

    with pytest.raises(ExecutionFailed, match="sums of squares are not finite"):
        linear_statistics(np.full((3, 1), 1e200), np.ones(3), scale)
    with pytest.raises(ExecutionFailed, match="empty training data"):
        linear_statistics(np.zeros((0, 1)), np.zeros(0), scale)


def test_rows_are_summed_in_blocks_with_the_same_result(monkeypatch):
    scale = feature_scale(DIABETES.data, standardize=True)
    whole = linear_statistics(DIABETES.data, DIABETES.target, scale)
    monkeypatch.setattr("parity_fl.models.linear_exact._ROWS_AT_ONCE", 170)

    blocks = linear_statistics(DIABETES.data, DIABETES.target, scale)

    np.testing.assert_allclose(blocks.gram, whole.gram, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(blocks.moment, whole.moment, rtol=1e-12)


def test_sums_survive_their_tensors():
    sums = linear_statistics(DIABETES.data, DIABETES.target, feature_scale(DIABETES.data, standardize=False))

    tensors = statistics_tensors(sums)
    read = statistics_from_tensors(tensors, n_features=10, rows=len(DIABETES.target))

    np.testing.assert_array_equal(read.gram, sums.gram)
    np.testing.assert_array_equal(read.moment, sums.moment)
    assert (read.n, read.target, read.square) == (sums.n, sums.target, sums.square)
    assert sum(tensor.nbytes for tensor in tensors.values()) == statistics_bytes(10)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("gram", None, "expected the tensors"),
        ("gram", np.ones(4), "gram must have 3 entries"),
        ("gram", np.array([4.0, 0.0, -1.0]), "no rows have these sums"),
        ("gram", np.array([4.0, 5.0, 4.0]), "no rows have these sums"),
        ("gram", np.array([4.0, np.nan, 4.0]), "NaN or Inf"),
        ("total", np.array([100.0, 0.0]), "no rows have these sums"),
        ("moment", np.array([100.0, 0.0]), "no rows have these sums"),
        ("sums", np.array([5.0, 0.0, 4.0]), "the part has 4 rows, the sums say 5"),
        ("sums", np.array([4.0, 9.0, 4.0]), "no rows have these sums"),
        ("sums", np.array([4.0, 0.0, -1.0]), "no rows have these sums"),
    ],
)
def test_hostile_sums_are_refused(name, value, words):
    good = {
        "gram": np.array([4.0, 0.0, 4.0]),
        "total": np.zeros(2),
        "moment": np.array([1.0, 1.0]),
        "sums": np.array([4.0, 0.0, 4.0]),
    }
    statistics_from_tensors(good, n_features=2, rows=4)
    tensors = {key: tensor for key, tensor in {**good, name: value}.items() if tensor is not None}

    with pytest.raises(BadDocument, match=words):
        statistics_from_tensors(tensors, n_features=2, rows=4)
