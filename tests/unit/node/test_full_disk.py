"""A node on disks that fill up: what it takes, what it gives back, what gives way, and how it goes on by itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from parity_blobs.testing import deterministic_bytes
from parity_node.disk import AFTER_FULL_S, DiskGuard, Volume
from parity_node.executors.base import Handle, Job
from parity_node.folders import Folders
from parity_node.results import store_result
from parity_node.store.base import Phase
from parity_node.store.sqlite import SqliteNodeStore
from parity_node.testing.executors import ScriptedExecutor
from parity_node.testing.market import MarketSimulator, command_spec
from parity_protocol.errors import BadField, StorageFull
from parity_protocol.task import TaskState
from parity_protocol.testing.clock import FakeClock

pytestmark = pytest.mark.anyio

MIB = 1 << 20
GIB = 1 << 30
FLOOR = GIB
CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


class Disk:
    """One file system that holds everything; what the cache holds takes room on it."""

    def __init__(self, folders: Folders, clock: FakeClock, free_bytes: int = 10 * GIB) -> None:
        self.free_bytes = free_bytes
        self._cache = folders.cache
        self.guard = DiskGuard(folders.by_name(), floor_bytes=FLOOR, clock=clock, measure=self)

    def __call__(self, folders: Mapping[str, Path]) -> tuple[Volume, ...]:
        cached = sum(path.stat().st_size for path in self._cache.glob("inputs/packs/*/*"))
        return (Volume(1, tuple(folders), self.free_bytes - cached),)


class SlowFetch(ScriptedExecutor):
    """Prepares until it is told to go on, as a long download does."""

    def __init__(self, clock: FakeClock, **script: Any) -> None:
        super().__init__(clock, **script)
        self.go_on = anyio.Event()
        self.preparing = 0

    async def prepare(self, job: Job) -> Handle:
        self.preparing += 1
        try:
            await self.go_on.wait()
        finally:
            self.preparing -= 1
        return await super().prepare(job)


@pytest.fixture
def disk(folders: Folders, clock: FakeClock) -> Disk:
    return Disk(folders, clock)


async def test_below_the_floor_nothing_is_claimed_and_with_room_it_goes_on_by_itself(
    node, market: MarketSimulator, disk: Disk
) -> None:
    async with node(disk=disk.guard) as running:
        await running.pass_time(1)
        disk.free_bytes = FLOOR - 1
        await running.pass_time(21)  # over the poll that waits already
        claims = market.calls.get("claim", 0)
        task = market.offer()
        await running.pass_time(30)
        assert (market.calls.get("claim", 0), task.state) == (claims, TaskState.PENDING)
        polls = market.calls["poll"]
        await running.pass_time(30)
        assert market.calls["poll"] == polls

        disk.free_bytes = 10 * GIB

        await running.until(lambda: task.state is TaskState.COMPLETED, within_s=30)


async def test_offer_that_comes_to_a_disk_that_became_full_is_not_claimed(
    node, market: MarketSimulator, disk: Disk
) -> None:
    async with node(disk=disk.guard) as running:
        await running.pass_time(1)
        disk.free_bytes = FLOOR - 1
        task = market.offer()
        await running.pass_time(5)

        assert task.attempts == 0


async def test_download_in_progress_gives_its_lease_back_at_the_floor(
    node, market: MarketSimulator, clock: FakeClock, disk: Disk
) -> None:
    task = market.offer()
    executor = SlowFetch(clock)
    async with node(executor=executor, disk=disk.guard) as running:
        await running.until(lambda: executor.preparing == 1)

        disk.free_bytes = FLOOR - 1
        await running.until(lambda: not running.agent.runner.running, within_s=3)

        assert executor.preparing == 0
        assert task.state is TaskState.PENDING
        assert market.calls["release"] == 1
        assert not task.reports
        disk.free_bytes = 10 * GIB
        executor.go_on.set()
        await running.until(lambda: task.state is TaskState.COMPLETED, within_s=30)


async def test_task_that_runs_goes_on_below_the_floor_and_is_reported(
    node, market: MarketSimulator, clock: FakeClock, disk: Disk
) -> None:
    task = market.offer()
    async with node(executor=ScriptedExecutor(clock, run_for_s=20), disk=disk.guard) as running:
        await running.until(lambda: running.phases() == [Phase.STARTED])

        disk.free_bytes = 0

        await running.until(lambda: task.state is TaskState.COMPLETED, within_s=40)
    assert market.calls.get("release", 0) == 0


async def test_disk_that_is_full_in_preparation_gives_the_lease_back_and_does_not_spin(
    node, market: MarketSimulator, clock: FakeClock, disk: Disk
) -> None:
    task = market.offer(max_attempts=100)
    executor = ScriptedExecutor(clock, fail_in="prepare", error=StorageFull("the disk is full"))
    async with node(executor=executor, disk=disk.guard) as running:
        await running.pass_time(10 * AFTER_FULL_S)
        assert 2 <= market.calls["release"] <= 10
        assert not task.reports

        executor.fail_in = ""
        await running.until(lambda: task.state is TaskState.COMPLETED, within_s=AFTER_FULL_S + 20)


async def test_result_waits_for_room_instead_of_being_lost(
    node, market: MarketSimulator, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter(range(5))

    async def full_five_times(*arguments: Any) -> Any:
        if next(failures, None) is not None:
            raise StorageFull("no room for a result")
        return await store_result(*arguments)

    monkeypatch.setattr("parity_node.execution.store_result", full_five_times)
    task = market.offer()
    async with node(disk=disk.guard) as running:
        await running.until(lambda: task.state is TaskState.COMPLETED, within_s=20)

    assert task.attempts == 1


async def test_result_without_room_for_long_is_a_failure_that_names_the_disk(
    node, market: MarketSimulator, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_arguments: Any) -> Any:
        raise StorageFull("no room for a result")

    monkeypatch.setattr("parity_node.execution.store_result", full)
    task = market.offer(max_attempts=1)
    async with node(disk=disk.guard) as running:
        await running.until(lambda: task.state is TaskState.FAILED, within_s=60)

    assert [item.report.reason for item in task.reports.values()] == ["disk_full"]


async def test_status_says_why_nothing_is_taken_and_how_full_each_disk_is(node, disk: Disk) -> None:
    async with node(disk=disk.guard) as running:
        disk.free_bytes = FLOOR - 1

        status = await running.agent.handle_control({"command": "status"})

        assert "RUNNER_DISK_FLOOR" in status["obstacle"]
        assert status["disks"] == [{"folders": ["state", "executions", "results", "cache"], "free_bytes": FLOOR - 1}]


async def test_cache_gives_way_before_any_task_does(
    node, market: MarketSimulator, clock: FakeClock, disk: Disk
) -> None:
    executor = SlowFetch(clock)
    async with node(executor=executor, disk=disk.guard) as running:
        store = await running.agent.parts.cache.data.store()
        for number in range(4):
            await store.put_bytes(deterministic_bytes(number, MIB))
        task = market.offer()
        await running.until(lambda: executor.preparing == 1)

        disk.free_bytes = FLOOR + 3 * MIB  # with four of them it is less than the floor
        await running.until(lambda: disk.guard.obstacle() == "", within_s=5)

        assert executor.preparing == 1
        assert len(await store.entries()) == 2
        executor.go_on.set()
        await running.until(lambda: task.state is TaskState.COMPLETED)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"inputs": [{"kind": "cid", "cid": CID, "max_bytes": 5 * GIB}]}, "disk.inputs_do_not_fit"),
        ({"resources": {"disk_bytes": 10 * GIB}}, "disk"),
        ({"output": {"max_bytes": 9 * GIB}, "resources": {"disk_bytes": 0}}, "disk.results_do_not_fit"),
    ],
)
async def test_task_that_does_not_fit_is_refused_by_name_before_anything_is_claimed(
    node, market: MarketSimulator, disk: Disk, fields: dict[str, Any], rule: str
) -> None:
    too_large = market.offer(command_spec(**fields))
    fits = market.offer()
    async with node(disk=disk.guard) as running:
        await running.until(lambda: fits.state is TaskState.COMPLETED)

        assert too_large.attempts == 0
        refused = running.agent.metrics.refusals[rule]
        assert refused.last_task == too_large.id
        assert "bytes" in refused.message
        await running.until(lambda: bool(market.refused))  # so that why-no-work can say it
        assert (market.refused[0].task_id, market.refused[0].rule) == (too_large.id, rule)


async def test_what_a_running_task_may_still_write_is_not_promised_to_a_second_one(
    node, market: MarketSimulator, clock: FakeClock, disk: Disk
) -> None:
    tasks = [market.offer(command_spec(resources={"disk_bytes": 6 * GIB})) for _ in range(2)]
    async with node(executor=ScriptedExecutor(clock, run_for_s=30), disk=disk.guard) as running:
        await running.until(lambda: any(task.state is TaskState.RUNNING for task in tasks))
        await running.pass_time(10)

        assert sorted(task.attempts for task in tasks) == [0, 1]
        await running.until(lambda: all(task.state is TaskState.COMPLETED for task in tasks), within_s=120)


async def test_results_that_wait_up_to_their_cap_stop_new_work(
    node, market: MarketSimulator, disk: Disk, folders: Folders
) -> None:
    async with node(disk=disk.guard, runner_result_max_bytes=MIB) as running:
        waiting = folders.results / "waits"
        waiting.write_bytes(b"r" * MIB)
        await running.pass_time(40)
        task = market.offer()
        await running.pass_time(30)
        assert task.attempts == 0

        waiting.unlink()

        await running.until(lambda: task.state is TaskState.COMPLETED, within_s=60)


async def test_ballast_comes_back_when_there_is_room_for_it_above_the_floor(node, disk: Disk, folders: Folders) -> None:
    store = SqliteNodeStore(folders.state / "journal.sqlite", ballast_bytes=MIB)
    async with node(store=store, disk=disk.guard) as running:
        disk.free_bytes = FLOOR + MIB - 1
        assert store.ballast.free()
        await running.pass_time(10)
        came_back_early = store.ballast.is_whole

        disk.free_bytes = FLOOR + MIB
        await running.until(lambda: store.ballast.is_whole, within_s=5)

        assert not came_back_early
    await store.close()


async def test_leftovers_of_an_earlier_process_are_gone_once_it_has_started(node, folders: Folders) -> None:
    half = folders.cache / "inputs" / "tmp" / "half"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"x" * 1_000)
    (folders.results / ".killed.tmp").write_bytes(b"x")

    async with node():
        assert not half.exists()
        assert list(folders.results.iterdir()) == []


async def test_running_agent_lists_and_frees_its_cache(node, disk: Disk) -> None:
    async with node(disk=disk.guard) as running:
        store = await running.agent.parts.cache.data.store()
        cid = str(await store.put_bytes(deterministic_bytes(1, MIB)))

        listed = await running.agent.handle_control({"command": "cache", "action": "list"})
        freed = await running.agent.handle_control({"command": "cache", "action": "gc", "all": True})

        assert [item["name"] for item in listed["items"]] == [cid] == [item["name"] for item in freed["items"]]
        with pytest.raises(BadField):
            await running.agent.handle_control({"command": "cache"})


async def test_input_of_a_running_task_is_in_use_until_it_has_ended(
    node, market: MarketSimulator, clock: FakeClock, disk: Disk
) -> None:
    async with node(executor=ScriptedExecutor(clock, run_for_s=20), disk=disk.guard) as running:
        store = await running.agent.parts.cache.data.store()
        cid = str(await store.put_bytes(deterministic_bytes(1, MIB)))
        task = market.offer(command_spec(inputs=[{"kind": "cid", "cid": cid, "max_bytes": MIB}]))
        await running.until(lambda: running.phases() == [Phase.STARTED])

        during = await running.agent.parts.cache.collect(everything=True)
        await running.until(lambda: task.state is TaskState.COMPLETED)
        after = await running.agent.parts.cache.collect(everything=True)

        assert [item.name for item in during] == []
        assert [item.name for item in after] == [cid]


async def test_policys_cap_narrows_the_cache_and_a_changed_one_is_kept_to_soon(
    node, disk: Disk, folders: Folders
) -> None:
    policy = folders.state / "policy.toml"
    policy.write_text('[limits]\ncache = "6g"\n')
    async with node(disk=disk.guard, runner_cache_max_bytes=4 * GIB, runner_image_cache_max_bytes=8 * GIB) as running:
        cache = running.agent.parts.cache
        store = await cache.data.store()
        for number in range(4):
            await store.put_bytes(deterministic_bytes(number, MIB))
        assert (cache.data.max_bytes, cache.images.max_bytes) == (2 * GIB, 4 * GIB)

        policy.write_text('[limits]\ncache = "6m"  # and not a byte more\n')
        await running.until(lambda: cache.data.max_bytes == 2 * MIB, within_s=30)
        await running.pass_time(2)

        assert (await store.usage()).used <= 2 * MIB
        assert (await store.usage()).limit == 2 * MIB
