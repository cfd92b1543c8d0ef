"""What every ``BlobStore`` must do. A new adapter adds one line to ``STORES``."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from parity_blobs.base import BlobStore
from parity_blobs.car import CarReader, write_car
from parity_blobs.cid import CODEC_DAG_PB, CODEC_RAW, HASH_IDENTITY, Block, Cid
from parity_blobs.files import add_path, export_path
from parity_blobs.importer import CHUNK_BYTES, AddOptions, cid_of_bytes
from parity_blobs.kubo import KuboBlobStore
from parity_blobs.local import LocalBlobStore
from parity_blobs.memory import MemoryBlobStore
from parity_blobs.testing import deterministic_bytes, in_pieces
from parity_blobs.testing_kubo import PrivateKubo, private_kubo
from parity_blobs.unixfs import Kind
from parity_blobs.verify import DagLimits, Order
from parity_protocol.errors import (
    BadDocument,
    Conflict,
    DigestMismatch,
    InvalidInput,
    NotFound,
    StorageFull,
    TooLarge,
)

pytestmark = pytest.mark.anyio

MAX_BYTES = 4 << 20
SMALL = b"id,age\n1,30\n"
LARGE = deterministic_bytes(60, 5 * CHUNK_BYTES + 3)
TREE_FILES = {"a.csv": SMALL, "sub/b.bin": LARGE, "sub/deep/c": b"", "sub/same": SMALL}


@asynccontextmanager
async def local(path: Path) -> AsyncGenerator[BlobStore]:
    async with LocalBlobStore(path / "store", max_bytes=MAX_BYTES) as opened:
        yield opened


@asynccontextmanager
async def memory(path: Path) -> AsyncGenerator[BlobStore]:
    yield MemoryBlobStore(max_bytes=MAX_BYTES)


@pytest.fixture(scope="session")
def kubo_daemon(service_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateKubo]:
    with private_kubo(service_path("kubo"), tmp_path_factory.mktemp("kubo")) as found:
        yield found


STORES: dict[str, Callable[[Path], AbstractAsyncContextManager[BlobStore]]] = {"local": local, "memory": memory}


@pytest.fixture(params=[*STORES, pytest.param("kubo", marks=pytest.mark.service("kubo"))])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobStore]:
    if request.param == "kubo":
        api = request.getfixturevalue("kubo_daemon").api
        async with KuboBlobStore(api, max_bytes=MAX_BYTES, folder=f"test-{uuid.uuid4().hex}") as in_kubo:
            yield in_kubo
        return
    async with STORES[request.param](tmp_path) as opened:
        yield opened


async def read(store: BlobStore, cid: Cid, max_bytes: int = 1 << 30) -> bytes:
    return b"".join([piece async for piece in store.open(cid, max_bytes=max_bytes)])


async def dag(store: BlobStore, cid: Cid) -> list[Block]:
    return [block async for block in store.blocks(cid)]


async def send(blocks: list[Block]) -> AsyncIterator[Block]:
    for block in blocks:
        yield block


async def blocks_of(data: bytes, options: AddOptions = AddOptions(1)) -> list[Block]:  # noqa: B008 - frozen
    source = MemoryBlobStore()
    return await dag(source, await source.put_bytes(data, options=options))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, data in TREE_FILES.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(data)
    return tmp_path / "tree"


SIZES = [0, 1, 65_000, 65_536, 70_000, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7]


@pytest.mark.parametrize("options", [AddOptions(0), AddOptions(1), AddOptions(0, raw_leaves=True)], ids=str)
@pytest.mark.parametrize("size", SIZES)
async def test_content_comes_back_under_the_cid_of_ipfs_add(store: BlobStore, size: int, options: AddOptions) -> None:
    data = deterministic_bytes(61, size)
    expected = cid_of_bytes(data, version=options.cid_version, raw=options.raw_leaves)

    stat = await store.put(in_pieces(data, 10_007), max_bytes=size, options=options)

    assert stat.cid == expected
    assert (stat.kind, stat.size) == (Kind.FILE, size)
    assert await read(store, expected) == data
    assert await store.stat(expected) == stat
    assert await store.put_bytes(data, options=options) == expected


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_putting_twice_changes_nothing(store: BlobStore, data: bytes) -> None:
    first = await store.put(in_pieces(data), max_bytes=len(data))
    again = await store.put(in_pieces(data), max_bytes=len(data))

    assert again == first
    assert await read(store, first.cid) == data


async def test_many_puts_at_once_all_arrive(store: BlobStore) -> None:
    contents = [deterministic_bytes(number, 2000) for number in range(62, 162)]
    cids: dict[bytes, Cid] = {}

    async def put(data: bytes) -> None:
        cids[data] = await store.put_bytes(data)

    async with anyio.create_task_group() as group:
        for data in [*contents, *contents]:
            group.start_soon(put, data)

    for data in contents:
        assert await read(store, cids[data]) == data


async def test_a_put_over_its_cap_is_refused_and_leaves_nothing(store: BlobStore) -> None:
    with pytest.raises(TooLarge, match="more than 1000 bytes"):
        await store.put(in_pieces(LARGE), max_bytes=1000)
    with pytest.raises(TooLarge):
        await store.put(in_pieces(LARGE), max_bytes=len(LARGE) - 1)

    assert await store.stat(cid_of_bytes(LARGE)) is None


async def test_a_source_that_fails_is_not_stored(store: BlobStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield LARGE
        raise ConnectionResetError("the sender left")

    with pytest.raises(ConnectionResetError):
        await store.put(broken(), max_bytes=1 << 30)

    assert await store.stat(cid_of_bytes(LARGE)) is None


async def test_what_is_not_here_is_said_so(store: BlobStore) -> None:
    cid = cid_of_bytes(b"never stored")

    assert await store.stat(cid) is None
    assert await store.delete(cid) is False
    with pytest.raises(NotFound):
        await read(store, cid)
    with pytest.raises(NotFound):
        await dag(store, cid)
    with pytest.raises(NotFound):
        await store.pin(cid)


async def test_reading_is_capped_before_the_first_byte(store: BlobStore) -> None:
    cid = await store.put_bytes(LARGE)

    with pytest.raises(TooLarge, match="at most"):
        await anext(store.open(cid, max_bytes=len(LARGE) - 1))
    assert await read(store, cid, len(LARGE)) == LARGE


async def test_a_reader_may_stop_early(store: BlobStore) -> None:
    cid = await store.put_bytes(LARGE)
    reader = store.open(cid, max_bytes=len(LARGE))

    assert LARGE.startswith(await anext(reader))
    await reader.aclose()  # type: ignore[attr-defined] # an async generator in every adapter

    assert await read(store, cid) == LARGE


async def test_a_dag_goes_from_store_to_store(store: BlobStore, tmp_path: Path) -> None:
    cid = await store.put_bytes(LARGE, options=AddOptions(0))
    other = MemoryBlobStore()

    await other.put_blocks(cid, store.blocks(cid))
    back = await store.put_blocks(cid, other.blocks(cid))

    assert await read(other, cid) == LARGE
    assert back == await store.stat(cid)


async def test_a_car_goes_out_and_in(store: BlobStore) -> None:
    cid = await store.put_bytes(LARGE)
    car = b"".join([piece async for piece in write_car(cid, store.blocks(cid))])
    reader = CarReader()

    assert reader.feed(car) == await dag(store, cid)
    reader.finish()
    assert await store.delete(cid) is True
    stat = await store.put_blocks(cid, send(CarReader().feed(car)))

    assert stat.size == len(LARGE)
    assert await read(store, cid) == LARGE


@pytest.mark.parametrize("order", Order)
async def test_a_block_that_lies_is_refused_and_nothing_is_kept(store: BlobStore, order: Order) -> None:
    blocks = await blocks_of(LARGE)
    root = blocks[0].cid
    blocks[3] = Block(blocks[3].cid, b"lie" + blocks[3].data[3:])

    with pytest.raises(DigestMismatch):
        await store.put_blocks(root, send(blocks), order=order)

    assert await store.stat(root) is None
    assert all([await store.stat(block.cid) is None for block in blocks])


@pytest.mark.parametrize("order", Order)
async def test_missing_and_extra_blocks_are_refused(store: BlobStore, order: Order) -> None:
    blocks = await blocks_of(LARGE)
    root = blocks[0].cid

    for wrong in (blocks[:-1], blocks[:1], [], [*blocks, Block(Cid.of_block(b"?"), b"?")]):
        with pytest.raises(BadDocument):
            await store.put_blocks(root, send(wrong), order=order)

    assert await store.stat(root) is None


async def test_blocks_are_capped(store: BlobStore) -> None:
    blocks = await blocks_of(LARGE)

    with pytest.raises(TooLarge):
        await store.put_blocks(blocks[0].cid, send(blocks), limits=DagLimits(max_bytes=len(LARGE)))
    with pytest.raises(TooLarge):
        await store.put_blocks(blocks[0].cid, send(blocks), limits=DagLimits(max_blocks=3))

    assert await store.stat(blocks[0].cid) is None


async def test_blocks_may_come_in_any_order_if_asked(store: BlobStore) -> None:
    blocks = await blocks_of(LARGE, AddOptions(0))

    stat = await store.put_blocks(blocks[0].cid, send(blocks[::-1]), order=Order.ANY)

    assert stat.size == len(LARGE)
    assert await dag(store, stat.cid) == blocks


async def test_both_versions_of_a_cid_name_the_same_content(store: BlobStore) -> None:
    cid = await store.put_bytes(SMALL, options=AddOptions(0))

    assert await read(store, cid.to_v1()) == SMALL
    stat = await store.stat(cid.to_v1())
    assert stat is not None
    assert stat.cid == cid.to_v1()


async def test_a_single_block_is_served_as_it_is(store: BlobStore) -> None:
    cid = await store.put_bytes(LARGE, options=AddOptions(0))
    everything = await dag(store, cid)

    for block in everything:
        assert [found async for found in store.blocks(block.cid, scope="block")] == [block]
        as_raw = Cid(1, CODEC_RAW, block.cid.digest)
        assert await read(store, as_raw) == block.data


async def test_raw_bytes_are_not_served_as_a_node(store: BlobStore) -> None:
    (block,) = await blocks_of(SMALL, AddOptions(0))
    await store.put_bytes(block.data)

    assert await store.stat(block.cid) is None
    with pytest.raises(NotFound):
        await read(store, Cid(1, CODEC_DAG_PB, block.cid.digest))


async def test_inline_content_needs_no_store(store: BlobStore) -> None:
    cid = Cid(1, CODEC_RAW, b"in the name", HASH_IDENTITY)

    stat = await store.stat(cid)
    assert stat is not None
    assert (stat.size, stat.stored) == (11, 0)
    assert await store.put_blocks(cid, send([])) == stat
    assert await read(store, cid) == b"in the name"
    assert await dag(store, cid) == []
    assert [found async for found in store.blocks(cid, scope="block")] == [Block(cid, b"in the name")]
    await store.pin(cid)
    assert await store.delete(cid) is False


async def test_folders_go_in_and_come_out(store: BlobStore, tree: Path, tmp_path: Path) -> None:
    stat = await add_path(store, tree)

    assert (stat.kind, stat.size) == (Kind.DIRECTORY, sum(map(len, TREE_FILES.values())))
    assert await store.stat(stat.cid) == stat
    with pytest.raises(InvalidInput, match="is a directory"):
        await read(store, stat.cid)
    await export_path(store, stat.cid, tmp_path / "out", max_bytes=stat.size)
    found = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == TREE_FILES


async def test_parts_of_a_folder_are_content_of_their_own(store: BlobStore, tree: Path) -> None:
    await add_path(store, tree)
    part = cid_of_bytes(LARGE)

    stat = await store.stat(part)

    assert stat is not None
    assert (stat.kind, stat.size) == (Kind.FILE, len(LARGE))
    assert stat.stored == sum([len(block.data) for block in await dag(store, part)])
    assert await read(store, part) == LARGE
    assert await store.delete(part) is False


async def test_the_oldest_unpinned_content_makes_room(store: BlobStore) -> None:
    pinned = await store.put_bytes(deterministic_bytes(1, 1 << 20), pin=True)
    old = await store.put_bytes(deterministic_bytes(2, 1 << 20))
    used = await store.put_bytes(deterministic_bytes(3, 1 << 20))
    await read(store, old)  # so `used` is the oldest now

    new = await store.put_bytes(deterministic_bytes(4, 1 << 20))

    assert await store.stat(used) is None
    for kept in (pinned, old, new):
        assert await store.stat(kept) is not None


async def test_a_full_store_refuses_and_keeps_what_is_pinned(store: BlobStore) -> None:
    pinned = [await store.put_bytes(deterministic_bytes(seed, 1_300_000), pin=True) for seed in (1, 2, 3)]

    for data in (deterministic_bytes(4, 600_000), deterministic_bytes(5, 5 << 20)):
        with pytest.raises(StorageFull):
            await store.put_bytes(data)

    for cid in pinned:
        assert len(await read(store, cid)) == 1_300_000
    await store.pin(pinned[0], keep=False)
    await store.put_bytes(deterministic_bytes(4, 600_000))
    assert await store.stat(pinned[0]) is None


async def test_pins_hold_until_they_are_taken_off(store: BlobStore) -> None:
    cid = await store.put_bytes(SMALL, pin=True)
    await store.put_bytes(SMALL)  # putting again does not take a pin off

    stat = await store.stat(cid)
    assert stat is not None
    assert stat.is_pinned
    with pytest.raises(Conflict):
        await store.delete(cid)
    await store.pin(cid, keep=False)
    await store.pin(cid, keep=False)
    assert await store.delete(cid) is True
    assert await store.delete(cid) is False


async def test_putting_again_with_a_pin_pins(store: BlobStore) -> None:
    cid = await store.put_bytes(LARGE)

    assert (await store.put(in_pieces(LARGE), max_bytes=len(LARGE), pin=True)).is_pinned
    with pytest.raises(Conflict):
        await store.delete(cid)


async def test_deleting_does_not_disturb_a_reader(store: BlobStore) -> None:
    data = deterministic_bytes(70, 3_900_000)
    cid = await store.put_bytes(data)
    reader = store.open(cid, max_bytes=len(data))
    first = await anext(reader)

    assert await store.delete(cid) is True

    assert first + b"".join([piece async for piece in reader]) == data
    assert await store.stat(cid) is None


async def test_a_cancelled_put_leaves_nothing(store: BlobStore) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield LARGE
        await anyio.sleep_forever()

    with anyio.move_on_after(0.05):
        await store.put(endless(), max_bytes=1 << 30)

    assert await store.stat(cid_of_bytes(LARGE)) is None
    assert await store.put_bytes(LARGE) == cid_of_bytes(LARGE)
