"""The store in Kubo: what only a real daemon can show, and what one that lies or is something else gets."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from parity_blobs.cid import Cid
from parity_blobs.files import export_path
from parity_blobs.gateway import Gateway, TrustlessGateway
from parity_blobs.importer import CHUNK_BYTES, cid_of_bytes
from parity_blobs.kubo import KuboBlobStore
from parity_blobs.kubo_rpc import KuboRpc, parse_api
from parity_blobs.memory import MemoryBlobStore
from parity_blobs.testing import deterministic_bytes, write_tree
from parity_blobs.testing_kubo import PrivateKubo, private_kubo
from parity_protocol.errors import (
    ConfigInvalid,
    DigestMismatch,
    Forbidden,
    NotFound,
    StorageFull,
    Unavailable,
    Unreachable,
)

pytestmark = pytest.mark.anyio

DATA = deterministic_bytes(400, 3 * CHUNK_BYTES + 5)
CID = cid_of_bytes(DATA)
MAX_BYTES = 1 << 24

Answers = Callable[[str], tuple[int, bytes]]


@pytest.fixture(scope="module")
def kubo(service_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateKubo]:
    with private_kubo(service_path("kubo"), tmp_path_factory.mktemp("kubo-store")) as found:
        yield found


def store_in(kubo: PrivateKubo, folder: str = "") -> KuboBlobStore:
    return KuboBlobStore(kubo.api, max_bytes=MAX_BYTES, folder=folder or f"test-{uuid.uuid4().hex}")


async def read(store: KuboBlobStore, cid: Cid = CID) -> bytes:
    return b"".join([piece async for piece in store.open(cid, max_bytes=MAX_BYTES)])


def is_local(kubo: PrivateKubo, cid: Cid) -> bool:
    try:
        kubo.run("block", "stat", "--offline", str(cid))
    except Unavailable:
        return False
    return True


@pytest.mark.service("kubo")
async def test_what_was_put_is_there_for_the_next_process(kubo: PrivateKubo) -> None:
    folder = f"test-{uuid.uuid4().hex}"
    async with store_in(kubo, folder) as first:
        before = [await first.stat(await first.put_bytes(data, pin=data == DATA)) for data in (DATA, b"small")]

    async with store_in(kubo, folder) as second:
        after = [await second.stat(cid) for cid in (CID, cid_of_bytes(b"small"))]
        part = await second.stat(Cid.of_block(DATA[:CHUNK_BYTES]))  # asks Kubo what lies below
        content = await read(second)

    assert after == before
    assert part is not None
    assert content == DATA


@pytest.mark.service("kubo")
async def test_collecting_garbage_spares_what_is_here_and_takes_what_was_deleted(kubo: PrivateKubo) -> None:
    kept, gone = deterministic_bytes(401, 2 * CHUNK_BYTES), deterministic_bytes(402, 2 * CHUNK_BYTES)
    async with store_in(kubo) as store:
        await store.put_bytes(kept)
        cid = await store.put_bytes(gone)
        await store.delete(cid)

        await asyncio.to_thread(kubo.run, "repo", "gc", "--quiet")

        assert await read(store, cid_of_bytes(kept)) == kept
        assert not await asyncio.to_thread(is_local, kubo, cid)


@pytest.mark.service("kubo")
async def test_the_operators_own_pin_survives_our_delete(kubo: PrivateKubo, tmp_path: Path) -> None:
    data = deterministic_bytes(403, CHUNK_BYTES + 1)
    (tmp_path / "file").write_bytes(data)
    cid = await asyncio.to_thread(kubo.add, tmp_path / "file", "--cid-version=1")
    async with store_in(kubo) as store:
        await store.put_bytes(data, pin=True)
        await store.pin(cid, keep=False)
        assert await store.delete(cid)

        await asyncio.to_thread(kubo.run, "repo", "gc", "--quiet")

        assert await asyncio.to_thread(kubo.run, "cat", str(cid)) == data
        assert cid in await store.rpc.pins()


@pytest.mark.service("kubo")
async def test_blocks_that_were_collected_before_the_commit_are_missed(
    kubo: PrivateKubo, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = deterministic_bytes(404, 2 * CHUNK_BYTES)
    async with store_in(kubo) as store:
        upload = store.rpc.upload

        async def then_lose_a_leaf(*args: object, **options: object) -> object:
            answer = await upload(*args, **options)  # type: ignore[arg-type]  # passed on as they came
            await store.rpc.command("block/rm", str(Cid.of_block(data[:CHUNK_BYTES])))
            return answer

        monkeypatch.setattr(store.rpc, "upload", then_lose_a_leaf)
        with pytest.raises(Unavailable, match="lost blocks"):
            await store.put_bytes(data)

        assert await store.stat(cid_of_bytes(data)) is None


@pytest.mark.service("kubo")
async def test_content_whose_check_failed_can_be_stored_again(
    kubo: PrivateKubo, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = deterministic_bytes(405, 100)
    async with store_in(kubo) as store:
        command = store.rpc.command
        failing = ["files/stat"]

        async def fail_once(verb: str, *args: object, **options: object) -> object:
            if verb in failing:
                failing.remove(verb)
                raise Unavailable("Kubo went away")
            return await command(verb, *args, **options)  # type: ignore[arg-type]  # passed on as they came

        monkeypatch.setattr(store.rpc, "command", fail_once)
        with pytest.raises(Unavailable, match="went away"):
            await store.put_bytes(data)

        assert await store.put_bytes(data) == cid_of_bytes(data)


@pytest.mark.service("kubo")
async def test_a_sharded_folder_goes_through(kubo: PrivateKubo, tmp_path: Path) -> None:
    write_tree({"wide": {"count": 1000, "name_chars": 250, "extra": 1}}, tmp_path / "wide")
    cid = await asyncio.to_thread(kubo.add, tmp_path / "wide")
    source = MemoryBlobStore()
    async with TrustlessGateway([kubo.gateway]) as gateway:
        expected = await gateway.fetch_into(cid, source)

    async with store_in(kubo) as store:
        stat = await store.put_blocks(cid, source.blocks(cid))
        await export_path(store, cid, tmp_path / "out", max_bytes=stat.size, is_durable=False)

    assert stat == expected
    assert len(list((tmp_path / "out").iterdir())) == 1000


@pytest.mark.service("kubo")
async def test_kubos_rpc_serves_as_a_source_too(kubo: PrivateKubo) -> None:
    async with store_in(kubo) as store:
        await store.put_bytes(DATA)
        small = await store.put_bytes(b"one block")
        into = MemoryBlobStore()

        async with TrustlessGateway([Gateway(kubo.api, is_kubo_rpc=True)]) as source:
            await source.fetch_into(CID, into)
            await source.fetch_into(small, into)
            with pytest.raises(NotFound):
                await source.fetch_into(cid_of_bytes(b"nobody has this"), into)

        assert await into.stat(CID) is not None
        assert await into.stat(small) is not None


@pytest.mark.service("kubo")
async def test_pins_of_kubos_own_come_and_go(kubo: PrivateKubo) -> None:
    async with store_in(kubo) as store:
        cid = await store.put_bytes(deterministic_bytes(405, 1000))
        await store.rpc.pin_add(cid)
        await store.rpc.pin_add(cid)

        assert cid in await store.rpc.pins()
        assert await store.rpc.pin_rm(cid)
        assert not await store.rpc.pin_rm(cid)
        assert cid not in await store.rpc.pins()


@pytest.mark.service("kubo")
async def test_the_version_is_kubos_own(kubo: PrivateKubo) -> None:
    async with KuboRpc(kubo.api) as rpc:
        said = await rpc.check_version()

    assert said == (await asyncio.to_thread(kubo.run, "version", "--number")).decode().strip()


# -- a server in Kubo's place ----------------------------------------------------------------------------------------


@asynccontextmanager
async def in_kubos_place(
    answers: Answers, seen: list[bytes] | None = None, *, socket: Path | None = None
) -> AsyncIterator[str]:
    """Serve an answer for each command; it knows its version unless told otherwise."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if seen is not None:
            seen.append(head)
        status, body = answers(head.split(b" ")[1].decode().removeprefix("/api/v0/"))
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(body), body))
        await writer.drain()
        writer.close()

    if socket is not None:
        server: asyncio.Server = await asyncio.start_unix_server(serve, socket)
        api = f"unix:{socket}"
    else:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        api = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield api


