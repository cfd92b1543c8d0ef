"""A whole node on fakes: market and journal in memory, a clock that moves when told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from parity_node.agent import Agent, AgentParts
from parity_node.cache.opening import cache_of
from parity_node.disk import DiskGuard
from parity_node.executors.base import Executor
from parity_node.folders import Folders
from parity_node.keys import NodeKeys
from parity_node.settings import NodeSettings
from parity_node.shards import LentData
from parity_node.store.base import NodeStore, Phase
from parity_node.store.memory import MemoryNodeStore
from parity_node.testing.executors import ScriptedExecutor
from parity_node.testing.market import MarketSimulator
from parity_protocol.task import TaskKind
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_ed25519, deterministic_evm_key


def keys_of(name: str = "node", instance: str = "1" * 64) -> NodeKeys:
    return NodeKeys(deterministic_ed25519(name), deterministic_evm_key(name), instance)


@dataclass
class RunningNode:
    """An agent that runs, and what it runs on."""

    agent: Agent
    market: MarketSimulator
    clock: FakeClock
    store: NodeStore
    executor: ScriptedExecutor
    ended: anyio.Event = field(default_factory=anyio.Event)
    failure: BaseException | None = None

    async def until(self, condition: Callable[[], bool], *, within_s: float = 60.0, step_s: float = 0.05) -> None:
        """Let time pass until ``condition`` holds."""
        for step in range(round(within_s / step_s)):
            if condition():
                return
            await self.clock.advance(timedelta(seconds=step_s))
            if step % 10 == 9:
                await anyio.sleep(0.001 if step < 400 else 0.01)  # some of it is done by real threads, which may starve
        assert condition(), "the condition did not come to hold"

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(timedelta(seconds=seconds))

    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.agent.runner.running and self.agent.outbox.rows == 0

    def phases(self) -> list[Phase]:
        return [live.row.phase for live in self.agent.runner.running]


NodeFactory = Callable[..., AbstractAsyncContextManager[RunningNode]]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def market(clock: FakeClock) -> MarketSimulator:
    return MarketSimulator(clock, ttl_s=30.0)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path / "state", tmp_path / "exec", tmp_path / "results", tmp_path / "cache")
    for folder in (made.state, made.executions, made.results, made.cache):
        folder.mkdir(mode=0o700)
    return made


@pytest.fixture
def node(market: MarketSimulator, clock: FakeClock, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> NodeFactory:
    """Return a context manager that runs a node inside its block; leaving it kills the node like SIGKILL would."""
    monkeypatch.setattr(Agent, "_watch_signals", _no_signals)
    monkeypatch.setattr("parity_node.agent.serve_control", _no_control)
    return node_factory(market, clock, folders)


def node_factory(market: MarketSimulator, clock: FakeClock, folders: Folders) -> NodeFactory:
    """Return what the fixture ``node`` returns, for a market of the test's own; it needs that fixture beside it."""

    @asynccontextmanager
    async def run(
        *,
        executor: Executor | None = None,
        store: NodeStore | None = None,
        keys: NodeKeys | None = None,
        disk: DiskGuard | None = None,
        **settings: Any,
    ) -> AsyncIterator[RunningNode]:
        scripted = executor if executor is not None else ScriptedExecutor(clock)
        journal = store if store is not None else MemoryNodeStore()
        values = {"runner_slots": 2, "runner_grace": timedelta(seconds=10), "runner_disk_floor": 0} | settings
        chosen = NodeSettings(_env_file=None, **values)
        agent = Agent(
            AgentParts(
                settings=chosen,
                keys=keys or keys_of(),
                hostname="testhost",
                folders=folders,
                store=journal,
                market=market,
                directory=market,
                executors={TaskKind.COMMAND: scripted},
                clock=clock,
                cache=cache_of(chosen, cache_dir=folders.cache, results_dir=folders.results, clock=clock),
                disk=disk or DiskGuard(folders.by_name(), floor_bytes=chosen.runner_disk_floor, clock=clock),
                lent=LentData(chosen.shards()),
                ballast=getattr(journal, "ballast", None),
            )
        )
        running = RunningNode(agent, market, clock, journal, scripted)  # type: ignore[arg-type]

        async def body() -> None:
            try:
                await agent.run()
            except Exception as exc:
                running.failure = exc
            finally:
                running.ended.set()

        async with anyio.create_task_group() as group:
            group.start_soon(body)
            while not (agent.ready.is_set() or running.ended.is_set()):  # noqa: ASYNC110 - whichever comes first
                await anyio.sleep(0.001)  # a real thread sweeps the folders
            await clock.advance(timedelta(0))
            try:
                yield running
            finally:
                group.cancel_scope.cancel()

    return run


async def _no_signals(_agent: Agent, _scope: anyio.CancelScope) -> None:
    return


async def _no_control(_folder: Path, _handle: Callable[..., Awaitable[Any]]) -> None:
    await anyio.sleep_forever()
