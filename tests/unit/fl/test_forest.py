from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from parity_fl.bootstrap import draw_counts, tree_state
from parity_fl.forest import train_forest
from parity_fl.spec import ForestConfig
from parity_fl.trees import as_forest_features, forest_from_tensors, forest_tensors, predict, votes
from parity_protocol.errors import ExecutionFailed

CANCER = load_breast_cancer()
DIABETES = load_diabetes()


def grow(config: ForestConfig, *, trees: int = 20, part: int = 0):
    return train_forest(CANCER.data, CANCER.target.astype(float), config, n_classes=2, part=part, n_trees=trees)


def scikit_trees(config: ForestConfig, model, features, truth, trees: int):
    inputs = features.astype(np.float32)
    for tree in range(trees):
        counts = draw_counts(config, part=0, tree=tree, rows=len(inputs))
        fitted = model(
            max_depth=config.max_depth,
            max_features=int(np.sqrt(features.shape[1])),
            random_state=tree_state(config, part=0, tree=tree),
        )
        yield counts, fitted.fit(inputs, truth, sample_weight=counts.astype(float))


def test_class_shares_equal_scikit_learns_own_trees():
    config = ForestConfig()
    inputs = as_forest_features(CANCER.data)
    expected = np.mean(
        [
            tree.predict_proba(inputs)
            for _, tree in scikit_trees(config, DecisionTreeClassifier, CANCER.data, CANCER.target, 20)
        ],
        axis=0,
    )

    total, _ = votes(grow(config).forest, inputs)

    np.testing.assert_allclose(total, expected, atol=1e-6)


def test_out_of_bag_score_equals_the_definition():
    config = ForestConfig()
    inputs = as_forest_features(CANCER.data)
    total = np.zeros((len(inputs), 2))
    for counts, tree in scikit_trees(config, DecisionTreeClassifier, CANCER.data, CANCER.target, 20):
        total[counts == 0] += tree.predict_proba(inputs[counts == 0])
    scored = total.sum(axis=1) > 0
    expected = np.mean(total[scored].argmax(axis=1) == CANCER.target[scored])

    grown = grow(config)

    assert grown.oob_local == pytest.approx(expected)
    assert grown.oob_rows == scored.sum()


def test_importances_equal_scikit_learns_mean_decrease_of_impurity():
    config = ForestConfig()
    each = [
        tree.feature_importances_
        for _, tree in scikit_trees(config, DecisionTreeClassifier, CANCER.data, CANCER.target, 20)
    ]

    importance = grow(config).forest.importance

    np.testing.assert_allclose(importance, np.mean(each, axis=0))
    assert importance.sum() == pytest.approx(1)


def test_importances_rank_features_as_a_central_forest_does():
    central = RandomForestClassifier(200, max_depth=10, random_state=0).fit(CANCER.data, CANCER.target)

    importance = grow(ForestConfig(), trees=200).forest.importance

    assert (
        np.corrcoef(importance, central.feature_importances_)[0, 1] > 0.9
    )  # two central forests of different seeds differ by as much


def test_a_regression_forest_predicts_the_mean_of_its_trees():
    config = ForestConfig(task="regression", criterion="squared_error")
    inputs = as_forest_features(DIABETES.data)
    expected = np.mean(
        [
            tree.predict(inputs)
            for _, tree in scikit_trees(config, DecisionTreeRegressor, DIABETES.data, DIABETES.target, 10)
        ],
        axis=0,
    )

    grown = train_forest(DIABETES.data, DIABETES.target, config, n_classes=0, part=0, n_trees=10)

    np.testing.assert_allclose(predict(grown.forest, inputs, classification=False), expected, rtol=1e-6)
    assert -1 < grown.oob_local < 1


def test_trees_that_were_grown_pass_the_hostile_checks():
    tensors = forest_tensors(grow(ForestConfig()).forest)

    forest_from_tensors(tensors, n_features=30, n_outputs=2, classification=True)


def test_the_same_part_grows_the_same_bytes_and_another_part_others():
    first, again, other = (forest_tensors(grow(ForestConfig(), trees=5, part=part).forest) for part in (0, 0, 1))

    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["threshold"], other["threshold"])


def test_another_random_state_grows_other_trees():
    first, other = (grow(ForestConfig(random_state=state), trees=5).forest for state in (1, 2))

    assert not np.array_equal(first.threshold, other.threshold)


def test_a_part_without_some_class_keeps_the_global_class_columns():
    only = CANCER.target == 1
    truth = np.full(only.sum(), 2.0)
    truth[::2] = 0.0

    grown = train_forest(CANCER.data[only], truth, ForestConfig(), n_classes=4, part=0, n_trees=3)

    assert grown.forest.n_outputs == 4
    assert not grown.forest.value[:, [1, 3]].any()


def test_a_part_of_one_class_is_leaves_and_has_no_importance():
    grown = train_forest(np.arange(20.0).reshape(10, 2), np.zeros(10), ForestConfig(), n_classes=2, part=0, n_trees=3)

    assert len(grown.forest.feature) == 3
    assert not grown.forest.importance.any()
    assert grown.oob_local == 1.0


@pytest.mark.parametrize("change", [{"oob_score": False}, {"bootstrap_samples": False}])
def test_out_of_bag_score_is_none_when_not_asked_for_or_nothing_is_left_out(change):
    assert grow(dataclasses.replace(ForestConfig(), **change), trees=3).oob_local is None


def test_subsampling_without_replacement_has_out_of_bag_rows():
    grown = grow(ForestConfig(bootstrap_samples=False, subsample=0.5))

    assert 0.85 < grown.oob_local < 1
    assert set(grown.forest.n[grown.forest.tree_starts[:-1]].tolist()) == {285}  # half of 569, rounded up


def test_depth_and_leaf_limits_hold():
    forest = grow(ForestConfig(max_depth=2, min_samples_leaf=40), trees=10).forest

    leaves = forest.feature == -1
    assert np.diff(forest.tree_starts).max() <= 7
    assert forest.n[leaves].min() >= 40


def test_no_rows_are_refused():
    with pytest.raises(ExecutionFailed, match="empty training data"):
        train_forest(np.zeros((0, 2)), np.zeros(0), ForestConfig(), n_classes=2, part=0, n_trees=1)
