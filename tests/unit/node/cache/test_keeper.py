"""One cache of everything: what is listed, pinned, freed, and what a task finds room for."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from parity_blobs.cid import Cid
from parity_blobs.testing import deterministic_bytes
from parity_node.cache import CacheKind, NodeCache, answer_cache, names_of
from parity_node.disk import DiskGuard, Volume
from parity_node.disk_need import DiskNeed
from parity_protocol.errors import BadField, NotFound, StorageFull
from parity_protocol.task import CommandSpec, parse_spec
from parity_protocol.testing.clock import FakeClock

pytestmark = pytest.mark.anyio

SIZE = 100_000
HOUR_S = 3_600.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def cache(tmp_path: Path, clock: FakeClock) -> AsyncIterator[NodeCache]:
    made = open_cache(tmp_path, clock)
    yield made
    await made.aclose()


def open_cache(tmp_path: Path, clock: FakeClock, max_data_bytes: int = 10 * SIZE) -> NodeCache:
    (tmp_path / "results").mkdir(exist_ok=True)
    (tmp_path / "cache").mkdir(exist_ok=True)
    return NodeCache(
        cache_dir=tmp_path / "cache",
        results_dir=tmp_path / "results",
        max_data_bytes=max_data_bytes,
        max_image_bytes=1 << 30,
        max_result_bytes=1 << 20,
        floor_bytes=0,
        clock=clock,
    )


async def fill(cache: NodeCache, clock: FakeClock, count: int) -> list[str]:
    store = await cache.data.store()
    cids = []
    for number in range(count):
        cids.append(str(await store.put_bytes(deterministic_bytes(number, SIZE))))
        await clock.advance(timedelta(hours=1))
    return cids


def names(items: list[Any]) -> list[str]:
    return [item.name for item in items]


def reading(cid: str, max_bytes: int = SIZE) -> CommandSpec:
    inputs = [{"kind": "cid", "cid": cid, "max_bytes": max_bytes}]
    spec = parse_spec(json.dumps({"type": "command", "command": ["true"], "inputs": inputs}))
    assert isinstance(spec, CommandSpec)
    return spec


class FreeSpace:
    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes

    def __call__(self, _folders: Mapping[str, Path]) -> tuple[Volume, ...]:
        return (Volume(1, ("state", "executions", "results", "cache"), self.free_bytes),)


def guard(clock: FakeClock, free_bytes: int, floor_bytes: int = 0) -> DiskGuard:
    return DiskGuard({}, floor_bytes=floor_bytes, clock=clock, measure=FreeSpace(free_bytes))


async def test_looking_at_an_empty_cache_makes_nothing(cache: NodeCache, tmp_path: Path) -> None:
    assert await cache.items() == []
    assert await cache.collect(everything=True) == []
    assert list((tmp_path / "cache").iterdir()) == []


async def test_listing_shows_every_kind_with_size_age_pin_and_use(
    cache: NodeCache, clock: FakeClock, tmp_path: Path
) -> None:
    first, second = await fill(cache, clock, 2)
    await cache.pin(first)
    cache.uses.take("runs", [second])
    waiting = tmp_path / "results" / "execution-1"
    waiting.mkdir()
    (waiting / "output.log").write_bytes(b"x" * 70)
    cache.results_wait(lambda: {str(waiting)})

    found = await cache.items()
    totals = await cache.totals()

    assert [(item.kind, item.name, item.is_pinned, item.is_used) for item in found] == [
        (CacheKind.DATA, second, False, True),
        (CacheKind.DATA, first, True, False),
        (CacheKind.RESULT, "execution-1", False, True),
    ]
    assert [item.size_bytes >= SIZE for item in found[:2]] == [True, True]
    assert found[2].size_bytes == totals[CacheKind.RESULT].used == 70
    assert totals[CacheKind.DATA].used == totals[CacheKind.DATA].kept == sum(item.size_bytes for item in found[:2])


async def test_collection_of_everything_spares_pins_and_what_runs(cache: NodeCache, clock: FakeClock) -> None:
    pinned, used, idle = await fill(cache, clock, 3)
    await cache.pin(pinned)
    cache.uses.take("runs", [used])

    planned = await cache.collect(everything=True, dry_run=True)
    gone = await cache.collect(everything=True)

    assert names(planned) == names(gone) == [idle]
    assert set(names(await cache.items())) == {pinned, used}
    await cache.pin(pinned, keep=False)
    cache.uses.drop("runs")
    assert set(names(await cache.collect(everything=True))) == {pinned, used}


async def test_collection_by_age_takes_the_old_ones_only(cache: NodeCache, clock: FakeClock) -> None:
    old, *young = await fill(cache, clock, 3)

    assert names(await cache.collect(older_than_s=2.5 * HOUR_S)) == [old]
    assert names(await cache.items()) == young


async def test_plain_collection_takes_what_a_lowered_cap_leaves_no_room_for(
    cache: NodeCache, clock: FakeClock, tmp_path: Path
) -> None:
    cids = await fill(cache, clock, 4)
    await cache.aclose()

    lowered = open_cache(tmp_path, clock, max_data_bytes=2 * (SIZE + 1_000))
    gone = await lowered.collect()

    assert names(gone) == cids[:2]
    assert (await lowered.data.usage()).used <= lowered.data.max_bytes
    await lowered.aclose()


async def test_answered_results_go_and_those_that_wait_stay(cache: NodeCache, clock: FakeClock, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for name in ("waiting", "answered", ".killed.tmp", "fresh"):
        (results / name).write_bytes(b"r" * 10)
    (results / "folder").mkdir()
    (results / "folder" / "output.log").write_bytes(b"r" * 10)
    old = clock.now().timestamp() - 2 * HOUR_S
    for path in results.iterdir():
        os.utime(path, (old, old))
    now = clock.now().timestamp()
    os.utime(results / "fresh", (now, now))

    assert await cache.collect(everything=True) == []  # as long as nobody said what waits
    cache.results_wait(lambda: {str(results / "waiting")})
    gone = await cache.collect()

    assert set(names(gone)) == {"answered", ".killed.tmp", "folder"}
    assert {path.name for path in results.iterdir()} == {"waiting", "fresh"}


async def test_what_a_killed_download_left_is_swept_at_start(
    cache: NodeCache, clock: FakeClock, tmp_path: Path
) -> None:
    await fill(cache, clock, 1)
    await cache.aclose()
    left = tmp_path / "cache" / "inputs" / "tmp" / "half"
    left.write_bytes(b"x" * 1_000)

    again = open_cache(tmp_path, clock)
    await again.data.sweep()

    assert not left.exists()
    assert len(await again.items()) == 1
    await again.aclose()


async def test_disk_below_its_floor_is_relieved_by_as_little_of_the_cache_as_is_needed(
    cache: NodeCache, clock: FakeClock
) -> None:
    oldest, *rest = await fill(cache, clock, 3)

    freed = await cache.relieve(guard(clock, free_bytes=1_000_000, floor_bytes=1_000_000 + SIZE // 2))

    assert SIZE <= freed < 2 * SIZE
    assert names(await cache.items()) == rest
    assert await cache.relieve(guard(clock, free_bytes=1, floor_bytes=1)) == 0
    assert oldest not in names(await cache.items())


async def test_inputs_that_are_here_need_no_more_room_and_are_not_counted_as_evictable(
    cache: NodeCache, clock: FakeClock
) -> None:
    here, other = await fill(cache, clock, 2)
    disk = guard(clock, free_bytes=1 << 40)

    known = await cache.room_for(reading(here), disk)
    unknown = await cache.room_for(reading(str(Cid.of_block(b"elsewhere"))), disk)

    assert (known.cached_bytes // SIZE, known.evictable_bytes // SIZE) == (1, 1)
    assert (unknown.cached_bytes, unknown.evictable_bytes // SIZE) == (0, 2)
    assert other in names(await cache.items())


async def test_input_larger_than_the_cache_is_refused_by_name(cache: NodeCache, clock: FakeClock) -> None:
    (pinned,) = await fill(cache, clock, 1)
    await cache.pin(pinned)
    spec = reading(str(Cid.of_block(b"elsewhere")), max_bytes=9 * SIZE + SIZE // 2)

    refused = await cache.denials(spec, guard(clock, free_bytes=1 << 40), DiskNeed())

    assert [denial.rule for denial in refused] == ["disk.inputs_do_not_fit"]


async def test_task_that_fits_once_the_cache_gives_way_is_taken(cache: NodeCache, clock: FakeClock) -> None:
    cids = await fill(cache, clock, 9)
    spec = reading(str(Cid.of_block(b"elsewhere")), max_bytes=5 * SIZE)
    disk = guard(
        clock, free_bytes=(300 << 20) + 6 * SIZE
    )  # 256 MiB of work space, its copy, its output, and little more

    assert await cache.denials(spec, disk, DiskNeed()) == []
    cache.uses.take("runs", cids)
    assert [denial.rule for denial in await cache.denials(spec, disk, DiskNeed())] == ["disk.inputs_do_not_fit"]


async def test_results_that_wait_leave_less_room_once_counted(
    cache: NodeCache, clock: FakeClock, tmp_path: Path
) -> None:
    (tmp_path / "results" / "waits").write_bytes(b"x" * 1_000)

    await cache.count_results()

    room = await cache.room_for(reading(str(Cid.of_block(b"x"))), guard(clock, free_bytes=1 << 40))
    assert room.results_left_bytes == (1 << 20) - 1_000


async def test_fetch_into_a_cache_full_of_what_runs_takes_nothing_away(cache: NodeCache, clock: FakeClock) -> None:
    cids = await fill(cache, clock, 9)
    cache.uses.take("runs", cids)

    with pytest.raises(StorageFull):
        await (await cache.data.store()).put_bytes(deterministic_bytes(99, 2 * SIZE))

    assert set(names(await cache.items())) == set(cids)


# -- requests ----------------------------------------------------------------------------------------------------


async def test_requests_list_pin_and_free(cache: NodeCache, clock: FakeClock) -> None:
    first, second = await fill(cache, clock, 2)

    pinned = await answer_cache(cache, {"action": "pin", "name": first})
    freed = await answer_cache(cache, {"action": "gc", "all": True})
    listed = await answer_cache(cache, {"action": "list"})

    assert pinned["item"]["pinned"]
    assert [item["name"] for item in freed["items"]] == [second]
    assert freed["freed_bytes"] >= SIZE
    assert [item["name"] for item in listed["items"]] == [first]
    assert listed["totals"]["data"]["limit"] == 10 * SIZE


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"action": "burn"},
        {"action": "pin"},
        {"action": "pin", "name": ""},
        {"action": "pin", "name": 7},
        {"action": "gc", "all": "yes"},
        {"action": "gc", "older_than_s": -1},
        {"action": "gc", "older_than_s": True},
    ],
)
async def test_malformed_request_is_refused(cache: NodeCache, request_: dict[str, object]) -> None:
    with pytest.raises(BadField):
        await answer_cache(cache, request_)


@pytest.mark.parametrize("name", [str(Cid.of_block(b"nowhere")), "debian:12"])
async def test_pin_of_what_is_not_here_is_refused(cache: NodeCache, name: str) -> None:
    with pytest.raises(NotFound):
        await answer_cache(cache, {"action": "pin", "name": name})


def test_task_uses_its_inputs_its_archive_and_its_image() -> None:
    cid, archive, digest = (str(Cid.of_block(name)) for name in (b"input", b"archive", b"https"))
    spec = parse_spec(
        json.dumps(
            {
                "type": "docker",
                "image": "tool:1",
                "image_tar": {"kind": "cid", "cid": archive},
                "inputs": [
                    {"kind": "cid", "name": "a", "cid": cid},
                    {
                        "kind": "https",
                        "name": "b",
                        "url": "https://data.example/x",
                        "sha256": Cid.of_block(b"https").digest.hex(),
                        "size": 5,
                    },
                    {"kind": "shard", "name": "c", "shard": "local"},
                ],
            }
        )
    )

    assert names_of(spec) == {cid, archive, digest, "tool:1"}
