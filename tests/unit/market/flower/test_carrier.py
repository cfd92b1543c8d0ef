"""What a ServerApp is told and what is taken from it; the SuperLink itself is tested with the real one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from parity_contracts.chain.memory import MemoryChain
from parity_fl.session import SessionPlan
from parity_market.domain.federation import _check_engine
from parity_market.flower import Holder, public_key_of
from parity_market.flower.carrier import _Carriage, _Carried
from parity_market.flower.processes import SuperLinkLost
from parity_market.loops.training import Training
from parity_market.testing.playing import TIMEOUT_S, Play, pieces
from parity_market.testing.rig import DEPLOYMENT, Rig, inline, open_rig
from parity_protocol.api.rounds import RoundStep
from parity_protocol.errors import BadField, Conflict, NotFound, Unavailable, Unprocessable
from parity_protocol.testing.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def rig(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr("parity_market.flower.fleets.is_installed", lambda: True)
    monkeypatch.setattr("parity_market.flower.fleets._bindable", lambda _host, port: port or 40_000)
    async with open_rig(tmp_path, MemoryChain(clock, DEPLOYMENT), clock, offload=inline) as found:
        await found.bench.open("n1", "n2", "n3")
        yield found


class Stage:
    """A session that Flower carries, with every part held and registered."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.carriage = _Carriage()
        state = play.rig.state
        self.carried = _Carried(state.store, state.rounds, state.clock, play.id, self.carriage)

    @classmethod
    async def open(cls, rig: Rig, **changes: Any) -> Stage:
        stage = cls(await Play.begin(rig, engine="flower", **changes))
        for part, lease in stage.play.leases.items():
            key = f"key {part}"
            stage.carriage.holders[part] = Holder(part, lease.node_id, lease.lease_id, lease.fence, key)
            stage.carriage.ids[key] = str(100 + part)
        return stage

    async def send(self, part: int, **changes: Any) -> None:
        step, body = await self.play.body(part)
        asked = {"round": step.round, "phase": 0, "part": part, "fence": 1, "base": step.base, "metrics": {"loss": 0.5}}
        await self.carried.update({**asked, **changes}, pieces(body))  # type: ignore[arg-type]


async def test_every_manifest_of_the_session_names_its_superlink(rig: Rig) -> None:
    play = await Play.begin(rig, engine="flower")

    doc = (await play.group()).row.plan_doc
    assert doc is not None
    plan = SessionPlan.from_dict(json.loads(doc))
    assert plan.flower == rig.state.flower.fleets.read(plan.session_id)


async def test_the_serverapp_is_told_whom_to_ask_and_the_updates_close_the_round(rig: Rig) -> None:
    stage = await Stage.open(rig)

    asked = await stage.carried.next()
    assert asked["state"] == "train"
    assert [(node["part"], node["node_id"]) for node in asked["nodes"]] == [(0, "100"), (1, "101"), (2, "102")]
    step = RoundStep.model_validate_json(asked["nodes"][0]["step"])
    assert (step.round, step.base, step.model) == (1, asked["base"], "")
    assert len(await stage.carried.model(asked["base"])) == step.base_size
    for part in range(3):
        await stage.send(part)
    assert (await stage.carried.next())["state"] == "wait"
    assert await stage.play.step()

    shown = (await stage.play.show()).rounds[0]
    assert [(update.part, update.state, update.metrics["loss"]) for update in shown.updates] == [
        (0, "accepted", 0.5),
        (1, "accepted", 0.5),
        (2, "accepted", 0.5),
    ]


async def test_a_part_whose_key_is_not_registered_is_not_asked(rig: Rig) -> None:
    stage = await Stage.open(rig)
    del stage.carriage.ids["key 1"]

    assert [node["part"] for node in (await stage.carried.next())["nodes"]] == [0, 2]


async def test_an_update_under_an_old_fence_is_refused(rig: Rig) -> None:
    stage = await Stage.open(rig)

    with pytest.raises(Conflict, match="another node"):
        await stage.send(0, fence=7)


async def test_an_update_to_a_closed_round_is_refused(rig: Rig) -> None:
    stage = await Stage.open(rig)

    with pytest.raises(Conflict, match="late"):
        await stage.send(0, round=2)


async def test_the_model_of_a_closed_round_is_not_handed_out(rig: Rig) -> None:
    stage = await Stage.open(rig)

    with pytest.raises(NotFound, match="newest"):
        await stage.carried.model("0" * 64)


async def test_the_serverapp_ends_with_the_session(rig: Rig) -> None:
    stage = await Stage.open(rig, total_rounds=2)
    for _ in range(2):
        for part in range(3):
            await stage.send(part)
        assert await stage.play.step()

    assert await stage.carried.next() == {"state": "end"}
    assert stage.carriage.ended


