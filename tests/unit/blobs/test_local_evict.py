"""Eviction of the local store: what goes first, what never goes, ages, and the disk's free space."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from parity_blobs.cid import Cid
from parity_blobs.files import add_path
from parity_blobs.importer import AddOptions, cid_of_bytes
from parity_blobs.local import LocalBlobStore, StoreRoom
from parity_blobs.testing import deterministic_bytes
from parity_protocol.errors import NotFound, StorageFull
from parity_protocol.testing.clock import FakeClock

pytestmark = pytest.mark.anyio

SIZE = 100_000
MAX_BYTES = 5 * (SIZE + 1_000)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def in_use() -> set[str]:
    return set()


@pytest.fixture
async def store(tmp_path: Path, clock: FakeClock, in_use: set[str]) -> AsyncIterator[LocalBlobStore]:
    async with LocalBlobStore(
        tmp_path / "store", max_bytes=MAX_BYTES, clock=clock, in_use=lambda: tuple(in_use)
    ) as opened:
        yield opened


async def fill(store: LocalBlobStore, clock: FakeClock, count: int, first: int = 0) -> list[Cid]:
    cids = []
    for number in range(first, first + count):
        cids.append(await store.put_bytes(deterministic_bytes(number, SIZE)))
        await clock.advance(timedelta(hours=1))
    return cids


async def here(store: LocalBlobStore, cids: list[Cid]) -> list[bool]:
    return [await store.stat(cid) is not None for cid in cids]


async def test_least_recently_used_goes_first(store: LocalBlobStore, clock: FakeClock) -> None:
    cids = await fill(store, clock, 5)
    async for _ in store.open(cids[0], max_bytes=SIZE):
        pass

    await fill(store, clock, 2, first=10)

    assert await here(store, cids) == [True, False, False, True, True]


async def test_what_is_in_use_is_not_evicted_while_it_is(
    store: LocalBlobStore, clock: FakeClock, in_use: set[str]
) -> None:
    cids = await fill(store, clock, 5)
    in_use |= {str(cids[0]), "debian:12", "sha256:" + "0" * 64}

    await fill(store, clock, 2, first=10)

    assert await here(store, cids) == [True, False, False, True, True]
    in_use.clear()
    await fill(store, clock, 1, first=20)
    assert await here(store, cids[:1]) == [False]


async def test_part_of_a_folder_in_use_keeps_the_whole_folder(
    store: LocalBlobStore, clock: FakeClock, in_use: set[str], tmp_path: Path
) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "a").write_bytes(deterministic_bytes(50, SIZE))
    root = (await add_path(store, folder, options=AddOptions(1))).cid
    in_use.add(str(cid_of_bytes(deterministic_bytes(50, SIZE))))

    await fill(store, clock, 6)

    assert await store.stat(root) is not None


async def test_full_of_what_is_in_use_takes_nothing_new_and_loses_nothing(
    store: LocalBlobStore, clock: FakeClock, in_use: set[str]
) -> None:
    cids = await fill(store, clock, 5)
    in_use |= {str(cid) for cid in cids}

    with pytest.raises(StorageFull, match="in use"):
        await store.put_bytes(deterministic_bytes(99, SIZE))

    assert all(await here(store, cids))
    assert (await store.usage()).used <= MAX_BYTES


async def test_listing_says_what_goes_first_and_what_stays(
    store: LocalBlobStore, clock: FakeClock, in_use: set[str]
) -> None:
    begun = clock.now().timestamp()
    first, second, third = await fill(store, clock, 3)
    await store.pin(first)
    in_use.add(str(second))

    listed = await store.entries()

    assert [(entry.cid, entry.is_pinned, entry.is_held) for entry in listed] == [
        (second, False, True),
        (third, False, False),
        (first, True, False),
    ]
    assert [round(entry.used_at - begun) for entry in listed] == [3_600, 7_200, 0]
    assert sum(entry.footprint for entry in listed) == (await store.usage()).used


async def test_eviction_by_age_spares_what_was_used_later(store: LocalBlobStore, clock: FakeClock) -> None:
    cids = await fill(store, clock, 4)
    limit = clock.now().timestamp() - 2.5 * 3600

    planned = await store.evict(1 << 40, unused_since=limit, dry_run=True)
    assert all(await here(store, cids))
    gone = await store.evict(1 << 40, unused_since=limit)

    assert [entry.cid for entry in planned] == [entry.cid for entry in gone] == cids[:2]
    assert await here(store, cids) == [False, False, True, True]


async def test_last_uses_outlast_a_restart_and_a_clock_that_goes_back(
    store: LocalBlobStore, clock: FakeClock, tmp_path: Path
) -> None:
    cids = await fill(store, clock, 3)
    await store.__aexit__(None, None, None)

    async with LocalBlobStore(tmp_path / "store", max_bytes=MAX_BYTES, clock=FakeClock()) as again:
        newest = await again.put_bytes(deterministic_bytes(7, SIZE))
        listed = [entry.cid for entry in await again.entries()]

    assert listed == [*cids, newest]


async def test_write_that_would_cross_the_disk_floor_evicts_first_and_then_is_refused(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "small"
    capacity = 8 * SIZE

    def statvfs(_path: object) -> SimpleNamespace:
        taken = sum(path.stat().st_size for path in folder.glob("*/**/*") if path.is_file())
        return SimpleNamespace(f_bavail=capacity - taken, f_frsize=1)

    monkeypatch.setattr("parity_blobs.local_evict.os.statvfs", statvfs)
    async with LocalBlobStore(folder, max_bytes=1 << 30, floor_bytes=5 * SIZE, clock=clock) as store:
        cids = await fill(store, clock, 2)
        third = await store.put_bytes(deterministic_bytes(70, SIZE))
        assert await here(store, [*cids, third]) == [False, True, True]

        with pytest.raises(StorageFull, match="free on the disk"):
            await store.put_bytes(deterministic_bytes(80, 8 * SIZE))

        assert not list(folder.glob("tmp/*"))
        assert await store.stat(cid_of_bytes(deterministic_bytes(80, 8 * SIZE))) is None


async def test_evicting_while_it_is_read_disturbs_no_reader(store: LocalBlobStore, clock: FakeClock) -> None:
    (cid,) = await fill(store, clock, 1)
    pieces = store.open(cid, max_bytes=SIZE)
    first = await anext(pieces)

    await store.evict(1 << 40)
    rest = [piece async for piece in pieces]

    assert b"".join([first, *rest]) == deterministic_bytes(0, SIZE)
    with pytest.raises(NotFound):
        await store.pin(cid)


async def test_what_a_crash_left_is_counted_right_at_the_next_start(
    store: LocalBlobStore, clock: FakeClock, tmp_path: Path
) -> None:
    cids = await fill(store, clock, 3)
    await store.__aexit__(None, None, None)
    packs = sorted((tmp_path / "store" / "packs").glob("*/*"))
    (packs[0].parent / "55-unknown.car").write_bytes(b"renamed, and not committed")
    packs[1].unlink()  # as when the power went between the unlink and what was to follow
    (tmp_path / "store" / "tmp" / "half").write_bytes(b"x")

    async with LocalBlobStore(tmp_path / "store", max_bytes=MAX_BYTES, clock=clock) as again:
        entries = await again.entries()
        usage = await again.usage()

    assert len(entries) == 2
    assert {entry.cid for entry in entries} < set(cids)
    assert usage.used == sum(entry.footprint for entry in entries)
    assert len(list((tmp_path / "store").glob("packs/*/*"))) == 2
    assert not list((tmp_path / "store" / "tmp").iterdir())


async def test_room_counts_everything_also_beyond_what_a_listing_shows(
    store: LocalBlobStore, clock: FakeClock, in_use: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free, held, pinned, wanted = await fill(store, clock, 4)
    in_use.add(str(held))
    await store.pin(pinned)
    size = {entry.cid: entry.footprint for entry in await store.entries()}
    monkeypatch.setattr("parity_blobs.local_evict.MAX_ENTRIES", 1)

    found = await store.room([wanted, cid_of_bytes(b"not here")])

    assert len(await store.entries()) == 1
    assert found == StoreRoom(size[held] + size[pinned] + size[wanted], size[free], size[wanted])
