"""The moment before a sandbox's command starts: its namespaces stand, and nothing of the task has run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from parity_node.executors.base import Limits
from parity_node.executors.process import OutputLog, adopt_orphans, start_time
from parity_node.executors.sandbox.bwrap import TASK_HOME, Sandbox, find_bwrap
from parity_node.executors.sandbox.drop import slot_identity
from parity_node.executors.sandbox.env import task_env
from parity_node.executors.sandbox.launch import SandboxProcess
from parity_node.executors.sandbox.limits import scratch_bytes, task_rlimits
from parity_protocol.errors import ExecutionFailed, FailureReason

pytestmark = pytest.mark.service("bubblewrap")

LIMITS = Limits(wall_time_s=30, cpus=1, memory_bytes=128 << 20, disk_bytes=8 << 20, pids=16)


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="parity-exec-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def sandbox_of(*command: str) -> Sandbox:
    return Sandbox(
        command=command,
        env=task_env({}, home=TASK_HOME),
        inputs=(),
        scratch_bytes=scratch_bytes(LIMITS),
        rlimits=task_rlimits(LIMITS),
        identity=slot_identity(0),
    )


def bwrap() -> Path:
    found = find_bwrap()
    assert found is not None
    return found


def network_of(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def is_filtered(pid: int) -> bool:
    return "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()


async def test_the_hook_sees_the_tasks_own_network_before_anything_of_the_task_ran(folder):
    adopt_orphans()
    output = OutputLog(folder / "output.log", 4096)
    seen: dict[str, object] = {}

    async def look(pid: int) -> None:
        seen.update(net=network_of(pid), printed=output.file.size, filtered=is_filtered(pid))

    process = await SandboxProcess.launch(bwrap(), sandbox_of("echo", "ran"), output, before_start=look)
    ended = await process.wait()

    assert ended.code == 0
    assert (folder / "output.log").read_bytes() == b"ran\n"
    assert seen.pop("net") != network_of(os.getpid())
    assert seen == {"printed": 0, "filtered": True}


async def test_a_hook_that_fails_ends_the_sandbox_and_the_task_never_starts(folder):
    adopt_orphans()
    output = OutputLog(folder / "output.log", 4096)
    pids: list[int] = []

    async def refuse(pid: int) -> None:
        pids.append(pid)
        raise ExecutionFailed(FailureReason.NETWORK_FAULT, "no proxy")

    with pytest.raises(ExecutionFailed, match="no proxy"):
        await SandboxProcess.launch(bwrap(), sandbox_of("echo", "ran"), output, before_start=refuse)

    assert (folder / "output.log").read_bytes() == b""
    assert start_time(pids[0]) is None
