"""Privacy switches of sessions at the market: refused at creation in words, joined to the rounds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from secrets import token_bytes
from typing import Any

import numpy as np
import pytest

from parity_contracts.chain.memory import MemoryChain
from parity_fl.averaging import Reduced
from parity_fl.privacy.accountant import epsilon_of, rdp_of_gaussian
from parity_fl.privacy.config import PrivacyConfig
from parity_fl.privacy.dp import NoiseSetup
from parity_fl.session import ShardTerms
from parity_fl.settings import FlSettings
from parity_fl.sharded import ShardedServer, ShardedTrainer
from parity_fl.sharded.bodies import decode_base
from parity_market import round_jobs
from parity_market.domain.federation import new_session
from parity_market.loops.training import Training
from parity_market.operations import groups, round_closing, round_views, tasks
from parity_market.operations.groups import Group
from parity_market.operations.rounds import NewUpdate
from parity_market.store import sql
from parity_market.store.base import ReadTx
from parity_market.testing.playing import next_step
from parity_market.testing.rig import DEPLOYMENT, Rig, inline, open_rig
from parity_protocol.api.rounds import FlSessionReply, RoundStep
from parity_protocol.errors import BadField
from parity_protocol.lease import Lease
from parity_protocol.needs import CidInput
from parity_protocol.shards import seal_shard, shard_digest
from parity_protocol.task import FederatedLearningSpec, parse_spec
from parity_protocol.testing.clock import FakeClock

SECURE = {"secure_aggregation": True}
NOISY = {"differential_privacy": True, "noise_multiplier": 1.0, "l2_norm_clip": 1.0}

CUT = {"strategy": "random", "total_parts": 4, "min_samples": 1}


def order(parts: int = 4, **members: Any) -> FederatedLearningSpec:
    spec = parse_spec(
        json.dumps(
            {
                "type": "federated_learning",
                "model_type": "neural_network",
                "data_mode": "sharded",
                "data_format": "csv",
                "shards": [f"{part:064x}" for part in range(parts)],
                "train_config": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
                "total_rounds": 2,
                "model_config": {"hidden_size": 8},
                **members,
            }
        )
    )
    assert isinstance(spec, FederatedLearningSpec)
    return spec


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"privacy": SECURE, "strategy_config": {"strategy": "Krum"}}, "Krum compares single updates"),
        ({"privacy": NOISY, "strategy_config": {"strategy": "FedMedian"}}, "needs a rule that is a mean"),
        ({"privacy": NOISY, "rounds_config": {"fraction": 0.5}}, "needs fraction 1"),
        ({"privacy": SECURE, "engine": "flower"}, "secure_aggregation needs the engine parity"),
        ({"privacy": {"noise_multiplier": 1.0}}, "does nothing while differential_privacy is off"),
        (
            {
                "privacy": SECURE,
                "data_mode": "partitioned",
                "shards": [],
                "dataset_cid": "bafy",
                "partition_config": CUT,
            },
            "privacy needs data_mode sharded",
        ),
        (
            {
                "privacy": SECURE,
                "data_mode": "partitioned",
                "shards": [],
                "dataset_cid": "bafy",
                "partition_config": CUT,
                "model_type": "random_forest",
                "model_config": {},
                "total_rounds": 1,
            },
            "privacy needs data_mode sharded",
        ),
    ],
)
def test_an_impossible_session_is_refused_at_creation_in_words(members: dict[str, Any], said: str) -> None:
    with pytest.raises(BadField, match=said):
        new_session(order(**members), "00" * 32, FlSettings())


@pytest.mark.parametrize("privacy", [SECURE, NOISY, {**SECURE, **NOISY}])
def test_a_private_session_is_taken_and_its_switches_are_in_the_settings(privacy: dict[str, Any]) -> None:
    made = new_session(order(privacy=privacy), "00" * 32, FlSettings())

    assert made.spec.privacy.to_dict() == privacy


def test_the_networks_name_of_the_setting_is_read() -> None:
    spec = order(privacy_config=SECURE)

    assert spec.privacy == SECURE
    assert spec.session()["privacy"] == SECURE


# -- rounds -----------------------------------------------------------------------------------------------------------

NODES = ("n1", "n2", "n3", "n4")
TIMEOUT_S = 60.0


def shard(part: int, rows: int = 40) -> bytes:
    draw = np.random.default_rng(part)
    features = draw.normal(size=(rows, 2))
    truth = (features @ [1.0, 2.0] > 0.3 * part - 0.4).astype(int)
    lines = [f"{row[0]!r},{row[1]!r},{label}" for row, label in zip(features.tolist(), truth, strict=True)]
    return ("\n".join(["a,b,target", *lines]) + "\n").encode()


class Play:
    """A sharded session of four parts and the nodes that hold them, driven by hand."""

    def __init__(self, rig: Rig, group_id: str) -> None:
        self.rig, self.id = rig, group_id
        self.leases: dict[int, Lease] = {}
        self.trainers: dict[int, ShardedTrainer] = {}

    @classmethod
    async def begin(cls, rig: Rig, privacy: dict[str, Any], **changes: Any) -> Play:
        sources = [CidInput(cid=await rig.upload(shard(part)), max_bytes=1 << 20) for part in range(len(NODES))]
        sealed = [seal_shard(source, bytes([part]) * 16) for part, source in enumerate(sources)]
        spec = order(
            shards=[shard_digest(one) for one in sealed],
            **{"rounds_config": {"round_timeout_s": TIMEOUT_S}, "strategy_config": {"strategy": "FedAvg"}, **changes},
            privacy=privacy,
        )
        submitted = spec.session() | {"engine": "parity"}
        play = cls(rig, (await rig.submit_session(submitted, shards=sealed)).id)
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
        session = self.rig.state.rounds.known(await self.group()).session
        assert isinstance(session.partition, ShardTerms)
        self.trainers[part] = ShardedTrainer(
            session.spec, session.partition, shard(part), part, salt=bytes([part]) * 16, randomness=token_bytes
        )

    async def step(self) -> bool:
        return await self.rig.state.rounds.step(await self.group())

    async def next(self, part: int) -> RoundStep:
        return await next_step(self.rig, await self.group(), part, self.leases[part])

    async def phase(self, *parts: int) -> None:
        """Have parts (default: all that are asked) answer the open phase, and close it."""
        for part in parts or range(len(NODES)):
            step, lease = await self.next(part), self.leases[part]
            if step.state != "train":
                continue
            path, _, _ = await self.rig.state.rounds.intake.model(self.id)
            body = self.trainers[part].answer(step.asks, path.read_bytes(), number=step.round).update
            new = NewUpdate(step.round, step.phase, part, lease.lease_id, lease.fence, step.base, "", 0, {})
            await self.rig.state.rounds.intake.take(await self.group(), lease.node_id, new, pieces(body))
        if parts:
            assert not await self.step()  # the round's clock runs from here
            assert isinstance(self.rig.state.clock, FakeClock)
            self.rig.state.clock.jump_wall(timedelta(seconds=TIMEOUT_S + 1))
        assert await self.step()

    async def until(self, number: int, phase: int = 0) -> None:
        while (now := (await self.show()).rounds[-1]) and (now.round, now.phase) != (number, phase):
            await self.phase()

    async def run(self) -> FlSessionReply:
        while (await self.show()).state == "running":
            await self.phase()
        return await self.show()

    async def show(self) -> FlSessionReply:
        return await self.rig.store.read(partial(round_views.session, group_id=self.id, first=0))


@pytest.fixture
async def rig(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path, MemoryChain(clock, DEPLOYMENT), clock, offload=inline) as rig:
        await rig.bench.open(*NODES)
        yield rig


def told(shown: FlSessionReply, name: str) -> list[float]:
    return [float(one.metrics[name]) for one in shown.rounds if name in one.metrics and one.asks == "score"]


async def test_rounds_of_secure_sums_end_with_the_model_of_plain_ones(rig: Rig) -> None:
    play = await Play.begin(rig, SECURE)
    shown = await play.run()
    known = rig.state.rounds.known(await play.group())
    plain = replace(known.session.spec, privacy=PrivacyConfig())

    assert told(shown, "loss") == pytest.approx(straight(plain, known.session.partition, known.strategy), rel=1e-3)
    assert [one.phase for one in shown.rounds if one.round == 1] == [0, 1, 2, 3, 4, 5]
    assert [one.metrics.get("phases_left") for one in shown.rounds] == [7, 6, *2 * (5, 4, 3, 2, 1, None)]
    assert told(shown, "summed") == [4, 4]
    assert any("waives" in line for line in shown.settings["warnings"])


async def test_a_secure_session_that_is_cancelled_in_the_middle_of_a_sum_pays_the_phases_that_closed(rig: Rig) -> None:
    play = await Play.begin(rig, SECURE)
    await play.until(2, 3)
    group = await play.group()
    market, now = rig.state.market, rig.state.clock.now()

    await rig.store.write(partial(tasks.cancel, market=market, root_id=play.id, creator=group.row.creator, now=now))

    def read(tx: ReadTx) -> list[tuple[int, int]]:
        return [
            (row.amount, task.reward * 11 // 14)
            for task in group.tasks
            for row in tx.all(sql.EARNING_OF_TASK, task_id=task.id)
        ]

    paid = await rig.store.read(read)  # agreed in 2 phases, trained in 6 and 3; 3 more would have been the second round
    assert len(paid) == len(NODES)
    assert all(amount == expected for amount, expected in paid)


async def test_epsilon_and_clip_norm_of_every_round_are_shown(rig: Rig) -> None:
    shown = await (await Play.begin(rig, {**NOISY, "delta": 1e-3})).run()

    epsilons = told(shown, "epsilon")
    assert len(epsilons) == 2
    assert 0 < epsilons[0] < epsilons[1]
    assert told(shown, "clip_norm") == [1.0, 1.0]


async def test_parts_are_drawn_by_secret_coins_and_a_round_may_draw_none(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    coins = iter([0, 9, 9, 0, 9, 9, 9, 9, 9, 0, 9, 9])  # parts 0 and 3; nobody; part 1
    monkeypatch.setattr(round_closing, "token_bytes", lambda size: bytes([25 * next(coins)]) + bytes(size - 1))
    drawn = {"round_timeout_s": TIMEOUT_S, "fraction": 0.5, "sampling": "poisson"}
    play = await Play.begin(rig, {**NOISY, "delta": 1e-3}, rounds_config=drawn, total_rounds=3)

    shown = await play.run()

    asked = {one.round: one.cohort for one in shown.rounds if one.round}
    assert asked == {1: (0, 3), 3: (1,)}
    whole = epsilon_of([3 * one for one in rdp_of_gaussian(1.0)], 1e-3)
    assert 0 < told(shown, "epsilon")[-1] < whole / 1.4


async def test_the_noises_key_is_read_by_nobody_and_in_nothing_that_leaves(rig: Rig) -> None:
    play = await Play.begin(rig, NOISY)
    await play.run()
    folder = rig.state.rounds.folder(play.id)
    key = (folder / "noise.key").read_bytes()

    assert (folder / "noise.key").stat().st_mode & 0o777 == 0o600
    assert len(key) == 32
    assert all(key not in path.read_bytes() for path in folder.rglob("*.safetensors"))


async def test_a_node_that_is_lost_in_a_sum_is_made_up_for_by_the_others(rig: Rig) -> None:
    play = await Play.begin(rig, {**SECURE, "threshold": 3})
    await play.until(1, 2)

    await play.phase(0, 1, 3)
    shown = await play.run()

    masked = next(one for one in shown.rounds if (one.round, one.phase) == (1, 3))
    assert masked.cohort == (0, 1, 3)
    assert told(shown, "summed") == [3, 4]


async def test_a_part_that_another_node_takes_over_in_a_sum_joins_the_next(rig: Rig) -> None:
    play = await Play.begin(rig, {**SECURE, "threshold": 3})
    await play.until(1, 2)
    session = rig.state.rounds.known(await play.group()).session
    assert isinstance(session.partition, ShardTerms)
    play.trainers[2] = ShardedTrainer(
        session.spec, session.partition, shard(2), 2, salt=bytes([2]) * 16, randomness=token_bytes
    )

    shown = await play.run()

    third = next(one for one in shown.rounds if (one.round, one.phase) == (1, 2))
    assert "in the middle of the sum" in next(one.reason for one in third.updates if one.part == 2)
    assert told(shown, "summed") == [3, 4]


async def test_a_sum_that_cannot_be_opened_asks_every_part_again(rig: Rig) -> None:
    play = await Play.begin(rig, {**SECURE, "threshold": 3})
    await play.until(1, 2)
    session = rig.state.rounds.known(await play.group()).session
    assert isinstance(session.partition, ShardTerms)
    for part in (0, 3):
        play.trainers[part] = ShardedTrainer(
            session.spec, session.partition, shard(part), part, salt=bytes([part]) * 16, randomness=token_bytes
        )

    shown = await play.run()

    cohorts = {one.phase: one.cohort for one in shown.rounds if one.round == 1}
    assert cohorts[3] == (0, 1, 2, 3)
    assert next(one for one in shown.rounds if (one.round, one.phase) == (1, 2)).metrics["restarted"] == 1
    assert told(shown, "summed") == [4, 4]


@pytest.mark.parametrize("phase", range(6))
async def test_a_market_that_is_killed_in_a_private_round_ends_with_the_same_bits(
    tmp_path: Path, clock: FakeClock, phase: int
) -> None:
    chain = MemoryChain(clock, DEPLOYMENT)
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        await rig.bench.open(*NODES)
        play = await Play.begin(rig, {**SECURE, **NOISY})
        await play.until(1, phase)
    round_jobs._open.clear()
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        play.rig = rig
        await Training(rig.state).start_up()
        key = (rig.state.rounds.folder(play.id) / "noise.key").read_bytes()
        shown = await play.run()
        known = rig.state.rounds.known(await play.group())
        expected = straight(known.session.spec, known.session.partition, known.strategy, key)

    assert told(shown, "loss") == [pytest.approx(loss, abs=1e-12) for loss in expected]


def straight(spec: Any, terms: Any, strategy: Any, key: bytes = b"") -> list[float]:
    """Return the losses of the session when nothing is interrupted: sums are exact, so masks make no difference."""
    server = ShardedServer(spec, terms, strategy, private=NoiseSetup(spec.privacy, 4.0, key) if key else None)
    nodes = [
        ShardedTrainer(spec, terms, shard(part), part, salt=bytes([part]) * 16, randomness=token_bytes)
        for part in range(4)
    ]
    base, state, asks, number, losses = server.first(), None, "summary", 0, []
    while number <= 2:
        bodies = [node.answer(asks, base, number=number).update for node in nodes]
        done = server.reduce(base, state, {part: partial(bytes, body) for part, body in enumerate(bodies)})
        assert isinstance(done, Reduced)
        base, state, asks, number = done.model, done.state, done.asks, number + (not done.more_phases)
        losses += [done.metrics["loss"]] if number > 1 and not done.more_phases else []
    return losses


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    yield body


FOREST: dict[str, Any] = {
    "model_type": "random_forest",
    "model_config": {"num_trees": 3, "mode": "histogram", "max_depth": 2, "max_bins": 4},
    "train_config": {},
    "total_rounds": 1,
    "holdout_fraction": 0.0,
}


@pytest.mark.parametrize("after", [9, 33])
async def test_a_forest_of_secure_sums_survives_a_kill_and_is_that_of_open_counts(
    tmp_path: Path, clock: FakeClock, after: int
) -> None:
    chain = MemoryChain(clock, DEPLOYMENT)
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        await rig.bench.open(*NODES)
        play = await Play.begin(rig, SECURE, **FOREST)
        for _ in range(after):
            await play.phase()
    round_jobs._open.clear()
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        play.rig = rig
        await Training(rig.state).start_up()
        while (await play.show()).state == "running":
            await play.phase()
        folder = rig.state.rounds.folder(play.id)
        known = rig.state.rounds.known(await play.group())
        session = known.session
        assert isinstance(session.partition, ShardTerms)
        found = decode_base(max(folder.glob("model-2-*"), key=str).read_bytes()).tensors["forest"]

    plain = replace(session.spec, privacy=PrivacyConfig())
    server = ShardedServer(plain, session.partition, known.strategy)
    nodes = [ShardedTrainer(plain, session.partition, shard(part), part, salt=bytes([part]) * 16) for part in range(4)]
    base, state, asks, number, kept = server.first(), None, "summary", 0, b""
    while number <= 1:
        bodies = [node.answer(asks, base, number=number).update for node in nodes]
        states = partial(bytes, kept) if kept else None
        done = server.reduce(base, state, {part: partial(bytes, one) for part, one in enumerate(bodies)}, states=states)
        assert isinstance(done, Reduced)
        base, state, asks, number = done.model, done.state, done.asks, number + (not done.more_phases)
        kept = kept + done.state if done.appends else done.state
    assert found.tobytes() == decode_base(base).tensors["forest"].tobytes()
