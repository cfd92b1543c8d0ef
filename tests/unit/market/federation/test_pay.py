"""Pay of a part that several nodes held: each for its own rounds, from one reserve, whatever became of the part."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from parity_market.loops.rounds import Rounds
from parity_market.operations import groups, leases, round_control, rounds, tasks, views, vouchers
from parity_market.store import sql
from parity_market.store.base import ReadTx
from parity_market.store.rows import EarningRow
from parity_market.testing.builders import TOKEN, new_node
from parity_market.testing.playing import DATA, NODES, TIMEOUT_S, Play, spec
from parity_market.testing.rig import Rig
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_evm_key

CREATOR = deterministic_evm_key("creator").address
PATIENT = {"round_timeout_s": 3600.0, "quorum": 2, "update_format": "fp32"}
ID = {name: new_node(name).node_id for name in NODES}


class Ledger:
    """What one session has earned, and what is bound."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    async def rows(self, play: Play) -> list[EarningRow]:
        ids = [task.id for task in (await play.group()).tasks]

        def read(tx: ReadTx) -> list[EarningRow]:
            return [row for task_id in ids for row in tx.all(sql.EARNING_OF_TASK, task_id=task_id)]

        return await self._rig.store.read(read)

    async def paid(self, play: Play) -> dict[tuple[str, str], int]:
        """Return amounts by node and kind, after a look at the account: what was earned is what nodes were given."""
        rows = await self.rows(play)
        account = await self._rig.store.read(
            lambda tx: tx.one(sql.ACCOUNT, chain=self._rig.state.market.chain, creator=CREATOR)
        )
        assert account is not None
        assert account.earned == sum(row.amount for row in rows)
        found: dict[tuple[str, str], int] = {}
        for row in rows:
            assert (row.solver, row.kind) not in found or row.task_id
            found[row.solver, row.kind] = found.get((row.solver, row.kind), 0) + row.amount
        return found

    async def bound(self) -> int:
        """Return what is still reserved."""
        account = await self._rig.store.read(
            lambda tx: tx.one(sql.ACCOUNT, chain=self._rig.state.market.chain, creator=CREATOR)
        )
        assert account is not None
        return account.reserved


async def handed_on(rig: Rig, clock: FakeClock, play: Play, holders: dict[int, str]) -> None:
    """Let every lease run out, and others take the parts."""
    await clock.advance(timedelta(seconds=31))
    await rig.store.write(partial(leases.reap, market=rig.state.market, now=clock.now()))
    for part, node in holders.items():
        await play.hold(part, node)


async def finish(rig: Rig, play: Play, *parts: int) -> None:
    for part in parts:
        await play.report(part)
    await Rounds(rig.state).step()


