"""A real agent process is killed with SIGKILL at every named point and started again: each task ends exactly once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from parity_node.crashpoints import CRASHPOINTS
from parity_node.store.sqlite import SqliteNodeStore
from parity_node.testing.market import MarketSimulator, SimulatedTask
from parity_node.testing.simulator_server import serving
from parity_protocol.clock import SystemClock
from parity_protocol.report import Outcome
from parity_protocol.task import TaskState

pytestmark = [pytest.mark.serial, pytest.mark.timeout(180)]

AT_ONCE = 2
LEASE_TTL_S = 2.0
STEP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Plan:
    """How a point is reached: what tasks do, how many there are, and what happens before the kill."""

    script: str = "file:2:0.05"
    tasks: int = 3
    nth: int = 2
    first_crash: str = ""  # an earlier kill, where the point lies in the recovery
    term_when_running: bool = False


PLANS = {name: Plan() for name in CRASHPOINTS} | {
    "result.uploaded": Plan(script="file:40000:0.05"),
    "recovery.decided": Plan(script="file:2:0.3", nth=1, first_crash="start.handle.journalled:2"),
    "release.sent": Plan(script="file:2:60", tasks=1, nth=1, term_when_running=True),
}


async def until(condition: Callable[[], bool], what: str) -> None:
    with anyio.move_on_after(STEP_TIMEOUT_S) as scope:
        while not condition():  # noqa: ASYNC110 - another process changes it
            await anyio.sleep(0.02)
    assert not scope.cancelled_caught, f"did not happen: {what}"


class NodeProcess:
    """A node in a process of its own, on a state folder that outlives it."""

    def __init__(self, folder: Path, join: str) -> None:
        self._folder = folder
        self._join = join

    @asynccontextmanager
    async def run(self, script: str, crashpoint: str = "") -> AsyncIterator[subprocess.Popen[bytes]]:
        environment = {
            **os.environ,
            "PARITY_TESTING": "1",
            "PARITY_CRASHPOINT": crashpoint,
            "RUNNER_STATE_DIR": str(self._folder / "state"),
            "RUNNER_EXEC_DIR": str(self._folder / "exec"),
            "RUNNER_MARKET_JOIN": self._join,
            "RUNNER_SLOTS": "2",
            "RUNNER_GRACE": "0s",
            "RUNNER_DISK_FLOOR": "0",
            "RUNNER_LOG_LEVEL": "warning",
        }
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 - its signals are what is tested, and starting it is quick
                [sys.executable, "-m", "parity_node.testing.node", script],
                env=environment,
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def leftovers(self) -> list[str]:
        return [
            str(path) for top in ("exec", "state/results") for path in (self._folder / top).rglob("*") if path.is_file()
        ]

    def log(self) -> str:
        return (self._folder / "log").read_text()[-2_000:]


async def survive(point: str, folder: Path) -> None:
    """Kill a node at ``point``, start it again, and check what became of its tasks."""
    plan = PLANS[point]
    with socket.socket() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        market = MarketSimulator(SystemClock(), ttl_s=LEASE_TTL_S, authority=address)
        node = NodeProcess(folder, str(market.join(f"http://{address}")))
        async with serving(market, listener):
            failure = ""
            try:
                await _crash_and_restart(point, plan, market, node)
            except AssertionError as exc:  # raised below: a task group would wrap it
                failure = f"{point}: {exc}\n{node.log()}"
            market.go_offline()  # ends the polls that wait
    assert not failure, failure
    rows = await _journal(folder)
    assert rows == 0, f"{point}: the journal still holds {rows} rows"
    assert node.leftovers() == [], point


async def _crash_and_restart(point: str, plan: Plan, market: MarketSimulator, node: NodeProcess) -> None:
    tasks = [market.offer() for _ in range(plan.tasks)]
    if plan.first_crash:
        async with node.run(plan.script, plan.first_crash) as process:
            await until(lambda: process.poll() is not None, f"killed at {plan.first_crash}")
    async with node.run(plan.script, f"{point}:{plan.nth}") as process:
        if plan.term_when_running:
            await until(lambda: tasks[0].state is TaskState.RUNNING, "running")
            process.send_signal(signal.SIGTERM)
        await until(lambda: process.poll() is not None, f"killed at {point}")
        assert process.returncode == -signal.SIGKILL, f"ended with {process.returncode} instead"
    enrolled = market.calls.get("enrol", 0)
    async with node.run("file:2:0.05") as process:
        await until(lambda: market.calls.get("enrol", 0) > enrolled, "enrolled again")
        await until(lambda: not market.unfinished(), f"every task ends: {[task.events for task in tasks]}")
        process.send_signal(signal.SIGTERM)
        await until(lambda: process.poll() is not None, "drained")
        assert process.returncode == 0, f"drained with {process.returncode}"
    for task in tasks:
        _assert_ended_once(task)


def _assert_ended_once(task: SimulatedTask) -> None:
    successes = [item for item in task.reports.values() if item.report.outcome is Outcome.SUCCEEDED]
    assert (task.state, task.earnings, len(successes)) == (TaskState.COMPLETED, 1, 1), task.events


async def _journal(folder: Path) -> int:
    store = SqliteNodeStore(folder / "state" / "journal.sqlite")
    snapshot = await store.load()
    await store.close()
    return len(snapshot.executions) + len(snapshot.outbox)


async def test_each_task_ends_exactly_once_whereever_the_node_is_killed(tmp_path: Path) -> None:
    limiter, failures = anyio.CapacityLimiter(AT_ONCE), dict[str, str]()

    async def one(point: str) -> None:
        async with limiter:
            folder = tmp_path / point
            folder.mkdir()
            try:
                await survive(point, folder)
            except AssertionError as exc:
                failures[point] = str(exc)

    async with anyio.create_task_group() as group:
        for point in CRASHPOINTS:
            group.start_soon(one, point)

    assert failures == {}, "\n\n".join(failures.values())


def test_crash_points_do_nothing_outside_tests(tmp_path: Path) -> None:
    script = "from parity_node.crashpoints import crashpoint; crashpoint('prepared'); print('alive')"
    environment = {key: value for key, value in os.environ.items() if key != "PARITY_TESTING"}

    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, "PARITY_CRASHPOINT": "prepared"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=30,
    )

    assert done.stdout == b"alive\n"
