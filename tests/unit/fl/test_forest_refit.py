from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes

from parity_fl.forest_refit import decode_trees, encode_sums, encode_trees
from parity_fl.histogram import HistogramPart, HistogramServer, PartRows, histogram_client, run_local
from parity_fl.histogram_codec import Sparse, decode_answer, encode_answer
from parity_fl.histogram_phases import decode_request
from parity_fl.merge import merge_union
from parity_fl.spec import ForestConfig
from parity_fl.trees import as_forest_features, forest_from_tensors, forest_tensors, leaf_numbers, predict
from parity_protocol.errors import BadDocument, BadField, ExecutionFailed

CANCER = load_breast_cancer()
DIABETES = load_diabetes()
CONFIG = ForestConfig(mode="leaf_refit", num_trees=6, max_depth=4)
REGRESSION = ForestConfig(
    mode="leaf_refit", num_trees=4, max_depth=4, task="regression", criterion="squared_error", max_features=3
)


def shards(features, truth, pieces, names) -> list[PartRows]:
    inputs = as_forest_features(features)
    return [PartRows(part, inputs[rows], truth[rows].astype(float), names) for part, rows in enumerate(pieces)]


@pytest.fixture(scope="module")
def cancer() -> list[PartRows]:
    by_class = np.argsort(CANCER.target, kind="stable")
    return shards(CANCER.data, CANCER.target, np.array_split(by_class, 3), ("0", "1"))


@pytest.fixture(scope="module")
def diabetes() -> list[PartRows]:
    return shards(DIABETES.data, DIABETES.target, np.array_split(np.argsort(DIABETES.target), 2), ())


def server_at(name: str, config: ForestConfig, parts: list[PartRows]) -> tuple[HistogramServer, list[HistogramPart]]:
    server = HistogramServer(config, parts=len(parts))
    nodes = [HistogramPart(rows, config) for rows in parts]
    while (phase := server.next_request()) is not None and phase.name != name:
        for part, node in enumerate(nodes):
            server.absorb(part, node.answer(phase.body))
    return server, nodes


def test_leaves_hold_the_class_shares_of_all_parts_rows(cancer):
    forest = run_local(CONFIG, cancer).forest
    inputs = np.concatenate([rows.features for rows in cancer])
    truth = np.concatenate([rows.truth for rows in cancer]).astype(int)

    for tree in range(forest.n_trees):
        leaves = leaf_numbers(forest, tree, inputs)
        for leaf in np.unique(leaves):
            mine = truth[leaves == leaf]
            assert forest.n[leaf] == len(mine)
            np.testing.assert_allclose(forest.value[leaf], np.bincount(mine, minlength=2) / len(mine), rtol=1e-6)
    assert forest.n[forest.tree_starts[:-1]].tolist() == [len(truth)] * forest.n_trees


def test_regression_leaves_hold_the_mean_of_all_parts_rows(diabetes):
    forest = run_local(REGRESSION, diabetes).forest
    inputs = np.concatenate([rows.features for rows in diabetes])
    truth = np.concatenate([rows.truth for rows in diabetes])

    for tree in range(forest.n_trees):
        leaves = leaf_numbers(forest, tree, inputs)
        means = np.array([truth[leaves == leaf].mean() for leaf in np.unique(leaves)])
        np.testing.assert_allclose(forest.value[np.unique(leaves), 0], means, rtol=1e-6)
    assert forest.value[0, 0] == pytest.approx(truth.mean())


def test_structures_are_the_parts_own_trees(cancer):
    server, nodes = server_at("trees", CONFIG, cancer)
    request = server.next_request().body
    agreed = run_local(CONFIG, cancer).forest
    own = [
        decode_trees(
            node.answer(request), request, CONFIG, _agreed(request), part=part, rows=len(rows.truth), n_features=30
        )
        for part, (node, rows) in enumerate(zip(nodes, cancer, strict=True))
    ]
    union = merge_union(own, [len(rows.truth) for rows in cancer])

    assert agreed.feature.tolist() == union.feature.tolist()
    assert agreed.threshold.tolist() == union.threshold.tolist()
    assert agreed.importance.sum() == pytest.approx(1)


def _agreed(request: bytes):
    return decode_request(request, n_features=30).agreed


def test_parts_with_one_class_each_still_learn_together():
    """Union's trees know one class per part and can only say that one; refitted, they know both."""
    half = len(CANCER.target) // 2
    mixed = np.argsort(np.random.default_rng(0).random(len(CANCER.target)))
    skewed = shards(CANCER.data, CANCER.target, [mixed[:half], mixed[half:]], ("0", "1"))
    skewed[1].truth[:20] = 0

    forest = run_local(CONFIG, skewed).forest

    guess = predict(forest, as_forest_features(CANCER.data), classification=True)
    assert np.mean(guess == CANCER.target) > 0.9


