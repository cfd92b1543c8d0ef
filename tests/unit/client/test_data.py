from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from parity_blobs import Cid, Kind
from parity_blobs.files import cid_of_path
from parity_client import Client
from parity_client.data import StoredFile
from parity_client.testing import FakeMarket
from parity_protocol.api import paths
from parity_protocol.errors import BadField, DigestMismatch, InvalidInput, NotFound, TooLarge, Unavailable

CONTENT = bytes(range(251)) * 3_000  # three chunks


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.csv"
    path.write_bytes(CONTENT)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_data_comes_back_as_it_went_in(client: Client, market: FakeMarket, file: Path, tmp_path: Path) -> None:
    sent: list[tuple[int, int]] = []
    seen: list[tuple[int, int | None]] = []

    async with client:
        reply = await client.data.add(file, on_bytes=lambda *each: sent.append(each))
        stat = await client.data.get(reply.cid, tmp_path / "copy", progress=lambda *each: seen.append(each))
        info = await client.data.info(reply.cid)
        read = await client.data.read(reply.cid, max_bytes=len(CONTENT))

    assert (tmp_path / "copy").read_bytes() == read == CONTENT
    assert (info.size, info.visibility, stat.size) == (len(CONTENT), "private", len(CONTENT))
    assert (sent[-1], seen[-1]) == ((len(CONTENT), len(CONTENT)), (len(CONTENT), len(CONTENT)))
    assert names(tmp_path) == ["copy", "train.csv"]


async def test_public_is_only_what_was_said_to_be(client: Client, market: FakeMarket, file: Path) -> None:
    async with client:
        reply = await client.data.add(file, visibility="public")

    assert market.visibility == {reply.cid: "public"}


async def test_an_upload_that_is_asked_for_again_is_sent_again_whole(
    client: Client, market: FakeMarket, file: Path
) -> None:
    async with client:
        market.fail_next(Unavailable("gone"), after_acting=True, path=paths.STORAGE_UPLOAD)
        reply = await client.data.add(file)

    assert reply.size == len(CONTENT)
    assert market.requests.count(("POST", paths.STORAGE_UPLOAD)) == 2


async def test_a_market_that_stored_something_else_is_caught(client: Client, market: FakeMarket, file: Path) -> None:
    real = market.handle_async_request

    async def swap(request: httpx.Request) -> httpx.Response:
        answer = await real(request)
        if request.url.path != paths.STORAGE_UPLOAD:
            return answer
        return httpx.Response(200, json={"cid": str(Cid.of_block(b"other")), "size": 5, "visibility": "private"})

    market.handle_async_request = swap  # type: ignore[method-assign]

    async with client:
        with pytest.raises(DigestMismatch, match="this file is"):
            await client.data.add(file)


async def test_a_file_that_grows_while_it_is_sent_is_refused(client: Client, market: FakeMarket, file: Path) -> None:
    def grow(*_: int) -> None:
        with file.open("ab") as opened:
            opened.write(b"more")

    async with client:
        with pytest.raises(InvalidInput, match="changed"):
            await client.data.add(file, on_bytes=grow)

    assert not market.visibility


async def test_what_is_neither_file_nor_folder_is_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to("/etc/passwd")

    async with client:
        with pytest.raises(InvalidInput, match="neither a plain file nor a folder"):
            await client.data.add("/dev/null")
        with pytest.raises(InvalidInput, match="symbolic links are not followed"):
            await client.data.add(tmp_path / "folder")
        with pytest.raises(NotFound):
            await client.data.add(tmp_path / "nothing")


