"""Sharded sessions at the market: who is told what, what is agreed on, what a killed market goes on with, what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_contracts.chain.memory import MemoryChain
from parity_fl.averaging import Reduced
from parity_fl.linear import LinearModel
from parity_fl.model import decode_model
from parity_fl.session import ShardTerms
from parity_fl.sharded import ShardedServer, ShardedTrainer
from parity_market import round_jobs
from parity_market.domain.dispatch import Needs
from parity_market.loops.rounds import Rounds
from parity_market.loops.training import Training
from parity_market.operations import blobs, groups, leases, round_control, round_views
from parity_market.operations.groups import Group
from parity_market.operations.rounds import NewUpdate
from parity_market.round_intake import EXTRA_BYTES
from parity_market.routes.leases import make_manifest
from parity_market.store import sql
from parity_market.testing.builders import final_report, new_node
from parity_market.testing.playing import next_step
from parity_market.testing.rig import DEPLOYMENT, Rig, inline, open_rig
from parity_protocol.api.rounds import FlSessionReply, RoundStep
from parity_protocol.errors import BadField, NotFound, TooLarge, Unprocessable
from parity_protocol.lease import Lease
from parity_protocol.needs import CidInput, ShardInput
from parity_protocol.shards import open_shard, seal_shard, shard_digest
from parity_protocol.signing.jws import b64url_decode
from parity_protocol.testing.clock import FakeClock

NODES = ("n1", "n2", "n3")
PARTS = 3
TIMEOUT_S = 60.0


def shard(part: int, rows: int = 30, columns: int = 2) -> bytes:
    draw = np.random.default_rng(part)
    features = draw.normal(size=(rows, columns)) + part
    truth = features @ np.arange(1, columns + 1) + 4
    lines = [",".join([*(f"c{at}" for at in range(columns)), "target"])]
    lines += [",".join(repr(float(value)) for value in [*row, y]) for row, y in zip(features, truth, strict=True)]
    return ("\n".join(lines) + "\n").encode()


def salt(part: int, turn: int = 0) -> bytes:
    return bytes([0xA7 + turn, part]) * 8


def spec(sealed: list[str], **changes: Any) -> dict[str, Any]:
    return {
        "data_mode": "sharded",
        "shards": [shard_digest(each) for each in sealed],
        "model_type": "linear_regression",
        "data_format": "csv",
        "model_config": {"input_size": 2},
        "train_config": {"epochs": 3, "batch_size": 8, "learning_rate": 0.05},
        "total_rounds": 2,
        "rounds_config": {"round_timeout_s": TIMEOUT_S, "quorum": 2, "update_format": "fp32"},
        **changes,
    }


EXACT = {
    "model_config": {"input_size": 2, "solver": "exact"},
    "train_config": {},
    "total_rounds": 1,
    "rounds_config": {},
}


class Play:
    """A sharded session and the nodes of its parts, driven by hand."""

    def __init__(self, rig: Rig, group_id: str, data: list[bytes], sealed: list[str], turn: int = 0) -> None:
        self.turn = turn
        self.rig, self.id, self.data, self.sealed = rig, group_id, data, sealed
        self.leases: dict[int, Lease] = {}
        self.trainers: dict[int, ShardedTrainer] = {}

    @classmethod
    async def begin(cls, rig: Rig, data: list[bytes] | None = None, *, turn: int = 0, **changes: Any) -> Play:
        data = data or [shard(part) for part in range(PARTS)]
        sealed = [
            seal_shard(CidInput(cid=await rig.upload(each), max_bytes=len(each)), salt(part, turn))
            for part, each in enumerate(data)
        ]
        made = await rig.submit_session(spec(sealed, **changes), shards=sealed)
        play = cls(rig, made.id, data, sealed, turn)
        await play.step()
        for part, node in enumerate(NODES):
            await play.hold(part, node)
        await play.step()
        return play

    async def group(self) -> Group:
        return await self.rig.store.read(partial(groups.load, group_id=self.id))

    async def hold(self, part: int, node: str) -> None:
        self.rig.bench.now = self.rig.state.clock.now()
        self.leases[part] = await self.rig.bench.lease(node, (await self.group()).tasks[part].id)

    async def step(self) -> bool:
        return await self.rig.state.rounds.step(await self.group())

    async def next(self, part: int) -> RoundStep:
        return await next_step(self.rig, await self.group(), part, self.leases[part])

    async def send(self, part: int, body: bytes | None = None) -> RoundStep:
        step, lease = await self.next(part), self.leases[part]
        path, _, _ = await self.rig.state.rounds.intake.model(self.id)
        if part not in self.trainers:
            session = self.rig.state.rounds.known(await self.group()).session
            assert isinstance(session.partition, ShardTerms)
            self.trainers[part] = ShardedTrainer(
                session.spec, session.partition, self.data[part], part, salt=salt(part, self.turn)
            )
        if body is None:
            body = self.trainers[part].answer(step.asks, path.read_bytes(), number=step.round).update
        new = NewUpdate(step.round, step.phase, part, lease.lease_id, lease.fence, step.base, "", 0, {})
        await self.rig.state.rounds.intake.take(await self.group(), lease.node_id, new, pieces(body))
        return step

    async def phase(self) -> str:
        """Have all parts answer the open phase; returns what it asked."""
        asked = {(await self.send(part)).asks for part in range(PARTS)}
        assert await self.step()
        (asks,) = asked
        return asks

    async def phases(self) -> list[str]:
        found = []
        while (await self.show()).state == "running":
            found.append(await self.phase())
        return found

    async def show(self) -> FlSessionReply:
        return await self.rig.store.read(partial(round_views.session, group_id=self.id, first=0))

    async def finish(self, *parts: int) -> FlSessionReply:
        for part in parts or range(PARTS):
            step = await self.next(part)
            result = json.dumps({"updates": [update.model_dump() for update in step.accepted]}).encode()
            self.rig.bench.now = self.rig.state.clock.now()
            task = (await self.group()).tasks[part]
            done = final_report(
                NODES[part], self.leases[part], order_hash=task.order_hash, result=result, at=self.rig.bench.now
            )
            await self.rig.bench.report(NODES[part], done)
        await Rounds(self.rig.state).step()
        return await self.show()


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def fitted(play: Play, shown: FlSessionReply) -> LinearModel:
    assert shown.result_cid is not None
    creator = (await play.group()).row.creator
    data = await play.rig.state.federation.read(shown.result_cid, creator, max_bytes=1 << 20)
    found = decode_model(data).fitted
    assert isinstance(found, LinearModel)
    return found


# -- the way to a model ---------------------------------------------------------------------------------------------


async def test_a_sharded_session_agrees_trains_scores_and_is_paid(rig: Rig) -> None:
    play = await Play.begin(rig)

    asked = await play.phases()
    shown = await play.finish()

    assert asked == ["summary", "moments", "train", "score", "train", "score"]
    assert shown.state == "completed"
    assert [(one.round, one.phase, one.asks) for one in shown.rounds] == [
        (0, 0, "summary"), (0, 1, "moments"), (1, 0, "train"), (1, 1, "score"), (2, 0, "train"), (2, 1, "score")
    ]  # fmt: skip
    assert shown.metrics["r2"] == shown.rounds[-1].metrics["r2"]
    assert shown.metrics["holdout_samples"] == 18
    group = await play.group()
    assert {str(task.state) for task in group.tasks} == {"completed"}
    earned = [await rig.store.read(partial(_earned, task_id=task.id)) for task in group.tasks]
    assert earned == [task.reward for task in group.tasks]


def _earned(tx: Any, task_id: str) -> int:
    from parity_market.store import sql

    found = tx.one(sql.EARNING_OF_TASK, task_id=task_id)
    return int(found.amount)


async def test_an_exact_line_is_the_central_solution(rig: Rig) -> None:
    play = await Play.begin(rig, **EXACT, holdout_fraction=0.0)

    asked = await play.phases()
    model = await fitted(play, await play.finish())

    assert asked == ["summary", "moments", "train"]
    np.testing.assert_allclose([*model.weights, model.bias], [1, 2, 4], rtol=1e-8)


@pytest.mark.parametrize("after", range(6))
async def test_a_market_that_is_killed_after_any_phase_ends_with_the_same_bits(
    tmp_path: Path, clock: FakeClock, after: int
) -> None:
    chain = MemoryChain(clock, DEPLOYMENT)
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        await rig.bench.open(*NODES)
        play = await Play.begin(rig)
        for _ in range(after):
            await play.phase()
        await play.send(0)
    round_jobs._open.clear()
    play.trainers.clear()
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        play.rig = rig
        await Training(rig.state).start_up()
        await play.send(1)
        await play.send(2)
        assert await play.step()
        await play.phases()
        expected = await straight(play)
        shown = await play.finish()
        assert shown.result_cid is not None
        creator = (await play.group()).row.creator
        model = await rig.state.federation.read(shown.result_cid, creator, max_bytes=1 << 20)

    assert model == expected


async def straight(play: Play) -> bytes:
    """Return the model that the session's phases make without any market."""
    known = play.rig.state.rounds.known(await play.group())
    terms = known.session.partition
    assert isinstance(terms, ShardTerms)
    server = ShardedServer(known.session.spec, terms, known.strategy)
    nodes = [
        ShardedTrainer(known.session.spec, terms, each, part, salt=salt(part)) for part, each in enumerate(play.data)
    ]
    base, state, asks, number = server.first(), None, "summary", 0
    while number <= known.config.total_rounds:
        bodies = [node.answer(asks, base, number=number).update for node in nodes]
        done = server.reduce(base, state, {part: partial(bytes, body) for part, body in enumerate(bodies)})
        assert isinstance(done, Reduced)
        base, state, asks, number = done.model, done.state, done.asks, number + (not done.more_phases)
    assert state is not None
    return server.final(base, state, rounds=number - 1).model_bytes


