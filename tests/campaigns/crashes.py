"""A2 with real commands: the node is killed at every named point; each task ends once and no process is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from benchmarks.figures import Aim, Figure
from campaigns.commands import open_lab, pids_with
from chaos.test_node_crash_points import LEASE_TTL_S, serving, until
from parity_node.crashpoints import CRASHPOINTS
from parity_node.store.sqlite import SqliteNodeStore
from parity_node.testing.market import MarketSimulator, SimulatedTask
from parity_protocol.clock import SystemClock
from parity_protocol.report import Outcome

TASKS = 3
AT_ONCE = 2
QUICK = ("prepared", "start.handle.journalled")
NODE = "from parity_node.run import run_node; from parity_node.settings import load_settings; run_node(load_settings())"
SLEEP_S = 0.4


async def run(*, quick: bool) -> list[Figure]:
    """Run the campaign."""
    with open_lab() as lab:
        state = await lab.executor.describe()
        if not state.available:
            raise RuntimeError(state.reason)
        points = QUICK if quick else [name for name in CRASHPOINTS if not name.startswith("docker.")]
        limiter, failures, slowest = anyio.CapacityLimiter(AT_ONCE), dict[str, str](), list[float]()

        async def one(point: str) -> None:
            async with limiter:
                began = time.monotonic()
                failures[point] = await _survive(point, lab.exec_dir / point)
                slowest.append(time.monotonic() - began)

        async with anyio.create_task_group() as group:
            for point in points:
                group.start_soon(one, point)
    bad = {point: said for point, said in failures.items() if said}
    note = f"{len(points)} points, {TASKS} commands each" + "".join(f"; {point}: {said}" for point, said in bad.items())
    return [
        Figure("A2 commands: points not survived", len(bad), "points", Aim(0, "at most"), note),
        Figure("A2 commands: slowest point", max(slowest), "s"),
    ]


async def _survive(point: str, folder: Path) -> str:
    """Return what was wrong after one kill and one restart; empty when all went well."""
    folder.mkdir(mode=0o711)  # noqa: ASYNC240 - nothing else runs in this loop yet
    marker = f"parity-crash-{point}-{os.getpid()}"
    with socket.socket() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        market = MarketSimulator(SystemClock(), ttl_s=LEASE_TTL_S, authority=address)
        node = _Node(folder, str(market.join(f"http://{address}")))
        said = ""
        async with serving(market, listener):
            try:
                await _crash_and_restart(point, marker, market, node)
            except AssertionError as exc:
                said = f"{exc} … {node.log()}"
            market.go_offline()
    return said or await _left(folder, marker)


async def _crash_and_restart(point: str, marker: str, market: MarketSimulator, node: _Node) -> None:
    script = f"echo {marker}; sleep {SLEEP_S}; echo x > /output/a"
    needs = {"disk_bytes": 8 << 20, "memory_bytes": 128 << 20}
    spec = json.dumps({"type": "command", "command": script, "shell": True, "output": {}, "resources": needs})
    tasks = [market.offer(spec) for _ in range(1 if point == "release.sent" else TASKS)]
    first = ""
    if point == "recovery.decided":
        with node.run("start.handle.journalled:2") as process:
            await until(lambda: process.poll() is not None, "killed at first")
        first = " after a first kill"
    nth = 1 if point in {"recovery.decided", "release.sent"} else 2
    with node.run(f"{point}:{nth}") as process:
        if point == "release.sent":
            await until(lambda: bool(pids_with(marker)), "running")
            process.send_signal(signal.SIGTERM)
        await until(lambda: process.poll() is not None, f"killed at {point}{first}")
        assert process.returncode == -signal.SIGKILL, f"ended with {process.returncode} instead"
    gone_by = time.monotonic() + 2.0
    while pids_with(marker):
        assert time.monotonic() < gone_by, "a task outlived its node"
        await anyio.sleep(0.02)
    with node.run("") as process:
        await until(lambda: not market.unfinished(), f"every task ends: {[task.events for task in tasks]}")
        process.send_signal(signal.SIGTERM)
        await until(lambda: process.poll() is not None, "drained")
        assert process.returncode == 0, f"drained with {process.returncode}"
    for task in tasks:
        _ended_once(task)


def _ended_once(task: SimulatedTask) -> None:
    successes = [item for item in task.reports.values() if item.report.outcome is Outcome.SUCCEEDED]
    assert task.earnings == 1, task.events
    assert len(successes) == 1, task.events


async def _left(folder: Path, marker: str) -> str:
    store = SqliteNodeStore(folder / "state" / "journal.sqlite")
    snapshot = await store.load()
    await store.close()
    rows = len(snapshot.executions) + len(snapshot.outbox)
    files = [
        str(path.relative_to(folder))
        for top in ("exec", "state/results")
        for path in (folder / top).rglob("*")
        if path.is_file()
    ]
    alive = pids_with(marker)
    if rows or files or alive:
        return f"left: {rows} rows, files {files[:5]}, {len(alive)} processes"
    return ""


class _Node:
    """A node in a process of its own, with the executors that it has."""

    def __init__(self, folder: Path, join: str) -> None:
        self._folder = folder
        self._join = join

    @contextmanager
    def run(self, crashpoint: str) -> Iterator[subprocess.Popen[bytes]]:
        environment = {
            **os.environ,
            "PARITY_TESTING": "1",
            "PARITY_CRASHPOINT": crashpoint,
            "RUNNER_STATE_DIR": str(self._folder / "state"),
            "RUNNER_EXEC_DIR": str(self._folder / "exec"),
            "RUNNER_MARKET_JOIN": self._join,
            "RUNNER_SHELL_ENABLED": "true",
            "RUNNER_DOCKER_ENABLED": "false",
            "RUNNER_SLOTS": "2",
            "RUNNER_GRACE": "0s",
            "RUNNER_DISK_FLOOR": "0",
            "RUNNER_LOG_LEVEL": os.environ.get("RUNNER_LOG_LEVEL", "warning"),
        }
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", NODE], env=environment, cwd=self._folder, stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def log(self) -> str:
        return (self._folder / "log").read_text()[-1_000:]
