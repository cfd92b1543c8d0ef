"""SIGKILL at any moment: no lease, task or result is lost, every task ends once, and nobody is paid twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import anyio
import pytest

from parity_cli.testing.town import REWARD, Town
from parity_protocol.api.tasks import TaskReply

pytestmark = [pytest.mark.serial, pytest.mark.timeout(120)]

SEED = 20260


async def assert_done_and_paid_once(town: Town, tasks: Sequence[TaskReply], before: dict[str, int]) -> None:
    """Each task has one accepted report, and the chain's credit grew by exactly its reward, for whoever did it."""
    assert all(task.state == "completed" for task in tasks)
    for task in tasks:
        events = Counter(event.event for event in await town.events(task.id))
        assert (events["report"], events["accept"]) == (1, 1)
    await town.paid([task.id for task in tasks])
    did = Counter(str(task.runner_id) for task in tasks)
    for node in town.nodes:
        assert await town.credit(node) - before[node.id] == did[node.id] * REWARD
        assert (await town.market.node(node.id)).earned == await town.credit(node)


async def settled_credits(town: Town) -> dict[str, int]:
    """Return what each node has on chain once nothing is on its way; every node has been seen by the market then."""
    for node in town.nodes:
        async with town.hand(node) as hand:
            await hand.enrol()

    async def settled() -> bool:
        nodes = [await town.market.node(node.id) for node in town.nodes]
        return all(node.earned == node.confirmed for node in nodes)

    await town.stack.until(settled, "earlier payouts", within_s=30)
    return {node.id: await town.credit(node) for node in town.nodes}


async def kill_market(town: Town) -> None:
    assert town.stack.market_process is not None
    town.stack.processes.kill(town.stack.market_process)
    await anyio.sleep(0.1)
    await town.stack.start_market()


async def kill_chain(town: Town, *, away_s: float = 0.1) -> None:
    assert town.stack.chain_process is not None
    town.stack.processes.kill(town.stack.chain_process)
    await anyio.sleep(away_s)
    await town.stack.start_chain()


async def test_market_killed_under_load_loses_no_task_lease_or_result(town: Town) -> None:
    before = await settled_credits(town)
    await town.start(*town.nodes[:2], script="file:2:0.2")
    task_ids: list[str] = []
    chance = random.Random(SEED)

    async def submit() -> None:
        for _ in range(80):
            task_ids.extend(await town.submit())
            await anyio.sleep(0.03)

    async with anyio.create_task_group() as group:
        group.start_soon(submit)
        for _ in range(2):
            await anyio.sleep(chance.uniform(0.4, 1.2))
            await kill_market(town)
    tasks = await town.ended(task_ids, within_s=40)

    assert len(set(task_ids)) == 80
    await assert_done_and_paid_once(town, tasks, before)


async def test_nodes_killed_again_and_again_end_each_task_once(town: Town) -> None:
    before = await settled_credits(town)
    pair = town.nodes[:2]
    await town.start(*pair, script="file:2:0.4")
    chance = random.Random(SEED)
    task_ids = await town.submit(40, spec={"type": "command", "command": ["true"], "max_attempts": 10})

    for turn in range(4):
        await anyio.sleep(chance.uniform(0.2, 0.6))
        node = pair[turn % 2]
        town.stack.kill_node(node)
        await anyio.sleep(chance.uniform(0.0, 0.3))
        town.launch(node, script="file:2:0.4")
    tasks = await town.ended(task_ids, within_s=60)

    await assert_done_and_paid_once(town, tasks, before)


async def test_chain_killed_and_away_while_payouts_are_on_their_way_pays_each_once(town: Town) -> None:
    before = await settled_credits(town)
    await town.start(*town.nodes[:2])
    chance = random.Random(SEED)

    first = await town.submit(20)
    for _ in range(3):
        await anyio.sleep(chance.uniform(0.3, 1.3))  # between voucher, journal, broadcast and block
        await kill_chain(town)
    assert town.stack.chain_process is not None
    town.stack.processes.kill(town.stack.chain_process)
    second = await town.submit(10)  # work goes on without a chain
    done = await town.ended(second)
    unpaid = [(await town.market.task(task_id)).payout for task_id in second]
    await town.stack.start_chain()
    tasks = await town.ended([*first, *second])

    assert all(task.state == "completed" for task in done)
    assert all(payout is not None and payout.state != "confirmed" for payout in unpaid)
    await assert_done_and_paid_once(town, tasks, before)


async def test_market_and_chain_killed_together_while_paying_pay_each_once(town: Town) -> None:
    before = await settled_credits(town)
    await town.start(*town.nodes[:2])
    chance = random.Random(SEED + 1)

    task_ids = await town.submit(20)
    tasks = await town.ended(task_ids)
    for _ in range(2):
        await anyio.sleep(chance.uniform(0.1, 0.9))
        assert town.stack.market_process is not None
        town.stack.processes.kill(town.stack.market_process)
        await kill_chain(town)
        await town.stack.start_market()

    await assert_done_and_paid_once(town, [await town.market.task(task.id) for task in tasks], before)
