from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes, load_iris

from parity_fl.forest import train_forest
from parity_fl.forest_wire import read_old_trees, write_old_trees
from parity_fl.limits import ForestLimits
from parity_fl.spec import ForestConfig
from parity_fl.trees import as_forest_features, forest_from_tensors, forest_tensors, predict
from parity_protocol.errors import BadDocument

IRIS = load_iris()
DIABETES = load_diabetes()
CONFIG = ForestConfig(num_trees=3, max_depth=4)
LABELS = (1.0, 2.0, 3.0)  # the old network numbers labels as the data do
STUMP = [10, 2, 1, 0, 1, 2.5, 0, 6, 0.5, 0, -1, 0, 0, 3, 0, 1, -1, 0, 1, 3, 0, 1]


@pytest.fixture(scope="module")
def iris():
    return train_forest(IRIS.data, IRIS.target.astype(float), CONFIG, n_classes=3, part=0, n_trees=3).forest


def test_a_stump_is_written_number_by_number():
    forest = read_old_trees(STUMP, n_features=2, labels=(0.0, 1.0))

    assert forest.feature.tolist() == [1, -1, -1]
    assert forest.threshold.tolist() == [2.5, 0, 0]
    assert forest.n.tolist() == [6, 3, 3]
    guess = predict(forest, np.array([[0, 2.5], [0, 2.6]], dtype=np.float32), classification=True)
    assert guess.tolist() == [0, 1]
    # The root's largest class is the lower one on a tie; a reader cannot know the impurity of its shares.
    written = write_old_trees(forest, ForestConfig(), labels=(0.0, 1.0))
    assert written[:8] == STUMP[:8]
    assert written[10:] == STUMP[10:]


def test_trees_vote_for_the_same_classes_after_the_old_form(iris):
    numbers = write_old_trees(iris, CONFIG, labels=LABELS)

    back = read_old_trees(numbers, n_features=4, labels=LABELS, importance=iris.importance * 7)

    assert len(numbers) == 3 * 4 + 6 * len(iris.feature)
    inputs = as_forest_features(IRIS.data)
    for tree in range(3):
        assert predict(_only(back, tree), inputs, classification=True).tolist() == (
            predict(_only(iris, tree), inputs, classification=True).tolist()
        )
    np.testing.assert_allclose(back.importance, iris.importance)
    forest_from_tensors(forest_tensors(back), n_features=4, n_outputs=3, classification=True)


def _only(forest, tree: int):
    nodes = slice(int(forest.tree_starts[tree]), int(forest.tree_starts[tree + 1]))
    each = {name: getattr(forest, name)[nodes] for name in ("feature", "threshold", "left", "right", "value", "n")}
    starts = np.array([0, nodes.stop - nodes.start], dtype=np.uint32)
    return type(forest)(tree_starts=starts, tree_weight=np.ones(1), importance=forest.importance, **each)


def test_a_regression_predicts_the_same_after_the_old_form():
    config = ForestConfig(num_trees=2, max_depth=4, task="regression", criterion="squared_error")
    forest = train_forest(DIABETES.data, DIABETES.target, config, n_classes=1, part=0, n_trees=2).forest

    back = read_old_trees(write_old_trees(forest, config), n_features=10)

    inputs = as_forest_features(DIABETES.data)
    expected = predict(forest, inputs, classification=False)
    np.testing.assert_allclose(predict(back, inputs, classification=False), expected)


def test_impurities_are_those_of_the_class_shares(iris):
    numbers = np.array(write_old_trees(_only(iris, 0), CONFIG, labels=LABELS)[4:]).reshape(-1, 6)

    assert numbers[0, 4] == pytest.approx(1 - np.sum(iris.value[0].astype(float) ** 2))
    assert (numbers[numbers[:, 5] == 0, 4] > 0).all()


@pytest.mark.parametrize(
    ("place", "value"),
    [(4, 2.0), (4, 0.5), (4, -1.0), (5, float("nan")), (6, 7.0), (7, 0.0), (7, 1.5), (9, 2.0), (9, 1.0)],
)
def test_a_number_that_cannot_be_is_refused(place, value):
    numbers = [float(number) for number in STUMP]
    numbers[place] = value

    with pytest.raises(BadDocument, match="not a list of trees"):
        read_old_trees(numbers, n_features=2, labels=(0.0, 1.0))


@pytest.mark.parametrize("length", [0, 3, 4, 9, 16, 21])
def test_a_list_that_ends_early_is_refused(length):
    with pytest.raises(BadDocument, match="not a list of trees"):
        read_old_trees(STUMP[:length], n_features=2, labels=(0.0, 1.0))


def test_a_missing_subtree_is_refused():
    with pytest.raises(BadDocument, match="not a list of trees"):
        read_old_trees([*STUMP[:10], -1, *STUMP[16:]], n_features=2, labels=(0.0, 1.0))


def test_caps_hold_before_the_arrays_are_made():
    chain = [10, 2, 1, 0] + [0, 1.0, 0, 1, 0, 0] * 5000

    with pytest.raises(BadDocument, match="deeper than 64"):
        read_old_trees(chain, n_features=1)
    with pytest.raises(BadDocument, match="more than 1 trees"):
        read_old_trees([*STUMP, *STUMP], n_features=2, labels=(0, 1), limits=ForestLimits(max_trees=1))


@given(st.lists(st.one_of(st.sampled_from([-1.0, 0.0, 1.0, 2.0]), st.floats()), max_size=60))
def test_any_list_is_a_forest_or_refused(numbers):
    try:
        forest = read_old_trees(numbers, n_features=2)
    except BadDocument:
        return
    forest_from_tensors(forest_tensors(forest), n_features=2, n_outputs=1, classification=False)
