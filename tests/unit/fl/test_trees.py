from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_fl.limits import ForestLimits
from parity_fl.merge import merge_union
from parity_fl.scoring import accuracy, half_mse, out_of_bag, r_squared
from parity_fl.trees import Forest, as_forest_features, forest_from_tensors, forest_tensors, predict, votes
from parity_protocol.errors import BadDocument, ExecutionFailed


def stump(
    threshold: float = 0.5, *, feature: int = 0, left: float = 0.9, right: float = 0.2, draws: int = 10
) -> Forest:
    """One split; a class-0 share of ``left`` below the threshold and ``right`` above it."""
    return Forest(
        tree_starts=np.array([0, 3], dtype=np.uint32),
        feature=np.array([feature, -1, -1], dtype=np.int32),
        threshold=np.array([threshold, 0, 0], dtype=np.float64),
        left=np.array([1, -1, -1], dtype=np.int32),
        right=np.array([2, -1, -1], dtype=np.int32),
        value=np.array([[0.5, 0.5], [left, 1 - left], [right, 1 - right]], dtype=np.float32),
        n=np.array([draws, draws - 4, 4], dtype=np.uint32),
        tree_weight=np.array([1.0]),
        importance=np.array([1.0, 0.0]),
    )


def two_stumps() -> Forest:
    return merge_union([stump(), stump(feature=1)], [10, 10])


def checked(forest: Forest, **limits: int) -> Forest:
    return forest_from_tensors(
        forest_tensors(forest), n_features=2, n_outputs=2, classification=True, limits=ForestLimits(**limits)
    )


def test_a_stump_votes_by_its_leaves():
    total, weight = votes(stump(), np.array([[0.5, 9], [0.75, 9]], dtype=np.float32))

    np.testing.assert_allclose(total, [[0.9, 0.1], [0.2, 0.8]], rtol=1e-6)
    assert weight.tolist() == [1, 1]


def test_a_tie_goes_to_the_lower_class():
    forest = stump(left=0.5)

    assert predict(forest, np.zeros((1, 2), dtype=np.float32), classification=True).tolist() == [0]


def test_parts_vote_by_their_rows_however_many_trees_they_grew():
    big, small = merge_union([stump(), stump(), stump()], [5, 5, 5]), stump()

    merged = merge_union([big, small], [300, 100])

    np.testing.assert_allclose(merged.tree_weight, [0.25, 0.25, 0.25, 0.25])
    np.testing.assert_allclose(merge_union([big, small], [30, 90]).tree_weight, [1 / 12] * 3 + [0.75])


def test_importances_are_averaged_by_rows_and_sum_to_one():
    other = dataclasses.replace(stump(feature=1), importance=np.array([0.0, 1.0]))

    assert merge_union([stump(), other], [30, 10]).importance.tolist() == [0.75, 0.25]


def test_merged_trees_predict_as_they_did_alone():
    points = np.array([[0.1, 0.9], [0.9, 0.1]], dtype=np.float32)
    first, second = stump(), stump(feature=1, left=0.6, right=0.1)

    total, _ = votes(merge_union([first, second], [10, 30]), points)

    expected = 0.25 * votes(first, points)[0] + 0.75 * votes(second, points)[0]
    np.testing.assert_allclose(total, expected)


def test_a_sound_forest_passes_every_check():
    assert checked(two_stumps()).n_trees == 2


def edit(name: str, index: object, value: object) -> Forest:
    forest = two_stumps()
    changed = getattr(forest, name).copy()
    changed[index] = value
    return dataclasses.replace(forest, **{name: changed})


def resized(name: str, size: int) -> Forest:
    forest = two_stumps()
    return dataclasses.replace(forest, **{name: np.resize(getattr(forest, name), size)})


def chain(depth: int) -> Forest:
    """A tree that is a chain: every inner node has a leaf on its left and the next node on its right."""
    nodes = 2 * depth + 1
    inner = np.arange(0, nodes - 1, 2)
    feature, left, right = (np.full(nodes, -1, dtype=np.int32) for _ in range(3))
    feature[inner], left[inner], right[inner] = 0, inner + 1, inner + 2
    n = np.ones(nodes, dtype=np.uint32)
    n[inner] = np.arange(depth + 1, 1, -1)
    return Forest(
        tree_starts=np.array([0, nodes], dtype=np.uint32),
        feature=feature,
        threshold=np.zeros(nodes),
        left=left,
        right=right,
        value=np.tile(np.array([[1, 0]], dtype=np.float32), (nodes, 1)),
        n=n,
        tree_weight=np.array([1.0]),
        importance=np.array([1.0, 0.0]),
    )