def a_kubo(command: str, *, version: str = "0.8.0", block: bytes = b"") -> tuple[int, bytes]:
    if command.startswith("version"):
        return 200, json.dumps({"Version": version}).encode()
    if command.startswith("files/ls") and "pinned" in command:
        return 200, json.dumps({"Entries": [{"Name": f"f.5.5.1.{cid_of_bytes(b'right')}"}, {"Name": "other"}]}).encode()
    if command.startswith("block/get"):
        return 200, block
    return 200, b""


@pytest.mark.parametrize("sent", [b"wrong", b"righ", b"right ", b"", bytes(3 << 20)], ids=len)
async def test_a_kubo_that_lies_is_not_believed(sent: bytes) -> None:
    cid = cid_of_bytes(b"right")

    async with (
        in_kubos_place(lambda command: a_kubo(command, block=sent)) as api,
        KuboBlobStore(api, max_bytes=1000) as store,
    ):
        with pytest.raises(DigestMismatch):
            await read(store, cid)


async def test_a_kubo_that_tells_the_truth_is() -> None:
    async with (
        in_kubos_place(lambda command: a_kubo(command, block=b"right")) as api,
        KuboBlobStore(api, max_bytes=1000) as store,
    ):
        assert await read(store, cid_of_bytes(b"right")) == b"right"


