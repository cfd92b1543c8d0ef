"""A2 with real commands: the node is killed at every named point; each task ends once and no process is left."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import anyio

from benchmarks.figures import Figure
from campaigns.commands import open_lab, pids_with
from campaigns.killed_node import NodeProcess, at_market, come_back, kill_at_each, killed_at, left_over
from chaos.test_node_crash_points import until
from parity_node.crashpoints import CRASHPOINTS
from parity_node.testing.market import MarketSimulator

TASKS = 3
AT_ONCE = 2
QUICK = ("prepared", "start.handle.journalled")
SLEEP_S = 0.4


async def run(*, quick: bool) -> list[Figure]:
    """Run the campaign."""
    with open_lab() as lab:
        state = await lab.executor.describe()
        if not state.available:
            raise RuntimeError(state.reason)
        points = QUICK if quick else [name for name in CRASHPOINTS if not name.startswith("docker.")]
        what = f"{TASKS} commands"
        return await kill_at_each(points, lab.exec_dir, _survive, at_once=AT_ONCE, what=what, of="commands")


async def _survive(point: str, folder: Path) -> str:
    """Return what was wrong after one kill and one restart; empty when all went well."""
    marker = f"parity-crash-{point}-{os.getpid()}"

    async def attack(market: MarketSimulator, node: NodeProcess) -> None:
        await _crash_and_restart(point, marker, market, node)

    said = await at_market(folder, attack, RUNNER_SHELL_ENABLED="true", RUNNER_DOCKER_ENABLED="false")
    return said or await left_over(folder, alive=len(pids_with(marker)), of="processes")


async def _crash_and_restart(point: str, marker: str, market: MarketSimulator, node: NodeProcess) -> None:
    script = f"echo {marker}; sleep {SLEEP_S}; echo x > /output/a"
    needs = {"disk_bytes": 8 << 20, "memory_bytes": 128 << 20}
    spec = json.dumps({"type": "command", "command": script, "shell": True, "output": {}, "resources": needs})
    tasks = [market.offer(spec) for _ in range(1 if point == "release.sent" else TASKS)]
    if point == "recovery.decided":
        with node.run("start.handle.journalled:2") as process:
            await until(lambda: process.poll() is not None, "killed at first")
    nth = 1 if point in {"recovery.decided", "release.sent"} else 2
    with node.run(f"{point}:{nth}") as process:
        await killed_at(point, process, is_running=lambda: bool(pids_with(marker)))
    gone_by = time.monotonic() + 2.0
    while pids_with(marker):
        assert time.monotonic() < gone_by, "a task outlived its node"
        await anyio.sleep(0.02)
    await come_back(market, node, tasks)
