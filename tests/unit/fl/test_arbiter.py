"""Two parts sent the same update: training both again says whose it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest

from parity_fl.aggregate import StrategyConfig, Update
from parity_fl.arbiter import Retraining
from parity_fl.contribution import Credit
from parity_fl.models.base import Weights
from parity_fl.plan import PartitionPlan
from parity_fl.round_bodies import decode_delta, encode_weights
from parity_fl.rounds import Reduced, RoundServer, RoundTrainer
from parity_fl.rounds_config import UpdateFormat
from parity_fl.runner import plan_session
from parity_fl.session import resolve_session
from parity_fl.spec import FlSpec
from parity_fl.training import SessionModel

SEED = "7" * 64
PARTS = 5
ROWS = 80


def table(rows: int = ROWS) -> bytes:
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(rows, 3))
    truth = inputs @ np.array([2.0, -1.0, 0.5]) + rng.normal(scale=0.3, size=rows)
    lines = [",".join(f"{value:.6g}" for value in (*row, y)) for row, y in zip(inputs, truth, strict=True)]
    return ("a,b,c,target\n" + "\n".join(lines) + "\n").encode()


DATA = table()


def spec(model: str = "linear_regression", **train: object) -> FlSpec:
    members: dict[str, object] = {
        "model_type": model,
        "dataset_cid": "x",
        "data_format": "csv",
        "model_config": {"input_size": 3} if model == "linear_regression" else {"hidden_size": 8, "task": "regression"},
        "train_config": {"epochs": 2, "batch_size": 8, "learning_rate": 0.05, **train},
        "partition_config": {"strategy": "random", "total_parts": PARTS, "min_samples": 2, "holdout_fraction": 0.2},
    }
    return resolve_session(members, session_id="s", round_id="r")


class Session:
    def __init__(self, settings: FlSpec, strategy: StrategyConfig | None = None, data: bytes = DATA) -> None:
        self.spec, self.strategy, self.data = settings, strategy or StrategyConfig(), data
        self.plan: PartitionPlan = plan_session(settings, data, SEED)
        self.server = RoundServer(settings, self.plan, data, self.strategy)
        self.trainers = [RoundTrainer(settings, self.plan, data, part) for part in range(PARTS)]

    def bodies(self, base: bytes, number: int, update_format: UpdateFormat = "fp32") -> dict[int, bytes]:
        mu = self.strategy.mu
        return {
            part: one.train(base, number=number, proximal_mu=mu, update_format=update_format).update
            for part, one in enumerate(self.trainers)
        }

    def reduce(
        self, base: bytes, bodies: dict[int, bytes], number: int = 1, state: bytes | None = None, **more: Credit
    ) -> Reduced:
        done = self.server.reduce(
            base, state, {part: body.__bytes__ for part, body in bodies.items()}, number=number, **more
        )
        assert isinstance(done, Reduced)
        return done


@pytest.mark.parametrize("thief", [0, 3])
@pytest.mark.parametrize("update_format", get_args(UpdateFormat))
@pytest.mark.parametrize("model", ["linear_regression", "neural_network"])
def test_a_copied_update_is_that_of_the_part_that_was_trained_whoever_has_the_lower_number(
    model: str, update_format: UpdateFormat, thief: int
) -> None:
    session = Session(spec(model), StrategyConfig("fedprox", proximal_mu=0.1))
    base, state = session.server.first(), None
    for number in (1, 2):  # what 8 bits could not carry is in the second round's update
        bodies = session.bodies(base, number, update_format)
        honest = session.reduce(base, {part: body for part, body in bodies.items() if part != thief}, number, state)

        done = session.reduce(base, {**bodies, thief: bodies[2]}, number, state)

        assert done.rejected == {thief: "duplicate: it is part 2's update"}
        assert (done.accepted, done.model) == (honest.accepted, honest.model)
        base, state = honest.model, honest.state


def test_a_copy_of_the_round_before_is_nobodys() -> None:
    session = Session(spec())
    first = session.server.first()
    done = session.reduce(first, session.bodies(first, 1))
    bodies = session.bodies(done.model, 2)
    old = session.bodies(first, 1)[1]

    again = session.reduce(done.model, {**bodies, 0: old, 1: old}, 2, done.state)

    reason = "duplicate: parts 0, 1 sent the same update, and it is that of none of them"
    assert again.rejected == {0: reason, 1: reason}
    assert again.accepted == (2, 3, 4)


def test_who_sent_the_same_update_is_told_apart_when_everybody_else_copies_it() -> None:
    session = Session(spec())
    base = session.server.first()
    bodies = session.bodies(base, 1)

    done = session.reduce(base, dict.fromkeys(range(PARTS), bodies[3]))

    assert done.accepted == (3,)
    assert set(done.rejected) == {0, 1, 2, 4}


@pytest.mark.parametrize("method", ["leave_one_out", "shapley"])
def test_parts_whose_rows_are_the_same_are_both_right(method: str) -> None:
    line = DATA.decode().splitlines()
    # One row, so often that every part has nothing else: all parts' training is the same, to the last bit.
    data = "\n".join([line[0], *([line[1]] * 40)]).encode()
    session = Session(spec(batch_size=64, epochs=1), data=data)
    base = session.server.first()
    bodies = session.bodies(base, 1)
    assert len(set(bodies.values())) < PARTS

    done = session.reduce(base, bodies, credit=Credit(method, b"x"))  # type: ignore[arg-type]

    assert (done.accepted, done.rejected) == (tuple(range(PARTS)), {})


def judged(groups: list[tuple[int, ...]], **limits: int) -> dict[int, str]:
    """Let the odd parts' updates be sent by the parts below them too, as ``groups`` says."""
    settings = spec()
    session = SessionModel.load(settings, plan_session(settings, DATA, SEED), DATA)
    base = session.first()
    sent: dict[int, Weights] = {}
    for group in groups:
        sent |= dict.fromkeys(group, session.train(group[-1], base, 1).delta)
    updates = [Update(part, 1.0, sent[part]) for part in sorted(sent)]
    return Retraining(session, number=1, **limits)(base, lambda: iter(updates), groups)