HOSTILE = {
    "a node is its own child (cycle)": edit("left", 0, 0),
    "a child points back to the root (cycle)": edit("right", 3, 0),
    "two children are the same node": edit("left", 0, 2),
    "a child of the next tree": edit("right", 0, 3),
    "a child past the end": edit("right", 3, 3),
    "a child of 2^31 - 1": edit("right", 0, 2**31 - 1),
    "a negative child": edit("left", 0, -2),
    "an inner node without a child": edit("left", 0, -1),
    "a leaf with a child": edit("left", 1, 2),
    "a leaf with a threshold": edit("threshold", 1, 0.5),
    "a node that nobody reaches": edit("feature", 0, -1),
    "feature past the columns": edit("feature", 0, 2),
    "feature below -1": edit("feature", 0, -2),
    "threshold NaN": edit("threshold", 0, np.nan),
    "threshold infinite": edit("threshold", 0, np.inf),
    "value NaN": edit("value", (1, 0), np.nan),
    "value negative": edit("value", 1, [-0.1, 1.1]),
    "values that do not sum to 1": edit("value", 1, [0.9, 0.9]),
    "n zero": edit("n", 2, 0),
    "n not the sum of the children": edit("n", 0, 11),
    "n of 2^32 - 1": edit("n", 1, 2**32 - 1),
    "trees that do not start at 0": edit("tree_starts", 0, 1),
    "trees that fall": edit("tree_starts", 1, 7),
    "an empty tree": edit("tree_starts", 1, 0),
    "trees past the end": edit("tree_starts", 2, 7),
    "weight zero": edit("tree_weight", slice(None), [1, 0]),
    "weight negative": edit("tree_weight", slice(None), [2, -1]),
    "weights over 1": edit("tree_weight", 0, 0.6),
    "weight NaN": edit("tree_weight", 0, np.nan),
    "importance negative": edit("importance", slice(None), [2, -1]),
    "importance over 1": edit("importance", slice(None), [1, 1]),
    "short node tensor": resized("threshold", 5),
    "long node tensor": resized("left", 7),
    "no node": resized("feature", 0),
    "a tree too few": resized("tree_weight", 1),
    "an importance too many": resized("importance", 3),
}


@pytest.mark.parametrize("forest", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_trees_are_refused(forest):
    with pytest.raises(BadDocument):
        checked(forest)


@pytest.mark.parametrize(
    "change",
    [
        {"feature": np.zeros(6, dtype=np.float64)},
        {"value": np.zeros(6, dtype=np.float32)},
        {"value": np.full((6, 3), 1 / 3, dtype=np.float32)},
        {"extra": np.zeros(1)},
    ],
)
def test_tensors_of_another_kind_are_refused(change):
    with pytest.raises(BadDocument):
        forest_from_tensors({**forest_tensors(two_stumps()), **change}, n_features=2, n_outputs=2, classification=True)


def test_a_missing_tensor_is_refused():
    tensors = forest_tensors(two_stumps())
    del tensors["n"]

    with pytest.raises(BadDocument):
        forest_from_tensors(tensors, n_features=2, n_outputs=2, classification=True)


@pytest.mark.parametrize("limits", [{"max_trees": 1}, {"max_nodes": 5}, {"max_classes": 1}, {"max_features": 1}])
def test_caps_hold(limits):
    with pytest.raises(BadDocument):
        checked(two_stumps(), **limits)


def test_depth_is_capped_exactly():
    assert checked(chain(10), max_depth=10).n_trees == 1
    with pytest.raises(BadDocument, match="deeper than 10"):
        checked(chain(11), max_depth=10)


def test_a_chain_of_a_million_nodes_is_refused_without_walking_it():
    with pytest.raises(BadDocument, match="deeper than 64"):
        checked(chain(500_000), max_depth=64)


@settings(max_examples=200)
@given(
    name=st.sampled_from(["feature", "left", "right", "n", "tree_starts"]),
    index=st.integers(0, 5),
    value=st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 7),
)
def test_any_changed_index_is_refused_or_still_predicts(name, index, value):
    forest = two_stumps()
    array = getattr(forest, name).astype(np.int64)
    array[index % len(array)] = value
    changed = dataclasses.replace(forest, **{name: array.astype(getattr(forest, name).dtype)})

    try:
        sound = checked(changed)
    except BadDocument:
        return
    assert predict(sound, np.zeros((2, 2), dtype=np.float32), classification=True).shape == (2,)


def test_a_feature_that_does_not_fit_a_tree_is_refused_with_its_place():
    with pytest.raises(ExecutionFailed, match="sample 1, feature 0"):
        as_forest_features(np.array([[1.0, 1.0], [1e39, 1.0]]))


# -- scores --------------------------------------------------------------------------------------------------------


def test_out_of_bag_counts_only_trees_that_did_not_draw_the_row():
    good, bad = stump(left=0.9, right=0.1), stump(left=0.1, right=0.9)
    merged = merge_union([good, bad], [10, 10])
    points = np.array([[0, 0], [1, 0], [0, 0]], dtype=np.float32)
    truth = np.array([0.0, 1.0, 0.0])
    drew = [np.array([False, False, True]), np.array([True, True, True])]

    score, rows = out_of_bag(merged, points, truth, drew=drew.__getitem__, classification=True)

    assert (score, rows) == (1.0, 2)  # rows 0 and 1 by the good tree alone; row 2 was drawn by both


def test_out_of_bag_is_undefined_when_every_tree_drew_every_row():
    drew = np.ones(1, dtype=np.bool_)

    score, rows = out_of_bag(
        stump(), np.zeros((1, 2), dtype=np.float32), np.zeros(1), drew=lambda _: drew, classification=True
    )

    assert (score, rows) == (None, 0)


def test_scores_by_hand():
    truth, guess = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 5.0])

    assert accuracy(truth, guess) == pytest.approx(2 / 3)
    assert half_mse(truth, guess) == pytest.approx(4 / 3 / 2)
    assert r_squared(truth, guess) == pytest.approx(1 - 4 / 2)


def test_scores_without_meaning_are_none():
    empty = np.zeros(0)

    assert accuracy(empty, empty) is None
    assert half_mse(empty, empty) is None
    assert r_squared(np.ones(3), np.zeros(3)) is None
    assert r_squared(np.ones(1), np.zeros(1)) is None
