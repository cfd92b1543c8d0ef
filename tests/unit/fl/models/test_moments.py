from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_fl import resolve_fl_spec
from parity_fl.models.base import scaling_of
from parity_fl.models.moments import merged_scaling, moments_from_tensors, moments_of, moments_tensors
from parity_protocol.errors import BadDocument, ExecutionFailed


def spec_of(**model: object):
    return resolve_fl_spec(
        {
            "session_id": "s",
            "round_id": "r",
            "model_type": "neural_network",
            "dataset_cid": "x",
            "data_format": "csv",
            "model_config": {"hidden_size": 4, **model},
            "train_config": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
            "partition_config": {"strategy": "random", "min_samples": 1},
        }
    )


def assert_same(one, other) -> None:
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(one.deviation, other.deviation, rtol=1e-9)
    assert one.target_mean == pytest.approx(other.target_mean, rel=1e-12)
    assert one.target_deviation == pytest.approx(other.target_deviation, rel=1e-9)


@pytest.mark.parametrize("task", ["classification", "regression"])
@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(1, 39), max_size=5, unique=True))
@settings(max_examples=40, deadline=None)
def test_any_cut_agrees_on_the_scaling_of_all_rows(task, seed, cuts):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(40, 3)) * [1e-3, 1, 1e3] + [5, 0, -1e5]
    truth = rng.integers(0, 3, 40).astype(float)
    spec = spec_of(task=task)

    parts = [moments_of(spec, features[rows], truth[rows]) for rows in np.split(np.arange(40), sorted(cuts))]

    assert_same(merged_scaling(spec, parts), scaling_of(spec, features, truth))


def test_a_large_offset_costs_no_precision_and_a_constant_column_keeps_deviation_1():
    rng = np.random.default_rng(0)
    features = np.c_[1e8 + rng.normal(size=1000), np.full(1000, 7.0)]
    spec = spec_of()

    merged = merged_scaling(spec, [moments_of(spec, part, np.zeros(250)) for part in np.split(features, 4)])

    assert merged.deviation[0] == pytest.approx(features[:, 0].std(), rel=1e-6)
    assert merged.deviation[1] == 1


def test_without_standardize_nothing_is_scaled():
    spec = spec_of(standardize=False)

    merged = merged_scaling(spec, [moments_of(spec, np.full((5, 2), 9.0), np.zeros(5))])

    assert merged.mean.tolist() == [0, 0]
    assert merged.deviation.tolist() == [1, 1]


def test_moments_survive_their_tensors():
    rng = np.random.default_rng(1)
    moments = moments_of(spec_of(task="regression"), rng.normal(size=(9, 2)), rng.normal(size=9))

    read = moments_from_tensors(moments_tensors(moments), n_features=2, rows=9)

    np.testing.assert_array_equal(read.mean, moments.mean)
    np.testing.assert_array_equal(read.spread, moments.spread)
    assert read.n == 9


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("n", np.array([8.0]), "the part has 9 rows, the moments say 8"),
        ("n", None, "expected the tensors"),
        ("mean", np.zeros(2), "must have 3 entries"),
        ("mean", np.array([0, np.inf, 0]), "NaN or Inf"),
        ("spread", np.array([1.0, -1.0, 0]), "no rows have this spread"),
        ("spread", np.zeros(3, dtype=np.float32), "F64"),
        ("mean", np.array([0, -1e141, 0]), "cannot be standardized"),
        ("spread", np.array([0, 1e281, 0]), "cannot be standardized"),
    ],
)
def test_hostile_moments_are_refused(name, value, words):
    tensors = {"n": np.array([9.0]), "mean": np.zeros(3), "spread": np.ones(3), name: value}
    tensors = {key: tensor for key, tensor in tensors.items() if tensor is not None}

    with pytest.raises(BadDocument, match=words):
        moments_from_tensors(tensors, n_features=2, rows=9)


def test_the_farthest_moments_that_are_taken_can_be_merged():
    said = {"n": np.array([9.0]), "spread": np.full(3, 1e280)}
    far = [
        moments_from_tensors({**said, "mean": np.full(3, side * 1e140)}, n_features=2, rows=9) for side in (-1.0, 1.0)
    ]

    scaling = merged_scaling(spec_of(), far)

    assert np.isfinite(scaling.mean).all()
    assert np.isfinite(scaling.deviation).all()


def test_one_row_has_no_spread_no_rows_have_no_moments_and_too_large_is_named():
    with pytest.raises(BadDocument, match="no rows have this spread"):
        moments_from_tensors({"n": np.ones(1), "mean": np.zeros(2), "spread": np.ones(2)}, n_features=1, rows=1)
    with pytest.raises(ExecutionFailed, match="empty training data"):
        moments_of(spec_of(), np.zeros((0, 1)), np.zeros(0))
    with pytest.raises(ExecutionFailed, match="column 0 is too large"):
        moments_of(spec_of(), np.array([[1e308], [-1e308], [1e308]]), np.zeros(3))
