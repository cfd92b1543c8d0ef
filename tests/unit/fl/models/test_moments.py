from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_fl import resolve_fl_spec
from parity_fl.models.base import scaling_of
from parity_fl.models.moments import (
    Moments,
    fair_scaling,
    merged_scaling,
    moments_from_tensors,
    moments_of,
    moments_tensors,
)
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
        ("mean", np.array([0, -1.1e18, 0]), "cannot be standardized"),
        ("spread", np.array([0, 9.1e36, 0]), "cannot be standardized"),
    ],
)
def test_hostile_moments_are_refused(name, value, words):
    tensors = {"n": np.array([9.0]), "mean": np.zeros(3), "spread": np.ones(3), name: value}
    tensors = {key: tensor for key, tensor in tensors.items() if tensor is not None}

    with pytest.raises(BadDocument, match=words):
        moments_from_tensors(tensors, n_features=2, rows=9)


def test_the_farthest_moments_that_are_taken_can_be_merged():
    said = {"n": np.array([9.0]), "spread": np.full(3, 9e36)}
    far = [
        moments_from_tensors({**said, "mean": np.full(3, side * 1e18)}, n_features=2, rows=9) for side in (-1.0, 1.0)
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


# -- a part that lies -----------------------------------------------------------------------------------------------


def said_of(rows: np.ndarray, truth: np.ndarray | None = None, **model: object):
    return moments_of(spec_of(**model), rows, np.zeros(len(rows)) if truth is None else truth)


@given(
    seed=st.integers(0, 2**32 - 1),
    centres=st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=8),
    unit=st.sampled_from([1e-6, 1.0, 1e9]),
)
@settings(max_examples=60, deadline=None)
def test_honest_parts_whose_ranges_lie_a_thousand_deviations_apart_all_count(seed, centres, unit):
    rng = np.random.default_rng(seed)
    features = [unit * (rng.normal(size=(rng.integers(5, 40), 2)) + np.array([centre, 0])) for centre in centres]
    parts = {part: said_of(rows) for part, rows in enumerate(features)}

    scaling, left_out = fair_scaling(spec_of(), parts)

    assert left_out == {}
    assert_same(scaling, merged_scaling(spec_of(), list(parts.values())))


def test_a_column_that_one_part_alone_has_something_in_is_scaled_by_that_part():
    rng = np.random.default_rng(2)
    features = np.zeros((4, 30, 2))
    features[:, :, 0] = rng.normal(size=(4, 30))
    features[3, :, 1] = rng.normal(5e6, 1e5, size=30)
    features[0, 0, 0] = 1e3  # an outlier among the rows

    scaling, left_out = fair_scaling(spec_of(), {part: said_of(rows) for part, rows in enumerate(features)})

    assert left_out == {}
    assert_same(scaling, scaling_of(spec_of(), features.reshape(-1, 2), np.zeros(120)))


@pytest.mark.parametrize(
    "lie",
    [{"mean": 1e17}, {"mean": -1e9}, {"spread": 30 * 1e34}, {"spread": 30 * 1e12}],
)
@pytest.mark.parametrize("column", [0, 1])
def test_a_part_far_from_all_others_is_left_out_of_the_column_that_it_lies_about(lie, column):
    rng = np.random.default_rng(4)
    spec = spec_of(task="regression")
    honest = [said_of(rng.normal(size=(30, 1)), rng.normal(size=30), task="regression") for _ in range(5)]
    liar = honest[4]
    changed = {name: getattr(liar, name).copy() for name in ("mean", "spread")}
    for name, value in lie.items():
        changed[name][column] = value

    scaling, left_out = fair_scaling(spec, {**dict(enumerate(honest[:4])), 4: replace(liar, **changed)})

    assert left_out == {4: 1}
    true, without = merged_scaling(spec, honest), merged_scaling(spec, honest[:4])
    features, target = (without, true) if column == 0 else (true, without)
    np.testing.assert_allclose(scaling.mean, features.mean, rtol=1e-12)
    np.testing.assert_allclose(scaling.deviation, features.deviation, rtol=1e-12)
    assert scaling.target_mean == pytest.approx(target.target_mean, rel=1e-12)
    assert scaling.target_deviation == pytest.approx(target.target_deviation, rel=1e-12)


def test_a_part_that_claims_millions_of_rows_counts_as_ten_times_the_median():
    rng = np.random.default_rng(6)
    honest = {part: said_of(rng.normal(size=(100, 1))) for part in range(3)}
    liar = Moments(5_000_000, np.zeros(2), np.zeros(2))

    scaling, left_out = fair_scaling(spec_of(), {**honest, 3: liar})

    assert left_out == {}
    assert scaling.deviation[0] == pytest.approx(np.sqrt(300 / 1300), rel=0.1)


def test_of_two_parts_nobody_knows_which_one_is_far():
    parts = {0: said_of(np.arange(9.0)[:, None]), 1: said_of(np.arange(9.0)[:, None] + 1e9)}

    scaling, left_out = fair_scaling(spec_of(), parts)

    assert left_out == {}
    assert_same(scaling, merged_scaling(spec_of(), list(parts.values())))
