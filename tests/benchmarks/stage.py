"""Chain, market and nodes as processes on loopback, in a folder of their own that goes away with them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import anyio

from benchmarks.proc import cpu_seconds
from parity_cli.demo.stack import Node, Stack, StackSettings
from parity_client import Client
from parity_protocol.signing.keys import EvmKey

__all__ = ["NOOP", "NOOP_NODE", "REWARD", "TOKEN", "Stage", "open_stage"]

TOKEN = 10**18
REWARD = 10**12  # base units of one no-op task
NOOP = {"type": "command", "command": ["true"]}
NOOP_NODE = (sys.executable, "-m", "benchmarks.noop_node")
SUBMITTER_TOKENS = 100


@dataclass
class Stage:
    """What runs, and who pays."""

    stack: Stack
    submitter: EvmKey
    nodes: list[Node] = field(default_factory=list)

    def client(self) -> Client:
        """Return the submitter's client, as a program of theirs would make it."""
        return Client(self.stack.join, self.submitter)

    def pids(self) -> dict[str, list[int]]:
        """Return the process ids by role."""
        market, chain = self.stack.market_process, self.stack.chain_process
        nodes = [node.process.pid for node in self.nodes if node.process is not None]
        return {
            "market": [] if market is None else [market.pid],
            "nodes": nodes,
            "chain": [] if chain is None else [chain.pid],
        }

    def cpu(self) -> dict[str, float]:
        """Return the processor seconds used so far, by role."""
        return {role: sum(cpu_seconds(pid) for pid in pids) for role, pids in self.pids().items()}


@asynccontextmanager
async def open_stage(
    *,
    nodes: int = 0,
    slots: int = 1,
    command: Sequence[str] = NOOP_NODE,
    settings: StackSettings | None = None,
) -> AsyncGenerator[Stage]:
    """Start everything and wait until every node would get work; stop it all at the end.

    Args:
        command: What a node runs.
        settings: Replaces the market's and nodes' defaults.
    """
    made = settings or StackSettings(
        lease_ttl=timedelta(seconds=30),
        heartbeat=timedelta(seconds=10),
        payout_interval=timedelta(seconds=5),
        slots=slots,
        idle_interval="4s",
    )
    with tempfile.TemporaryDirectory(prefix="parity-bench-") as place:
        stack = Stack(Path(place), made)
        try:
            await stack.start_chain()
            await stack.make_market()
            stage = Stage(stack, EvmKey.generate())
            stage.nodes = [stack.make_node(f"node-{number}") for number in range(1, nodes + 1)]
            async with anyio.create_task_group() as group:
                group.start_soon(stack.set_aside, stage.submitter, SUBMITTER_TOKENS * TOKEN)
                for node in stage.nodes:
                    group.start_soon(stack.stake, node, 20 * TOKEN)
            await stack.start_market()
            for node in stage.nodes:
                stack.start_node(node, command)
            await stack.until(lambda: stack.online(stage.nodes), "the nodes")
            yield stage
            stack.processes.check()
        finally:
            with anyio.CancelScope(shield=True):
                await stack.aclose()
            stack.stop()
