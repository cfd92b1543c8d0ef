"""A folder as one CAR: the same root on both sides, and nothing is stored that does not belong to it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from parity_blobs import Block, Cid, DagLimits, Kind, cid_of_bytes
from parity_blobs.car import car_header, car_section_prefix
from parity_blobs.car_files import pack_car, put_car
from parity_blobs.files import cid_of_path, export_path
from parity_blobs.memory import MemoryBlobStore
from parity_protocol.errors import BadDocument, DigestMismatch, NotFound, TooLarge


async def in_pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "result"
    (made / "files" / "deep").mkdir(parents=True)
    (made / "output.log").write_bytes(b"done\n")
    (made / "files" / "deep" / "large").write_bytes(bytes(range(256)) * 3000)
    (made / "files" / "again").write_bytes(bytes(range(256)) * 3000)
    (made / "files" / ".hidden").write_bytes(b"")
    return made


async def test_a_packed_folder_unpacks_to_the_same_files(folder: Path, tmp_path: Path) -> None:
    packed = pack_car(folder, tmp_path / "result.car")

    store = MemoryBlobStore(max_bytes=8 << 20)
    stat = await put_car(store, in_pieces((tmp_path / "result.car").read_bytes()))
    await export_path(store, stat.cid, tmp_path / "copy", max_bytes=8 << 20)

    assert (stat.cid, stat.kind, stat.size) == (packed.root, Kind.DIRECTORY, packed.size)
    assert packed.root == (await cid_of_path(folder, cid_version=1, hidden=True)).cid
    assert contents(tmp_path / "copy") == contents(folder)


def test_length_and_digest_are_those_of_the_file(folder: Path, tmp_path: Path) -> None:
    packed = pack_car(folder, tmp_path / "result.car")

    data = (tmp_path / "result.car").read_bytes()
    assert (packed.length, packed.sha256) == (len(data), hashlib.sha256(data).digest())
    assert packed.size == 2 * 768_000 + 5
    assert packed.length < 1_000_000  # equal files are packed once


def test_a_folder_over_the_limit_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TooLarge):
        pack_car(folder, tmp_path / "result.car", max_bytes=100_000)

    assert not (tmp_path / "result.car").exists()


def test_nothing_at_the_path_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        pack_car(tmp_path / "missing", tmp_path / "result.car")

    assert not (tmp_path / "result.car").exists()


LEAF = Block(cid_of_bytes(b"leaf"), b"leaf")


def car(roots: tuple[Cid, ...], *blocks: Block) -> bytes:
    parts = [car_section_prefix(block.cid, len(block.data)) + block.data for block in blocks]
    return car_header(*roots) + b"".join(parts)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (car((LEAF.cid, LEAF.cid), LEAF), BadDocument),
        (car((LEAF.cid,)), BadDocument),
        (car((LEAF.cid,), LEAF)[:-1], BadDocument),
        (car((LEAF.cid,), Block(LEAF.cid, b"liar")), DigestMismatch),
        (car((LEAF.cid,), LEAF, Block(cid_of_bytes(b"extra"), b"extra")), BadDocument),
        (b"", BadDocument),
        (b"\x0anot a car!", BadDocument),
        (car((LEAF.cid,), LEAF, Block(cid_of_bytes(b"x" * 2000), b"x" * 2000)), TooLarge),
    ],
    ids=["two roots", "no blocks", "cut off", "wrong bytes", "extra block", "empty", "no car", "too much"],
)
async def test_a_car_that_is_not_exactly_its_root_is_refused(data: bytes, error: type[Exception]) -> None:
    store = MemoryBlobStore(max_bytes=1 << 20)

    with pytest.raises(error):
        await put_car(store, in_pieces(data, 7), limits=DagLimits(max_bytes=1_000))

    assert await store.stat(LEAF.cid) is None
