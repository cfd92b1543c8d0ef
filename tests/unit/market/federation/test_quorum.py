"""A quorum is of updates that are accepted: what was rejected is waited for from others, as long as the round has time."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from parity_fl.codec import encode_delta
from parity_fl.rounds import RoundServer
from parity_fl.spec import FlSpec
from parity_market.operations import round_closing
from parity_market.round_terms import quorum_of
from parity_market.testing.playing import DATA, TIMEOUT_S, Play
from parity_market.testing.rig import Rig
from parity_protocol.api.rounds import FlSessionReply
from parity_protocol.testing.clock import FakeClock

SETTINGS = {"quorum": 2, "round_timeout_s": TIMEOUT_S, "update_format": "fp32"}
EARLY = timedelta(seconds=TIMEOUT_S / 4)


async def not_a_number(play: Play) -> bytes:
    known = play.rig.state.rounds.known(await play.group())
    server = RoundServer(known.session.spec, known.session.plan, DATA.encode(), known.strategy)
    weights = {name: value * float("nan") for name, value in server._made.model.init(b"0" * 32).items()}
    return encode_delta(weights, "fp32")[0]


async def garbage(play: Play, *parts: int) -> None:
    bad = await not_a_number(play)
    for part in parts:
        await play.send(part, await play.next(part), bad)


def states(shown: FlSessionReply) -> dict[int, str]:
    return {update.part: update.state for update in shown.rounds[0].updates if update.fence == 1}


async def begun(rig: Rig, **changes: Any) -> Play:
    return await Play.begin(rig, **{"rounds_config": SETTINGS, "strategy_config": {}, **changes})


async def test_a_round_that_accepts_fewer_than_its_quorum_stays_open_for_the_others_until_its_deadline(
    rig: Rig, clock: FakeClock
) -> None:
    play = await begun(rig)
    deadline = (await play.show()).closes_at
    await clock.advance(EARLY)
    await play.send(0)
    await garbage(play, 1, 2)

    assert await play.step()

    shown = await play.show()
    assert (shown.state, shown.round, shown.closes_at) == ("running", 1, deadline)
    assert states(shown) == {0: "received", 1: "rejected", 2: "rejected"}
    assert {str(task.state) for task in (await play.group()).tasks[1:]} == {"pending"}


async def test_who_takes_over_completes_the_quorum_and_the_round_closes(rig: Rig) -> None:
    play = await begun(rig)
    await play.send(0)
    await garbage(play, 1, 2)
    await play.step()

    await play.hold(1, "n1")
    await play.hold(2, "n1")
    await play.round(1, 2)

    shown = await play.show()
    assert shown.round == 2
    assert {update.part for update in shown.rounds[0].updates if update.state == "accepted"} == {0, 1, 2}


async def test_without_others_the_session_fails_at_the_deadline_and_says_what_was_rejected(
    rig: Rig, clock: FakeClock
) -> None:
    play = await begun(rig)
    await clock.advance(EARLY)
    await play.send(0)
    await garbage(play, 1, 2)
    await play.step()
    await play.step()
    meanwhile = (await play.show()).state

    await clock.advance(timedelta(seconds=TIMEOUT_S) - EARLY)
    await play.step()

    shown = await play.show()
    assert (meanwhile, shown.state) == ("running", "failed")
    assert "1 of 2 needed updates came within 60 s; missing parts 1, 2: part 1: its answer in round 1 was" in (
        shown.message
    )


async def test_garbage_that_comes_as_the_deadline_passes_gives_who_takes_over_a_rounds_time(
    rig: Rig, clock: FakeClock
) -> None:
    play = await begun(rig)
    await play.send(0)
    await garbage(play, 1)
    await clock.advance(timedelta(seconds=TIMEOUT_S))

    assert await play.step()

    shown = await play.show()
    assert (shown.state, shown.round) == ("running", 1)
    assert shown.closes_at == clock.now() + timedelta(seconds=TIMEOUT_S)


async def test_a_market_that_was_killed_while_it_closed_such_a_round_opens_it_again(rig: Rig, clock: FakeClock) -> None:
    play = await begun(rig)
    await play.send(0)
    await garbage(play, 1, 2)
    await rig.store.write(partial(round_closing.freeze, group_id=play.id, now=clock.now()))

    assert await play.step()

    shown = await play.show()
    assert (shown.round, states(shown)) == (1, {0: "received", 1: "rejected", 2: "rejected"})
    assert shown.closes_at == clock.now() + timedelta(seconds=TIMEOUT_S)


async def test_a_round_that_stays_open_leaves_neither_a_model_nor_a_checkpoint(rig: Rig, tmp_path: Path) -> None:
    play = await begun(rig, rounds_config={**SETTINGS, "checkpoint_interval": 1})
    before = sorted(path.name for path in rig.state.rounds.folder(play.id).glob("*.safetensors"))
    await play.send(0)
    await garbage(play, 1, 2)

    await play.step()

    assert sorted(path.name for path in rig.state.rounds.folder(play.id).glob("*.safetensors")) == before
    assert not (tmp_path / "checkpoints" / play.id).exists()


async def test_what_a_rule_outweighs_anyway_does_not_hold_up_its_round(rig: Rig) -> None:
    rule = {"strategy": "FedTrimmedAvg", "trim_beta": 0.34}
    play = await begun(rig, rounds_config={**SETTINGS, "quorum": 3}, strategy_config=rule)
    await play.send(0)
    await play.send(1)
    await garbage(play, 2)

    assert await play.step()

    shown = await play.show()
    assert (shown.round, states(shown)) == (2, {0: "accepted", 1: "accepted", 2: "rejected"})


async def test_rejected_beyond_a_quorum_nobody_waits(rig: Rig) -> None:
    play = await begun(rig)
    await play.send(0)
    await play.send(1)
    await garbage(play, 2)

    assert await play.step()

    assert (await play.show()).round == 2


@pytest.mark.parametrize(
    ("asks", "secure", "cohort", "expected"),
    [
        ("train", False, (0, 1, 2), 2),
        ("train", False, (1,), 1),
        ("train", False, (), 0),
        ("train", True, (0, 1, 2), 0),
        ("score", False, (0, 1, 2), 0),
        ("summary", False, (0, 1, 2), 0),
    ],
)
async def test_only_training_that_the_market_can_read_has_a_quorum_of_accepted_updates(
    rig: Rig, asks: str, secure: bool, cohort: tuple[int, ...], expected: int
) -> None:
    known = rig.state.rounds.known(await (await begun(rig)).group())
    spec: FlSpec = known.session.spec
    if secure:
        spec = replace(spec, privacy=replace(spec.privacy, secure_aggregation=True))

    assert quorum_of(spec, known.config, asks=asks, cohort=cohort) == expected
