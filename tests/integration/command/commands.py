"""Commands in a real bubblewrap: how tests run one, and what they look at afterwards."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from parity_node.executors.base import ExecutionResult, Handle, Job, Limits
from parity_node.executors.command import CommandExecutor
from parity_protocol.report import Outcome
from parity_protocol.task import CommandSpec

__all__ = [
    "PYTHON",
    "Runner",
    "appeared",
    "gone",
    "job_in",
    "left_in",
    "limits",
    "needs_python",
    "open_files",
    "output",
    "processes_with",
    "user_ids",
]

PYTHON = "/usr/bin/python3"  # the system's own: a task sees /usr only


needs_python = pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"needs {PYTHON}")


def limits(**changes: float) -> Limits:
    members = {"wall_time_s": 30, "cpus": 1, "memory_bytes": 256 << 20, "disk_bytes": 16 << 20, "pids": 32, **changes}
    return Limits(**members)  # type: ignore[arg-type]


def job_in(exec_dir: Path, spec: CommandSpec, bounds: Limits, *, slot: int = 0) -> Job:
    name = str(uuid.uuid4())
    folder = exec_dir / name
    folder.mkdir(mode=0o700)
    return Job(name, name, name, 1, spec, 0, 1, None, folder, bounds, slot)


class Runner:
    def __init__(self, executor: CommandExecutor, exec_dir: Path) -> None:
        self.executor = executor
        self.exec_dir = exec_dir

    async def start(self, spec: CommandSpec, bounds: Limits | None = None, *, slot: int = 0) -> Handle:
        job = job_in(self.exec_dir, spec, bounds or limits(), slot=slot)
        return await self.executor.start(await self.executor.prepare(job))

    async def run(self, *command: str, bounds: Limits | None = None, **members: object) -> ExecutionResult:
        spec = CommandSpec(command=command, **members)  # type: ignore[arg-type]
        handle = await self.start(spec, bounds)
        try:
            return await self.executor.wait(handle)
        finally:
            await self.executor.cleanup(handle)


def output(result: ExecutionResult) -> str:
    assert result.outcome is Outcome.SUCCEEDED, result.message
    assert result.result_bytes is not None
    return result.result_bytes.decode()


def processes_with(marker: str) -> list[int]:
    """Return the processes whose arguments hold ``marker``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


async def appeared(marker: str, count: int, within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if len(processes_with(marker)) >= count:
            return
        await anyio.sleep(0.02)
    raise AssertionError(f"fewer than {count} processes started")


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def user_ids(pid: object) -> set[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return set(next(line for line in lines if line.startswith("Uid:")).split()[1:])


async def gone(marker: str, within_s: float = 2.0) -> bool:
    end = time.monotonic() + within_s
    while processes_with(marker):
        if time.monotonic() > end:
            return False
        await anyio.sleep(0.02)
    return True
