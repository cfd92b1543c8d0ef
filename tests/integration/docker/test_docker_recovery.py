"""What survives: a node that restarts, an engine that restarts or hangs, containers of others."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from parity_node.executors.base import Handle
from parity_node.executors.docker.orphans import remove_orphans
from parity_node.executors.docker.usage import PARENT, ROOT
from parity_protocol.errors import FailureReason, ParityError
from parity_protocol.report import Outcome

pytestmark = [pytest.mark.service("docker", "busybox"), pytest.mark.root, pytest.mark.serial]

# A child that ignores SIGTERM in a session of its own, with its parent gone.
ESCAPEE = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' {marker} &) ; sleep 100"


def processes_with(marker: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def revived(handle: Handle) -> Handle:
    return Handle.from_json(json.loads(json.dumps(handle.to_json())))


async def test_a_tree_that_ignores_sigterm_is_gone_two_seconds_after_its_deadline(runner):
    marker = f"marker-{uuid.uuid4().hex}"
    handle = await runner.start(runner.shell(ESCAPEE.format(marker=marker)), wall_time_s=1.0)
    began = time.monotonic()

    result = await runner.executor.wait(handle)

    took = time.monotonic() - began
    survivors = processes_with(marker)
    await runner.executor.cleanup(handle)
    assert (result.outcome, result.reason) == (Outcome.FAILED, FailureReason.TIMEOUT)
    assert survivors == []
    assert took < 3.0 + 1.0, "the deadline, two seconds, and one of a busy machine"


async def test_a_grandchild_that_holds_the_output_open_does_not_hold_the_task(runner):
    with anyio.fail_after(15):
        assert await runner.printed("(setsid sleep 100 &); echo said") == "said\n"


async def test_a_running_container_is_taken_up_by_a_node_that_restarted(runner):
    script = "echo before; while [ ! -e /tmp/go ]; do sleep 0.1; n=$((n+1)); [ $n -ge 15 ] && touch /tmp/go; done; echo after; exit 7"
    handle = await runner.start(runner.shell(script))
    later = runner.again()

    recovered = await later.recover(revived(handle))
    result = await later.wait(revived(handle))
    printed = await later.logs(handle, 0)
    await later.cleanup(handle)
    await later.aclose()

    assert recovered
    assert (result.reason, result.exit_code) == (FailureReason.EXIT_STATUS, 7)
    assert printed == b"before\nafter\n"
    await runner.executor.cleanup(handle)


async def test_a_container_that_ended_meanwhile_is_collected(runner):
    handle = await runner.start(runner.shell("printf all; printf ' there' >&2"))
    await runner.executor.wait(handle)
    later = runner.again()

    assert await later.recover(revived(handle))
    result = await later.wait(revived(handle))
    await later.cleanup(handle)
    await later.aclose()

    assert runner.output(result) in {"all there", " thereall"}
    await runner.executor.cleanup(handle)


async def test_a_container_that_ended_in_time_is_no_timeout_however_late_the_node_returns(runner):
    handle = await runner.start(runner.shell("echo in time"), wall_time_s=1.0)
    await anyio.sleep(1.5)  # the node is away; its engine is not
    later = runner.again()

    assert await later.recover(revived(handle))
    result = await later.wait(revived(handle))
    await later.cleanup(handle)
    await later.aclose()

    assert runner.output(result) == "in time\n"
    assert result.usage.wall_ms < 1_000
    await runner.executor.cleanup(handle)


async def test_a_container_that_is_gone_is_not_recovered(runner):
    handle = await runner.start(runner.shell("sleep 100"))
    await runner.executor.engine.remove(str(handle.state["container"]))
    later = runner.again()

    assert not await later.recover(revived(handle))
    await later.aclose()
    await runner.executor.cleanup(handle)


async def test_a_container_that_somebody_else_removed_is_nobodys_failure(runner):
    handle = await runner.start(runner.shell("sleep 100"))
    await runner.executor.engine.remove(str(handle.state["container"]))

    result = await runner.executor.wait(handle)
    await runner.executor.cleanup(handle)

    assert (result.outcome, result.reason) == (Outcome.FAILED, FailureReason.INTERRUPTED)


async def test_starting_again_after_a_lost_answer_runs_the_task_once(runner):
    job = runner.job(runner.shell("echo once"))
    prepared = await runner.executor.prepare(job)
    await runner.executor.start(revived(prepared))
    later = runner.again()

    handle = await later.start(revived(prepared))  # the journal knows nothing of the first start
    result = await later.wait(handle)
    await later.cleanup(handle)
    await later.aclose()

    assert runner.output(result) == "once\n"
    await runner.executor.cleanup(handle)


async def test_orphans_are_removed_and_foreign_containers_are_not_touched(runner, engine):
    kept = await runner.start(runner.shell("sleep 100"))
    orphan = await runner.start(runner.shell("sleep 100"))
    folder = Path(str(orphan.state["folder"]))
    await anyio.Path(folder).rename(folder.with_name("elsewhere"))
    foreign = []
    for labels in (
        {},
        {"network.parity.node": "0xother"},
        {"network.parity.execution": str(orphan.state["execution_id"])},
    ):
        body = {
            "Image": "parity-test/busybox:1",
            "Cmd": ["sleep", "100"],
            "Labels": labels,
            "HostConfig": {"NetworkMode": "none"},
        }
        _, answer = engine.call(
            "POST", "/containers/create", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        foreign.append(json.loads(answer)["Id"])
        engine.call("POST", f"/containers/{foreign[-1]}/start")

    removed = await remove_orphans(runner.executor.engine, runner.node_id, runner.exec_dir)

    left = set(engine.containers())
    for each in foreign:
        engine.call("DELETE", f"/containers/{each}?force=1")
    await anyio.Path(folder.with_name("elsewhere")).rename(folder)
    await runner.executor.cleanup(orphan)
    await runner.executor.cleanup(kept)
    assert removed == 1
    assert left >= {*foreign, kept.state["container"]}
    assert orphan.state["container"] not in left


async def test_no_control_group_is_left(runner):
    handle = await runner.start(runner.shell("true"))
    await runner.executor.wait(handle)
    await runner.executor.cleanup(handle)

    assert list(ROOT.glob(f"*{PARENT}/{handle.state['execution_id']}")) == []


async def test_an_engine_that_hangs_neither_holds_the_deadline_nor_spins(runner, engine):
    marker = f"marker-{uuid.uuid4().hex}"
    handle = await runner.start(runner.shell(ESCAPEE.format(marker=marker)), wall_time_s=2.0)
    await anyio.sleep(0.3)
    results, ended = [], anyio.Event()

    async def wait() -> None:
        results.append(await runner.executor.wait(handle))
        ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(0.3)
        engine.pause()
        spent = time.process_time()
        began = time.monotonic()
        try:
            with anyio.fail_after(25):
                await ended.wait()
            survivors = processes_with(marker)
        finally:
            engine.unpause()
    await runner.executor.cleanup(handle)

    assert results[0].reason is FailureReason.TIMEOUT
    assert time.process_time() - spent < 2.0
    assert survivors == []
    assert time.monotonic() - began < 20.0


async def test_a_task_is_given_back_when_its_engine_is_killed(runner, engine):
    handle = await runner.start(runner.shell("sleep 100"))
    results = []

    async def wait() -> None:
        results.append(await runner.executor.wait(handle))

    spent = time.process_time()
    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(0.3)
        await anyio.to_thread.run_sync(engine.kill9)
        await anyio.sleep(1.0)
        state = await runner.executor.describe()
        with pytest.raises(ParityError):
            await runner.executor.prepare(runner.job(runner.shell("true")))
        busy = time.process_time() - spent
        await anyio.to_thread.run_sync(engine.restart)
    (await runner.executor.describe()).model_dump()
    await runner.executor.cleanup(handle)
    for folder in runner.exec_dir.iterdir():
        if not any(folder.iterdir()):
            folder.rmdir()

    assert not state.available
    assert busy < 1.0, "no busy loop while the engine is away"
    assert (results[0].outcome, results[0].reason) == (Outcome.FAILED, FailureReason.INTERRUPTED), results[0].message
    assert await runner.printed("echo back") == "back\n"
