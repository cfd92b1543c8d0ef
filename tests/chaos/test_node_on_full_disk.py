"""A real agent on a real tiny disk that fills up while tasks run: nothing is lost, nothing spins, and it goes on alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import psutil
import pytest

from parity_node.control import ask_agent
from parity_node.disk import free_bytes
from parity_node.store.sqlite import SqliteNodeStore
from parity_node.testing.market import MarketSimulator, command_spec
from parity_node.testing.simulator_server import serving
from parity_node.testing.small_disk import Filler, tmpfs
from parity_protocol.clock import SystemClock
from parity_protocol.report import Outcome
from parity_protocol.task import TaskState

pytestmark = [pytest.mark.root, pytest.mark.serial, pytest.mark.anyio, pytest.mark.timeout(120)]

MIB = 1 << 20
DISK_BYTES, FLOOR_BYTES, BALLAST_BYTES = 48 * MIB, 8 * MIB, 2 * MIB
FULL_S = 5.0
SPEC = command_spec(resources={"disk_bytes": 1 * MIB}, max_output_bytes=65_536)


async def until(condition: Callable[[], bool], what: str, *, within_s: float = 30.0) -> float:
    """Wait for ``condition`` and return the seconds that it took."""
    begun = anyio.current_time()
    while not condition():
        assert anyio.current_time() - begun < within_s, f"did not happen within {within_s:g} s: {what}"
        await anyio.sleep(0.02)
    return anyio.current_time() - begun


@contextlib.contextmanager
def agent(disk: Path, join: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "RUNNER_STATE_DIR": str(disk / "state"),
        "RUNNER_EXEC_DIR": str(disk / "exec"),
        "RUNNER_MARKET_JOIN": join,
        "RUNNER_SLOTS": "2",
        "RUNNER_DISK_FLOOR": str(FLOOR_BYTES),
        "RUNNER_DISK_BALLAST": str(BALLAST_BYTES),
        "RUNNER_LOG_LEVEL": "info",
    }
    command = [sys.executable, "-m", "parity_node.testing.node", "file:40000:0.2"]
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, cwd=log.parent, stdout=output, stderr=output)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


async def test_disk_that_fills_up_under_a_working_node_costs_time_and_nothing_else(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with tmpfs(tmp_path / "disk", DISK_BYTES) as disk, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        market = MarketSimulator(SystemClock(), ttl_s=30.0, authority=address)
        filler = Filler(disk)
        tasks = [market.offer(SPEC, max_attempts=10) for _ in range(12)]
        async with serving(market, listener):
            with agent(disk, str(market.join(f"http://{address}")), log) as process:
                await until(lambda: sum(task.state is TaskState.COMPLETED for task in tasks) >= 3, "the first tasks")

                filler.fill()
                await anyio.sleep(2.0)  # claims have stopped, and what ran has met the full disk
                claims, cpu, lines = market.calls["claim"], cpu_s(process), len(log.read_bytes().splitlines())
                tasks += [market.offer(SPEC, max_attempts=10) for _ in range(4)]
                await anyio.sleep(FULL_S)
                status = await anyio.to_thread.run_sync(ask_agent, disk / "state", {"command": "status"})
                busy, chatty = cpu_s(process) - cpu, len(log.read_bytes().splitlines()) - lines
                assert process.poll() is None, log.read_text()[-2_000:]
                assert market.calls["claim"] == claims, "claims went on with a full disk"
                assert "RUNNER_DISK_FLOOR" in status["obstacle"]
                assert busy < 0.3 * FULL_S, f"{busy:.2f} s of processor in {FULL_S:g} s: it spins"
                assert chatty < 20 * FULL_S, f"{chatty} log lines in {FULL_S:g} s"
                filler.empty()
                resumed_s = await until(lambda: market.calls["claim"] > claims, "claims again")
                await until(lambda: not market.unfinished(), f"all end: {[task.events for task in tasks]}")
                ballast = disk / "state" / "journal.sqlite.ballast"
                await until(lambda: ballast.exists() and ballast.stat().st_size == BALLAST_BYTES, "the ballast is back")

                kept = await anyio.to_thread.run_sync(ask_agent, disk / "state", {"command": "cache", "action": "list"})
                assert kept["totals"]["data"] == {"used": 0, "kept": 0, "limit": 4 << 30}

                process.send_signal(signal.SIGTERM)
                await until(lambda: process.poll() is not None, "drained")
                assert process.returncode == 0
        store = SqliteNodeStore(disk / "state" / "journal.sqlite")
        snapshot = await store.load()
        await store.close()
        left = [path for top in ("exec", "state/results") for path in (disk / top).rglob("*") if path.is_file()]
        free = free_bytes(disk)
    print(
        f"full disk: {len(tasks)} tasks, 0 lost, {busy:.2f} s of processor and {chatty} log lines in {FULL_S:g} s of it, "
        f"claims again after {resumed_s:.1f} s"
    )
    for task in tasks:
        successes = [item for item in task.reports.values() if item.report.outcome is Outcome.SUCCEEDED]
        assert (task.state, task.earnings, len(successes)) == (TaskState.COMPLETED, 1, 1), task.events
    assert (snapshot.executions, snapshot.outbox, left) == ((), (), [])
    assert resumed_s <= 30.0
    assert free > DISK_BYTES // 2