async def test_the_first_holder_of_a_part_is_paid_for_its_rounds_and_the_second_for_its_own(
    rig: Rig, clock: FakeClock
) -> None:
    play = await Play.begin(rig, total_rounds=4, rounds_config=PATIENT)
    await play.round(0, 1, 2)
    holders = {0: "n2", 1: "n3", 2: "n1"}
    await handed_on(rig, clock, play, holders)
    for _ in range(3):
        await play.round(0, 1, 2)

    await finish(rig, play, 0, 1, 2)

    reward = (await play.group()).tasks[0].reward
    assert reward == TOKEN
    expected = {(ID[node], "execution"): reward * 3 // 4 for node in NODES}
    expected |= {(ID[node], "rounds"): reward // 4 for node in NODES}
    assert await Ledger(rig).paid(play) == expected
    assert await Ledger(rig).bound() == 0


async def test_what_first_holders_earn_comes_under_a_voucher_like_any_other_pay(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig, total_rounds=2, rounds_config=PATIENT)
    await play.round(0, 1, 2)
    holders = {0: "n2", 1: "n3", 2: "n1"}
    await handed_on(rig, clock, play, holders)
    await play.round(0, 1, 2)
    await finish(rig, play, 0, 1, 2)

    made = await rig.store.write(partial(vouchers.make_vouchers, chain=rig.state.market.chain, now=clock.now()))

    rows = await Ledger(rig).rows(play)
    task_id = (await play.group()).tasks[0].id
    shown = await rig.store.read(partial(views.reward, task_id=task_id))
    assert [(one.node_id, one.kind) for one in shown.earnings] == [(ID["n2"], "execution"), (ID["n1"], "rounds")]
    assert sum(one.amount for one in shown.earnings) == shown.reward
    assert made
    assert all(row.voucher_count is not None for row in rows)
    assert len({row.receipt_digest for row in rows}) == len(rows) == 6
    newest = {row.solver: max(one.cumulative or 0 for one in rows if one.solver == row.solver) for row in rows}
    assert sum(newest.values()) == sum(row.amount for row in rows)


async def test_the_first_holder_is_paid_also_when_the_second_one_fails(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig, total_rounds=4, rounds_config=PATIENT)
    await play.round(0, 1, 2)
    await play.round(0, 1, 2)
    holders = {0: "n2", 1: "n3", 2: "n1"}
    await handed_on(rig, clock, play, holders)
    await play.round(0, 1, 2)
    await play.round(0, 1, 2)

    await play.report(2, {"updates": []})
    await finish(rig, play, 0, 1)

    quarter = TOKEN // 4
    assert await Ledger(rig).paid(play) == {
        (ID["n2"], "execution"): 2 * quarter,
        (ID["n3"], "execution"): 2 * quarter,
        (ID["n1"], "rounds"): 2 * quarter,
        (ID["n2"], "rounds"): 2 * quarter,
        (ID["n3"], "rounds"): 2 * quarter,
    }
    assert [str(task.state) for task in (await play.group()).tasks] == ["completed", "completed", "cancelled"]
    assert await Ledger(rig).bound() == 0


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_of_a_session_that_ends_early_the_rounds_that_were_done_are_paid(
    rig: Rig, clock: FakeClock, how: str
) -> None:
    play = await Play.begin(rig, total_rounds=5, rounds_config={**PATIENT, "round_timeout_s": TIMEOUT_S})
    await play.round(0, 1, 2)
    await play.send(0)
    await play.send(1)
    await play.step()
    await clock.advance(timedelta(seconds=TIMEOUT_S))
    await play.step()

    market, now = rig.state.market, clock.now()
    if how == "failed":
        await rig.store.write(partial(groups.fail, market=market, group_id=play.id, reason="enough", now=now))
    else:
        await rig.store.write(partial(tasks.cancel, market=market, root_id=play.id, creator=CREATOR, now=now))

    fifth = TOKEN // 5
    assert await Ledger(rig).paid(play) == {
        (ID["n1"], "rounds"): 2 * fifth,
        (ID["n2"], "rounds"): 2 * fifth,
        (ID["n3"], "rounds"): fifth,
    }
    assert await Ledger(rig).bound() == 0


async def test_of_a_session_that_fails_in_its_first_round_nothing_is_paid(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig)
    await play.send(0)

    await rig.store.write(
        partial(groups.fail, market=rig.state.market, group_id=play.id, reason="enough", now=clock.now())
    )

    assert await Ledger(rig).paid(play) == {}
    assert await Ledger(rig).bound() == 0


async def test_one_node_under_two_leases_is_paid_once_for_each_of_its_rounds(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig, total_rounds=3, rounds_config=PATIENT)
    await play.round(0, 1, 2)
    holders = dict(enumerate(NODES))
    await handed_on(rig, clock, play, holders)
    await play.round(0, 1, 2)
    await rig.store.write(partial(round_control.stop, market=rig.state.market, group_id=play.id, now=clock.now()))
    await play.round(0, 1, 2)

    await finish(rig, play, 0, 1, 2)

    third = TOKEN // 3
    paid: Any = await Ledger(rig).paid(play)
    assert {node: paid[ID[node], "execution"] for node in NODES} == dict.fromkeys(NODES, TOKEN * 2 // 3)
    assert {node: paid[ID[node], "rounds"] for node in NODES} == dict.fromkeys(NODES, third)


# -- stopping what has hardly begun -----------------------------------------------------------------------------------


async def stop(rig: Rig, clock: FakeClock, play: Play) -> None:
    for _ in range(2):  # the second time is a repetition
        await rig.store.write(partial(round_control.stop, market=rig.state.market, group_id=play.id, now=clock.now()))


@pytest.mark.parametrize("hold", [(), (0,)])
async def test_a_session_that_is_stopped_while_it_waits_for_nodes_ends_and_frees_its_money_at_once(
    rig: Rig, clock: FakeClock, hold: tuple[int, ...]
) -> None:
    play = await Play.begin(rig, hold=hold)

    await stop(rig, clock, play)

    shown = await play.show()
    assert (shown.state, shown.message) == ("cancelled", "stopped by its submitter before its first round had begun")
    assert await Ledger(rig).bound() == 0
    assert await Ledger(rig).paid(play) == {}


async def test_a_session_that_is_stopped_before_it_has_a_model_never_begins(rig: Rig, clock: FakeClock) -> None:
    cid = await rig.upload(DATA.encode())
    play = Play(rig, (await rig.submit_session(spec(cid))).id)
    early = await play.group()

    await stop(rig, clock, play)
    await rig.state.rounds.step(early)  # the loop was about to begin it

    assert (await play.show()).state == "cancelled"
    assert await Ledger(rig).bound() == 0


async def test_a_round_that_waits_for_nodes_is_given_up_and_the_one_before_is_the_result(
    rig: Rig, clock: FakeClock
) -> None:
    play = await Play.begin(rig, total_rounds=4, rounds_config=PATIENT)
    await play.round(0, 1, 2)
    base = (await play.next(0)).base
    await handed_on(rig, clock, play, {0: "n1"})
    await play.send(0)

    await stop(rig, clock, play)

    assert (await play.next(0)).state == "done"
    await finish(rig, play, 0)
    for _ in range(2):  # the others have a minute to come back for their lists
        await clock.advance(timedelta(seconds=61))
        await Rounds(rig.state).step()
    shown = await play.show()
    assert (shown.state, shown.metrics["rounds"], shown.metrics["final_model"]) == ("completed", 1, base)
    assert await Ledger(rig).paid(play) == {(ID[node], "rounds"): TOKEN // 4 for node in NODES}
    assert await Ledger(rig).bound() == 0


async def test_a_session_that_nodes_train_is_stopped_after_its_open_round(rig: Rig, clock: FakeClock) -> None:
    play = await Play.begin(rig)

    await stop(rig, clock, play)

    assert (await play.show()).state == "stopping"
    assert await Ledger(rig).bound() == 3 * TOKEN


async def stopped_in_round_two(rig: Rig, clock: FakeClock) -> Play:
    play = await Play.begin(rig, total_rounds=4, rounds_config={**PATIENT, "round_timeout_s": TIMEOUT_S})
    await play.round(0, 1, 2)
    await play.step()
    await stop(rig, clock, play)
    await play.step()
    return play


async def test_a_stopped_session_whose_last_round_runs_out_ends_with_the_one_before(rig: Rig, clock: FakeClock) -> None:
    play = await stopped_in_round_two(rig, clock)
    await play.send(0)
    await clock.advance(timedelta(seconds=TIMEOUT_S))

    assert await play.step()

    await finish(rig, play, 0, 1, 2)
    shown = await play.show()
    assert (shown.state, shown.metrics["rounds"]) == ("completed", 1)
    assert await Ledger(rig).paid(play) == {(ID[node], "execution"): TOKEN // 4 for node in NODES}
    assert await Ledger(rig).bound() == 0


async def test_a_stopped_session_that_its_nodes_leave_ends_all_the_same(rig: Rig, clock: FakeClock) -> None:
    play = await stopped_in_round_two(rig, clock)
    await rig.store.write(
        lambda tx: rounds.set_clock(tx, play.id, None, "", clock.now())  # as when another phase has just begun
    )
    await handed_on(rig, clock, play, {})
    await play.step()

    await clock.advance(timedelta(seconds=TIMEOUT_S))
    await play.step()
    await clock.advance(timedelta(seconds=61))
    await Rounds(rig.state).step()

    assert (await play.show()).state == "completed"
    assert await Ledger(rig).bound() == 0