async def test_a_holder_is_never_told_to_train_itself_and_learns_its_id(rig: Rig) -> None:
    stage = await Stage.open(rig)
    flower, carriage = rig.state.flower, stage.carriage
    flower._carriages[stage.play.id] = carriage
    holder, step = carriage.holders[0], await stage.play.next(0)
    assert step.state == "train"

    told = flower.step(stage.play.id, holder, step)
    assert (told.state, told.flower_node, told.model) == ("wait", "100", "")

    other = Holder(0, holder.node_id, "another lease", 2, "another key")
    assert flower.step(stage.play.id, other, step).flower_node == ""
    assert carriage.holders[0] == other
    assert carriage.changed.is_set()


async def test_a_lease_has_one_key_and_a_key_one_lease(rig: Rig) -> None:
    carriage = (await Stage.open(rig)).carriage
    first, second = carriage.holders[0], carriage.holders[1]

    with pytest.raises(Conflict, match="another key already"):
        carriage.admit(replace(first, key="a second key"))
    with pytest.raises(Conflict, match="another lease's"):
        carriage.admit(Holder(0, "n3", "new lease", 2, second.key))

    assert carriage.holders[0] == first


class SuperLinkControl:
    """Registers every key but one, and remembers whom it let go."""

    def __init__(self, refused: str) -> None:
        self.refused = refused
        self.asked: list[dict[str, Any]] = []
        self.has_let_go = asyncio.Event()

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(question)
        if question["do"] == "register" and question["key"] == self.refused:
            raise Conflict("the SuperLink refused: in use")
        if question["do"] == "unregister":
            self.has_let_go.set()
        return {"node_id": len(self.asked)}


async def test_a_key_that_the_superlink_refuses_ends_nobody_elses_session_and_old_keys_are_shut_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parity_market.flower.carrier.public_key_of", lambda text: text)
    stage, control = await Stage.open(rig), SuperLinkControl("key 1")
    carriage, flower = stage.carriage, rig.state.flower
    carriage.ids.clear()
    carriage.ids["a lost lease's"] = "77"

    serving = asyncio.create_task(flower._serve(stage.play.id, carriage, control, "bridge"))  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        await control.has_let_go.wait()
    serving.cancel()

    assert control.asked[-1] == {"do": "unregister", "node_id": "77"}
    assert carriage.ids == {"key 0": "2", "key 1": "", "key 2": "4"}
    assert [node["part"] for node in (await stage.carried.next())["nodes"]] == [0, 2]


async def test_a_round_has_time_again_when_its_superlink_is_back(rig: Rig, clock: FakeClock) -> None:
    play = (await Stage.open(rig)).play
    assert not await play.step()  # the round's clock runs: sixty seconds
    await clock.advance(timedelta(seconds=TIMEOUT_S - 1))

    await rig.state.flower._put_off(play.id)
    await clock.advance(timedelta(seconds=50))
    assert not await play.step()
    assert (await play.show()).state == "running"

    await clock.advance(timedelta(seconds=11))
    await play.step()
    assert (await play.group()).value.state == "failed"


async def test_a_session_whose_superlink_cannot_start_fails_with_the_reason(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = await Play.begin(rig, engine="flower")
    missing = "engine flower is not installed here: parity fl engine install flower"

    def gone() -> Path:
        raise Unavailable(missing)

    monkeypatch.setattr("parity_market.flower.processes.flower_python", gone)
    await Training(rig.state)._carry(await play.group())

    group = await play.group()
    assert group.value.state == "failed"
    assert missing in group.row.message


async def test_a_superlink_that_keeps_ending_fails_the_session_with_its_last_words(
    rig: Rig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = await Play.begin(rig, engine="flower")
    starts = 0

    async def once(*_: object) -> None:
        nonlocal starts
        starts += 1
        raise SuperLinkLost("superlink ended with 1: out of disk")

    async def no_pause(_seconds: float) -> None:
        return

    monkeypatch.setattr(rig.state.flower, "_once", once)
    monkeypatch.setattr(clock, "sleep", no_pause)
    await Training(rig.state)._carry(await play.group())

    assert starts == 4
    assert "out of disk" in (await play.group()).row.message


async def test_a_session_without_rounds_cannot_be_carried(rig: Rig) -> None:
    with pytest.raises(BadField, match="carries rounds") as caught:
        await Play.begin(rig, engine="flower", total_rounds=1, rounds_config={}, strategy_config={})

    assert caught.value.field == "spec.engine"


def test_secure_aggregation_cannot_be_carried() -> None:
    session = {"model_type": "neural_network", "privacy": {"secure_aggregation": True}}

    with pytest.raises(BadField, match="secure_aggregation needs the engine parity"):
        _check_engine("flower", session)


async def test_a_market_without_flower_refuses_the_session_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity_market.flower.fleets.is_installed", lambda: False)

    with pytest.raises(Unprocessable, match="parity fl engine install flower"):
        await Play.begin(rig, engine="flower")


def test_a_key_is_a_point_of_its_curve() -> None:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    encoded = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)

    assert serialization.load_pem_public_key(public_key_of(encoded.hex()).encode()) == key
    for wrong in ("", "02" + "f" * 96, "04" + "0" * 96, encoded.hex().upper(), encoded.hex() + "00"):
        with pytest.raises(BadField, match="flower_key"):
            public_key_of(wrong)