async def test_a_session_goes_on_from_a_checkpoint_to_the_same_bits_once_its_shards_have_agreed_again(rig: Rig) -> None:
    kept = {"round_timeout_s": TIMEOUT_S, "quorum": 2, "update_format": "fp32", "checkpoint_interval": 1}
    rule = {"strategy_config": {"strategy": "FedAdam", "server_lr": 0.1}}
    first = await Play.begin(rig, rounds_config=kept, **rule)
    await first.phases()
    shown = await first.finish()
    cid = next(str(one.metrics["checkpoint_cid"]) for one in shown.rounds if (one.round, one.asks) == (1, "score"))
    bad = Play.begin(
        rig, [shard(part, rows=31) for part in range(PARTS)], rounds_config={**kept, "resume_from": cid}, **rule
    )
    other = await bad
    await other.phase()

    play = await Play.begin(rig, turn=1, total_rounds=4, rounds_config={**kept, "resume_from": cid}, **rule)
    asked = await play.phases()
    expected = await straight(play)
    went_on = await play.finish()

    assert asked == ["summary", "moments", *["train", "score"] * 3]
    assert [one.round for one in went_on.rounds if one.asks == "train"] == [2, 3, 4]
    assert went_on.settings["resumed_from"]["round"] == 1  # type: ignore[index,call-overload]
    assert went_on.result_cid is not None
    creator = (await play.group()).row.creator
    assert await rig.state.federation.read(went_on.result_cid, creator, max_bytes=1 << 20) == expected
    with pytest.raises(BadField, match="not those that the checkpoint was trained on"):
        await other.phase()


