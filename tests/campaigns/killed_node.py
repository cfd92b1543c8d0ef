"""A2: nodes in processes of their own that are killed, and what must be true when they have come back."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio

from benchmarks.figures import Aim, Figure
from chaos.test_node_crash_points import LEASE_TTL_S, serving, until
from parity_node.store.sqlite import SqliteNodeStore
from parity_node.testing.market import MarketSimulator, SimulatedTask
from parity_protocol.clock import SystemClock
from parity_protocol.report import Outcome

__all__ = ["NodeProcess", "at_market", "come_back", "kill_at_each", "killed_at", "left_over"]

NODE = "from parity_node.run import run_node; from parity_node.settings import load_settings; run_node(load_settings())"

Attack = Callable[[MarketSimulator, "NodeProcess"], Awaitable[None]]


class NodeProcess:
    """A node in a process of its own, with the executors that it has.

    Args:
        folder: Outlives the process; the node's folders and its log are in it.
        join: How it finds its market.
        settings: What else its environment says.
    """

    def __init__(self, folder: Path, join: str, **settings: str) -> None:
        self.folder = folder
        self._environment = {
            **os.environ,
            "PARITY_TESTING": "1",
            "RUNNER_STATE_DIR": str(folder / "state"),
            "RUNNER_EXEC_DIR": str(folder / "exec"),
            "RUNNER_MARKET_JOIN": join,
            "RUNNER_SLOTS": "2",
            "RUNNER_GRACE": "0s",
            "RUNNER_DISK_FLOOR": "0",
            "RUNNER_LOG_LEVEL": os.environ.get("RUNNER_LOG_LEVEL", "warning"),
            **settings,
        }

    @contextmanager
    def run(self, crashpoint: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run it, to be killed at ``crashpoint`` (``name`` or ``name:nth``); empty for none."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", NODE],
                env={**self._environment, "PARITY_CRASHPOINT": crashpoint},
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def log(self) -> str:
        """Return the end of what it logged."""
        return (self.folder / "log").read_text()[-1_500:]


async def kill_at_each(
    points: Sequence[str],
    top: Path,
    survive: Callable[[str, Path], Awaitable[str]],
    *,
    at_once: int,
    what: str,
    of: str,
) -> list[Figure]:
    """Let nodes be killed at every point and return the figures.

    Args:
        top: Each point gets a folder of its own in it; all of them are removed in the end.
        survive: Gets a point and its folder, and returns what was wrong; empty when all went well.
        what: The tasks of a node, in words.
        of: What the figures are of.
    """
    limiter, failures, took = anyio.CapacityLimiter(at_once), dict[str, str](), list[float]()

    async def one(point: str) -> None:
        async with limiter:
            began = time.monotonic()
            folder = top / point
            folder.mkdir(mode=0o711)
            said = await survive(point, folder)
            if said:
                failures[point] = said
            took.append(time.monotonic() - began)
            shutil.rmtree(folder, ignore_errors=True)

    async with anyio.create_task_group() as group:
        for point in points:
            group.start_soon(one, point)
    note = f"{len(points)} points, {what} each" + "".join(f"; {point}: {said}" for point, said in failures.items())
    return [
        Figure(f"A2 {of}: points not survived", len(failures), "points", Aim(0, "at most"), note),
        Figure(f"A2 {of}: slowest point", max(took), "s"),
    ]


async def at_market(folder: Path, attack: Attack, **settings: str) -> str:
    """Serve a market for one node and attack it; return what was wrong, empty when all went well.

    Args:
        settings: What the node's environment says beside its folders.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        market = MarketSimulator(SystemClock(), ttl_s=LEASE_TTL_S, authority=address)
        node = NodeProcess(folder, str(market.join(f"http://{address}")), **settings)
        said = ""
        async with serving(market, listener):
            try:
                await attack(market, node)
            except AssertionError as exc:
                said = f"{exc} … {node.log()}"
            market.go_offline()
    return said


async def killed_at(point: str, process: subprocess.Popen[bytes], *, is_running: Callable[[], bool]) -> None:
    """Wait until a node was killed at a point, which for ``release.sent`` takes a signal while its task runs."""
    if point == "release.sent":
        await until(is_running, "running")
        process.send_signal(signal.SIGTERM)
    await until(lambda: process.poll() is not None, f"killed at {point}")
    assert process.returncode == -signal.SIGKILL, f"ended with {process.returncode} instead"


async def come_back(market: MarketSimulator, node: NodeProcess, tasks: Sequence[SimulatedTask]) -> None:
    """Start a killed node again, drain it when its tasks are done, and check that each ended once."""
    enrolled = market.calls.get("enrol", 0)
    with node.run("") as process:
        await until(lambda: market.calls.get("enrol", 0) > enrolled, "enrolled again")
        await until(lambda: not market.unfinished(), f"every task ends: {[task.events for task in tasks]}")
        process.send_signal(signal.SIGTERM)
        await until(lambda: process.poll() is not None, "drained")
        assert process.returncode == 0, f"drained with {process.returncode}"
    for task in tasks:
        successes = [item for item in task.reports.values() if item.report.outcome is Outcome.SUCCEEDED]
        assert task.earnings == 1, task.events
        assert len(successes) == 1, task.events


async def left_over(folder: Path, *, alive: int, of: str) -> str:
    """Return what a node has left, in words; empty when that is nothing.

    Args:
        alive: How many ``of`` (processes, containers) its tasks have left.
    """
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
    return f"left: {rows} rows, files {files[:5]}, {alive} {of}" if rows or files or alive else ""
