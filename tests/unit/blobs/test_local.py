"""What only the local store promises: durability, one process, healing, accounts, and what a crash leaves."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from parity_blobs import spool
from parity_blobs.car import CarReader
from parity_blobs.cid import Block, Cid
from parity_blobs.files import add_path, export_path
from parity_blobs.importer import CHUNK_BYTES, AddOptions, cid_of_bytes
from parity_blobs.local import LocalBlobStore
from parity_blobs.local_index import LocalIndex, Transaction
from parity_blobs.local_threads import settled
from parity_blobs.testing import deterministic_bytes, in_pieces
from parity_blobs.verify import Order
from parity_protocol.errors import (
    Conflict,
    DigestMismatch,
    InvalidInput,
    NotFound,
    StorageFull,
    TooLarge,
    Unavailable,
)

pytestmark = pytest.mark.anyio

SMALL = b"small content"
LARGE = deterministic_bytes(90, 6 * CHUNK_BYTES + 1)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalBlobStore]:
    async with LocalBlobStore(tmp_path / "store", max_bytes=1 << 26) as opened:
        yield opened


async def read(store: LocalBlobStore, cid: Cid) -> bytes:
    return b"".join([piece async for piece in store.open(cid, max_bytes=1 << 30)])


def packs(path: Path) -> list[Path]:
    return list((path / "store" / "packs").glob("*/*.car"))


async def test_content_is_there_after_a_restart(tmp_path: Path) -> None:
    async with LocalBlobStore(tmp_path / "store", max_bytes=1 << 26) as first:
        cids = [await first.put_bytes(SMALL, pin=True), await first.put_bytes(LARGE)]
        stats = [await first.stat(cid) for cid in cids]

    async with LocalBlobStore(tmp_path / "store", max_bytes=1 << 26) as second:
        assert [await second.stat(cid) for cid in cids] == stats
        assert await read(second, cids[1]) == LARGE


async def test_a_second_process_is_refused(store: LocalBlobStore, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="in use"):
        await LocalBlobStore(tmp_path / "store", max_bytes=1).__aenter__()


async def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(Unavailable):
        await LocalBlobStore(tmp_path / "file" / "store", max_bytes=1).__aenter__()


async def test_the_folder_is_private(store: LocalBlobStore, tmp_path: Path) -> None:
    await store.put_bytes(LARGE)

    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
    assert packs(tmp_path)[0].stat().st_mode & 0o777 == 0o600


async def test_a_large_object_is_one_car_that_other_tools_can_read(store: LocalBlobStore, tmp_path: Path) -> None:
    cid = await store.put_bytes(LARGE)
    (pack,) = packs(tmp_path)
    reader = CarReader()
    found = reader.feed(pack.read_bytes())
    reader.finish()

    async def blocks() -> AsyncIterator[Block]:
        for block in found:
            yield block

    assert reader.roots == (cid,)
    assert await store.delete(cid)
    await store.put_blocks(cid, blocks(), order=Order.ANY)
    assert await read(store, cid) == LARGE


async def test_small_objects_share_commits_when_they_come_together(
    store: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[int] = []
    commit = LocalIndex._commit

    def counted(self: LocalIndex, batch: list[object]) -> None:
        commits.append(len(batch))
        commit(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalIndex, "_commit", counted)

    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(store.put_bytes, deterministic_bytes(number + 1, 100))

    assert sum(commits) == 200
    assert len(commits) < 100


async def test_a_large_object_is_synced_before_its_name_and_its_name_before_the_answer(
    store: LocalBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def noted(name: Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            events.append(name(*args))
            return function(*args)

        return call

    monkeypatch.setattr(spool, "fsync_file", noted(lambda _: "file", spool.fsync_file))
    monkeypatch.setattr("parity_blobs.local.fsync_folder", noted(lambda path: path.name, spool.fsync_folder))
    monkeypatch.setattr(Path, "replace", noted(lambda *_: "rename", Path.replace))

    cid = await store.put_bytes(LARGE)

    assert events == ["file", "packs", "rename", cid.digest[-1:].hex()]


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_rotten_content_is_refused_set_aside_and_can_be_put_again(tmp_path: Path, data: bytes) -> None:
    cid = cid_of_bytes(data)
    async with LocalBlobStore(tmp_path / "store", max_bytes=1 << 26) as store:
        await store.put_bytes(data, pin=True)
        target = packs(tmp_path)[0] if data is LARGE else None
        if target is None:
            await rot_inline(store)
        else:
            content = bytearray(target.read_bytes())
            content[len(content) // 2] ^= 1
            target.write_bytes(content)

        with pytest.raises(DigestMismatch, match="expected sha2-256"):
            await read(store, cid)

        assert await store.stat(cid) is None
        assert len(list((tmp_path / "store" / "quarantine").iterdir())) == 1
        assert (await store.usage()).used == 0
        await store.put_bytes(data)
        assert await read(store, cid) == data


async def rot_inline(store: LocalBlobStore) -> None:
    def flip(transaction: Transaction) -> None:
        (data,) = transaction.connection.execute("SELECT data FROM inline").fetchone()
        transaction.connection.execute("UPDATE inline SET data = ?", (bytes((data[0] ^ 1,)) + data[1:],))

    await settled(store._index.submit(flip))


async def test_what_came_before_the_rot_is_right(store: LocalBlobStore, tmp_path: Path) -> None:
    data = deterministic_bytes(91, 20 * CHUNK_BYTES)
    cid = await store.put_bytes(data)
    (pack,) = packs(tmp_path)
    with pack.open("r+b") as file:
        file.seek(18 * CHUNK_BYTES)
        file.write(b"rotten")
    got = bytearray()

    async def take() -> None:
        async for piece in store.open(cid, max_bytes=len(data)):
            got.extend(piece)

    with pytest.raises(DigestMismatch):
        await take()

    assert 16 * CHUNK_BYTES < len(got) < 19 * CHUNK_BYTES
    assert data.startswith(got)


async def test_a_truncated_file_is_noticed(store: LocalBlobStore, tmp_path: Path) -> None:
    cid = await store.put_bytes(LARGE)
    os.truncate(packs(tmp_path)[0], 1000)

    with pytest.raises(DigestMismatch):
        await read(store, cid)


async def test_a_file_that_vanished_is_not_here_and_heals(store: LocalBlobStore, tmp_path: Path) -> None:
    cid = await store.put_bytes(LARGE)
    packs(tmp_path)[0].unlink()

    with pytest.raises(NotFound):
        await read(store, cid)

    assert await store.stat(cid) is None
    assert await store.put_bytes(LARGE) == cid
    packs(tmp_path)[0].unlink()
    assert await store.put_bytes(LARGE) == cid  # noticed by the put itself
    assert await read(store, cid) == LARGE


async def test_start_removes_what_a_crash_left_and_forgets_what_is_gone(tmp_path: Path) -> None:
    async with LocalBlobStore(tmp_path / "store", max_bytes=1 << 26) as store:
        cid = await store.put_bytes(LARGE)
        await store.put_bytes(SMALL)
    (tmp_path / "store" / "tmp" / "orphan").write_bytes(b"half")
    (pack,) = packs(tmp_path)
    pack.with_name("70-orphan.car").write_bytes(b"never committed")
    pack.unlink()

    async with LocalBlobStore(tmp_path / "store", max_bytes=1 << 26) as store:
        assert packs(tmp_path) == []
        assert list((tmp_path / "store" / "tmp").iterdir()) == []
        assert await store.stat(cid) is None
        assert (await store.usage()).used == len(SMALL)


async def test_a_full_disk_is_said_so_and_leaves_nothing(
    store: LocalBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, parts: list[bytes]) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(StorageFull, match="disk is full"):
        await store.put_bytes(LARGE)
    monkeypatch.undo()

    assert list((tmp_path / "store" / "tmp").iterdir()) == []
    await store.put_bytes(LARGE)


async def test_a_short_write_goes_on(store: LocalBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    writev = os.writev
    monkeypatch.setattr(os, "writev", lambda file, parts: writev(file, [b"".join(parts)[:100]]))

    cid = await store.put_bytes(LARGE)

    assert await read(store, cid) == LARGE


async def test_a_failed_put_leaves_no_temporary_file_and_no_reservation(store: LocalBlobStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield LARGE
        raise TimeoutError

    for _ in range(50):  # 50 times 4.7 MB would not fit if reservations stayed
        with pytest.raises(TimeoutError):
            await store.put(broken(), max_bytes=1 << 30)

    assert list((tmp_path / "store" / "tmp").iterdir()) == []
    assert store._in_flight == 0


async def test_puts_under_way_count_against_the_limit(tmp_path: Path) -> None:
    async def slowly(event: anyio.Event) -> AsyncIterator[bytes]:
        yield deterministic_bytes(1, 3 << 20)
        await event.wait()

    async with LocalBlobStore(tmp_path / "store", max_bytes=4 << 20) as store, anyio.create_task_group() as group:
        event = anyio.Event()
        group.start_soon(lambda: store.put(slowly(event), max_bytes=1 << 30))
        while store._in_flight < 2 << 20:
            await anyio.lowlevel.checkpoint()

        with pytest.raises(StorageFull):
            await store.put(in_pieces(deterministic_bytes(2, 3 << 20)), max_bytes=1 << 30)
        event.set()


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    async with LocalBlobStore(tmp_path / "store", max_bytes=1 << 26) as store:
        cid = await store.put_bytes(SMALL)

    with pytest.raises(Unavailable, match="closed"):
        await store.stat(cid)
    with pytest.raises(Unavailable, match="closed"):
        await store.put_bytes(SMALL)
    with pytest.raises(Unavailable, match="closed"):
        await read(store, cid)


async def test_quarantine_keeps_the_newest_few(tmp_path: Path, store: LocalBlobStore) -> None:
    for number in range(12):
        cid = await store.put_bytes(f"object {number}".encode())
        await rot_inline(store)
        with pytest.raises(DigestMismatch):
            await read(store, cid)

    assert len(list((tmp_path / "store" / "quarantine").iterdir())) == 8


# -- files -----------------------------------------------------------------------------------------------------------


async def test_links_and_pipes_in_a_folder_are_refused(store: LocalBlobStore, tmp_path: Path) -> None:
    for name, make in (("link", lambda p: p.symlink_to("/etc/passwd")), ("pipe", os.mkfifo)):
        folder = tmp_path / name
        folder.mkdir()
        make(folder / "entry")

        with pytest.raises(InvalidInput, match="neither a file nor a folder"):
            await add_path(store, folder)


async def test_hidden_files_are_taken_only_when_asked(store: LocalBlobStore, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".hidden").write_bytes(b"x")

    assert (await add_path(store, tmp_path / "folder")).size == 0
    assert (await add_path(store, tmp_path / "folder", hidden=True)).size == 1


async def test_a_path_that_is_not_there_is_not_found(store: LocalBlobStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        await add_path(store, tmp_path / "missing")


async def test_folders_nested_too_deep_are_refused(store: LocalBlobStore, tmp_path: Path) -> None:
    (tmp_path / "/".join("d" * 40)).mkdir(parents=True)

    with pytest.raises(TooLarge, match="folders deep"):
        await add_path(store, tmp_path / "d")


async def test_an_export_appears_whole_or_not_at_all(store: LocalBlobStore, tmp_path: Path) -> None:
    cid = await store.put_bytes(LARGE, options=AddOptions(0))
    out = tmp_path / "out"
    out.mkdir()

    await export_path(store, cid, out / "data.bin", max_bytes=len(LARGE))
    assert (out / "data.bin").read_bytes() == LARGE
    with pytest.raises(InvalidInput, match="exists already"):
        await export_path(store, cid, out / "data.bin", max_bytes=len(LARGE))
    with pytest.raises(TooLarge):
        await export_path(store, cid, out / "more.bin", max_bytes=len(LARGE) - 1)
    with pytest.raises(NotFound):
        await export_path(store, cid_of_bytes(b"?"), out / "more.bin", max_bytes=10)
    os.truncate(packs(tmp_path)[0], 1_200_000)
    with pytest.raises(DigestMismatch):
        await export_path(store, cid, out / "more.bin", max_bytes=len(LARGE))

    assert [path.name for path in out.iterdir()] == ["data.bin"]
