"""A part's rounds at the node: what it asks, trains and sends, and when it stops."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from parity_node.executors.rounds import MODEL, UPDATE, Place, RoundLoop, place_of
from parity_protocol.api.rounds import AcceptedUpdate, RoundStep, UpdateTaken
from parity_protocol.errors import (
    Conflict,
    ExecutionFailed,
    FailureReason,
    InvalidInput,
    ParityError,
    StaleFence,
    TaskCancelled,
    Unreachable,
)
from parity_protocol.testing.clock import FakeClock

PLACE = Place("group", 1, "lease", 3)


def train(number: int, model: bytes = b"model") -> RoundStep:
    base = sha256(model).hexdigest()
    return RoundStep(state="train", round=number, phase=0, total_rounds=3, base=base, base_size=len(model))


def done(*updates: tuple[int, bytes], message: str = "") -> RoundStep:
    accepted = tuple(AcceptedUpdate(round=one, phase=0, sha256=sha256(two).hexdigest()) for one, two in updates)
    return RoundStep(state="done", round=4, phase=0, total_rounds=3, accepted=accepted, message=message)


class ScriptedMarket:
    """Answers each question with the next step, or raises it."""

    def __init__(self, *script: RoundStep | ParityError, refuse: ParityError | None = None) -> None:
        self.script = list(script)
        self.sent: list[tuple[int, bytes, Mapping[str, float]]] = []
        self.refuse = refuse

    async def next_step(self, place: Place, *, wait_s: float) -> RoundStep:
        assert place == PLACE
        assert wait_s > 0
        step = self.script.pop(0)
        if isinstance(step, ParityError):
            raise step
        return step

    async def model(self, place: Place, step: RoundStep, into: Path, *, max_bytes: int) -> None:
        assert step.base_size <= max_bytes
        await anyio.Path(into).write_bytes(b"model")

    async def send(
        self, place: Place, step: RoundStep, update: bytes, metrics: Mapping[str, float], *, digest: bytes
    ) -> UpdateTaken:
        assert digest == sha256(update).digest()
        refused, self.refuse = self.refuse, None
        if refused is not None:
            raise refused
        self.sent.append((step.round, update, metrics))
        return UpdateTaken(sha256=sha256(update).hexdigest(), size=len(update), created=True)


class Bench:
    """A loop whose child is this test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ours, self.theirs = socket.socketpair()
        self.asked: list[dict[str, Any]] = []
        self.clock = FakeClock()
        self.answer: dict[str, object] = {"loss": 0.5, "samples": 7, "steps": 3, "other": "x"}
        self.keep_opened: Callable[[list[str]], None] | None = None

    def loop(self, market: ScriptedMarket) -> RoundLoop:
        return RoundLoop(market, PLACE, self.ours, self.folder, clock=self.clock, keep_opened=self.keep_opened)

    async def run(self, market: ScriptedMarket, *, answers: int = 9) -> RoundLoop:
        loop = self.loop(market)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(self._child, answers)
                group.start_soon(self._time)
                await loop.run()
                group.cancel_scope.cancel()
        return loop

    async def _child(self, answers: int) -> None:
        self.theirs.settimeout(0)
        while True:
            await anyio.wait_readable(self.theirs)
            line = self.theirs.recv(65_536)
            if not line:
                return
            if answers == len(self.asked):
                self.theirs.close()
                return
            question = json.loads(line)
            self.asked.append(question)
            assert (self.folder / MODEL).read_bytes() == b"model"
            (self.folder / UPDATE).write_bytes(b"update %d" % question["round"])
            self.theirs.send(json.dumps(self.answer).encode() + b"\n")

    async def _time(self) -> None:
        while True:
            await anyio.lowlevel.checkpoint()
            await self.clock.advance(timedelta(seconds=1))


def asks(number: int, phase: int, what: str, model: bytes = b"model") -> RoundStep:
    return train(number, model).model_copy(update={"phase": phase, "asks": what})


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.ours.close()
    made.theirs.close()


async def test_the_result_lists_the_updates_that_are_in_the_model(bench: Bench) -> None:
    market = ScriptedMarket(train(1), train(2), done((1, b"update 1"), (2, b"update 2")))

    loop = await bench.run(market)

    assert [number for number, _, _ in market.sent] == [1, 2]
    assert market.sent[0][2]["loss"] == 0.5
    assert [question["round"] for question in bench.asked] == [1, 2]
    assert loop.ended is not None
    assert loop.ended.reason is None
    document = json.loads(loop.ended.document)
    assert [update["round"] for update in document["updates"]] == [1, 2]
    assert (document["session"], document["part"]) == ("group", 1)


