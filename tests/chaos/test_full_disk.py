"""The journal on a disk that is full: on real tiny file systems, at every write, with and without its ballast."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

import pytest

from parity_blobs.local import LocalBlobStore
from parity_blobs.testing import deterministic_bytes, in_pieces
from parity_node.disk import free_bytes
from parity_node.store.base import Execution, OutboxEntry, Phase
from parity_node.store.sqlite import SqliteNodeStore
from parity_node.testing.small_disk import PAGE, Filler, ext4, tmpfs
from parity_protocol.errors import StorageFull

pytestmark = [pytest.mark.root, pytest.mark.anyio]

NOW = 1_767_225_600
BALLAST = 1 << 20


def execution() -> Execution:
    return Execution(
        id=str(uuid4()),
        task_id=str(uuid4()),
        jti=str(uuid4()),
        jti_expires_at=NOW + 300,
        claim_id=str(uuid4()),
        kind="command",
        manifest="m" * 3_000,
        manifest_hash="0" * 64,
        order_hash="0x" + "1" * 64,
        reward=1,
    )


def report(execution_id: str) -> OutboxEntry:
    return OutboxEntry(f"{execution_id}:final", execution_id, b"{" + b" " * 20_000 + b"}", True)


async def fill_with_reports(store: SqliteNodeStore) -> list[str]:
    """Queue reports until the disk is full; return those that the store took."""
    taken: list[str] = []
    while len(taken) < 2_000:
        row = execution()
        try:
            await store.record_intents([row], now=NOW)
            await store.collect(report(row.id), phase=Phase.COLLECTED)
        except StorageFull:
            return taken
        taken.append(f"{row.id}:final")
    raise AssertionError("the disk did not become full")


@pytest.mark.parametrize("disk", [tmpfs, ext4])
@pytest.mark.parametrize("ballast_bytes", [BALLAST, 0], ids=["ballast", "none"])
async def test_reports_can_be_deleted_on_a_full_disk_because_of_the_ballast(
    disk: Callable[[Path, int], AbstractContextManager[Path]], ballast_bytes: int, tmp_path: Path
) -> None:
    with disk(tmp_path / "disk", 16 << 20) as folder:
        store = SqliteNodeStore(folder / "journal.sqlite", ballast_bytes=ballast_bytes)
        row = execution()
        await store.record_intents([row], now=NOW)
        await store.collect(report(row.id), phase=Phase.COLLECTED)
        Filler(folder).fill()

        try:
            await store.settle([f"{row.id}:final"])
            is_deleted = True
        except StorageFull:
            is_deleted = False
        left = (await store.load()).outbox if is_deleted else None
        await store.close()

        assert is_deleted == bool(ballast_bytes)  # without it nothing can be deleted: that is what it is for
        assert left == (() if is_deleted else None)


async def test_ballast_that_was_thrown_off_is_taken_again_when_there_is_room(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 8 << 20) as folder:
        store = SqliteNodeStore(folder / "journal.sqlite", ballast_bytes=BALLAST)
        filler = Filler(folder)
        filler.fill()
        await store.record_intents([execution() for _ in range(40)], now=NOW)
        is_thrown_off = not store.ballast.is_whole
        assert is_thrown_off
        filler.fill()
        assert not store.ballast.fill()
        assert [path.name for path in folder.glob("*ballast*")] == []

        filler.empty()

        assert store.ballast.fill()
        assert store.ballast.is_whole
        await store.close()


async def test_six_mebibyte_disk_loses_no_report_that_the_journal_took(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 6 << 20) as folder:
        store = SqliteNodeStore(folder / "journal.sqlite", ballast_bytes=BALLAST)

        taken = await fill_with_reports(store)
        with pytest.raises(StorageFull):
            await store.collect(report(execution().id), phase=None)
        kept = [entry.id for entry in (await store.load()).outbox]
        assert [name for name in kept if name in set(taken)] == taken

        await store.close()
        again = SqliteNodeStore(folder / "journal.sqlite", ballast_bytes=0)
        assert [entry.id for entry in (await again.load()).outbox] == kept
        await again.close()


async def test_no_write_that_meets_a_full_disk_is_half_done_or_acknowledged_in_vain(tmp_path: Path) -> None:
    """A4: room for k more pages, for each k up to 300; what the journal said yes to is there, and nothing is broken."""
    refused = 0
    with tmpfs(tmp_path / "disk", 4 << 20) as folder:
        filler = Filler(folder)
        for pages in range(301):
            path = folder / "journal.sqlite"
            store = SqliteNodeStore(path, ballast_bytes=0)
            filler.fill(leave=pages * PAGE)
            acknowledged: list[str] = []
            for number in range(40):
                row = execution()
                try:
                    await store.record_intents([row], now=NOW)
                    await store.collect(report(row.id), phase=Phase.COLLECTED)
                    acknowledged.append(f"{row.id}:final")
                    if number % 3 == 2:
                        await store.settle([acknowledged[0]])
                        del acknowledged[0]
                except StorageFull:
                    refused += 1
            filler.empty()
            kept = {entry.id for entry in (await store.load()).outbox}
            assert set(acknowledged) <= kept, f"{pages} pages free: an acknowledged report is lost"
            row = execution()
            await store.record_intents([row], now=NOW)  # there is room again, and it goes on
            await store.close()
            with sqlite3.connect(path) as db:
                assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",), f"{pages} pages free"
            db.close()
            for file in folder.iterdir():
                file.unlink()
    print(f"A4: 301 disks that became full, {refused} writes refused, 0 corrupt, 0 acknowledged writes lost")
    assert refused > 300


async def test_download_stops_at_the_floor_of_a_real_disk_after_the_cache_gave_way(tmp_path: Path) -> None:
    floor = 4 << 20
    with tmpfs(tmp_path / "disk", 16 << 20) as disk:
        async with LocalBlobStore(disk / "store", max_bytes=1 << 30, floor_bytes=floor) as store:
            cids = [await store.put_bytes(deterministic_bytes(number, 2 << 20)) for number in range(4)]
            assert free_bytes(disk) >= floor

            with pytest.raises(StorageFull, match="free on the disk"):
                await store.put(in_pieces(deterministic_bytes(9, 13 << 20), 1 << 20), max_bytes=1 << 30)

            assert await store.stat(cids[0]) is None  # gave way first
            assert not list((disk / "store" / "tmp").iterdir())
            assert free_bytes(disk) >= floor
            again = await store.put_bytes(deterministic_bytes(1, 1 << 20), pin=True)
            assert await store.stat(again) is not None
