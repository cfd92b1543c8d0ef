"""The limits of a command in a real bubblewrap."""

from __future__ import annotations

import os
import time

import anyio
import anyio.to_thread
import pytest

from parity_protocol.errors import FailureReason
from parity_protocol.report import Outcome
from parity_protocol.task import CommandSpec

from .commands import (
    PYTHON,
    Runner,
    limits,
    needs_python,
    output,
)

pytestmark = pytest.mark.service("bubblewrap")


async def test_output_over_its_cap_fails_the_task_at_once_and_the_log_keeps_the_cap(executor, exec_dir):
    spec = CommandSpec(command=("yes",), max_output_bytes=10_000)
    handle = await Runner(executor, exec_dir).start(spec)

    with anyio.fail_after(10):
        result = await executor.wait(handle)

    assert result.reason is FailureReason.OUTPUT_TOO_LARGE
    assert len(await executor.logs(handle, 0)) == 10_000
    await executor.cleanup(handle)


async def test_a_task_is_ended_at_its_wall_time(runner):
    began = time.monotonic()

    result = await runner.run("sleep", "600", bounds=limits(wall_time_s=0.3))

    assert result.reason is FailureReason.TIMEOUT
    assert time.monotonic() - began < 5


async def test_files_in_scratch_space_have_a_limit(runner):
    result = await runner.run("sh", "-c", "head -c 64000000 /dev/zero > /tmp/big", bounds=limits(disk_bytes=8 << 20))

    assert result.outcome is Outcome.FAILED


@pytest.mark.parametrize("folder", ["/task", "/tmp", "/dev/shm"])
async def test_all_of_scratch_space_has_a_limit(runner, folder):
    fill = f"for i in 1 2 3 4 5 6 7 8; do head -c 6000000 /dev/zero > {folder}/$i 2>/dev/null; done; du -sm {folder} | cut -f1"

    result = await runner.run("sh", "-c", fill, bounds=limits(disk_bytes=16 << 20))

    assert int(output(result)) <= 16


@needs_python
async def test_memory_has_a_limit(runner):
    result = await runner.run(PYTHON, "-c", "x = b'x' * (400 << 20)", bounds=limits(memory_bytes=128 << 20))

    assert result.reason in {FailureReason.EXIT_STATUS, FailureReason.OUT_OF_MEMORY}
    assert result.usage.peak_memory_bytes < 200 << 20


async def test_processes_have_a_limit(runner):
    bomb = "i=0; while [ $i -lt 60 ]; do sleep 20 & i=$((i+1)); done; echo all started"

    result = await runner.run("sh", "-c", bomb, bounds=limits(pids=20))

    assert result.outcome is Outcome.FAILED
    assert "all started" not in result.message


@pytest.mark.root
async def test_under_root_every_process_of_a_task_is_in_its_control_group(runner):
    if not os.access("/sys/fs/cgroup/memory", os.W_OK) and not os.access("/sys/fs/cgroup/cgroup.procs", os.W_OK):
        pytest.skip("control groups cannot be written here")

    result = await runner.run("sh", "-c", "cat /proc/1/cgroup; echo --; cat /proc/self/cgroup")

    first, own = output(result).split("--\n")
    assert "parity-node" in own
    assert first == own


@pytest.mark.root
@needs_python
async def test_under_root_the_sum_of_memory_has_a_limit(runner):
    if not os.access("/sys/fs/cgroup/memory", os.W_OK) and not os.access("/sys/fs/cgroup/cgroup.procs", os.W_OK):
        pytest.skip("control groups cannot be written here")
    hog = "import mmap, time\nm = mmap.mmap(-1, 300 << 20)\nfor i in range(0, 300 << 20, 4096): m[i] = 1"

    result = await runner.run(PYTHON, "-c", hog, bounds=limits(memory_bytes=64 << 20))

    assert result.reason is FailureReason.OUT_OF_MEMORY
