"""Folders over HTTP: in as one CAR, out block by block, and read only by whom they are for."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from parity_blobs import Block, Cid, DagVerifier, cid_of_bytes
from parity_blobs.car import CarReader, car_header, car_section_prefix
from parity_blobs.car_files import CAR_TYPE, Packed, pack_car
from parity_blobs.importer import Entry, build_directory
from parity_market.testing.served import Served, Signer
from parity_protocol.api import paths
from parity_protocol.testing.keys import deterministic_evm_key

LARGE = (sha256(b"seed").digest() + b"!") * 20_000  # three chunks, each another


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "result"
    (made / "files" / "a b").mkdir(parents=True)
    (made / "output.log").write_bytes(b"done\n")
    (made / "files" / "a b" / "large").write_bytes(LARGE)
    return made


async def sign_in(served: Served, name: str = "me") -> Signer:
    return await served.sign_in(deterministic_evm_key(name))


async def send(served: Served, by: Signer, car: bytes, query: str = "") -> dict[str, object]:
    change = {"content-type": CAR_TYPE}
    reply = await served.call("POST", paths.STORAGE_UPLOAD + query, raw=car, by=by, change=change)
    return {"status": reply.status_code, **reply.json()}


async def store(served: Served, by: Signer, folder: Path, query: str = "") -> Packed:
    target = folder.with_name("sent.car")
    packed = pack_car(folder, target)
    answer = await send(served, by, target.read_bytes(), query)
    assert (answer["status"], answer["cid"]) == (201, str(packed.root)), answer
    return packed


def blocks_of(car: bytes) -> tuple[Cid, list[Block]]:
    reader = CarReader()
    blocks = reader.feed(car)
    reader.finish()
    assert reader.roots is not None
    return reader.roots[0], blocks


async def test_a_folder_comes_back_as_verifiable_blocks(served: Served, folder: Path) -> None:
    me = await sign_in(served)
    packed = await store(served, me, folder)

    car = await served.call("GET", paths.gateway_path(str(packed.root)) + "?format=car", by=me)

    root, blocks = blocks_of(car.content)
    verifier = DagVerifier(packed.root)
    for block in blocks:
        verifier.add(block)
    assert (root, verifier.finish().size) == (packed.root, len(LARGE) + 5)


async def test_a_folder_that_links_to_anothers_private_block_is_not_taken(served: Served) -> None:
    me, other = await sign_in(served), await sign_in(served, "other")
    reply = await served.call("POST", paths.STORAGE_UPLOAD, raw=LARGE[:1_000], by=me)
    secret = Cid.parse(reply.json()["cid"])
    made = build_directory([Entry("x", secret, 1_000)])
    car = car_header(made.cid) + b"".join(
        car_section_prefix(block.cid, len(block.data)) + block.data for block in made.blocks
    )

    linked, bare = await send(served, other, car), await send(served, other, car_header(secret))
    found = await served.call("GET", paths.gateway_path(str(made.cid), "x"), by=other)

    assert (linked["status"], bare["status"], found.status_code) == (400, 400, 404)


async def test_a_block_is_read_by_its_owner_however_often_others_have_stored_it(
    served: Served, folder: Path, tmp_path: Path
) -> None:
    me, other = await sign_in(served), await sign_in(served, "other")
    for number in range(20):
        copy = tmp_path / f"copy{number}" / "it"
        copy.mkdir(parents=True)
        (copy / f"{number}").write_bytes(LARGE)
        await store(served, other, copy)
    packed = await store(served, me, folder)

    car = await served.call("GET", paths.gateway_path(str(packed.root)) + "?format=car", by=me)
    blocks = [paths.gateway_path(str(block.cid)) + "?format=raw" for block in blocks_of(car.content)[1]]

    assert {(await served.call("GET", block, by=me)).status_code for block in blocks} == {200}


async def test_a_file_in_a_folder_is_read_by_its_path(served: Served, folder: Path) -> None:
    me = await sign_in(served)
    root = (await store(served, me, folder)).root

    where = paths.gateway_path(str(root), "files/a%20b/large")
    whole = await served.call("GET", where, by=me)
    missing = await served.call("GET", paths.gateway_path(str(root), "files/other"), by=me)
    through_file = await served.call("GET", paths.gateway_path(str(root), "output.log/x"), by=me)
    as_file = await served.call("GET", paths.gateway_path(str(root), "files"), by=me)

    assert whole.content == LARGE
    assert [each.status_code for each in (missing, through_file, as_file)] == [404, 400, 400]


async def test_a_car_of_a_path_begins_with_the_folders_on_the_way(served: Served, folder: Path) -> None:
    me = await sign_in(served)
    root = (await store(served, me, folder)).root

    car = await served.call("GET", paths.gateway_path(str(root), "files/a%20b/large") + "?format=car", by=me)

    found, blocks = blocks_of(car.content)
    assert found == root
    assert blocks[0].cid == root
    assert cid_of_bytes(LARGE) == blocks[3].cid
    assert all(Cid.of_block(block.data, codec=block.cid.codec) == block.cid for block in blocks)


@pytest.mark.parametrize(("scope", "count"), [("block", 1), ("entity", 1), ("all", 8)])
async def test_a_scope_says_how_much_a_car_holds(served: Served, folder: Path, scope: str, count: int) -> None:
    me = await sign_in(served)
    root = (await store(served, me, folder)).root

    car = await served.call("GET", paths.gateway_path(str(root)) + f"?format=car&dag-scope={scope}", by=me)

    assert len(blocks_of(car.content)[1]) == count


async def test_blocks_of_a_private_folder_are_read_through_its_root_alone(served: Served, folder: Path) -> None:
    me, other = await sign_in(served), await sign_in(served, "other")
    packed = await store(served, me, folder)
    _, blocks = blocks_of(folder.with_name("sent.car").read_bytes())

    mine = {(await served.call("GET", f"/ipfs/{block.cid}?format=raw", by=me)).status_code for block in blocks}
    theirs = {(await served.call("GET", f"/ipfs/{block.cid}?format=raw", by=other)).status_code for block in blocks}
    nobody = await served.call("GET", paths.gateway_path(str(packed.root), "output.log"))
    await served.call("DELETE", paths.storage_path("pin", str(packed.root)), raw=b"", by=me)
    after = {(await served.call("GET", f"/ipfs/{block.cid}?format=raw", by=me)).status_code for block in blocks}

    assert (mine, theirs, nobody.status_code, after) == ({200}, {404}, 404, {404})


async def test_a_public_folder_is_for_anybody(served: Served, folder: Path) -> None:
    packed = await store(served, await sign_in(served), folder, "?visibility=public")

    assert (await served.call("GET", paths.gateway_path(str(packed.root), "output.log"))).content == b"done\n"


def car_of(root: Cid, *blocks: Block) -> bytes:
    return car_header(root) + b"".join(car_section_prefix(cid, len(data)) + data for cid, data in blocks)


async def test_a_folder_with_a_wrong_or_missing_block_leaves_nothing(served: Served) -> None:
    me, leaf = await sign_in(served), Block(cid_of_bytes(b"leaf"), b"leaf")
    top = build_directory([Entry("leaf", leaf.cid, 4)])

    wrong = await send(served, me, car_of(top.cid, Block(leaf.cid, b"liar"), *top.blocks))
    missing = await send(served, me, car_of(top.cid, *top.blocks))

    assert (wrong["status"], wrong["code"]) == (401, "digest_mismatch")
    assert (missing["status"], missing["code"]) == (400, "bad_document")
    assert await served.state.blobs.stat(top.cid) is None
    assert (await served.call("GET", paths.STORAGE_LIST, by=me)).json()["used_bytes"] == 0


async def test_few_blocks_that_make_many_bytes_are_refused(served: Served) -> None:
    me, room = await sign_in(served), served.state.settings.market_upload_max
    data = b"\0" * 1_000_000
    leaf = Block(Cid.of_block(data), data)
    top = build_directory(Entry(f"{number:04}", leaf.cid, len(data)) for number in range(room // len(data) + 1))

    answer = await send(served, me, car_of(top.cid, leaf, *top.blocks))

    assert (answer["status"], answer["code"]) == (413, "too_large")


async def test_names_count_where_files_are_empty(served: Served) -> None:
    me, leaf = await sign_in(served), Block(cid_of_bytes(b""), b"")
    top = build_directory(Entry(f"{number:0200}", leaf.cid, 0) for number in range(1000))

    answer = await send(served, me, car_of(top.cid, leaf, *top.blocks))

    used = (await served.call("GET", paths.STORAGE_LIST, by=me)).json()["used_bytes"]
    assert answer["size"] == used == len(top.blocks[0].data)


async def test_what_was_stored_is_listed_in_pages_until_it_is_unpinned(served: Served, folder: Path) -> None:
    me, other = await sign_in(served), await sign_in(served, "other")
    packed = await store(served, me, folder)
    file = (await served.call("POST", paths.STORAGE_UPLOAD, raw=b"one", by=me)).json()["cid"]

    first = (await served.call("GET", f"{paths.STORAGE_LIST}?limit=1", by=me)).json()
    second = (await served.call("GET", f"{paths.STORAGE_LIST}?limit=1&cursor={first['next_cursor']}", by=me)).json()
    foreign = (await served.call("GET", paths.STORAGE_LIST, by=other)).json()
    unpinned = await served.call("DELETE", paths.storage_path("pin", str(packed.root)), raw=b"", by=me)
    again = await served.call("DELETE", paths.storage_path("pin", str(packed.root)), raw=b"", by=me)
    left = (await served.call("GET", paths.STORAGE_LIST, by=me)).json()

    assert {page["blobs"][0]["cid"] for page in (first, second)} == {str(packed.root), file}
    assert second["next_cursor"] is None
    assert foreign["blobs"] == []
    assert unpinned.json() == {"cid": str(packed.root), "pinned": False}
    assert again.status_code == 404
    assert ([each["cid"] for each in left["blobs"]], left["used_bytes"]) == ([file], 3)
    stat = await served.state.blobs.stat(packed.root)
    assert stat is not None
    assert not stat.is_pinned


async def test_what_somebody_else_stored_too_stays_pinned(served: Served, folder: Path) -> None:
    me, other = await sign_in(served), await sign_in(served, "other")
    packed = await store(served, me, folder)
    folder.with_name("sent.car").unlink()
    await store(served, other, folder)

    await served.call("DELETE", paths.storage_path("pin", str(packed.root)), raw=b"", by=me)

    stat = await served.state.blobs.stat(packed.root)
    assert stat is not None
    assert stat.is_pinned
    assert (await served.call("GET", f"/ipfs/{packed.root}?format=raw", by=me)).status_code == 404
    assert (await served.call("GET", f"/ipfs/{packed.root}?format=raw", by=other)).status_code == 200
