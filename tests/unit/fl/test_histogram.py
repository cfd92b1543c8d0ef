from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

from parity_fl import FlSpec, resolve_fl_spec
from parity_fl.finishing import finish_phased
from parity_fl.histogram import HistogramPart, HistogramServer, PartRows, histogram_client, part_rows, run_local
from parity_fl.histogram_codec import Sparse, decode_answer, encode_answer
from parity_fl.histogram_phases import decode_request
from parity_fl.model import decode_model
from parity_fl.runner import plan_session, train
from parity_fl.spec import ForestConfig
from parity_fl.table import Table
from parity_fl.tensors import encode_tensors
from parity_fl.trees import Forest, as_forest_features, forest_from_tensors, forest_tensors, predict
from parity_protocol.errors import BadDocument, BadField, ExecutionFailed, NotFinished, TooLarge

CANCER = load_breast_cancer()
DIABETES = load_diabetes()
DIGITS = load_digits()
CANCER_NAMES = ("0", "1")
SMALL = ForestConfig(mode="histogram", num_trees=12, max_depth=6)
REGRESSION = ForestConfig(mode="histogram", num_trees=10, max_depth=6, task="regression", criterion="squared_error")


def rows_of(features, truth, rows, names, part) -> PartRows:
    return PartRows(part, as_forest_features(features[rows]), truth[rows].astype(float), names, rows.astype(np.uint32))


def cut(features, truth, pieces, names) -> list[PartRows]:
    return [rows_of(features, truth, np.asarray(rows), names, part) for part, rows in enumerate(pieces)]


def as_histogram(spec: FlSpec) -> ForestConfig:
    assert isinstance(spec.model, ForestConfig)
    return replace(spec.model, mode="histogram")


def dirichlet(truth, parts: int, alpha: float, seed: int) -> list[np.ndarray]:
    """Cut each class's rows by proportions drawn from Dirichlet(alpha), as flwr-datasets does."""
    generator = np.random.default_rng(seed)
    pieces: list[list[int]] = [[] for _ in range(parts)]
    for number in np.unique(truth):
        rows = generator.permutation(np.flatnonzero(truth == number))
        ends = (np.cumsum(generator.dirichlet([alpha] * parts))[:-1] * len(rows)).astype(int)
        for piece, some in zip(pieces, np.split(rows, ends), strict=True):
            piece.extend(some.tolist())
    return [np.array(sorted(piece)) for piece in pieces if piece]


def as_bytes(forest: Forest) -> bytes:
    return encode_tensors(forest_tensors(forest), {})


def answers_until(server: HistogramServer, nodes: list[HistogramPart], name: str, wave: int = 0) -> bytes:
    """Let honest parts answer until a phase comes up; return its request."""
    while True:
        phase = server.next_request()
        assert phase is not None
        if phase.name == name and phase.wave >= wave:
            return phase.body
        for part, node in enumerate(nodes):
            server.absorb(part, node.answer(phase.body))


@pytest.fixture(scope="module")
def cancer_halves() -> list[PartRows]:
    return cut(CANCER.data, CANCER.target, np.array_split(np.argsort(CANCER.target, kind="stable"), 2), CANCER_NAMES)


# -- what it grows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["gini", "entropy"])
@pytest.mark.parametrize("bootstrap", [True, False])
def test_any_cut_gives_the_same_bytes_as_one_part(criterion, bootstrap):
    config = ForestConfig(
        mode="histogram", num_trees=8, max_depth=5, criterion=criterion, bootstrap_samples=bootstrap, subsample=0.7
    )
    everything = np.arange(len(CANCER.target))
    by_class = np.argsort(CANCER.target, kind="stable")

    one = run_local(config, cut(CANCER.data, CANCER.target, [everything], CANCER_NAMES))
    three = run_local(config, cut(CANCER.data, CANCER.target, np.array_split(by_class, 3), CANCER_NAMES))
    skewed = run_local(config, cut(CANCER.data, CANCER.target, dirichlet(CANCER.target, 10, 0.1, 0), CANCER_NAMES))

    assert as_bytes(one.forest) == as_bytes(three.forest) == as_bytes(skewed.forest)
    assert one.out_of_bag == three.out_of_bag == skewed.out_of_bag


def test_any_cut_of_a_regression_gives_the_same_bytes_as_one_part():
    everything = np.arange(len(DIABETES.target))
    by_target = np.argsort(DIABETES.target)

    one = run_local(REGRESSION, cut(DIABETES.data, DIABETES.target, [everything], ()))
    five = run_local(REGRESSION, cut(DIABETES.data, DIABETES.target, np.array_split(by_target, 5), ()))

    assert as_bytes(one.forest) == as_bytes(five.forest)
    assert one.out_of_bag == five.out_of_bag