@pytest.mark.parametrize(
    ("version", "words"),
    [("0.7.0", "at least 0.8 is needed"), ("0.4.23", "at least 0.8"), ("", "as Kubo does"), ("nginx", "as Kubo does")],
)
async def test_an_old_kubo_is_refused_with_the_version_that_is_needed(version: str, words: str) -> None:
    async with in_kubos_place(lambda command: a_kubo(command, version=version)) as api:
        with pytest.raises(Unavailable, match=words):
            async with KuboBlobStore(api, max_bytes=1000):
                raise AssertionError("opened")


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (404, b"not here", Unavailable, "status 404"),
        (302, b"", Unavailable, "status 302"),
        (200, b"<html>", Unavailable, "as Kubo does"),
        (200, b"[" * 100_000, Unavailable, "as Kubo does"),
        (500, b"[" * 60_000, Unavailable, "version"),
        (200, b"[]", Unavailable, "as Kubo does"),
        (401, b"", Forbidden, "refuses"),
        (403, b"", Forbidden, "refuses"),
        (500, b'{"Message": "merkledag: not found"}', NotFound, "not found"),
        (500, b'{"Message": "write: no space left on device"}', StorageFull, "no space"),
        (500, b'{"Message": "on\\u001b[2Jfire"}', Unavailable, r"x1b"),
        (500, b"\xff" * 70_000, Unavailable, "version"),
    ],
    ids=str,
)
async def test_what_answers_in_kubos_place_is_said_in_our_words(
    status: int, body: bytes, error: type[Exception], words: str
) -> None:
    async with in_kubos_place(lambda _: (status, body)) as api:
        with pytest.raises(error, match=words):
            async with KuboRpc(api):
                raise AssertionError("opened")


async def test_the_authorization_is_sent_over_a_socket_too(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async with (
        in_kubos_place(a_kubo, seen, socket=tmp_path / "s") as api,
        KuboRpc(api, authorization="Bearer token") as rpc,
    ):
        await rpc.command("repo/stat")

    assert len(seen) == 2
    assert all(b"authorization: Bearer token\r\n" in head for head in seen)
    assert all(head.startswith(b"POST /api/v0/") for head in seen)


async def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    for api in (f"unix:{tmp_path}/absent", "http://127.0.0.1:9"):
        with pytest.raises(Unreachable, match="Kubo at"):
            async with KuboRpc(api):
                raise AssertionError("opened")


def test_addresses_are_the_operators_forms_and_no_other() -> None:
    assert parse_api("/ip4/127.0.0.1/tcp/5001") == ("http://127.0.0.1:5001", None)
    assert parse_api("/ip6/::1/tcp/5001") == ("http://[::1]:5001", None)
    assert parse_api("/dns/kubo.example/tcp/443/https") == ("https://kubo.example:443", None)
    assert parse_api("unix:/run/ipfs/api.sock") == parse_api("/unix/run/ipfs/api.sock")
    assert parse_api("unix:/run/ipfs/api.sock")[1] == "/run/ipfs/api.sock"
    for wrong in ("", "http://10.0.0.1:5001", "http://u:p@127.0.0.1:5001", "kubo", "/ip4/10.0.0.1/tcp/5001"):
        with pytest.raises(ConfigInvalid, match="RUNNER_IPFS_API"):
            parse_api(wrong)
    with pytest.raises(ConfigInvalid):
        KuboBlobStore("http://127.0.0.1:5001", max_bytes=1, folder="../x")
    with pytest.raises(ConfigInvalid, match="characters"):
        KuboRpc("http://127.0.0.1:5001", authorization="Bearer a\r\nHost: b")