async def test_a_checkpoint_of_another_session_is_refused_at_creation(rig: Rig) -> None:
    kept = {"round_timeout_s": TIMEOUT_S, "quorum": 2, "checkpoint_interval": 1}
    first = await Play.begin(rig, rounds_config=kept)
    await first.phases()
    cid = str((await first.show()).rounds[-1].metrics["checkpoint_cid"])

    with pytest.raises(BadField, match=r"partition_config\.holdout_fraction"):
        await Play.begin(rig, total_rounds=4, holdout_fraction=0.5, rounds_config={**kept, "resume_from": cid})


async def test_the_market_scores_by_data_of_its_submitters(rig: Rig) -> None:
    play = await Play.begin(rig, eval_cid=await rig.upload(shard(7, rows=40)))

    asked = await play.phases()
    shown = await play.finish()

    assert asked == ["summary", "moments", "train", "train"]
    assert shown.metrics["holdout_samples"] == 40


# -- who is told what -----------------------------------------------------------------------------------------------


async def test_a_manifest_names_its_own_parts_source_alone(rig: Rig, clock: FakeClock) -> None:
    data = [shard(part) for part in range(PARTS)]
    cids = [await rig.upload(each) for each in data]
    sealed = [seal_shard(CidInput(cid=cid), salt(part)) for part, cid in enumerate(cids)]
    made = await rig.submit_session(spec(sealed), shards=sealed)
    offers = await rig.store.read(
        partial(leases.offers, chain=rig.state.market.chain, spender=rig.state.market.spender, task_ids=made.task_ids)
    )

    for offer in offers:
        token = make_manifest(rig.state, offer, new_node("n1").node_id, clock.now())
        text = b64url_decode(token.split(".")[1]).decode()
        own = open_shard(json.loads(text)["shard"], json.loads(json.loads(text)["spec"])["shards"][offer.task.part])

        assert own.source == CidInput(cid=cids[offer.task.part])
        assert [cid for cid in cids if cid in text] == [cids[offer.task.part]]
        assert sum(json.loads(each)["salt"] in text for each in sealed) == 1


