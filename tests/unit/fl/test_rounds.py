"""A session's rounds without any network: the market's side and the nodes' side against each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.datasets import load_digits

from parity_fl.contribution import Credit
from parity_fl.model import decode_model
from parity_fl.models.base import Weights
from parity_fl.plan import PartitionPlan
from parity_fl.round_bodies import decode_weights, encode_weights
from parity_fl.rounds import Reduced, Refused, RoundServer, RoundTrainer
from parity_fl.runner import plan_session
from parity_fl.session import resolve_session
from parity_fl.spec import FlSpec
from parity_fl.strategy import StrategyConfig

SEED = "5" * 64
PARTS = 3


def digits() -> bytes:
    found = load_digits()
    lines = [",".join([*(f"p{at}" for at in range(64)), "target"])]
    lines += [
        ",".join([*(f"{value:g}" for value in row), str(label)])
        for row, label in zip(found.data[:600], found.target, strict=False)
    ]
    return ("\n".join(lines) + "\n").encode()


DATA = digits()


def settings(**changes: object) -> FlSpec:
    members: dict[str, object] = {
        "model_type": "neural_network",
        "dataset_cid": "x",
        "data_format": "csv",
        "model_config": {"hidden_size": 16, "output_size": 10},
        "train_config": {"epochs": 5, "batch_size": 16, "learning_rate": 0.1},
        "partition_config": {"strategy": "stratified", "total_parts": PARTS, "min_samples": 5},
        **changes,
    }
    return resolve_session(members, session_id="s", round_id="r")


class Session:
    def __init__(self, strategy: StrategyConfig | None = None, **changes: object) -> None:
        self.spec = settings(**changes)
        self.plan: PartitionPlan = plan_session(self.spec, DATA, SEED)
        self.server = RoundServer(self.spec, self.plan, DATA, strategy or StrategyConfig())
        self.trainers = [RoundTrainer(self.spec, self.plan, DATA, part) for part in range(PARTS)]

    def updates(self, base: bytes, number: int) -> dict[int, Callable[[], bytes]]:
        bodies = {part: trainer.train(base, number=number).update for part, trainer in enumerate(self.trainers)}
        return {part: (lambda body=body: body) for part, body in bodies.items()}  # type: ignore[misc]

    def run(self, rounds: int, *, restart_after: int = 0) -> list[Reduced]:
        base, state, done = self.server.first(), None, []
        for number in range(1, rounds + 1):
            if number == restart_after + 1:
                self.server = RoundServer(self.spec, self.plan, DATA, StrategyConfig("fedadam", server_lr=0.03))
            done.append(self.reduce(base, self.updates(base, number), state=state, number=number))
            base, state = done[-1].model, done[-1].state
        return done

    def reduce(
        self,
        base: bytes,
        updates: dict[int, Callable[[], bytes]],
        *,
        state: bytes | None = None,
        number: int = 1,
        credit: Credit | None = None,
    ) -> Reduced:
        found = self.server.reduce(base, state, updates, number=number, credit=credit)
        assert isinstance(found, Reduced)
        return found


def test_accuracy_rises_over_the_rounds_and_the_final_model_predicts_like_the_last_round() -> None:
    session = Session()

    rounds = session.run(8)
    final = session.server.final(rounds[-1].model, rounds=8)

    assert rounds[-1].metrics["accuracy"] > max(0.75, rounds[0].metrics["accuracy"])
    assert final.metrics["accuracy"] == rounds[-1].metrics["accuracy"]
    model = decode_model(final.model_bytes)
    assert model.class_names == tuple(str(digit) for digit in range(10))
    rows = load_digits().data[600:800].astype(float)
    right = np.mean(np.array(model.predict_labels(rows)) == load_digits().target[600:800].astype(str))
    assert right > 0.7


def test_a_restart_between_rounds_changes_no_bit_with_an_optimizer_at_the_server() -> None:
    adam = StrategyConfig("fedadam", server_lr=0.03)

    straight = Session(adam).run(4)
    restarted = Session(adam).run(4, restart_after=2)

    assert [one.model for one in restarted] == [one.model for one in straight]


def test_updates_that_are_not_the_models_are_rejected_by_name_and_do_not_move_it() -> None:
    session = Session()
    base = session.server.first()
    updates = session.updates(base, 1)
    honest = session.reduce(base, {0: updates[0], 1: updates[1]})
    shapes = {name: tensor.shape for name, tensor in _weights(session, base).items()}
    nan = encode_weights({name: np.full(shape, np.nan, dtype=np.float32) for name, shape in shapes.items()})

    for bad in (b"rubbish", nan, updates[2]()[:-4]):
        found = session.reduce(base, {**updates, 2: lambda bad=bad: bad})  # type: ignore[misc]
        assert found.accepted == (0, 1)
        assert set(found.rejected) == {2}
        assert found.model == honest.model


def test_a_round_without_one_usable_update_is_refused() -> None:
    session = Session()

    found = session.server.reduce(session.server.first(), None, {0: lambda: b"rubbish"}, number=1)

    assert isinstance(found, Refused)
    assert set(found.rejected) == {0}


def test_a_round_trained_again_sends_the_same_eight_bits_and_carries_over_once() -> None:
    session = Session()
    base = session.server.first()
    steady, asked_twice = (RoundTrainer(session.spec, session.plan, DATA, 0) for _ in range(2))
    first = steady.train(base, number=1, update_format="int8").update

    twice = [asked_twice.train(base, number=1, update_format="int8").update for _ in range(2)]

    assert twice == [first, first]
    following = asked_twice.train(base, number=2, update_format="int8").update
    assert following == steady.train(base, number=2, update_format="int8").update
    alone = RoundTrainer(session.spec, session.plan, DATA, 0).train(base, number=2, update_format="int8").update
    assert following != alone


def test_leaving_out_the_part_with_wrong_labels_would_have_helped() -> None:
    session = Session()
    base = session.server.first()
    updates = session.updates(base, 1)
    flipped = {name: -5 * value for name, value in _weights(session, updates[1]()).items()}

    found = session.reduce(base, {**updates, 1: lambda: encode_weights(flipped)}, credit=Credit("leave_one_out"))

    assert found.contributions[1] < 0 < min(found.contributions[0], found.contributions[2])


def _weights(session: Session, data: bytes) -> Weights:
    return decode_weights(data, session.server._made.model.shapes())
