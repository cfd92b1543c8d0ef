"""A whole market of real processes that tests work with: staked nodes whose tasks are scripted."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio

from parity_cli.demo.processes import STOP_WITHIN_S
from parity_cli.demo.stack import Node, Stack, StackSettings
from parity_cli.testing.hand import HandNode
from parity_client import Client, Retry, Submission
from parity_node.keys import load_keys
from parity_node.market.http import HttpMarket
from parity_protocol.api.tasks import EventReply, GroupReply, TaskReply
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import Unavailable
from parity_protocol.signing.keys import EvmKey
from parity_protocol.task import FINAL_STATES, TaskState

__all__ = ["REWARD", "TOWN_SETTINGS", "Town"]

TOKEN = 10**18
STAKE = 25 * TOKEN
REWARD = TOKEN // 1000  # of one task
ESCROW = 1_000 * TOKEN
TOWN_SETTINGS = StackSettings(
    lease_ttl=timedelta(seconds=3), heartbeat=timedelta(seconds=1), payout_interval=timedelta(milliseconds=500), slots=4
)
ENDED = frozenset(str(state) for state in FINAL_STATES)
NOOP_SPEC = {"type": "command", "command": ["true"]}
PATIENT = Retry(attempts=40, most_s=0.5)  # a market that is started again is away for some seconds
_POLL_S = 0.02
ENDED_WITHIN_S = 90.0
_AT_ONCE = 16


class Town:
    """Chain, market and nodes, as processes; made by ``open``."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.submitter = EvmKey.generate()
        self._market: Client | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, folder: Path, *, nodes: int = 3, settings: StackSettings = TOWN_SETTINGS
    ) -> AsyncGenerator[Town]:
        """Start chain and market, stake for nodes that do not run yet, and fund a submitter."""
        town = cls(Stack(folder, settings))
        stack = town.stack
        try:
            async with AsyncExitStack() as opened:
                opened.push_async_callback(stack.aclose)
                await stack.start_chain()
                await stack.make_market()
                made = [stack.make_node(f"node-{number}") for number in range(nodes)]
                async with anyio.create_task_group() as group:
                    for node in made:
                        group.start_soon(stack.stake, node, STAKE)
                    group.start_soon(stack.set_aside, town.submitter, ESCROW)
                    group.start_soon(stack.start_market)
                town._market = await opened.enter_async_context(Client(stack.join, town.submitter, retry=PATIENT))
                yield town
        finally:
            stack.stop(within_s=1.0)

    @property
    def market(self) -> Client:
        """The submitter's client."""
        assert self._market is not None
        return self._market

    @property
    def nodes(self) -> list[Node]:
        """All nodes, running or not."""
        return self.stack.nodes

    async def restart_market(self, **settings: str) -> None:
        """Start the market again with more settings, by field name; they hold until the next start."""
        stack = self.stack
        if stack.market_process is not None:
            stack.processes.stop([stack.market_process])
        await stack.start_market(**settings)

    async def revive(self) -> None:
        """Start chain and market again if they were ended."""
        stack = self.stack
        for child, start in ((stack.chain_process, stack.start_chain), (stack.market_process, stack.start_market)):
            if child is None or not child.is_running:
                await start()

    async def group_ended(self, group_id: str, within_s: float = ENDED_WITHIN_S) -> GroupReply:
        """Return a session once it has ended, however it did; an assertion fails if it does not in time."""
        found: list[GroupReply] = []

        async def has_ended() -> bool:
            found[:] = [await self.market.group(group_id, wait_s=1.0)]
            return found[0].state != "running"

        await self.stack.until(has_ended, f"the end of {group_id}", within_s=within_s)
        return found[0]

    # -- nodes ---------------------------------------------------------------------------------------------------

    async def start(self, *nodes: Node, script: str = "noop", **env: str) -> None:
        """Start nodes whose tasks follow a script (see ``parity_node.testing.node``), and wait until they get work."""
        self.launch(*nodes, script=script, **env)
        await self.stack.until(lambda: self.stack.online(nodes), "the nodes")

    def launch(self, *nodes: Node, script: str = "noop", **env: str) -> None:
        """Start nodes without waiting for them."""
        command = [sys.executable, "-m", "parity_node.testing.node", script]
        for node in nodes:
            self.stack.start_node(node, command, PARITY_TESTING="1", RUNNER_DISK_FLOOR="0", **env)

    def stop(self, *nodes: Node, within_s: float = STOP_WITHIN_S) -> None:
        """Drain nodes and wait for their end."""
        self.stack.processes.stop([node.process for node in nodes if node.process is not None], within_s=within_s)

    # -- tasks ---------------------------------------------------------------------------------------------------

    async def submit(self, count: int = 1, *, spec: dict[str, Any] | None = None, reward: int = REWARD) -> list[str]:
        """Submit tasks and return their ids, in order."""
        found: list[str] = [""] * count
        limit = anyio.Semaphore(_AT_ONCE)

        async def one(number: int) -> None:
            async with limit:
                made: Submission = await self.market.submit(spec or NOOP_SPEC, reward)
                found[number] = made.task_ids[0]

        async with anyio.create_task_group() as group:
            for number in range(count):
                group.start_soon(one, number)
        return found

    async def ended(self, task_ids: Sequence[str], *, within_s: float = 30.0) -> list[TaskReply]:
        """Return tasks once all have ended.

        Raises:
            NotFinished: Some did not in time.
        """
        with anyio.fail_after(within_s + 5):
            return [await self._one_ended(task_id, within_s) for task_id in task_ids]

    async def _one_ended(self, task_id: str, within_s: float) -> TaskReply:
        found = await self.market.wait(task_id, timeout=within_s)
        assert isinstance(found, TaskReply)
        return found

    async def until_state(self, task_id: str, *states: str, within_s: float = 30.0) -> TaskReply:
        """Return a task once it is in one of ``states``."""
        deadline = self.stack.clock.monotonic() + within_s
        while True:
            task = await self.market.task(task_id)
            if task.state in states:
                return task
            if self.stack.clock.monotonic() >= deadline:
                raise Unavailable(f"task {task_id} is {task.state}, not {' or '.join(states)}, after {within_s:g} s")
            await self.stack.clock.sleep(_POLL_S)

    async def cancel_open(self) -> None:
        """Cancel whatever has not ended."""
        for task in (await self.market.tasks(limit=200)).tasks:
            if task.state not in ENDED and task.state != TaskState.VERIFYING:
                await self.market.cancel(task.group_id or task.id)

    async def events(self, task_id: str) -> tuple[EventReply, ...]:
        """Return a task's life."""
        return (await self.market.events(task_id)).events

    async def paid(self, task_ids: Sequence[str], *, within_s: float = 60.0) -> None:
        """Wait until the pay of these tasks is confirmed on chain."""
        left = list(task_ids)

        async def confirmed() -> bool:
            while left:
                payout = (await self.market.task(left[0])).payout
                if payout is None or payout.state != "confirmed":
                    return False
                left.pop(0)
            return True

        await self.stack.until(confirmed, "the payouts", within_s=within_s)

    async def credit(self, *nodes: Node) -> int:
        """Return what these nodes have been paid on chain, base units."""
        return sum([(await self.stack.chain.account(node.id)).credit for node in nodes])

    # -- by hand -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def hand(self, node: Node, *, clock: Clock | None = None) -> AsyncGenerator[HandNode]:
        """Drive a node by hand, with its own keys: to do what no agent would."""
        keys = load_keys(node.state, hostname=node.name)
        clock = clock or SystemClock()
        market = HttpMarket(self.stack.join.url, key=keys.device, clock=clock, identity=self.stack.join.market)
        try:
            yield HandNode(market, keys, clock, await market.trust())
        finally:
            await market.aclose()
