"""Random histories: whatever fails in whatever order, no task is paid twice, and once faults stop every task ends."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from parity_node.folders import Folders
from parity_node.store.memory import MemoryNodeStore
from parity_node.testing.executors import ScriptedExecutor
from parity_node.testing.market import MarketSimulator
from parity_protocol.errors import Overloaded
from parity_protocol.task import FINAL_STATES, TaskState
from parity_protocol.testing.clock import FakeClock

from .conftest import NodeFactory, node_factory

SEEDS = range(10)
STEPS = 40
ACTIONS = (
    "offer",
    "offer",
    "pass",
    "pass",
    "away",
    "back",
    "lose",
    "overload",
    "restart",
    "restart",
    "cancel",
    "wall_clock",
)
CALLS = ("poll", "claim", "renew", "report", "start", "heartbeat")


class History:
    """One random history of a market and a node that is killed and started again."""

    def __init__(self, seed: int, node: NodeFactory, market: MarketSimulator, clock: FakeClock) -> None:
        self.rng = random.Random(seed)
        self.node, self.market, self.clock = node, market, clock
        self.store = MemoryNodeStore()
        self.done: list[str] = []

    async def run(self) -> None:
        ended = False
        while not ended:
            can_recover = self.rng.random() < 0.5
            executor = ScriptedExecutor(self.clock, run_for_s=self.rng.choice([0, 5, 45]), can_recover=can_recover)
            async with AsyncExitStack() as stack:
                running = await stack.enter_async_context(self.node(store=self.store, executor=executor))
                ended = await self._until_restart(running)
                if ended:
                    await self._settle(running, executor)

    async def _until_restart(self, running) -> bool:
        while len(self.done) < STEPS:
            action = self.rng.choice(ACTIONS)
            self.done.append(action)
            if action == "restart":
                return False
            await self._act(action, running)
        return True

    async def _act(self, action: str, running) -> None:
        market, rng = self.market, self.rng
        live = market.unfinished()
        match action:
            case "offer":
                market.offer(max_attempts=10)
            case "pass":
                await running.pass_time(rng.choice([0.1, 2, 12, 40]))
            case "away":
                market.go_offline()
            case "back":
                market.come_back()
            case "lose":
                market.lose_replies(rng.choice(CALLS), rng.randint(1, 3))
            case "overload":
                market.fail_next(rng.choice(CALLS), Overloaded("busy", retry_after_s=rng.choice([None, 3.0])))
            case "cancel" if live and rng.random() < 0.3:
                task = rng.choice(live)
                if task.state in (TaskState.PENDING, TaskState.LEASED, TaskState.RUNNING):
                    market.cancel(task)
            case "wall_clock":
                self.clock.jump_wall(rng.choice([-1, 1]) * timedelta(seconds=rng.uniform(0, 20)))

    async def _settle(self, running, executor: ScriptedExecutor) -> None:
        executor.run_for_s = 0
        self.market.come_back()
        self.market._lost_replies.clear()
        self.market._failures.clear()
        await running.until(lambda: not self.market.unfinished() and running.is_idle(), within_s=400, step_s=1.0)


@pytest.mark.usefixtures("node")
async def test_no_history_pays_twice_or_leaves_a_task_behind(folders: Folders) -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        clock = FakeClock()
        market = MarketSimulator(clock)
        history = History(seed, node_factory(market, clock, folders), market, clock)

        await history.run()

        told = (seed, history.done)
        for task in market.tasks.values():
            assert task.state in FINAL_STATES, told
            assert task.earnings == (1 if task.state is TaskState.COMPLETED else 0), told
            seen.update({task.state.value, *task.events, *(str(item.report.reason) for item in task.reports.values())})
        snapshot = await history.store.load()
        assert (snapshot.executions, snapshot.outbox) == ((), ()), told

    # A history in which nothing went wrong proves nothing.
    for expected in ("completed", "cancelled", "lease_lost", "start", "node_restarted"):
        assert seen[expected] > 0, (expected, seen)