def test_training_again_has_a_bound_and_beyond_it_nobody_is_believed() -> None:
    assert judged([(0, 1), (2, 3)]) == {
        0: "duplicate: it is part 1's update",
        2: "duplicate: it is part 3's update",
    }

    few = judged([(0, 1), (2, 3)], max_retrainings=3)
    short = judged([(0, 1)], max_work=1000)

    assert few[0] == "duplicate: it is part 1's update"
    assert {few[2], few[3]} == {
        "duplicate: parts 2, 3 sent the same update, and it would take too much to train them again and see whose it is"
    }
    assert set(short) == {0, 1}


def test_the_bound_counts_small_batches_for_what_they_cost() -> None:
    data = DATA + DATA.partition(b"\n")[2] * 9

    def found(batch_size: int) -> dict[int, str]:
        settings = spec("neural_network", batch_size=batch_size)
        session = SessionModel.load(settings, plan_session(settings, data, SEED), data)
        base = session.first()
        delta = session.train(1, base, 1).delta
        updates = [Update(part, 1.0, delta) for part in (0, 1)]
        return Retraining(session, number=1, max_work=2_000_000)(base, lambda: iter(updates), [(0, 1)])

    assert set(found(64)) == {0}
    assert set(found(1)) == {0, 1}


def test_many_that_copy_one_another_leave_the_bound_to_two_others() -> None:
    found = judged([(0, 1, 2), (3, 4)], max_retrainings=4)

    assert found.pop(3) == "duplicate: it is part 4's update"
    assert set(found) == {0, 1, 2}


def test_a_part_is_trained_again_once_in_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = spec()
    session = SessionModel.load(settings, plan_session(settings, DATA, SEED), DATA)
    base = session.first()
    delta = session.train(1, base, 1).delta
    updates = [Update(part, 1.0, delta) for part in (0, 1)]
    trained: list[int] = []
    train: Callable[..., object] = session.train

    def count(part: int, *rest: object, **more: object) -> object:
        trained.append(part)
        return train(part, *rest, **more)

    monkeypatch.setattr(session, "train", count)
    arbiter = Retraining(session, number=1)

    first, second = (arbiter(base, lambda: iter(updates), [(0, 1)]) for _ in range(2))

    assert first == second == {0: "duplicate: it is part 1's update"}
    assert trained == [0, 1]


def test_parts_are_trained_from_what_nodes_fetched() -> None:
    settings = spec("neural_network")
    session = SessionModel.load(settings, plan_session(settings, DATA, SEED), DATA)
    base = session.first()
    fetched = {name: value * np.float32(1.5) for name, value in base.items()}  # far more than 16 bits would lose
    updates = [Update(part, 1.0, session.train(1, fetched, 1).delta) for part in (0, 1)]

    found = Retraining(session, number=1, start=lambda: fetched)(base, lambda: iter(updates), [(0, 1)])

    assert found == {0: "duplicate: it is part 1's update"}


def test_what_can_be_read_of_eight_bits_is_enough() -> None:
    session = Session(spec("neural_network"))
    base = session.server.first()
    bodies = session.bodies(base, 1, "int8")
    coded = encode_weights(decode_delta(bodies[1], session.server._made.model.shapes()))

    done = session.reduce(base, {**bodies, 0: coded})  # the same values in another format

    assert done.rejected == {0: "duplicate: it is part 1's update"}