async def test_a_node_reads_the_shard_of_its_own_part_alone(rig: Rig) -> None:
    play = await Play.begin(rig)
    sources = [open_shard(each, shard_digest(each)).source for each in play.sealed]

    def reads(node: str) -> list[int]:
        return [
            part
            for part, source in enumerate(sources)
            if isinstance(source, CidInput) and _readable(source.cid, new_node(node).node_id)
        ]

    def _readable(cid: str, node_id: str) -> bool:
        return (cid, node_id) in allowed

    allowed = set()
    for source in sources:
        assert isinstance(source, CidInput)
        for node in NODES:
            try:
                await rig.store.read(partial(blobs.readable, cid=source.cid, reader=new_node(node).node_id))
            except NotFound:
                continue
            allowed.add((source.cid, new_node(node).node_id))

    assert [reads(node) for node in NODES] == [[0], [1], [2]]


async def test_a_part_on_a_nodes_own_data_needs_a_node_that_has_the_name(rig: Rig) -> None:
    sealed = [seal_shard(ShardInput(shard=name), bytes(16)) for name in ("hospital-a", "hospital-b", "hospital-c")]

    made = await rig.submit_session(spec(sealed), shards=sealed)

    group = await rig.store.read(partial(groups.load, group_id=made.id))
    assert [Needs.from_doc(task.needs_doc).shards for task in group.tasks] == [
        ("hospital-a",), ("hospital-b",), ("hospital-c",)
    ]  # fmt: skip


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field", "match"),
    [
        ({"total_rounds": 2, "model_config": EXACT["model_config"]}, "total_rounds", "solved once"),
        ({"rounds_config": {"contribution": "leave_one_out"}}, "rounds_config.contribution", "needs eval_cid"),
        ({"partition_config": {"strategy": "random"}}, "partition_config.strategy", "its own rows"),
        ({"partition_config": {"alpha": 0.1}}, "partition_config.alpha", "means nothing"),
        ({"partition_config": {"overlap_ratio": 0.1}}, "partition_config.overlap_ratio", "cannot borrow"),
        ({"train_config": {}}, "train_config.epochs", "epochs, batch_size, learning_rate are required"),
    ],
)
async def test_settings_that_mean_nothing_to_shards_are_refused_at_creation(
    rig: Rig, changes: dict[str, Any], field: str, match: str
) -> None:
    sealed = [seal_shard(ShardInput(shard="a"), bytes(16))] * PARTS

    with pytest.raises(BadField, match=match) as caught:
        await rig.submit_session(spec(sealed, **changes), shards=sealed)

    assert caught.value.field == field


async def test_evaluation_data_that_are_not_here_are_refused_at_creation(rig: Rig) -> None:
    sealed = [seal_shard(ShardInput(shard="a"), bytes(16))] * PARTS

    with pytest.raises(Unprocessable) as caught:
        await rig.submit_session(spec(sealed, eval_cid="bafkqaaa"), shards=sealed)

    assert caught.value.field == "spec.eval_cid"


async def refused_at_first(rig: Rig, **changes: Any) -> Play:
    """Begin a session whose part 2 has other columns than the rest, and let it be refused."""
    play = await Play.begin(rig, [shard(0), shard(1), shard(2, columns=3)], **changes)
    for part in range(PARTS):
        await play.send(part)
    assert await play.step()
    return play