def test_small_phases_give_the_same_bytes_as_large_ones(cancer_halves):
    large = run_local(SMALL, cancer_halves)
    small = run_local(SMALL, cancer_halves, max_phase_bytes=20_000)

    assert small.phases > large.phases
    assert as_bytes(small.forest) == as_bytes(large.forest)


def test_part_without_history_answers_like_one_that_saw_every_phase(cancer_halves):
    server = HistogramServer(SMALL, parts=2)
    nodes = [HistogramPart(rows) for rows in cancer_halves]

    while (phase := server.next_request()) is not None:
        for part, node in enumerate(nodes):
            answer = node.answer(phase.body)
            assert histogram_client(phase.body, cancer_halves[part]) == answer
            server.absorb(part, answer)

    assert as_bytes(server.forest) == as_bytes(run_local(SMALL, cancer_halves).forest)


def test_forest_is_one_that_the_wire_format_accepts(cancer_halves):
    forest = run_local(SMALL, cancer_halves).forest

    checked = forest_from_tensors(forest_tensors(forest), n_features=30, n_outputs=2, classification=True)

    assert checked.n_trees == 12
    assert checked.importance.sum() == pytest.approx(1)


@pytest.mark.parametrize("data", [CANCER, DIGITS], ids=["breast_cancer", "digits"])
def test_very_uneven_parts_score_within_half_a_point_of_the_central_forest(data):
    names = tuple(map(str, range(int(data.target.max()) + 1)))
    train, test, truth, held = train_test_split(
        data.data, data.target, test_size=0.25, stratify=data.target, random_state=0
    )
    central = RandomForestClassifier(100, max_depth=10, random_state=0).fit(train, truth).score(test, held)

    parts = cut(train, truth, dirichlet(truth, 10, 0.1, 0), names)
    grown = run_local(ForestConfig(mode="histogram", random_state=0, oob_score=False), parts)

    assert np.mean(predict(grown.forest, as_forest_features(test), classification=True) == held) >= central - 0.005


def test_one_tree_without_draws_is_the_best_split_at_every_node():
    features = np.array([[0.0, 5.0], [1.0, 3.0], [2.0, 5.0], [3.0, 3.0], [4.0, 5.0], [5.0, 3.0]])
    truth = np.array([0, 0, 0, 1, 1, 1])
    config = ForestConfig(mode="histogram", num_trees=1, max_features=2, bootstrap_samples=False, oob_score=False)

    forest = run_local(config, cut(features, truth, [[0, 3, 4], [1, 2, 5]], ("a", "b"))).forest

    assert forest.feature.tolist() == [0, -1, -1]
    assert forest.threshold[0] == 2.5  # half-way between the rows on either side
    assert forest.n.tolist() == [6, 3, 3]
    assert forest.value.tolist() == [[0.5, 0.5], [1, 0], [0, 1]]
    assert forest.importance.tolist() == [1, 0]


def test_regression_leaf_is_the_mean_of_its_draws():
    features = np.array([[0.0], [1.0], [10.0], [11.0]])
    truth = np.array([1.0, 3.0, -20.0, -22.0])
    config = ForestConfig(
        mode="histogram",
        num_trees=1,
        max_depth=1,
        bootstrap_samples=False,
        oob_score=False,
        task="regression",
        criterion="squared_error",
    )

    forest = run_local(config, cut(features, truth, [[0, 2], [1, 3]], ())).forest

    assert forest.threshold[0] == 5.5
    np.testing.assert_allclose(forest.value[:, 0], [-9.5, 2, -21], atol=1e-4)


def test_a_node_tries_further_features_when_the_first_do_not_separate_its_draws():
    """Nine of ten features hardly vary: with one feature per try, a root could often not split at all."""
    features = np.zeros((40, 10))
    features[:, 3] = np.arange(40)
    features[0, :] = 1
    truth = (np.arange(40) >= 20).astype(int)
    config = ForestConfig(mode="histogram", num_trees=20, max_features=1, min_samples_leaf=5, oob_score=False)

    forest = run_local(config, cut(features, truth, [range(40)], ("a", "b"))).forest

    assert (forest.feature[forest.tree_starts[:-1]] == 3).all()


def test_constant_features_leave_roots_that_know_the_class_shares():
    truth = np.array([0] * 30 + [1] * 10)
    config = ForestConfig(mode="histogram", num_trees=2, bootstrap_samples=False, oob_score=False)

    forest = run_local(config, cut(np.ones((40, 3)), truth, [range(20), range(20, 40)], ("a", "b"))).forest

    assert forest.feature.tolist() == [-1, -1]
    assert forest.value.tolist() == [[0.75, 0.25]] * 2


