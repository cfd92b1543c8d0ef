"""Sessions whose parts have rows of their own: the market's side and the nodes' side against each other, without a network."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression

from parity_fl.averaging import Reduced, Refused
from parity_fl.contribution import Credit
from parity_fl.finishing import FinalModel
from parity_fl.forest_rounds import ForestRounds, ForestTrainer
from parity_fl.linear import LinearModel
from parity_fl.model import decode_model
from parity_fl.runner import plan_session
from parity_fl.session import ShardTerms, resolve_session
from parity_fl.sharded import ShardedServer, ShardedTrainer
from parity_fl.sharded.bodies import HoldoutScore, decode_base, merged_scores
from parity_fl.spec import FlSpec
from parity_fl.strategy import StrategyConfig
from parity_fl.tensors import decode_tensors, encode_tensors
from parity_fl.trees import Forest, forest_tensors
from parity_protocol.errors import BadDocument, BadField, ExecutionFailed, ParityError

SEED = "7" * 64
PARTS = 3
TRAIN = {"epochs": 4, "batch_size": 16, "learning_rate": 0.1}


def csv(features: np.ndarray, labels: np.ndarray, names: Sequence[str] | None = None) -> bytes:
    head = [",".join(names or [*(f"p{at}" for at in range(features.shape[1])), "target"])]
    rows = [
        ",".join([*(repr(float(value)) for value in row), str(label)])
        for row, label in zip(features, labels, strict=True)
    ]
    return ("\n".join(head + rows) + "\n").encode()


def digits(rows: int = 600) -> list[bytes]:
    """Return three shards, of which no two have the same classes in the same shares."""
    found = load_digits()
    features, labels = found.data[:rows], found.target[:rows]
    owner = (labels + np.arange(rows) // 7) % PARTS
    return [csv(features[owner == part], labels[owner == part]) for part in range(PARTS)]


def regression(rows: int = 90) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    features = draw.normal(size=(rows, 4)) * [1.0, 100.0, 0.01, 5.0] + [0.0, 1e4, 3.0, -2.0]
    return features, features @ [2.0, 0.03, 40.0, -1.0] + 7 + draw.normal(size=rows)


def settings(**changes: object) -> FlSpec:
    members: dict[str, object] = {
        "data_mode": "sharded",
        "model_type": "neural_network",
        "data_format": "csv",
        "shards": ["0" * 64] * PARTS,
        "model_config": {"hidden_size": 16},
        "train_config": TRAIN,
        **changes,
    }
    return resolve_session(members, session_id="s", round_id="r")


class Play:
    """A session that is played phase by phase; with ``forgets``, market and nodes are made again before each."""

    def __init__(
        self, shards: Sequence[bytes], *, evaluation: bytes | None = None, forgets: bool = False, **changes: object
    ) -> None:
        self.shards, self.evaluation, self.forgets = list(shards), evaluation, forgets
        self.spec = settings(**changes)
        self.terms = ShardTerms(PARTS, SEED)
        self.server, self.nodes = self.made()
        self.base, self.state, self.asks = self.server.first(), None, "summary"
        self.states = b""  # of all phases of a forest so far
        self.number, self.phases = 0, []
        self.metrics: list[dict[str, float]] = []

    def made(self) -> tuple[ShardedServer, list[ShardedTrainer]]:
        server = ShardedServer(self.spec, self.terms, StrategyConfig("fedadam", server_lr=0.05), self.evaluation)
        return server, [self.node(part) for part in range(PARTS)]

    def node(self, part: int) -> ShardedTrainer:
        return ShardedTrainer(self.spec, self.terms, self.shards[part], part, salt=bytes([part]) * 16)

    def answers(self) -> dict[int, bytes]:
        return {
            part: node.answer(self.asks, self.base, number=self.number).update for part, node in enumerate(self.nodes)
        }

    def reduce(self, answers: Mapping[int, bytes], **changes: Any) -> Reduced | Refused:
        states = (lambda: self.states) if self.states else None
        return self.server.reduce(self.base, self.state, bodies(answers), states=states, **changes)

    def step(self) -> Reduced:
        if self.forgets:
            self.server, self.nodes = self.made()
        done = self.reduce(self.answers())
        assert isinstance(done, Reduced), done
        self.phases.append((self.number, self.asks))
        self.base, self.state, self.asks = done.model, done.state, done.asks
        self.states = self.states + done.state if done.appends else done.state
        if not done.more_phases:
            self.number += 1
            self.metrics.append(done.metrics)
        return done

    def run(self, rounds: int = 1) -> FinalModel:
        while self.number <= rounds:
            self.step()
        assert self.state is not None
        return self.server.final(self.base, self.state, rounds=rounds)


def bodies(answers: Mapping[int, bytes]) -> dict[int, Callable[[], bytes]]:
    return {part: (lambda body=body: body) for part, body in answers.items()}  # type: ignore[misc]


def linear(**changes: object) -> dict[str, object]:
    return {"model_type": "linear_regression", "model_config": {"input_size": 4, "solver": "exact"}, **changes}


def shards_of(features: np.ndarray, truth: np.ndarray) -> list[bytes]:
    return [csv(*each) for each in zip(np.array_split(features, PARTS), np.array_split(truth, PARTS), strict=True)]


def forest(mode: str, **changes: object) -> dict[str, object]:
    model = {"mode": mode, "num_trees": 6, "max_depth": 5, **changes}
    return {"model_type": "random_forest", "model_config": model, "train_config": {}}


# -- a network ------------------------------------------------------------------------------------------------------


def test_a_network_learns_from_shards_that_nobody_has_together() -> None:
    play = Play(digits())

    final = play.run(8)

    assert play.phases[:4] == [(0, "summary"), (0, "moments"), (1, "train"), (1, "score")]
    assert play.metrics[-1]["accuracy"] > max(0.8, play.metrics[1]["accuracy"])
    assert final.metrics["accuracy"] == play.metrics[-1]["accuracy"]
    assert final.metrics["train_samples"] == 600 - final.metrics["holdout_samples"]
    model = decode_model(final.model_bytes)
    assert model.class_names == tuple(str(digit) for digit in range(10))
    rows = load_digits().data[600:900].astype(float)
    right = np.mean(np.array(model.predict_labels(rows)) == load_digits().target[600:900].astype(str))
    assert right > 0.8


@pytest.mark.parametrize(
    ("rounds", "changes"), [(3, {}), (1, forest("histogram", num_trees=2, max_depth=3)), (1, forest("leaf_refit"))]
)
def test_a_market_and_nodes_that_forget_everything_between_phases_end_with_the_same_bits(
    rounds: int, changes: dict[str, Any]
) -> None:
    straight, forgetful = Play(digits(300), **changes), Play(digits(300), forgets=True, **changes)

    assert straight.run(rounds).model_bytes == forgetful.run(rounds).model_bytes


def test_the_market_scores_with_data_of_its_own_and_asks_no_node() -> None:
    found = load_digits()
    play = Play(digits(), evaluation=csv(found.data[600:800], found.target[600:800]), eval_cid="bafy")

    final = play.run(3)

    assert {asks for _, asks in play.phases} == {"summary", "moments", "train"}
    assert final.metrics["holdout_samples"] == 200
    assert final.metrics["accuracy"] == play.metrics[-1]["accuracy"]


def test_leaving_one_out_is_scored_with_the_markets_data() -> None:
    found = load_digits()
    play = Play(digits(), evaluation=csv(found.data[600:800], found.target[600:800]), eval_cid="bafy")
    play.step()
    play.step()

    done = play.reduce(play.answers(), credit=Credit("leave_one_out"))

    assert isinstance(done, Reduced)
    assert set(done.contributions) == {0, 1, 2}


@pytest.mark.parametrize(
    ("labels", "match"),
    [([99] * 4, "the class '99', which no shard has"), ([1] * 4, "63 features, the shards have 64")],
)
def test_evaluation_data_that_do_not_fit_the_shards_end_the_session(labels: list[int], match: str) -> None:
    width = 64 if labels[0] == 99 else 63
    play = Play(digits(300), evaluation=csv(np.zeros((4, width)), np.array(labels)), eval_cid="bafy")

    with pytest.raises(ExecutionFailed, match=match):
        play.step()


def test_no_phases_file_tells_a_part_how_many_rows_another_has() -> None:
    play = Play(digits(300))
    play.step()

    agreed = decode_base(play.base).agreement

    assert agreed is not None
    assert set(agreed.to_dict()) == {
        "total_parts", "seed", "n_features", "class_names", "fingerprints", "holdout_fraction"
    }  # fmt: skip
    assert len(set(agreed.fingerprints)) == PARTS


# -- what is exact --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("standardize", [True, False])
def test_an_exact_line_is_the_central_solution_of_all_shards(standardize: bool) -> None:
    features, truth = regression()
    settings = {"input_size": 4, "solver": "exact", "standardize": standardize}
    play = Play(shards_of(features, truth), **linear(model_config=settings, holdout_fraction=0.0))

    fitted = decode_model(play.run().model_bytes).fitted

    central = LinearRegression().fit(features, truth)
    assert isinstance(fitted, LinearModel)
    np.testing.assert_allclose(fitted.weights, central.coef_, rtol=1e-8)
    np.testing.assert_allclose(fitted.bias, central.intercept_, rtol=1e-8)


def test_scores_of_hold_outs_add_up_to_the_score_of_all_their_rows() -> None:
    features, truth = regression()
    play = Play(shards_of(features, truth), **linear(holdout_fraction=0.3))
    final = play.run()
    fitted = decode_model(final.model_bytes)
    held = [node._cut[1].holdout for node in play.nodes if node._cut is not None]  # which rows they are is the node's
    rows = np.concatenate([np.array_split(features, PARTS)[part][each] for part, each in enumerate(held)])
    known = np.concatenate([np.array_split(truth, PARTS)[part][each] for part, each in enumerate(held)])

    error = np.mean((fitted.predict(rows) - known) ** 2)

    assert len(rows) == final.metrics["holdout_samples"] == 27
    assert final.metrics["mse"] == pytest.approx(error, rel=1e-9)
    assert final.metrics["r2"] == pytest.approx(1 - error / known.var(), rel=1e-9)


def test_a_line_by_steps_learns_from_shards() -> None:
    features, truth = regression()
    play = Play(shards_of(features, truth), **linear(model_config={"input_size": 4}))

    assert float(str(play.run(20).metrics["r2"])) > 0.9


@pytest.mark.parametrize("mode", ["histogram", "leaf_refit"])
def test_a_forest_on_shards_is_the_forest_of_the_same_rows_partitioned(mode: str) -> None:
    found = load_digits()
    features, labels = found.data[:150], found.target[:150]
    play = Play(shards_of(features, labels), holdout_fraction=0.0, **forest(mode))
    got = decode_model(play.run().model_bytes).fitted

    whole = resolve_session(
        {
            "dataset_cid": "x",
            "data_format": "csv",
            "partition_config": {"strategy": "sequential", "total_parts": PARTS, "min_samples": 1},
            "holdout_fraction": 0.0,
            **forest(mode),
        },
        session_id="s",
        round_id="r",
    )
    data = csv(features, labels)
    plan = plan_session(whole, data, SEED)
    server = ForestRounds(whole, plan, data)
    nodes = [ForestTrainer(whole, plan, data, part) for part in range(PARTS)]
    base, kept, more = server.first(), b"", True
    while more:
        done = server.reduce(
            base,
            partial(bytes, kept),
            bodies({part: node.train(base, number=1).update for part, node in enumerate(nodes)}),
        )
        assert isinstance(done, Reduced)
        base, more = done.model, done.more_phases
        kept += done.state
    expected = decode_model(server.final(base, rounds=1).model_bytes).fitted

    assert isinstance(got, Forest)
    assert isinstance(expected, Forest)
    for name, tensor in forest_tensors(expected).items():
        np.testing.assert_array_equal(forest_tensors(got)[name], tensor)


@pytest.mark.parametrize("mode", ["union", "leaf_refit", "histogram"])
def test_a_forest_on_shards_is_scored_on_their_hold_outs(mode: str) -> None:
    play = Play(digits(), **forest(mode, num_trees=12, max_depth=8))

    final = play.run()

    assert play.phases[-1] == (1, "score")
    assert float(str(final.metrics["accuracy"])) > 0.75
    assert final.metrics["mode"] == mode
    assert final.metrics["tree_count"] == 12
    importance = final.metrics["feature_importance"]
    assert isinstance(importance, dict)
    assert sum(importance.values()) == pytest.approx(1)


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        (csv(np.zeros((9, 63)), np.arange(9)), "its columns number 63, those of most parts 64"),
        (
            csv(np.zeros((9, 64)), np.array(list("abcabcabc"))),
            "its classes are words, those of most parts numbers",
        ),
        (
            csv(np.zeros((9, 64)), np.arange(9), [f"q{at}" for at in range(65)]),
            "its columns are named q0, q1, q2, q3, …, those of most parts p0, p1, p2, p3, …",
        ),
        (csv(np.zeros((1, 64)), np.arange(1)), "part 2 would have 1 samples, min_samples is 5"),
    ],
)
def test_a_shard_that_does_not_fit_is_refused_by_part_and_not_the_session(shard: bytes, message: str) -> None:
    play = Play([*digits(300)[:2], shard], partition_config={"min_samples": 5})

    done = play.reduce(play.answers())

    assert isinstance(done, Refused)
    assert list(done.rejected) == [2]
    assert done.rejected[2].startswith("does_not_fit: ")
    assert message in done.rejected[2]
    assert message in done.reason


def claiming(answer: bytes, **members: object) -> bytes:
    return json.dumps({**json.loads(answer), **members}).encode()


def test_a_part_that_makes_up_classes_is_refused_and_not_the_session() -> None:
    play = Play(digits(300), model_config={"hidden_size": 16, "output_size": 10})
    answers = play.answers()
    rows = json.loads(answers[0])["n_rows"]

    done = play.reduce({**answers, 0: claiming(answers[0], class_counts={"1": rows - 1, "77": 1})})

    assert isinstance(done, Refused)
    assert list(done.rejected) == [0]


def test_columns_that_the_session_does_not_name_are_refused_by_part_though_two_parts_have_them() -> None:
    wrong = csv(np.zeros((9, 63)), np.arange(9))
    play = Play([digits(300)[0], wrong, wrong], model_config={"hidden_size": 16, "input_size": 64})

    done = play.reduce(play.answers())

    assert isinstance(done, Refused)
    assert done.rejected == dict.fromkeys((1, 2), "does_not_fit: it has 63 features, the session's model takes 64")


def test_shards_of_which_no_two_fit_end_the_session() -> None:
    shards = [csv(np.zeros((9, width)), np.arange(9)) for width in (62, 63, 64)]

    with pytest.raises(BadField, match="part 1 has 63 features, part 0 has 62"):
        Play(shards).step()


def begun(play: Play, *, without: int, phase: str = "summary", quorum: int | None = 2) -> Reduced | Refused:
    """Let a session agree, with nothing of a part from ``phase`` on."""
    play.server = ShardedServer(play.spec, play.terms, StrategyConfig(), quorum=quorum)
    while True:
        answers = play.answers()
        if play.asks == phase or phase == "summary":
            del answers[without]
        done = play.reduce(answers)
        if isinstance(done, Refused) or done.asks == "train":
            return done
        play.base, play.state, play.asks = done.model, done.state, done.asks


@pytest.mark.parametrize("phase", ["summary", "moments"])
def test_a_session_goes_on_with_its_quorum_where_nobody_had_a_good_answer_for_a_part(phase: str) -> None:
    play = Play(digits(300))

    done = begun(play, without=1, phase=phase)

    assert isinstance(done, Reduced)
    assert (done.accepted, done.present) == ((0, 2), (0, 2))
    plan = play.server.plan_of(done.state)
    assert (plan.present, plan.part_size(1)) == ((0, 2), 0)
    assert plan.weight(0) == plan.part_size(0)
    play.base, play.state, play.asks, play.number = done.model, done.state, done.asks, 1
    trained = play.reduce(play.answers())  # the part that was left out answers too
    assert isinstance(trained, Reduced)
    assert trained.accepted == (0, 2)
    assert list(trained.rejected) == [1]


@pytest.mark.parametrize(
    "changes",
    [{"quorum": None}, {"quorum": 3}, {"quorum": 2, **forest("union")}],
)
def test_what_needs_all_parts_does_not_begin_without_one(changes: dict[str, Any]) -> None:
    quorum = changes.pop("quorum")

    done = begun(Play(digits(300), **changes), without=1, quorum=quorum)

    assert isinstance(done, Refused)
    assert done.rejected == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"model_config": {"hidden_size": 4, "input_size": 7}},
        {"model_type": "random_forest", "model_config": {"num_classes": 3, "num_trees": 3}},
    ],
)
def test_settings_that_do_not_fit_the_shards_end_the_session(changes: dict[str, object]) -> None:
    with pytest.raises(BadField):
        Play(digits(300), **changes).step()


def test_a_node_whose_shard_changed_mid_session_refuses_to_go_on() -> None:
    play = Play(digits(300))
    play.step()
    play.step()
    lines = play.shards[1].splitlines(keepends=True)
    play.shards[1] = b"".join([*lines[:-1], lines[-1].replace(b"0.0", b"1.0", 1)])

    with pytest.raises(ExecutionFailed, match="not the one that was summarized") as caught:
        play.node(1).answer("train", play.base, number=1)

    assert caught.value.reason == "data_invalid"


def test_a_market_that_agrees_on_another_hold_out_than_was_signed_is_refused() -> None:
    play = Play(digits(300))
    play.step()
    other = settings(holdout_fraction=0.5)
    node = ShardedTrainer(other, play.terms, play.shards[0], 0, salt=bytes(16))

    with pytest.raises(ExecutionFailed) as caught:
        node.answer("moments", play.base, number=0)

    assert caught.value.reason == "spec_invalid"


@pytest.mark.parametrize("bad", [b"", b"{}", b"rubbish", b'{"part":0}'])
@pytest.mark.parametrize("phase", ["summary", "moments", "train", "score"])
def test_a_malformed_answer_is_rejected_with_its_part(phase: str, bad: bytes) -> None:
    play = Play(digits(300))
    while play.asks != phase:
        play.step()
    answers = play.answers()

    done = play.reduce({**answers, 1: bad})

    assert set(done.rejected) == {1}
    assert isinstance(done, Refused if phase in ("summary", "moments") else Reduced)


@pytest.mark.parametrize(("name", "value"), [("mean", 1e16), ("spread", 1e30)])
def test_a_part_that_lies_about_its_columns_does_not_flatten_those_of_all(name: str, value: float) -> None:
    straight = Play(digits(300))
    straight.step()
    straight.step()
    play = Play(digits(300))
    play.step()
    answers = play.answers()
    said, _ = decode_tensors(answers[1], max_bytes=1 << 20)
    moved = {**said, name: np.where(said[name] != 0, value, said[name])}

    done = play.reduce({**answers, 1: encode_tensors(moved, {})})

    assert isinstance(done, Reduced)
    columns = done.metrics["scaling_without_part_1"]
    assert columns > 40
    true, found = decode_base(straight.base).scaling, decode_base(done.model).scaling
    assert true is not None
    assert found is not None
    varied = true.deviation > 1
    np.testing.assert_allclose(found.deviation[varied], true.deviation[varied], rtol=0.5)


def test_a_summary_of_another_part_is_rejected() -> None:
    play = Play(digits(300))
    answers = play.answers()

    done = play.reduce({**answers, 1: answers[0]})

    assert isinstance(done, Refused)
    assert "of part 0" in done.rejected[1]


def test_an_update_counts_what_the_plan_says_at_most_ten_times_the_median() -> None:
    big = csv(np.tile(load_digits().data[:100], (9, 1)), np.tile(load_digits().target[:100], 9))
    small = [csv(load_digits().data[at : at + 20], load_digits().target[at : at + 20]) for at in (0, 20)]
    play = Play([*small, big], holdout_fraction=0.0)
    play.step()
    play.step()
    kind = play.server._kind
    assert kind is not None

    assert kind[1]._plan.weight(2) == 200.0  # type: ignore[attr-defined]  # of 900 rows


def test_trees_of_a_part_that_says_it_has_many_rows_vote_with_ten_times_the_median_at_most() -> None:
    found = load_digits()
    big = csv(np.tile(found.data[:50], (12, 1)), np.tile(found.target[:50], 12))
    small = [csv(found.data[at : at + 20], found.target[at : at + 20]) for at in (0, 20)]
    play = Play([*small, big], holdout_fraction=0.0, **forest("union"))

    fitted = decode_model(play.run().model_bytes).fitted

    assert isinstance(fitted, Forest)
    assert fitted.tree_weight[-1] / fitted.tree_weight[0] == pytest.approx(10)


def test_a_session_that_is_stopped_before_its_first_round_has_no_model() -> None:
    play = Play(digits(300))
    play.step()
    assert play.state is not None

    with pytest.raises(BadDocument, match="before its first round"):
        play.server.final(play.base, play.state, rounds=0)


def test_a_node_does_not_answer_what_it_does_not_know() -> None:
    play = Play(digits(300))
    play.step()
    play.step()

    with pytest.raises(ExecutionFailed, match="cannot answer a phase 'rows'"):
        play.nodes[0].answer("rows", play.base, number=1)


@pytest.mark.parametrize(
    "bad",
    [
        b"null",
        b'{"rows":3}',
        b'{"rows":4,"loss":1.0,"right":2,"sse":null,"mean":0.0,"spread":0.0}',
        b'{"rows":3,"loss":1.0,"right":4,"sse":null,"mean":0.0,"spread":0.0}',
        b'{"rows":3,"loss":"x","right":2,"sse":null,"mean":0.0,"spread":0.0}',
        b'{"rows":3,"loss":1e999,"right":2,"sse":null,"mean":0.0,"spread":0.0}',
        b'{"rows":3,"loss":1.0,"right":2,"sse":null,"mean":0.0,"spread":-1.0}',
        b'{"rows":3,"loss":1.0,"right":2,"sse":null,"mean":-1e200,"spread":1.0}',
        b'{"rows":3,"loss":-1e308,"right":2,"sse":null,"mean":0.0,"spread":1.0}',
        b'{"rows":3,"loss":1.0,"right":2,"sse":-1.0,"mean":0.0,"spread":1.0}',
        b'{"rows":3,"loss":1' + b"0" * 310 + b',"right":2,"sse":null,"mean":0.0,"spread":0.0}',
    ],
)
def test_a_score_that_no_rows_have_is_refused(bad: bytes) -> None:
    with pytest.raises(ParityError):
        HoldoutScore.decode(bad, rows=3, classification=True)


def test_scores_that_are_too_large_together_end_nothing() -> None:
    parts = [HoldoutScore(2, 1e299, sse=9e299, mean=sign * 9e299, spread=9e299) for sign in (1, -1)]

    assert merged_scores(parts, classification=False)["loss"] == 5e298
    assert merged_scores([HoldoutScore(1, 1.7e308, right=1)] * 2, classification=True) == {"accuracy": 1.0}


def test_a_score_that_is_not_finite_is_left_out() -> None:
    parts = [HoldoutScore(2, None, right=1), HoldoutScore(2, 1.0, right=2)]

    assert merged_scores(parts, classification=True) == {"accuracy": 0.75}
    assert merged_scores([HoldoutScore(2, None, sse=None)], classification=False) == {}
    assert merged_scores([HoldoutScore(0, right=0)], classification=True) == {}
    huge = [HoldoutScore(2, 1.7e308, right=1), HoldoutScore(2, 1.7e308, right=1)]
    assert merged_scores(huge, classification=True) == {"accuracy": 0.5}


def test_the_farthest_targets_that_are_taken_are_merged_without_an_error() -> None:
    said = b'{"rows":3,"loss":1.7e308,"right":null,"sse":1.7e308,"mean":%s,"spread":1.7e308}'
    parts = [HoldoutScore.decode(said % mean, rows=3, classification=False) for mean in (b"-1e150", b"1e150")]

    assert merged_scores(parts, classification=False) == {}


def test_a_part_that_counts_classes_of_a_regression_is_named_and_the_others_are_not() -> None:
    features, target = regression()
    shards = [csv(features[part::PARTS], target[part::PARTS]) for part in range(PARTS)]
    play = Play(shards, model_type="linear_regression", model_config={"input_size": 4})
    answers = play.answers()
    said = json.loads(answers[1])
    answers[1] = json.dumps({**said, "class_counts": {"1": said["n_rows"]}}).encode()

    found = play.reduce(answers)

    assert isinstance(found, Refused)
    assert found.rejected == {1: "malformed: it counts classes"}


_NUMBERS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just([]), st.just({})
)


@functools.cache
def _at(phase: str) -> tuple[Play, dict[int, bytes]]:
    play = Play(digits(120))
    while play.asks != phase:
        play.step()
    return play, play.answers()


@settings_of_hypothesis(max_examples=60, deadline=None)
@given(data=st.data(), phase=st.sampled_from(["summary", "moments", "train", "score"]))
def test_whatever_a_node_answers_only_errors_of_ours_come_of_it(data: st.DataObject, phase: str) -> None:
    play, answers = _at(phase)
    honest = answers[1]
    if phase in ("summary", "score") and data.draw(st.booleans()):
        document = json.loads(honest)
        document[data.draw(st.sampled_from(sorted(document)))] = data.draw(_NUMBERS)
        bad = json.dumps(document).encode()
    else:
        at = data.draw(st.integers(0, len(honest) - 1))
        bad = honest[:at] + data.draw(st.binary(max_size=9)) + honest[at + data.draw(st.integers(0, 9)) :]

    try:
        done = play.reduce({**answers, 1: bad})
    except ParityError:
        return

    if isinstance(done, Reduced):
        assert all(np.isfinite(value) for value in done.metrics.values())
