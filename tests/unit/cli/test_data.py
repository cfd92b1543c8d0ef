from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from parity_blobs import Cid
from parity_blobs.memory import MemoryBlobStore
from parity_client.testing import FakeMarket

if TYPE_CHECKING:
    from .conftest import Parity
else:
    Parity = Any

HELLO_V0 = "QmZULkCELmmk5XNfCgTnCyFgAVxBRBXyDHGGMVoLFLiXEN"  # echo hello | ipfs add
HELLO_V1 = "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "hello.txt"
    path.write_text("hello\n")
    return path


def test_cid_computes_what_ipfs_add_prints_and_sends_nothing(parity: Parity, file: Path) -> None:
    assert parity("data", "cid", str(file)).out.strip() == HELLO_V1
    assert parity("data", "cid", "--cid-version", "0", str(file)).out.strip() == HELLO_V0
    assert parity("data", "cid", "--cid-version", "0", "--raw-leaves", str(file)).out.strip() == HELLO_V1
    assert parity("data", "cid", str(file), "--json").json["size"] == 6
    assert parity("data", "cid", str(file.parent / "missing")).code == 22


def test_a_file_goes_in_and_comes_out(parity: Parity, joined: FakeMarket, file: Path, tmp_path: Path) -> None:
    added = parity("data", "add", "--public", str(file))
    info = parity("data", "info", HELLO_V1, "--json")
    got = parity("data", "get", HELLO_V1, "-o", str(tmp_path / "copy"), "--json")
    again = parity("data", "get", HELLO_V1, "-o", str(tmp_path / "copy"))

    assert added.out == HELLO_V1 + "\n"
    assert info.json["visibility"] == "public"
    assert got.json == {"cid": HELLO_V1, "path": str(tmp_path / "copy"), "kind": "file", "size": 6}
    assert (tmp_path / "copy").read_text() == "hello\n"
    assert again.code == 20


def test_what_is_too_large_or_missing_is_refused(
    parity: Parity, joined: FakeMarket, file: Path, tmp_path: Path
) -> None:
    parity("data", "add", str(file))

    assert parity("data", "get", HELLO_V1, "-o", str(tmp_path / "copy"), "--max-size", "5").code == 21
    assert parity("data", "get", HELLO_V0, "-o", str(tmp_path / "copy")).code == 22
    assert parity("data", "get", "nonsense").code == 23
    assert parity("data", "add", "/dev/null").code == 20
    assert not (tmp_path / "copy").exists()


def test_a_folder_goes_in_and_comes_out(parity: Parity, joined: FakeMarket, tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "1.png").write_bytes(b"\x89PNG")

    added = parity("data", "add", str(tmp_path / "images"), "--json")
    got = parity("data", "get", added.json["cid"], "-o", str(tmp_path / "copy"), "--json")

    assert added.json["cid"] == parity("data", "cid", str(tmp_path / "images")).out.strip()
    assert got.json["kind"] == "directory"
    assert (tmp_path / "copy" / "a" / "1.png").read_bytes() == b"\x89PNG"


def test_progress_in_a_log_is_lines_and_off_unless_asked_for(
    parity: Parity, joined: FakeMarket, file: Path, tmp_path: Path
) -> None:
    parity("data", "add", str(file))

    quiet = parity("data", "get", HELLO_V1, "-o", str(tmp_path / "quiet"))
    told = parity("data", "get", HELLO_V1, "-o", str(tmp_path / "told"), "--progress", "--json")

    assert quiet.err == ""
    assert f"fetching {HELLO_V1}: 6 B of 6 B" in told.err
    assert told.json["size"] == 6


def test_what_is_stored_is_listed_pinned_and_given_back(parity: Parity, joined: FakeMarket, file: Path) -> None:
    parity("data", "add", str(file))

    pinned = parity("data", "pin", HELLO_V1, "--json")
    listed = parity("data", "ls")
    unpinned = parity("data", "unpin", HELLO_V1, "--json")
    empty = parity("data", "ls", "--json")
    again = parity("data", "unpin", HELLO_V1)

    assert pinned.json == {"cid": HELLO_V1, "pinned": True, "where": "market"}
    assert listed.out.splitlines()[0].split() == [HELLO_V1, "6", "B", "private,", "pinned"]
    assert unpinned.json == {"cid": HELLO_V1, "pinned": False, "where": "market"}
    assert empty.json == {"blobs": [], "used_bytes": 0, "quota_bytes": 1 << 30}
    assert again.code == 22


def test_content_is_copied_to_ones_own_kubo_and_given_back_there(
    parity: Parity, joined: FakeMarket, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = MemoryBlobStore()

    @asynccontextmanager
    async def kubo(_: str) -> AsyncIterator[MemoryBlobStore]:
        yield own

    monkeypatch.setattr("parity_cli.commands.data._kubo", kubo)
    parity("data", "add", str(file))

    pinned = parity("data", "pin", HELLO_V1, "--kubo", "/ip4/127.0.0.1/tcp/5001", "--json")
    stat = anyio.run(own.stat, Cid.parse(HELLO_V1))
    unpinned = parity("data", "unpin", HELLO_V1, "--kubo", "/ip4/127.0.0.1/tcp/5001", "--json")
    after = anyio.run(own.stat, Cid.parse(HELLO_V1))

    assert pinned.json == {"cid": HELLO_V1, "pinned": True, "where": "/ip4/127.0.0.1/tcp/5001"}
    assert stat is not None
    assert stat.is_pinned
    assert unpinned.json["pinned"] is False
    assert after is not None
    assert not after.is_pinned
    assert joined.visibility == {HELLO_V1: "private"}


def test_an_address_that_is_no_kubo_is_refused(parity: Parity, joined: FakeMarket, file: Path) -> None:
    parity("data", "add", str(file))

    assert parity("data", "pin", HELLO_V1, "--kubo", "nonsense").code != 0
