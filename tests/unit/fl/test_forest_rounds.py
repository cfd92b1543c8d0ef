from __future__ import annotations

from functools import partial

import pytest

from parity_fl import FlSpec, resolve_fl_spec
from parity_fl.forest_rounds import ForestRounds, ForestTrainer
from parity_fl.histogram import part_rows, run_local
from parity_fl.model import decode_model
from parity_fl.plan import PartitionPlan
from parity_fl.rounds import Reduced, Refused
from parity_fl.runner import plan_session
from parity_fl.table import Table
from parity_fl.trees import Forest
from parity_protocol.errors import BadDocument, ExecutionFailed


@pytest.fixture(params=["histogram", "leaf_refit"])
def session(request, forest_raw, changed, breast_cancer) -> tuple[FlSpec, PartitionPlan, bytes]:
    raw = changed(changed(forest_raw, "model_config.mode", request.param), "model_config.num_trees", 6)
    spec = resolve_fl_spec(changed(raw, "model_config.max_depth", 4))
    return spec, plan_session(spec, breast_cancer, "5a" * 32), breast_cancer


def close(server: ForestRounds, base: bytes, state: bytes | None, trainers: list[ForestTrainer]) -> Reduced | Refused:
    bodies = {part: trainer.train(base, number=1).update for part, trainer in enumerate(trainers)}
    kept = None if state is None else partial(bytes, state)
    return server.reduce(base, kept, {part: partial(bytes, body) for part, body in bodies.items()})


def run(session: tuple[FlSpec, PartitionPlan, bytes], *, restarts: bool) -> bytes:
    spec, plan, data = session
    server = ForestRounds(spec, plan, data)
    trainers = [ForestTrainer(spec, plan, data, part) for part in range(3)]
    base, state, more = server.first(), b"", True
    while more:
        if restarts:
            server = ForestRounds(spec, plan, data)
            trainers = [ForestTrainer(spec, plan, data, part) for part in range(3)]
        done = close(server, base, state, trainers)
        assert isinstance(done, Reduced)
        base, state, more = done.model, state + done.state, done.more_phases
    return base


def test_phases_end_with_the_forest_of_one_process(session):
    spec, plan, data = session
    table = Table.load(spec, plan, data)
    expected = run_local(spec.model, [part_rows(table, plan, part) for part in range(3)], plan)

    done = ForestRounds(spec, plan, data).final(run(session, restarts=False), rounds=1)

    fitted = decode_model(done.model_bytes).fitted
    assert isinstance(fitted, Forest)
    assert fitted.feature.tolist() == expected.forest.feature.tolist()
    assert fitted.value.tolist() == expected.forest.value.tolist()
    assert done.metrics["accuracy"] > 0.9
    assert done.metrics["oob_federated"] == (expected.out_of_bag.score if expected.out_of_bag else None)


def test_restart_before_every_phase_gives_the_same_bytes(session):
    assert run(session, restarts=True) == run(session, restarts=False)


def test_phase_without_every_part_is_not_closed(session):
    spec, plan, data = session
    server = ForestRounds(spec, plan, data)
    answer = ForestTrainer(spec, plan, data, 0).train(server.first(), number=1).update

    done = server.reduce(server.first(), None, {0: partial(bytes, answer)})

    assert isinstance(done, Refused)
    assert done.rejected == {}


def test_bad_answer_is_rejected_by_part_and_the_phase_can_close_later(session):
    spec, plan, data = session
    server = ForestRounds(spec, plan, data)
    trainers = [ForestTrainer(spec, plan, data, part) for part in range(3)]
    base = server.first()
    bodies = {part: trainer.train(base, number=1).update for part, trainer in enumerate(trainers)}

    refused = server.reduce(base, None, {part: partial(bytes, body) for part, body in {**bodies, 1: b"{}"}.items()})
    done = server.reduce(base, None, {part: partial(bytes, body) for part, body in bodies.items()})

    assert isinstance(refused, Refused)
    assert list(refused.rejected) == [1]
    assert isinstance(done, Reduced)


def test_state_of_another_session_is_refused(session):
    spec, plan, data = session
    server = ForestRounds(spec, plan, data)
    trainers = [ForestTrainer(spec, plan, data, part) for part in range(3)]
    done = close(server, server.first(), None, trainers)
    assert isinstance(done, Reduced)

    with pytest.raises(BadDocument):
        ForestRounds(spec, plan, data).reduce(done.model, partial(bytes, done.state[:-3]), {})


def test_phase_keeps_its_own_answers_and_reads_the_others_only_after_a_restart(session):
    spec, plan, data = session
    trainers = [ForestTrainer(spec, plan, data, part) for part in range(3)]
    server = ForestRounds(spec, plan, data)
    first = close(server, server.first(), None, trainers)
    assert isinstance(first, Reduced)
    bodies = [trainer.train(first.model, number=1).update for trainer in trainers]

    def read() -> bytes:
        raise AssertionError("the answers before were read again")

    second = server.reduce(first.model, read, {part: partial(bytes, body) for part, body in enumerate(bodies)})

    assert isinstance(second, Reduced)
    assert second.appends
    assert len(second.state) == sum(4 + len(body) for body in bodies)


def test_session_ends_in_words_before_its_answers_outgrow_what_is_kept(session, monkeypatch):
    spec, plan, data = session
    trainers = [ForestTrainer(spec, plan, data, part) for part in range(3)]
    server = ForestRounds(spec, plan, data)
    done = close(server, server.first(), None, trainers)
    assert isinstance(done, Reduced)
    monkeypatch.setattr("parity_fl.forest_rounds._MAX_FILE_BYTES", len(done.state) + 1)

    with pytest.raises(ExecutionFailed, match="answers of all phases take") as caught:
        close(server, done.model, done.state, trainers)

    assert caught.value.reason == "output_too_large"


def test_stopped_session_has_no_forest(session):
    spec, plan, data = session
    server = ForestRounds(spec, plan, data)

    with pytest.raises(BadDocument, match="stopped before its forest was finished"):
        server.final(server.first(), rounds=1)


def test_there_is_no_part_beyond_the_plan(session):
    with pytest.raises(ExecutionFailed, match="there is no part 3 of 3"):
        ForestTrainer(*session, 3)