def test_min_samples_and_depth_bound_the_trees(cancer_halves):
    config = ForestConfig(mode="histogram", num_trees=5, max_depth=3, min_samples_leaf=20, min_samples_split=100)

    forest = run_local(config, cancer_halves).forest

    leaf = forest.feature == -1
    assert (forest.n[leaf] >= 20).all()
    assert (forest.n[~leaf] >= 100).all()
    assert max(np.diff(forest.tree_starts)) <= 15


def test_out_of_bag_score_is_the_definition(cancer_halves):
    run = run_local(SMALL, cancer_halves)
    inputs = as_forest_features(CANCER.data)
    request = _score_request(cancer_halves)
    agreed = decode_request(request, n_features=30).agreed
    ids = np.arange(len(inputs), dtype=np.uint32)
    votes = np.zeros((len(inputs), 2))
    for tree in range(run.forest.n_trees):
        out = agreed.drawing().counts(tree, ids) == 0
        only = _only(run.forest, tree)
        votes[out] += _shares(only, inputs)[out]
    scored = votes.sum(axis=1) > 0

    assert run.out_of_bag.rows == scored.sum()
    assert run.out_of_bag.score == pytest.approx(np.mean(votes[scored].argmax(axis=1) == CANCER.target[scored]))


def _score_request(parts: list[PartRows]) -> bytes:
    server = HistogramServer(SMALL, parts=2)
    return answers_until(server, [HistogramPart(rows) for rows in parts], "score")


def _only(forest: Forest, tree: int) -> Forest:
    first, end = int(forest.tree_starts[tree]), int(forest.tree_starts[tree + 1])
    nodes = slice(first, end)
    return Forest(
        tree_starts=np.array([0, end - first], dtype=np.uint32),
        feature=forest.feature[nodes],
        threshold=forest.threshold[nodes],
        left=forest.left[nodes],
        right=forest.right[nodes],
        value=forest.value[nodes],
        n=forest.n[nodes],
        tree_weight=np.ones(1),
        importance=forest.importance,
    )


def _shares(tree: Forest, inputs: np.ndarray) -> np.ndarray:
    shares = np.empty((len(inputs), tree.n_outputs))
    for row, values in enumerate(inputs):
        node = 0
        while tree.feature[node] >= 0:
            left = values[tree.feature[node]] <= tree.threshold[node]
            node = int(tree.left[node] if left else tree.right[node])
        shares[row] = tree.value[node]
    return shares


# -- partitioned and sharded sessions ----------------------------------------------------------------------------


def test_partitioned_session_grows_from_the_plans_parts(breast_cancer, forest_raw, changed):
    spec = resolve_fl_spec(changed(forest_raw, "model_config.num_trees", 6))
    plan = plan_session(spec, breast_cancer, "5a" * 32)
    table = Table.load(spec, plan, breast_cancer)
    parts = [part_rows(table, plan, part) for part in range(plan.total_parts)]
    training = table.training_rows()
    together = PartRows(
        0, as_forest_features(table.dataset.features[training]), table.truth[training], plan.class_names, training
    )

    federated = run_local(as_histogram(spec), parts, plan)

    assert as_bytes(federated.forest) == as_bytes(run_local(as_histogram(spec), [together]).forest)


def test_shards_agree_on_classes_that_no_part_has_all_of():
    features = np.arange(20, dtype=float)[:, None]
    shards = [
        PartRows(0, as_forest_features(features[:10]), np.zeros(10), ("10",)),
        PartRows(1, as_forest_features(features[10:]), np.repeat([1.0, 0.0], 5), ("11", "9")),
    ]

    run = run_local(ForestConfig(mode="histogram", num_trees=5, bootstrap_samples=False, oob_score=False), shards)

    assert run.class_names == ("9", "10", "11")  # in the order of numbers
    guess = predict(run.forest, as_forest_features(features), classification=True)
    assert guess.tolist() == [1] * 10 + [0] * 5 + [2] * 5


def test_shards_draw_like_the_rows_one_after_another(cancer_halves):
    order = np.argsort(CANCER.target, kind="stable")
    whole = PartRows(0, as_forest_features(CANCER.data[order]), CANCER.target[order].astype(float), CANCER_NAMES)
    shards = [PartRows(rows.part, rows.features, rows.truth, rows.class_names) for rows in cancer_halves]

    assert as_bytes(run_local(SMALL, shards).forest) == as_bytes(run_local(SMALL, [whole]).forest)