def test_trees_of_parts_with_one_class_do_not_outvote_one_that_knows_both():
    by_class = np.argsort(CANCER.target, kind="stable")
    mixed, rest = by_class[::4], np.setdiff1d(by_class, by_class[::4])
    ones = np.array_split(rest[CANCER.target[rest] == 1], 9)
    parts = shards(CANCER.data, CANCER.target, [mixed, *ones], ("0", "1"))

    forest = run_local(replace(CONFIG, num_trees=30), parts).forest

    is_constant = np.diff(forest.tree_starts.astype(np.int64)) == 1
    guess = predict(forest, as_forest_features(CANCER.data), classification=True)
    assert is_constant.sum() > len(is_constant) / 2
    assert np.mean(guess == CANCER.target) > 0.9


def test_forest_is_one_that_the_wire_format_accepts(cancer):
    forest = run_local(CONFIG, cancer).forest

    forest_from_tensors(forest_tensors(forest), n_features=30, n_outputs=2, classification=True)


def test_part_that_moves_to_another_node_gives_the_same_answers(cancer):
    server = HistogramServer(CONFIG, parts=3)
    nodes = [HistogramPart(rows, CONFIG) for rows in cancer]

    while (phase := server.next_request()) is not None:
        for part, node in enumerate(nodes):
            answer = node.answer(phase.body)
            assert HistogramPart(cancer[part], CONFIG).answer(phase.body) == answer
            server.absorb(part, answer)

    assert server.out_of_bag is None  # every row is in some leaf of every tree: nothing is out of bag


def test_part_that_counts_other_rows_than_it_has_is_refused(cancer):
    server, nodes = server_at("refit", CONFIG, cancer)
    request = server.next_request().body
    honest = decode_answer(nodes[1].answer(request), request, max_cells=1 << 20, size=1 << 40, max_value=1 << 40)
    value = honest.value.copy()
    value[0] += 1

    with pytest.raises(BadDocument, match="part 1: its counts do not add up in tree 0"):
        server.absorb(1, encode_answer(request, Sparse(honest.index, value)))


def test_part_that_counts_rows_in_an_inner_node_is_refused(cancer):
    server, _ = server_at("refit", CONFIG, cancer)
    request = server.next_request().body
    inner = int(np.argmax(decode_request(request, n_features=30).forest.feature >= 0))

    with pytest.raises(BadDocument, match="part 2: it counts rows in a node that is no leaf"):
        server.absorb(2, encode_answer(request, Sparse(np.array([2 * inner]), np.array([5]))))


def test_regression_totals_without_rows_are_refused(diabetes):
    server, _ = server_at("refit", REGRESSION, diabetes)
    request = server.next_request().body
    nodes = len(decode_request(request, n_features=10).forest.feature)

    with pytest.raises(BadDocument, match="no total without rows"):
        server.absorb(0, encode_sums(request, np.zeros(nodes, dtype=np.int64), np.ones(nodes)))


def test_too_few_trees_are_refused_by_name(cancer):
    server, nodes = server_at("trees", CONFIG, cancer)
    request = server.next_request().body
    own = decode_trees(
        nodes[0].answer(request), request, CONFIG, _agreed(request), part=0, rows=len(cancer[0].truth), n_features=30
    )
    end = int(own.tree_starts[1])
    one = type(own)(
        tree_starts=own.tree_starts[:2],
        feature=own.feature[:end],
        threshold=own.threshold[:end],
        left=own.left[:end],
        right=own.right[:end],
        value=own.value[:end],
        n=own.n[:end],
        tree_weight=np.ones(1),
        importance=own.importance,
    )

    with pytest.raises(BadDocument, match=r"part 0: .*grows 2 trees, got 1"):
        server.absorb(0, encode_trees(request, one))


def test_node_needs_the_signed_settings_to_grow_trees(cancer):
    server, _ = server_at("trees", CONFIG, cancer)

    with pytest.raises(ExecutionFailed, match="signed settings"):
        histogram_client(server.next_request().body, cancer[0])


def test_node_refuses_draws_that_were_not_signed(cancer):
    server, _ = server_at("trees", CONFIG, cancer)
    other = ForestConfig(mode="leaf_refit", num_trees=6, max_depth=4, random_state=7)

    with pytest.raises(ExecutionFailed, match="other draws than the session's"):
        HistogramPart(cancer[0], other).answer(server.next_request().body)


def test_union_has_no_phases():
    with pytest.raises(BadField, match="mode union has no phases"):
        HistogramServer(ForestConfig(), parts=2)
