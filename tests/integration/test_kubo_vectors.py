"""Our data against a real Kubo: the same CIDs, and content that goes both ways, block by block verified."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from parity_blobs.car import write_car
from parity_blobs.cid import Cid
from parity_blobs.export import list_directory
from parity_blobs.files import add_path, cid_of_path, export_path, list_folder, resolve_in
from parity_blobs.gateway import TrustlessGateway
from parity_blobs.importer import CHUNK_BYTES, AddOptions
from parity_blobs.local import LocalBlobStore
from parity_blobs.memory import MemoryBlobStore
from parity_blobs.testing import deterministic_bytes, write_tree
from parity_blobs.testing_kubo import PrivateKubo, private_kubo
from parity_protocol.errors import BadDocument, NotFound

pytestmark = [pytest.mark.anyio, pytest.mark.service("kubo")]

COMMAND_S = 120.0

TREE = {
    "entries": {
        "data.csv": {"seed": 200, "size": 5000},
        "large.bin": {"seed": 201, "size": 5 * CHUNK_BYTES + 77},
        "zeros": {"seed": 0, "size": 3 * CHUNK_BYTES},
        "sub": {"entries": {"again.csv": {"seed": 200, "size": 5000}, "empty": {"seed": 1, "size": 0}}},
    }
}
FLAGS = {"default": ([], AddOptions(0)), "v1": (["--cid-version=1", "--raw-leaves"], AddOptions(1))}


@pytest.fixture(scope="session")
def kubo(service_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateKubo]:
    with private_kubo(service_path("kubo"), tmp_path_factory.mktemp("kubo")) as found:
        yield found


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalBlobStore]:
    async with LocalBlobStore(tmp_path / "store", max_bytes=1 << 28) as opened:
        yield opened


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_tree(TREE, tmp_path / "tree")
    return tmp_path / "tree"


def files_below(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def test_recorded_vectors_are_what_kubo_says_today(kubo: PrivateKubo, repo_root: Path) -> None:
    command = [sys.executable, str(repo_root / "scripts" / "record-unixfs-vectors"), "--check"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("flags", FLAGS)
async def test_a_tree_has_one_cid_here_and_there(kubo: PrivateKubo, tree: Path, flags: str) -> None:
    arguments, options = FLAGS[flags]

    ours = await cid_of_path(tree, cid_version=options.cid_version, raw_leaves=options.raw_leaves)

    assert ours.cid == kubo.add(tree, *arguments)


@pytest.mark.parametrize("flags", FLAGS)
async def test_our_car_imports_in_kubo(
    kubo: PrivateKubo, store: LocalBlobStore, tree: Path, tmp_path: Path, flags: str
) -> None:
    (tree / "only ours").write_text(flags)
    stat = await add_path(store, tree, options=FLAGS[flags][1])
    car = b"".join([piece async for piece in write_car(stat.cid, store.blocks(stat.cid))])

    answer = kubo.run("dag", "import", "--stats", "--enc=json", stdin=car)

    said = [json.loads(line) for line in answer.splitlines()]
    assert [line["Root"]["Cid"]["/"] for line in said if "Root" in line] == [str(stat.cid)]
    assert [line["Stats"]["BlockCount"] for line in said if "Stats" in line] == [stat.blocks]
    kubo.run("get", "-o", str(tmp_path / "back"), str(stat.cid))
    assert files_below(tmp_path / "back") == files_below(tree)


@pytest.mark.parametrize("flags", FLAGS)
async def test_kubos_gateway_is_verified_by_our_client(
    kubo: PrivateKubo, store: LocalBlobStore, tree: Path, tmp_path: Path, flags: str
) -> None:
    cid = kubo.add(tree, *FLAGS[flags][0])

    async with TrustlessGateway([kubo.gateway]) as gateway:
        stat = await gateway.fetch_into(cid, store)
        again = await gateway.fetch_into(cid, store)
    await export_path(store, cid, tmp_path / "out", max_bytes=stat.size)

    assert files_below(tmp_path / "out") == files_below(tree)
    assert stat.size == sum(map(len, files_below(tree).values()))
    assert again == stat


async def test_kubos_single_blocks_are_verified_too(kubo: PrivateKubo, store: LocalBlobStore, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(deterministic_bytes(202, 1000))
    cid = kubo.add(tmp_path / "one", "--cid-version=1")

    async with TrustlessGateway([kubo.gateway]) as gateway:
        await gateway.fetch_into(cid, store)

    assert b"".join([piece async for piece in store.open(cid, max_bytes=1000)]) == deterministic_bytes(202, 1000)


async def test_content_that_kubo_has_not_is_not_found(kubo: PrivateKubo, store: LocalBlobStore) -> None:
    async with TrustlessGateway([kubo.gateway]) as gateway:
        with pytest.raises(NotFound):
            await gateway.fetch_into(Cid.of_block(b"nobody ever added this"), store)


async def test_a_sharded_folder_from_kubo_is_read(kubo: PrivateKubo, store: LocalBlobStore, tmp_path: Path) -> None:
    write_tree({"wide": {"count": 1000, "name_chars": 250, "extra": 1}}, tmp_path / "wide")
    names = sorted(path.name for path in (tmp_path / "wide").iterdir())
    for flags in ([], ["--cid-version=1"]):
        cid = kubo.add(tmp_path / "wide", *flags)

        async with TrustlessGateway([kubo.gateway]) as gateway:
            stat = await gateway.fetch_into(cid, store)
        await export_path(store, cid, tmp_path / f"out{len(flags)}", max_bytes=stat.size, is_durable=False)

        assert stat.blocks > 100
        assert [entry.name for entry in await list_folder(store, cid)] == names
        assert sorted(path.name for path in (tmp_path / f"out{len(flags)}").iterdir()) == names
        for name in (names[0], names[500], names[-1]):
            said = kubo.run("resolve", "-r", f"/ipfs/{cid}/{name}").decode().strip()
            assert f"/ipfs/{await resolve_in(store, cid, (name,))}" == said


async def test_a_symbolic_link_from_kubo_is_refused_by_name(
    kubo: PrivateKubo, store: LocalBlobStore, tmp_path: Path
) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "link").symlink_to("nowhere")

    async with TrustlessGateway([kubo.gateway]) as gateway:
        with pytest.raises(BadDocument, match="symbolic links"):
            await gateway.fetch_into(kubo.add(tmp_path / "linked"), store)


async def test_other_layouts_of_kubo_are_read(kubo: PrivateKubo, store: LocalBlobStore, tmp_path: Path) -> None:
    data = deterministic_bytes(203, 2_000_001)
    (tmp_path / "file").write_bytes(data)

    async with TrustlessGateway([kubo.gateway]) as gateway:
        for flags in (["--trickle"], ["--chunker=size-1000"], ["--chunker=rabin"], ["--inline", "--inline-limit=64"]):
            cid = kubo.add(tmp_path / "file", *flags)
            stat = await gateway.fetch_into(cid, store)

            assert stat.size == len(data)
            assert b"".join([piece async for piece in store.open(cid, max_bytes=len(data))]) == data


async def test_inline_files_in_a_folder_from_kubo_are_read(kubo: PrivateKubo, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "tiny").write_bytes(b"tiny")
    cid = kubo.add(tmp_path / "folder", "--cid-version=1", "--inline")
    store = MemoryBlobStore()

    async with TrustlessGateway([kubo.gateway]) as gateway:
        stat = await gateway.fetch_into(cid, store)
    await export_path(store, cid, tmp_path / "out", max_bytes=100)

    (entry,) = list_directory(cid, {block.cid: block.data async for block in store.blocks(cid)}.__getitem__)
    assert entry.cid.inline is not None
    assert stat.size == 4
    assert files_below(tmp_path / "out") == {"tiny": b"tiny"}


def test_kubo_is_the_version_that_the_vectors_name(kubo: PrivateKubo, repo_root: Path) -> None:
    said = kubo.run("version", "--number").decode().strip()

    assert re.fullmatch(r"\d+\.\d+\.\d+", said)
    assert json.loads((repo_root / "tests/vectors/unixfs/files.json").read_text())["kubo"] == said