async def test_a_session_goes_on_without_a_part_whose_answer_was_refused_if_nobody_has_a_better_one(
    rig: Rig, clock: FakeClock
) -> None:
    play = await refused_at_first(rig)

    assert (await play.group()).tasks[2].state == "pending"  # somebody else may have what fits
    assert not await play.step()
    await clock.advance(timedelta(seconds=TIMEOUT_S + 1))
    assert await play.step()
    asked = []
    while (await play.show()).state == "running":
        asked.append({(await play.send(part)).asks for part in (0, 1)})
        assert await play.step()  # nobody waits for the part

    shown = await play.show()
    assert asked == [{"moments"}, {"train"}, {"score"}, {"train"}, {"score"}]
    assert shown.state == "done"
    (bad,) = [one for row in shown.rounds for one in row.updates if one.state == "rejected"]
    assert bad.part == 2
    assert bad.reason == "does_not_fit: it has 3 features, the session's model takes 2"
    assert all(set(row.cohort) == {0, 1} for row in shown.rounds[1:])
    ended = await play.finish(0, 1)
    assert ended.result_cid is not None
    assert (await fitted(play, ended)).weights.shape == (2,)
    assert [str(task.state) for task in (await play.group()).tasks] == ["completed", "completed", "cancelled"]


async def test_a_part_that_contradicts_the_others_ends_a_session_that_needs_all_and_is_named(
    rig: Rig, clock: FakeClock
) -> None:
    play = await refused_at_first(rig, **EXACT)

    await clock.advance(timedelta(seconds=3600))
    await play.step()

    shown = await play.show()
    assert shown.state == "failed"
    assert "missing parts 2: part 2: its answer in round 0 was rejected: does_not_fit" in shown.message


async def test_all_parts_must_agree_though_a_quorum_may_train(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig)
    await play.send(0)
    await play.send(1)

    assert not await play.step()
    await clock.advance(timedelta(seconds=TIMEOUT_S + 1))
    assert await play.step()

    shown = await play.show()
    assert shown.state == "failed"
    assert "2 of 3 needed updates came" in shown.message


async def test_a_malformed_summary_is_asked_of_the_next_holder(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig)
    for part in range(PARTS):
        await play.send(part, b"rubbish" if part == 1 else None)

    assert await play.step()
    shown = await play.show()

    assert (shown.state, shown.round) == ("running", 0)
    (bad,) = [one for one in shown.rounds[0].updates if one.state == "rejected"]
    assert bad.part == 1
    assert bad.reason.startswith("malformed")


async def test_a_score_may_be_missing(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig)
    for _ in range(3):
        await play.phase()
    await play.send(0)
    await play.send(2)
    await play.step()  # its clock begins
    await clock.advance(timedelta(seconds=TIMEOUT_S + 1))

    assert await play.step()

    shown = await play.show()
    assert shown.round == 2
    assert "r2" in next(one for one in shown.rounds if one.asks == "score").metrics


async def test_a_session_that_is_stopped_while_it_agrees_ends_at_once(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig)
    await play.phase()

    await rig.store.write(lambda tx: round_control.stop(tx, rig.state.market, play.id, clock.now()))

    shown = await play.show()
    assert (shown.state, shown.message) == ("cancelled", "stopped by its submitter before its first round had begun")
    tasks = (await play.group()).tasks
    assert {str(task.state) for task in tasks} == {"cancelled"}
    left = shown.rounds[0].metrics["phases_left"]
    paid = await rig.store.read(lambda tx: [row.amount for row in tx.all(sql.EARNING_OF_TASK, task_id=tasks[0].id)])
    assert left == 3  # to scale, to train, to score
    assert paid == [tasks[0].reward // (1 + 2 * left)]  # of two rounds


@pytest.mark.parametrize(("phases", "most"), [(0, 1_000 + EXTRA_BYTES), (2, EXTRA_BYTES + 4_096)])
async def test_an_answer_longer_than_any_is_refused(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, phases: int, most: int
) -> None:
    monkeypatch.setattr("parity_market.round_intake.ANSWER_BYTES", 1_000)
    play = await Play.begin(rig)
    for _ in range(phases):
        await play.phase()

    with pytest.raises(TooLarge):
        await play.send(0, b"x" * (most + 1))
