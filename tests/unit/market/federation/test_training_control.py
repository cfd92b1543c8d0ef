"""What a session's submitter may do while it trains: pause, go on, stop."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from parity_market.loops.rounds import Rounds
from parity_market.operations import groups, round_control
from parity_market.store import sql
from parity_market.testing.builders import new_node
from parity_market.testing.playing import TIMEOUT_S, Play
from parity_market.testing.rig import Rig
from parity_protocol.errors import (
    InvalidTransition,
)
from parity_protocol.testing.clock import FakeClock


@pytest.mark.parametrize("change", [round_control.pause, round_control.resume, round_control.stop])
async def test_a_session_that_has_failed_is_not_changed_any_more(rig: Rig, clock: FakeClock, change: Any) -> None:
    play = await Play.begin(rig)
    market, now = rig.state.market, clock.now()
    await rig.store.write(partial(groups.fail, market=market, group_id=play.id, reason="enough", now=now))
    before = (await play.show()).state

    with pytest.raises(InvalidTransition, match="it is failed"):
        await rig.store.write(partial(change, market=market, group_id=play.id, now=now))

    assert (await play.show()).state == before


async def test_a_paused_session_closes_no_round_and_has_no_deadline(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig)
    await rig.store.write(partial(round_control.pause, market=rig.state.market, group_id=play.id, now=clock.now()))
    await clock.advance(timedelta(days=1))

    assert not await play.step()
    waiting = await play.show()
    await rig.store.write(partial(round_control.resume, market=rig.state.market, group_id=play.id, now=clock.now()))
    await play.step()

    assert (waiting.state, waiting.closes_at) == ("paused", None)
    assert (await play.show()).state == "running"


async def test_a_stopped_session_ends_with_the_open_rounds_model(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig)
    await rig.store.write(partial(round_control.stop, market=rig.state.market, group_id=play.id, now=clock.now()))

    await play.round(0, 1, 2)

    assert (await play.next(0)).state == "done"
    with pytest.raises(InvalidTransition):
        await rig.store.write(partial(round_control.pause, market=rig.state.market, group_id=play.id, now=clock.now()))


async def test_a_part_is_paid_only_for_a_list_of_its_own_accepted_updates(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig, total_rounds=2)
    await play.round(0, 1, 2)
    await play.round(0, 1, 2)
    for part in (0, 1):
        await play.report(part)
    await play.report(2, {"updates": [{"round": 1, "phase": 0, "sha256": "ab" * 32}]})

    loop = Rounds(rig.state)
    await loop.step()

    group = await play.group()
    assert [str(task.state) for task in group.tasks] == ["completed", "completed", "cancelled"]
    assert group.value.state == "completed"
    earned = [
        await rig.store.read(lambda tx, task=task: tx.one(sql.EARNING_OF_TASK, task_id=task.id)) for task in group.tasks
    ]
    assert [row is not None for row in earned] == [True, True, False]
    assert new_node("n3").node_id == group.tasks[2].last_node


async def test_a_part_that_reports_before_the_session_is_over_is_unpaid_and_goes_to_another_node(rig: Rig) -> None:
    play = await Play.begin(rig, rounds_config={"round_timeout_s": TIMEOUT_S, "quorum": 3, "update_format": "fp32"})
    await play.round(0, 1, 2)
    [sent] = [one for one in (await play.show()).rounds[0].updates if one.part == 2]

    await play.report(2, {"updates": [{"round": 1, "phase": 0, "sha256": sent.sha256}]})
    await Rounds(rig.state).step()

    task = (await play.group()).tasks[2]
    assert (str(task.state), task.failure) == ("pending", "node_fault")
    assert await rig.store.read(lambda tx: tx.one(sql.EARNING_OF_TASK, task_id=task.id)) is None
    await play.hold(2, "n1")
    await play.round(0, 1, 2)
    assert (await play.show()).round == 3


async def test_a_report_longer_than_a_list_is_rejected_unread_and_the_others_are_checked(rig: Rig) -> None:
    play = await Play.begin(rig, total_rounds=1)
    await play.round(0, 1, 2)
    await play.report(0)
    await play.report(1)
    await play.report(2, b"[" * 30_000)

    why = await rig.state.rounds.check(await play.group(), (await play.group()).tasks[2])
    await Rounds(rig.state).step()

    assert why == "the result has 30000 bytes, a list of 1 updates at most 1024"
    states = [str(task.state) for task in (await play.group()).tasks]
    assert states == ["completed", "completed", "cancelled"]
