"""A sharded session with its privacy switches on: the market's side and the nodes' side, phase by phase."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression

from parity_fl.averaging import Reduced, Refused
from parity_fl.linear import LinearModel
from parity_fl.model import decode_model
from parity_fl.privacy.dp import NoiseSetup
from parity_fl.privacy.secagg_messages import is_message
from parity_fl.privacy.secure_part import SumTerms
from parity_fl.session import ShardTerms, resolve_session
from parity_fl.sharded import ShardedServer, ShardedTrainer
from parity_fl.sharded.bodies import decode_base, encode_base
from parity_fl.spec import resolve_fl_spec
from parity_fl.strategy import StrategyConfig
from parity_protocol.errors import BadField, ExecutionFailed, Internal

PARTS = 4
SEED = "7" * 64
SECURE = {"secure_aggregation": True, "threshold": 3}
NOISY = {"differential_privacy": True, "noise_multiplier": 0.01, "l2_norm_clip": 0.5}


def shards() -> list[bytes]:
    found = load_digits()
    owner = (found.target[:400] + np.arange(400) // 7) % PARTS
    rows = [
        f"{','.join(map(repr, map(float, row)))},{label}" for row, label in zip(found.data, found.target, strict=True)
    ]
    head = ",".join([*(f"p{at}" for at in range(64)), "target"])
    return [
        ("\n".join([head, *(rows[at] for at in np.flatnonzero(owner == part))]) + "\n").encode()
        for part in range(PARTS)
    ]


def lines() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    features = draw.normal(size=(120, 3)) * [1.0, 100.0, 0.01] + [0.0, 1e4, 3.0]
    return features, features @ [2.0, 0.03, 40.0] + 7e5 + draw.normal(size=120)


def line_shards() -> list[bytes]:
    features, truth = lines()
    rows = [",".join(map(repr, [*row, float(y)])) for row, y in zip(features.tolist(), truth, strict=True)]
    return [("\n".join(["a,b,c,target", *rows[part::PARTS]]) + "\n").encode() for part in range(PARTS)]


SHARDS = shards()
LINES = line_shards()
EXACT: dict[str, object] = {
    "model_type": "linear_regression",
    "model_config": {"input_size": 3, "solver": "exact"},
    "train_config": {},
    "partition_config": {"holdout_fraction": 0.0},
}


class Play:
    """A session; ``gone`` takes parts away from a phase on, ``forgets`` makes the market again before each."""

    def __init__(
        self, privacy: dict[str, object], strategy: str = "fedavg", *, forgets: bool = False, **changes: object
    ) -> None:
        members = {
            "data_mode": "sharded",
            "model_type": "neural_network",
            "data_format": "csv",
            "shards": ["0" * 64] * PARTS,
            "model_config": {"hidden_size": 8},
            "train_config": {"epochs": 2, "batch_size": 16, "learning_rate": 0.1},
            "privacy": privacy,
            **changes,
        }
        self.data = LINES if changes.get("model_type") == "linear_regression" else SHARDS
        self.spec = resolve_session(members, session_id="s", round_id="r")
        self.strategy, self.forgets = StrategyConfig(strategy), forgets  # type: ignore[arg-type]  # a test's choice
        self.private = NoiseSetup(self.spec.privacy, PARTS, b"k" * 32) if "differential_privacy" in privacy else None
        self.server = self.made()
        self.nodes = [self.node(part) for part in range(PARTS)]
        self.base, self.state, self.asks, self.number, self.phase = self.server.first(), None, "summary", 0, 0
        self.cohort = set(range(PARTS))
        self.states: list[bytes] = []
        self.metrics: list[dict[str, float]] = []
        self.sent: list[tuple[int, str, bytes]] = []

    def made(self) -> ShardedServer:
        return ShardedServer(self.spec, ShardTerms(PARTS, SEED), self.strategy, private=self.private)

    def node(self, part: int) -> ShardedTrainer:
        random = np.random.default_rng(part)
        terms = ShardTerms(PARTS, SEED)
        return ShardedTrainer(self.spec, terms, self.data[part], part, salt=b"s" * 16, randomness=random.bytes)

    def step(self, gone: Collection[int] = ()) -> Reduced | Refused:
        self.cohort -= set(gone)
        said = {part: self.nodes[part].answer(self.asks, self.base, number=self.number) for part in self.cohort}
        self.sent += [(self.number, self.asks, one.update) for one in said.values()]
        self.told = {part: one.metrics for part, one in said.items()}
        if self.forgets:
            self.server = self.made()
        done = self.server.reduce(
            self.base,
            self.state,
            {part: one.update.__bytes__ for part, one in said.items()},
            states=(lambda: b"".join(self.states)) if self.states else None,
        )
        if isinstance(done, Refused):
            return done
        self.base, self.state, self.asks = done.model, done.state, done.asks
        if not done.appends:
            self.states.clear()
        elif done.drops:
            self.states.pop()
        self.states.append(done.state)
        self.phase = self.phase + 1 if done.more_phases else 0
        self.cohort = set(range(PARTS)) if done.restarts else set(done.accepted)
        if not done.more_phases:
            self.metrics.append(done.metrics)
            self.number, self.cohort = self.number + 1, set(range(PARTS))
        return done

    def run(self, rounds: int) -> dict[str, object]:
        while self.number <= rounds:
            assert isinstance(self.step(), Reduced)
        assert self.state is not None
        self.final = self.server.final(self.base, self.state, rounds=rounds)
        return dict(self.final.metrics)


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam"])
def test_secure_sums_end_with_the_model_of_plain_ones(strategy: str) -> None:
    secure, plain = Play(SECURE, strategy), Play({}, strategy)

    found, expected = secure.run(4), plain.run(4)

    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=0.03)
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert decode_model(secure.final.model_bytes).n_features == 64
    assert [one["summed"] for one in secure.metrics[1:]] == [4.0] * 4


def test_every_answer_to_train_is_a_message_of_a_secure_sum() -> None:
    play = Play(SECURE)
    play.run(2)

    answers = [body for number, asks, body in play.sent if asks == "train" and number]
    assert len(answers) == 2 * 5 * PARTS
    assert all(is_message(body) for body in answers)


def test_nodes_tell_nothing_of_the_rows_beside_their_number() -> None:
    for privacy in (SECURE, NOISY):
        play = Play(privacy)
        while play.asks != "train":
            play.step()
        play.step()

        assert all(set(told) == {"samples"} for told in play.told.values())


def test_a_market_that_is_killed_in_every_phase_ends_with_the_same_bits() -> None:
    whole, broken = Play({**SECURE, **NOISY}), Play({**SECURE, **NOISY}, forgets=True)
    whole.run(2)
    broken.run(2)

    assert whole.base == broken.base
    assert whole.state == broken.state


def test_a_part_that_changes_hands_in_a_sum_is_out_of_it_and_joins_the_next() -> None:
    play = Play(SECURE)
    while play.asks != "train" or play.phase < 2:
        play.step()
    play.nodes[2] = play.node(2)  # its keys are gone

    done = play.step()
    assert isinstance(done, Reduced)
    assert "came to this node in the middle of the sum" in done.rejected[2]
    play.run(2)

    assert [one["summed"] for one in play.metrics[1:]] == [3.0, 4.0]


def test_a_sum_that_too_many_left_begins_anew_with_every_part() -> None:
    play, expected = Play(SECURE), Play(SECURE)
    while play.asks != "train" or play.phase < 2:
        play.step()
    for part in range(PARTS):
        play.nodes[part] = play.node(part)  # nobody has keys any more

    done = play.step()
    assert isinstance(done, Reduced)
    assert done.restarts
    assert set(done.rejected) == set(range(PARTS))
    play.run(2)
    expected.run(2)

    assert play.metrics[-1]["loss"] == pytest.approx(expected.metrics[-1]["loss"], rel=1e-6)


def test_a_part_opens_one_sum_of_a_round_only() -> None:
    play = Play(SECURE)
    while play.asks != "train" or play.phase < 4:
        play.step()
    file, number = play.base, play.number
    again = Play(SECURE)
    while again.asks != "train":
        again.step()
    play.nodes[0].answer("train", file, number=number)  # opens

    other = decode_base(again.base)
    forged = encode_base(replace(other, terms=SumTerms(7, full_weight=other.terms.full_weight if other.terms else 1.0)))
    answer = play.nodes[0].answer("train", forged, number=number).update

    assert b"has opened a sum of this round already" in answer


def test_a_market_that_goes_back_to_a_round_whose_sum_was_opened_gets_none() -> None:
    play, again = Play(SECURE), Play(SECURE)
    while again.asks != "train":
        again.step()
    while play.asks != "train" or play.number < 2 or play.phase < 4:  # the second round's sum is about to be opened
        play.step()
    play.nodes[0].answer("train", play.base, number=2)

    answer = play.nodes[0].answer("train", again.base, number=1).update

    assert b"has opened a sum of this round already" in answer


def test_a_trainer_in_place_of_another_opens_nothing_that_was_opened() -> None:
    play, again = Play(SECURE), Play(SECURE)
    while again.asks != "train":
        again.step()
    while play.asks != "train" or play.phase < 4:
        play.step()
    before = play.nodes[0]
    assert before.opened == frozenset()
    before.answer("train", play.base, number=1)
    assert before.opened == {"round 1"}

    random, terms = np.random.default_rng(9), ShardTerms(PARTS, SEED)
    after = ShardedTrainer(
        play.spec, terms, play.data[0], 0, salt=b"s" * 16, randomness=random.bytes, opened=before.opened
    )
    answer = after.answer("train", again.base, number=1).update

    assert b"has opened a sum of this round already" in answer


def test_a_market_that_goes_back_to_counts_that_were_opened_gets_none() -> None:
    play = Play(SECURE, **FOREST)
    begun: list[tuple[bytes, int]] = []  # what the first phases of sums were asked
    while len(begun) < 3:
        base, number = play.base, play.number
        play.step()
        if is_message(play.sent[-1][2]) and "request" in decode_base(base).tensors:
            begun.append((base, number))

    first, number = begun[0]
    answer = play.nodes[0].answer("train", first, number=number).update

    assert b"has opened a sum of these counts already" in answer


def test_a_market_that_asks_for_a_plain_update_gets_none() -> None:
    play, lying = Play(SECURE), Play({})
    while lying.asks != "train":
        lying.step()
    play.base, play.asks, play.number = lying.base, "train", 1

    with pytest.raises(ExecutionFailed, match="asks for an update without it"):
        play.nodes[0].answer("train", play.base, number=1)


@pytest.mark.parametrize("forgets", [False, True])
def test_an_exact_line_of_secure_sums_is_the_central_solution(forgets: bool) -> None:
    play = Play(SECURE, forgets=forgets, **EXACT)

    play.run(1)

    features, truth = lines()
    central = LinearRegression().fit(features, truth)
    found = decode_model(play.final.model_bytes).fitted
    assert isinstance(found, LinearModel)
    np.testing.assert_allclose(found.weights, central.coef_, rtol=1e-8)
    np.testing.assert_allclose(found.bias, central.intercept_, rtol=1e-8)
    assert all(is_message(body) for number, asks, body in play.sent if asks == "train")


def test_an_exact_line_that_misses_a_part_begins_anew_before_anything_is_opened() -> None:
    play = Play(SECURE, **EXACT)
    while play.asks != "train" or play.phase < 2:
        play.step()
    play.nodes[1] = play.node(1)

    done = play.step()
    assert isinstance(done, Reduced)
    assert done.restarts
    play.run(1)

    features, truth = lines()
    found = decode_model(play.final.model_bytes).fitted
    assert isinstance(found, LinearModel)
    np.testing.assert_allclose(found.weights, LinearRegression().fit(features, truth).coef_, rtol=1e-8)


FOREST: dict[str, object] = {
    "model_type": "random_forest",
    "model_config": {"num_trees": 3, "mode": "histogram", "max_depth": 2, "max_bins": 4, "max_features": 4},
    "train_config": {},
}


@pytest.mark.parametrize("forgets", [False, True])
def test_a_forest_of_secure_sums_is_the_same_forest_bit_for_bit(forgets: bool) -> None:
    secure, plain = Play(SECURE, forgets=forgets, **FOREST), Play({}, **FOREST)

    found, expected = secure.run(1), plain.run(1)

    assert secure.final.model_bytes == plain.final.model_bytes
    assert found["accuracy"] == expected["accuracy"]
    openly = [body for number, asks, body in secure.sent if asks == "train" and number and not is_message(body)]
    assert len(openly) == PARTS
    assert sum(map(len, secure.states)) < 100_000  # what sums kept between their phases is dropped
    assert all(body.startswith(b"{") for body in openly)  # which classes there are, as the summary said before


def test_a_regression_forest_has_sums_of_64_bits() -> None:
    model = {**FOREST, "model_config": {"num_trees": 3, "mode": "histogram", "max_depth": 2, "task": "regression"}}
    secure, plain = Play(SECURE, **model), Play({}, **model)
    secure.data = plain.data = LINES
    for play in (secure, plain):
        play.nodes = [play.node(part) for part in range(PARTS)]
        play.run(1)

    assert secure.final.model_bytes == plain.final.model_bytes


def test_a_forest_whose_part_changes_hands_begins_the_sum_anew() -> None:
    play, plain = Play(SECURE, **FOREST), Play({}, **FOREST)
    while play.asks != "train" or play.phase < 8:
        play.step()
    play.nodes[1] = play.node(1)
    while not play.step().rejected:
        pass
    play.run(1)
    plain.run(1)

    assert play.final.model_bytes == plain.final.model_bytes


def test_a_forest_is_never_grown_openly_where_secrecy_was_signed() -> None:
    lying, play = Play({}, **FOREST), Play(SECURE, **FOREST)
    while lying.asks != "train" or lying.phase < 1:
        lying.step()

    with pytest.raises(ExecutionFailed, match="asks for an update without it"):
        play.nodes[0].answer("train", lying.base, number=1)


def test_noise_is_added_and_epsilon_told_in_every_round() -> None:
    play = Play({**NOISY, "noise_multiplier": 1.0, "delta": 1e-3})
    play.run(3)

    told = [one["epsilon"] for one in play.metrics[1:]]
    assert told == sorted(told)
    assert told[0] > 0
    assert all(one["clip_norm"] == 0.5 for one in play.metrics[1:])


def test_adaptive_clip_norms_reach_the_nodes() -> None:
    adaptive = {
        **SECURE,
        **NOISY,
        "adaptive": True,
        "l2_norm_clip": 1e-6,
        "clip_learning_rate": 5.0,
        "count_stddev": 0.1,
    }
    play = Play(adaptive)
    play.run(3)

    clips = [one["clip_norm"] for one in play.metrics[1:]]
    assert clips[0] == pytest.approx(1e-6)
    assert clips[2] > 30 * clips[0]


def test_a_spec_keeps_its_switches_on_the_way() -> None:
    spec = Play({**SECURE, **NOISY}).spec

    assert resolve_fl_spec(spec.to_dict()) == spec
    with pytest.raises(BadField):
        resolve_fl_spec({**spec.to_dict(), "privacy": {"noise_multiplier": 1.0}})


def test_secrets_are_never_left_out() -> None:
    play = Play(SECURE)

    with pytest.raises(Internal):
        ShardedTrainer(play.spec, ShardTerms(PARTS, SEED), SHARDS[0], 0, salt=b"s" * 16)
    with pytest.raises(Internal):
        ShardedServer(Play(NOISY).spec, ShardTerms(PARTS, SEED), StrategyConfig())
