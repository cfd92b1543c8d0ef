"""Nothing of a command is left, however it, its sandbox or its node ends."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from parity_node.executors.base import Handle
from parity_node.executors.process import start_time
from parity_node.executors.sandbox.bwrap import GATE
from parity_node.executors.sandbox.orphans import kill_orphans
from parity_protocol.errors import FailureReason
from parity_protocol.report import Outcome
from parity_protocol.task import CommandSpec

from .commands import (
    Runner,
    appeared,
    gone,
    left_in,
    open_files,
    output,
    processes_with,
)

pytestmark = pytest.mark.service("bubblewrap")


ESCAPEE = "for i in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP INT; sleep 600 & sleep 600' {marker} & done; sleep 600"


async def test_stopping_ends_the_whole_tree_with_those_that_left_their_session(executor, exec_dir):
    marker = f"marker-{uuid.uuid4().hex}"
    handle = await Runner(executor, exec_dir).start(CommandSpec(command=("sh", "-c", ESCAPEE.format(marker=marker))))
    await appeared(marker, 4)
    began = time.monotonic()

    await executor.stop(handle)

    assert await gone(marker, 2.0 - (time.monotonic() - began))
    result = await executor.wait(handle)
    assert (result.outcome, result.reason) == (Outcome.FAILED, FailureReason.INTERRUPTED)
    await executor.cleanup(handle)


async def test_what_a_task_leaves_in_the_background_ends_with_it_and_is_not_waited_for(runner):
    marker = f"marker-{uuid.uuid4().hex}"
    began = time.monotonic()

    result = await runner.run("sh", "-c", f"setsid sh -c 'sleep 600; true' {marker} & echo done")

    assert output(result) == "done\n"
    assert time.monotonic() - began < 10
    assert await gone(marker)


async def test_many_trees_are_all_gone(executor, exec_dir):
    runner, marker = Runner(executor, exec_dir), f"marker-{uuid.uuid4().hex}"
    spec = CommandSpec(command=("sh", "-c", ESCAPEE.format(marker=marker)))
    handles = [await runner.start(spec, slot=slot) for slot in range(8)]

    async with anyio.create_task_group() as group:
        for handle in handles:
            group.start_soon(executor.cleanup, handle)

    assert await gone(marker)
    assert not left_in(exec_dir)


async def test_a_cancelled_wait_leaves_no_file_open_after_cleanup(executor, exec_dir):
    runner = Runner(executor, exec_dir)
    await runner.run("true")
    before = open_files()

    for _ in range(5):
        handle = await runner.start(CommandSpec(command=("sleep", "600")))
        with anyio.move_on_after(0.01):
            await executor.wait(handle)
        await executor.cleanup(handle)

    assert open_files() == before


NODE = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from parity_node.executors.base import Job, Limits
    from parity_node.executors.command import CommandExecutor
    from parity_node.testing.inputs import StaticInputs
    from parity_protocol.clock import SystemClock
    from parity_protocol.task import CommandSpec
    import json

    async def main():
        exec_dir, script = Path(sys.argv[1]), sys.argv[2]
        executor = CommandExecutor(exec_dir=exec_dir, inputs=StaticInputs(), clock=SystemClock(), enabled=True)
        folder = exec_dir / "e"
        folder.mkdir(mode=0o700)
        spec = CommandSpec(command=("sh", "-c", script))
        job = Job("e", "t", "l", 1, spec, 0, 1, None, folder, Limits(600, 1, 1 << 28, 1 << 24, 32))
        handle = await executor.start(await executor.prepare(job))
        print(json.dumps(handle.to_json()), flush=True)
        await executor.wait(handle)

    asyncio.run(main())
    """
)


def spawn_node(exec_dir: Path, script: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", NODE, str(exec_dir), script], stdout=subprocess.PIPE, text=True)


async def test_a_sandbox_that_lost_its_outer_process_is_ended_by_the_next_node(executor, exec_dir):
    marker = f"marker-{uuid.uuid4().hex}"
    held_open = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", *GATE, "true", marker]
    outer = start_outer(held_open)
    await appeared(marker, 2)  # the shell behind the gate has no argument of its own yet
    outer.kill()
    outer.wait()
    assert processes_with(marker)

    ended = await anyio.to_thread.run_sync(kill_orphans)

    assert ended >= 1
    assert await gone(marker)
    if outer.stdin is not None:
        outer.stdin.close()


async def test_a_sandbox_that_runs_is_no_orphan(executor, exec_dir):
    handle = await Runner(executor, exec_dir).start(CommandSpec(command=("sh", "-c", "sleep 0.5; echo done")))

    await anyio.to_thread.run_sync(kill_orphans)

    assert output(await executor.wait(handle)) == "done\n"
    await executor.cleanup(handle)


def start_outer(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.PIPE)


async def test_a_node_killed_with_sigkill_takes_its_tasks_with_it(executor, exec_dir):
    marker = f"marker-{uuid.uuid4().hex}"
    script = ESCAPEE.format(marker=marker)
    node = spawn_node(exec_dir, script)
    try:
        assert node.stdout is not None
        handle = Handle.from_json(json.loads(await anyio.to_thread.run_sync(node.stdout.readline)))
        await appeared(marker, 5)  # the node itself has it in its arguments too
        init_pid = handle.state["init_pid"]
        assert isinstance(init_pid, int)
        assert start_time(init_pid) == handle.state["init_started"]
    finally:
        node.kill()
        node.wait()
        if node.stdout is not None:
            node.stdout.close()

    assert await gone(marker)
    assert not await executor.recover(handle)
    result = await executor.wait(handle)
    assert result.reason is FailureReason.NODE_RESTARTED
    await executor.cleanup(handle)
    assert not left_in(exec_dir)