def test_shards_of_different_width_are_refused():
    shards = [
        PartRows(part, np.zeros((4, width), dtype=np.float32), np.array([0.0, 1, 0, 1]), ("a", "b"))
        for part, width in enumerate((2, 3))
    ]

    with pytest.raises(ExecutionFailed, match="the parts have 2, 3 columns"):
        run_local(SMALL, shards)


def test_overlap_is_refused_at_creation(breast_cancer, forest_raw, changed):
    raw = changed(changed(forest_raw, "partition_config.overlap_ratio", 0.5), "model_config.mode", "histogram")

    with pytest.raises(BadField, match="overlap_ratio must be 0 for mode histogram"):
        plan_session(resolve_fl_spec(raw), breast_cancer, "5a" * 32)


def test_node_that_cannot_fit_a_phase_is_refused_at_creation(breast_cancer, forest_raw):
    spec = resolve_fl_spec(forest_raw)
    plan = plan_session(spec, breast_cancer, "5a" * 32)

    with pytest.raises(BadField, match="one node's table can take"):
        HistogramServer(as_histogram(spec), plan, max_phase_bytes=500)


# -- parts that lie ----------------------------------------------------------------------------------------------


def _cells(answer: bytes, request: bytes) -> Sparse:
    return decode_answer(answer, request, max_cells=1 << 22, size=1 << 40, max_value=1 << 40)


def test_table_that_contradicts_its_parents_is_refused_by_name(cancer_halves):
    server = HistogramServer(SMALL, parts=2)
    nodes = [HistogramPart(rows) for rows in cancer_halves]
    request = answers_until(server, nodes, "level", wave=2)
    honest = _cells(nodes[1].answer(request), request)
    server.absorb(0, nodes[0].answer(request))

    # Twice as many draws everywhere: consistent in itself, but not with the wave before.
    with pytest.raises(BadDocument, match=r"part 1: its counts do not add up at node .* of tree"):
        server.absorb(1, encode_answer(request, Sparse(honest.index, honest.value * 2)))
    server.absorb(1, nodes[1].answer(request))

    assert server.waiting == (0, 1)  # taken, and on to the next phase


def test_table_whose_features_count_different_draws_is_refused(cancer_halves):
    server = HistogramServer(SMALL, parts=2)
    nodes = [HistogramPart(rows) for rows in cancer_halves]
    request = answers_until(server, nodes, "level")
    honest = _cells(nodes[0].answer(request), request)
    value = honest.value.copy()
    value[-1] += 1

    with pytest.raises(BadDocument, match="part 0: its counts do not add up"):
        server.absorb(0, encode_answer(request, Sparse(honest.index, value)))


def test_root_with_more_draws_than_rows_allow_is_refused(cancer_halves):
    server = HistogramServer(SMALL, parts=2)
    nodes = [HistogramPart(rows) for rows in cancer_halves]
    request = answers_until(server, nodes, "level")
    honest = _cells(nodes[0].answer(request), request)

    with pytest.raises(BadDocument, match="part 0"):
        server.absorb(0, encode_answer(request, Sparse(honest.index, honest.value * 40)))


@pytest.mark.parametrize("step", [0, 1, 2])
def test_edge_counts_that_do_not_add_up_are_refused(cancer_halves, step):
    server = HistogramServer(SMALL, parts=2)
    nodes = [HistogramPart(rows) for rows in cancer_halves]
    answers_until(server, nodes, "edges")
    for _ in range(step):
        request = server.next_request().body
        for part, node in enumerate(nodes):
            server.absorb(part, node.answer(request))
    request = server.next_request().body
    honest = _cells(nodes[1].answer(request), request)
    value = honest.value.copy()
    value[0] += 1

    with pytest.raises(BadDocument, match="part 1: its counts do not add up"):
        server.absorb(1, encode_answer(request, Sparse(honest.index, value)))


def test_part_that_claims_other_rows_than_the_plan_gave_it_is_refused(breast_cancer, forest_raw):
    spec = resolve_fl_spec(forest_raw)
    plan = plan_session(spec, breast_cancer, "5a" * 32)
    table = Table.load(spec, plan, breast_cancer)
    server = HistogramServer(as_histogram(spec), plan)
    rows = part_rows(table, plan, 1)
    swapped = PartRows(1, rows.features, 1 - rows.truth, rows.class_names, rows.row_ids)

    with pytest.raises(BadDocument, match=r"part 1: .*rows per class are not the plan's"):
        server.absorb(1, histogram_client(server.next_request().body, swapped))