async def test_a_folder_comes_back_as_it_went_in(client: Client, market: FakeMarket, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "train.csv").write_bytes(CONTENT)
    (folder / "a" / ".cache").write_bytes(b"not taken")
    (folder / "output.log").write_bytes(b"printed")

    async with client:
        reply = await client.data.add(folder)
        stat = await client.data.get(reply.cid, tmp_path / "copy")
        loaded = await client.data.load(reply.cid, max_bytes=1 << 20)
        with pytest.raises(InvalidInput, match="is a folder"):
            await client.data.read(reply.cid, max_bytes=1 << 20)

    assert stat.kind is Kind.DIRECTORY
    assert (tmp_path / "copy" / "a" / "b" / "train.csv").read_bytes() == CONTENT
    assert not (tmp_path / "copy" / "a" / ".cache").exists()
    assert reply.cid == str((await cid_of_path(folder, cid_version=1)).cid)
    assert loaded.data == b"printed"
    assert loaded.files == (StoredFile("a/b/train.csv", len(CONTENT)), StoredFile("output.log", 7))


async def test_what_is_stored_is_listed_until_it_is_unpinned(
    client: Client, market: FakeMarket, tmp_path: Path
) -> None:
    for number in range(205):
        market.visibility[await market.storage.put(b"%d" % number)] = "private"

    async with client:
        before = await client.data.list()
        gone = before.blobs[0].cid
        pinned = await client.data.pin(before.blobs[1].cid)
        unpinned = await client.data.unpin(gone)
        after = await client.data.list()
        with pytest.raises(NotFound):
            await client.data.unpin(gone)

    assert len({each.cid for each in before.blobs}) == 205
    assert (pinned.pinned, unpinned.pinned) == (True, False)
    assert {each.cid for each in before.blobs} - {each.cid for each in after.blobs} == {gone}


async def test_content_that_does_not_match_leaves_nothing_behind(
    client: Client, market: FakeMarket, file: Path, tmp_path: Path
) -> None:
    async with client:
        reply = await client.data.add(file)
        real = market.handle_async_request

        async def rot(request: httpx.Request) -> httpx.Response:
            answer = await real(request)
            if not request.url.path.startswith("/ipfs/"):
                return answer
            body = bytearray(b"".join([piece async for piece in answer.stream]))  # type: ignore[union-attr]
            body[-1] ^= 1
            return httpx.Response(200, stream=httpx.ByteStream(bytes(body)), headers=answer.headers)

        market.handle_async_request = rot  # type: ignore[method-assign]
        with pytest.raises(DigestMismatch):
            await client.data.get(reply.cid, tmp_path / "copy")

    assert names(tmp_path) == ["train.csv"]


async def test_more_than_is_accepted_is_not_fetched(client: Client, file: Path, tmp_path: Path) -> None:
    async with client:
        reply = await client.data.add(file)
        with pytest.raises(TooLarge):
            await client.data.read(reply.cid, max_bytes=1_000)
        with pytest.raises(TooLarge):
            await client.data.get(reply.cid, tmp_path / "copy", max_bytes=len(CONTENT) - 1)

    assert not (tmp_path / "copy").exists()


async def test_nothing_is_overwritten(client: Client, market: FakeMarket, file: Path) -> None:
    async with client:
        reply = await client.data.add(file)
        asked = len(market.requests)
        with pytest.raises(InvalidInput, match="exists"):
            await client.data.get(reply.cid, file)

    assert len(market.requests) == asked


async def test_a_session_that_was_forgotten_is_replaced_while_fetching(
    client: Client, market: FakeMarket, file: Path
) -> None:
    async with client:
        reply = await client.data.add(file)
        market.sessions.clear()

        assert await client.data.read(reply.cid, max_bytes=len(CONTENT)) == CONTENT


async def test_what_is_not_there_and_what_is_no_cid(client: Client, tmp_path: Path) -> None:
    missing = str(Cid.of_block(b"nowhere"))

    async with client:
        with pytest.raises(NotFound):
            await client.data.get(missing, tmp_path / "copy")
        with pytest.raises(NotFound):
            await client.data.info(missing)
        with pytest.raises(BadField):
            await client.data.info("../secret")
        with pytest.raises(NotFound, match="folder"):
            await client.data.get(missing, tmp_path / "no" / "copy")
