"""Pay of sessions whose rounds have phases and that never come to their end: what was answered is paid, no more."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest

from parity_fl.forest_rounds import ForestTrainer
from parity_market.operations import groups, leases, round_control, tasks
from parity_market.store import sql
from parity_market.store.base import ReadTx
from parity_market.store.rows import AccountRow
from parity_market.testing.builders import TOKEN, new_node
from parity_market.testing.playing import DATA, NODES, Play
from parity_market.testing.rig import Rig
from parity_protocol.errors import InvalidTransition
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_evm_key

CREATOR = deterministic_evm_key("creator").address
FOREST = {
    "model_type": "random_forest",
    "model_config": {"mode": "histogram", "task": "regression", "num_trees": 3, "max_depth": 3, "max_features": 2},
    "train_config": {},
    "total_rounds": 1,
    "rounds_config": {},
    "strategy_config": {},
}


async def begun(rig: Rig) -> Play:
    return await Play.begin(rig, **FOREST)


async def phase(play: Play) -> None:
    """Have every part answer the open phase, and close it."""
    session = play.rig.state.rounds.known(await play.group()).session
    path, _, _ = await play.rig.state.rounds.intake.model(play.id)
    for part in range(3):
        trainer = ForestTrainer(session.spec, session.plan, DATA.encode(), part)
        await play.send(part, await play.next(part), trainer.train(path.read_bytes(), number=1).update)
    assert await play.step()


async def earned(play: Play) -> dict[str, int]:
    """Return what each node has earned by name, after a look at the account: it is what nodes were given."""
    ids = [task.id for task in (await play.group()).tasks]

    def read(tx: ReadTx) -> list[tuple[str, int]]:
        return [(row.solver, row.amount) for one in ids for row in tx.all(sql.EARNING_OF_TASK, task_id=one)]

    rows = await play.rig.store.read(read)
    names = {new_node(name).node_id: name for name in NODES}
    found: dict[str, int] = {}
    for solver, amount in rows:
        found[names[solver]] = found.get(names[solver], 0) + amount
    assert (await account(play)).earned == sum(found.values())
    return found


async def account(play: Play) -> AccountRow:
    chain = play.rig.state.market.chain
    found = await play.rig.store.read(lambda tx: tx.one(sql.ACCOUNT, chain=chain, creator=CREATOR))
    assert found is not None
    return found


async def end(play: Play, how: str) -> None:
    market, now, store = play.rig.state.market, play.rig.state.clock.now(), play.rig.store
    if how == "failed":
        await store.write(partial(groups.fail, market=market, group_id=play.id, reason="the market's own", now=now))
    else:
        await store.write(partial(tasks.cancel, market=market, root_id=play.id, creator=CREATOR, now=now))


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_of_a_forest_that_is_never_finished_the_phases_that_closed_are_paid_once(rig: Rig, how: str) -> None:
    play = await begun(rig)
    for _ in range(4):
        await phase(play)
    left = (await play.show()).rounds[3].metrics["phases_left"]

    for _ in range(2):  # the second time is a repetition
        await end(play, how)

    assert left > 0
    assert await earned(play) == dict.fromkeys(NODES, TOKEN * 4 // (4 + left))
    assert (await account(play)).reserved == 0


async def test_a_forest_that_ends_before_a_phase_has_closed_pays_nothing(rig: Rig) -> None:
    play = await begun(rig)

    await end(play, "failed")

    assert await earned(play) == {}
    assert (await account(play)).reserved == 0


async def test_answers_to_the_phase_that_is_open_are_not_paid(rig: Rig) -> None:
    play = await begun(rig)
    await phase(play)
    left = (await play.show()).rounds[0].metrics["phases_left"]
    session = rig.state.rounds.known(await play.group()).session
    path, _, _ = await rig.state.rounds.intake.model(play.id)
    trainer = ForestTrainer(session.spec, session.plan, DATA.encode(), 0)
    await play.send(0, await play.next(0), trainer.train(path.read_bytes(), number=1).update)

    await end(play, "cancelled")

    assert await earned(play) == dict.fromkeys(NODES, TOKEN // (1 + left))


async def test_a_forest_pays_more_the_further_it_came_and_all_of_it_at_its_end(rig: Rig, clock: FakeClock) -> None:
    play = await begun(rig)
    while (await play.next(0)).state == "train":
        await phase(play)
    left = [one.metrics.get("phases_left", 0) for one in (await play.show()).rounds]

    assert left[-1] == 0
    assert all(said >= len(left) - place for place, said in enumerate(left, start=1))  # never too few
    shares = [place / (place + said) for place, said in enumerate(left, start=1)]
    assert shares == sorted(shares)
    with pytest.raises(InvalidTransition):  # it is done: there is nothing to fail, its parts report
        await rig.store.write(partial(round_control.pause, market=rig.state.market, group_id=play.id, now=clock.now()))


async def test_who_held_a_part_of_a_forest_before_is_paid_for_its_own_phases(rig: Rig, clock: FakeClock) -> None:
    play = await begun(rig)
    for _ in range(2):
        await phase(play)
    await clock.advance(timedelta(seconds=31))
    await rig.store.write(partial(leases.reap, market=rig.state.market, now=clock.now()))
    for part, node in enumerate(("n2", "n3", "n1")):
        await play.hold(part, node)
    await phase(play)
    left = (await play.show()).rounds[2].metrics["phases_left"]

    await end(play, "failed")

    each = TOKEN * 2 // (3 + left) + TOKEN // (3 + left)
    assert await earned(play) == dict.fromkeys(NODES, each)