def test_answer_to_another_phase_is_refused(cancer_halves):
    server = HistogramServer(SMALL, parts=2)
    nodes = [HistogramPart(rows) for rows in cancer_halves]
    request = answers_until(server, nodes, "edges")
    answer = nodes[0].answer(request)
    for part, node in enumerate(nodes):
        server.absorb(part, node.answer(request))

    with pytest.raises(BadDocument, match=r"part 0: .*it answers another request"):
        server.absorb(0, answer)


def test_same_answer_again_changes_nothing_and_another_is_refused(cancer_halves):
    server = HistogramServer(SMALL, parts=2)
    answer = histogram_client(server.next_request().body, cancer_halves[0])
    server.absorb(0, answer)

    server.absorb(0, answer)

    assert server.waiting == (1,)
    with pytest.raises(BadDocument, match="with other bytes"):
        server.absorb(0, answer + b" ")


def test_answer_longer_than_any_right_one_is_refused_unread(cancer_halves):
    server = HistogramServer(SMALL, parts=2)
    answers_until(server, [HistogramPart(rows) for rows in cancer_halves], "edges")

    with pytest.raises(TooLarge, match="part 0"):
        server.absorb(0, bytes(server.next_request().max_answer_bytes + 1))


def test_forest_is_not_given_out_before_it_is_done(cancer_halves):
    with pytest.raises(NotFinished):
        _ = HistogramServer(SMALL, parts=2).forest


# -- a market that lies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "change"),
    [
        ("tried", lambda t: t + 30),
        ("slot_node", lambda t: t + 99),
        ("slot_tree", lambda t: t[::-1]),
        ("feature", lambda t: t + 31),
        ("left", lambda t: t * 0),
        ("cut", lambda t: t - 99),
        ("thresholds", lambda t: t[::-1]),
        ("row_offsets", lambda t: t[:0]),
    ],
)
def test_part_refuses_a_request_that_does_not_hold_together(cancer_halves, tensor, change):
    from parity_fl.tensors import decode_tensors

    server = HistogramServer(SMALL, parts=2)
    nodes = [HistogramPart(rows) for rows in cancer_halves]
    request = answers_until(server, nodes, "level", wave=1)
    tensors, metadata = decode_tensors(request, max_bytes=1 << 30)
    broken = encode_tensors({**tensors, tensor: change(tensors[tensor])}, metadata)

    with pytest.raises(BadDocument):
        nodes[0].answer(broken)


def test_part_refuses_a_class_that_was_not_agreed(cancer_halves):
    server = HistogramServer(SMALL, parts=2)
    request = answers_until(server, [HistogramPart(rows) for rows in cancer_halves], "level")
    other = PartRows(0, cancer_halves[0].features, cancer_halves[0].truth, ("unheard", "of"))

    with pytest.raises(ExecutionFailed, match="class 'unheard' was not agreed"):
        histogram_client(request, other)


# -- what comes of it --------------------------------------------------------------------------------------------


def test_finished_forest_names_its_estimates(breast_cancer, forest_raw, changed):
    raw = changed(changed(forest_raw, "model_config.num_trees", 6), "model_config.mode", "histogram")
    spec = resolve_fl_spec(raw)
    plan = plan_session(spec, breast_cancer, "5a" * 32)
    table = Table.load(spec, plan, breast_cancer)
    run = run_local(spec.model, [part_rows(table, plan, part) for part in range(3)], plan)

    done = finish_phased(spec, plan, breast_cancer, run.forest, run.out_of_bag.score)

    assert done.metrics["oob_local_mean"] is None  # no tree belongs to one part
    assert done.metrics["oob_federated"] == run.out_of_bag.score
    assert done.metrics["accuracy"] == pytest.approx(run.out_of_bag.score, abs=0.05)
    assert sum(done.metrics["feature_importance"].values()) == pytest.approx(1)
    assert decode_model(done.model_bytes).predict_labels(table.dataset.features[:5]) == ["0"] * 5


def test_part_of_a_forest_in_phases_is_not_trained_alone(breast_cancer, forest_raw, changed):
    spec = resolve_fl_spec(changed(forest_raw, "model_config.mode", "histogram"))
    plan = plan_session(spec, breast_cancer, "5a" * 32)

    with pytest.raises(ExecutionFailed, match="made in phases"):
        train(spec, plan, breast_cancer, 0)


def test_histogram_forest_may_have_fewer_trees_than_parts(forest_raw, changed):
    raw = changed(changed(forest_raw, "model_config.num_trees", 1), "model_config.mode", "histogram")

    assert resolve_fl_spec(raw).model.num_trees == 1