async def test_what_opens_a_secure_sum_is_noted_before_it_is_sent(bench: Bench) -> None:
    market = ScriptedMarket(train(1), done((1, b"update 1")))
    noted: list[tuple[list[str], int]] = []
    bench.answer["opened"] = ["round 1"]
    bench.keep_opened = lambda names: noted.append((names, len(market.sent)))

    await bench.run(market)

    assert noted == [(["round 1"], 0)]
    assert len(market.sent) == 1


async def test_what_opens_a_secure_sum_and_cannot_be_noted_is_not_sent(bench: Bench) -> None:
    market = ScriptedMarket(train(1), done((1, b"update 1")))
    bench.answer["opened"] = ["round 1"]

    loop = await bench.run(market)

    assert market.sent == []
    assert loop.ended is not None
    assert loop.ended.reason is FailureReason.NODE_FAULT


async def test_a_late_update_is_left_and_the_next_round_is_trained(bench: Bench) -> None:
    market = ScriptedMarket(train(1), train(2), done((2, b"update 2")), refuse=Conflict("late: round 1 is closed"))

    loop = await bench.run(market)

    assert [number for number, _, _ in market.sent] == [2]
    assert loop.ended is not None
    assert loop.ended.reason is None


async def test_an_update_is_sent_again_when_the_market_was_away(bench: Bench) -> None:
    market = ScriptedMarket(train(1), done((1, b"update 1")), refuse=Unreachable("away"))

    loop = await bench.run(market)

    assert [number for number, _, _ in market.sent] == [1]
    assert loop.ended is not None
    assert loop.ended.reason is None


@pytest.mark.parametrize("problem", [StaleFence("taken over"), TaskCancelled("cancelled")])
async def test_a_lost_part_ends_without_blame(bench: Bench, problem: ParityError) -> None:
    loop = await bench.run(ScriptedMarket(train(1), problem))

    assert loop.ended is not None
    assert loop.ended.reason is FailureReason.INTERRUPTED


async def test_a_market_that_is_away_for_a_while_is_asked_again(bench: Bench) -> None:
    market = ScriptedMarket(Unreachable("away"), Unreachable("away"), train(1), done((1, b"update 1")))

    loop = await bench.run(market)

    assert loop.ended is not None
    assert loop.ended.reason is None


async def test_an_update_that_the_market_refuses_as_wrong_ends_the_part(bench: Bench) -> None:
    loop = await bench.run(ScriptedMarket(train(1), refuse=InvalidInput("not an update")))

    assert loop.ended is not None
    assert loop.ended.reason is FailureReason.NODE_FAULT
    assert "not an update" in loop.ended.message


async def test_updates_that_were_not_sent_are_not_signed_for(bench: Bench) -> None:
    loop = await bench.run(ScriptedMarket(train(1), done((1, b"another"))))

    assert loop.ended is not None
    assert loop.ended.reason is FailureReason.NODE_FAULT


async def test_a_part_whose_updates_are_all_late_has_nothing_to_report(bench: Bench) -> None:
    loop = await bench.run(ScriptedMarket(train(1), done()))

    assert loop.ended is not None
    assert loop.ended.reason is FailureReason.INTERRUPTED


async def test_a_part_whose_updates_were_all_refused_says_why_to_its_operator(bench: Bench) -> None:
    loop = await bench.run(ScriptedMarket(train(1), done(message="round 3: duplicate: it is part 1's update")))

    assert loop.ended is not None
    assert loop.ended.message.endswith("without an update of this lease: round 3: duplicate: it is part 1's update")


async def test_the_loop_returns_when_the_child_has_ended(bench: Bench) -> None:
    loop = await bench.run(ScriptedMarket(train(1)), answers=0)

    assert loop.ended is None


def test_a_folder_without_its_lease_is_lost() -> None:
    assert place_of({"part": 1, "lease": {"group_id": "group", "lease_id": "lease", "fence": 3}}) == PLACE

    for members in ({}, {"part": 1, "lease": {}}, {"lease": {"group_id": "g", "lease_id": "l", "fence": 1}}):
        with pytest.raises(ExecutionFailed):
            place_of(members)  # type: ignore[arg-type]


async def test_a_child_is_told_what_a_phase_asks_and_a_model_that_it_holds_is_not_fetched_again(bench: Bench) -> None:
    market = ScriptedMarket(asks(0, 0, "summary"), asks(1, 0, "train"), asks(1, 1, "score"), StaleFence("over"))
    fetched: list[str] = []
    fetch = market.model

    async def model(place: Place, step: RoundStep, into: Path, *, max_bytes: int) -> None:
        fetched.append(step.asks)
        await fetch(place, step, into, max_bytes=max_bytes)

    market.model = model  # type: ignore[method-assign]
    await bench.run(market)

    assert [question["asks"] for question in bench.asked] == ["summary", "train", "score"]
    assert fetched == ["summary"]  # the three phases start from the same file here
