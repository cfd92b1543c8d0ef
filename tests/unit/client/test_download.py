"""A model on its way from the market: whole or not at all, taken up again, and never another one than was named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from parity_client import Client, federated
from parity_client.testing import FakeMarket, FakeSession
from parity_protocol.errors import BadDocument, DigestMismatch, InvalidInput, NotFound, TooLarge
from parity_protocol.signing.keys import EvmKey

MODEL = bytes(range(256)) * 1_000


@pytest.fixture
def session(market: FakeMarket, key: EvmKey) -> FakeSession:
    made = market.training.begin("s", key.address, {}, 2)
    made.model = MODEL
    return made


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.part"))


async def test_what_was_there_before_the_connection_broke_is_not_sent_again(
    client: Client, market: FakeMarket, session: FakeSession, tmp_path: Path
) -> None:
    market.training.breaks_after = 100_000
    told: list[tuple[int, int | None]] = []

    async with client as opened:
        got = await opened.sessions.model(
            "s", tmp_path / "m", on_progress=lambda done, total: told.append((done, total))
        )

    assert (tmp_path / "m").read_bytes() == MODEL
    assert (got.size, got.is_new) == (len(MODEL), True)
    assert market.training.sent == [("", 200), ("bytes=100000-", 206)]
    assert told[-1] == (len(MODEL), len(MODEL))
    assert parts(tmp_path) == []


async def test_a_newer_model_is_fetched_from_its_beginning(
    client: Client, market: FakeMarket, session: FakeSession, tmp_path: Path
) -> None:
    (tmp_path / f".m.{'ab' * 32}.part").write_bytes(b"of a round that is over")

    async with client as opened:
        await opened.sessions.model("s", tmp_path / "m")

    assert (tmp_path / "m").read_bytes() == MODEL
    assert [status for _, status in market.training.sent] == [200]
    assert parts(tmp_path) == []


async def test_what_is_left_and_does_not_fit_is_removed_and_fetched_anew(
    client: Client, market: FakeMarket, session: FakeSession, tmp_path: Path
) -> None:
    async with client as opened:
        digest = (await opened.sessions.model("s", tmp_path / "other")).sha256
        (tmp_path / f".m.{digest}.part").write_bytes(MODEL + b"more")
        await opened.sessions.model("s", tmp_path / "m")

    assert (tmp_path / "m").read_bytes() == MODEL
    assert [status for _, status in market.training.sent] == [200, 416, 200]
    assert parts(tmp_path) == []


async def test_bytes_that_are_not_the_named_ones_never_get_the_files_name(
    client: Client, session: FakeSession, tmp_path: Path
) -> None:
    async with client as opened:
        digest = (await opened.sessions.model("s", tmp_path / "other")).sha256
        (tmp_path / f".m.{digest}.part").write_bytes(b"x" * 1_000)
        with pytest.raises(DigestMismatch):
            await opened.sessions.model("s", tmp_path / "m")

    assert not (tmp_path / "m").exists()
    assert parts(tmp_path) == []


async def test_a_model_that_is_here_is_not_sent_and_another_file_is_not_written_over(
    client: Client, market: FakeMarket, session: FakeSession, tmp_path: Path
) -> None:
    async with client as opened:
        await opened.sessions.model("s", tmp_path / "m")
        again = await opened.sessions.model("s", tmp_path / "m")
        session.model = b"another"
        with pytest.raises(InvalidInput, match="exists already"):
            await opened.sessions.model("s", tmp_path / "m")
        assert (tmp_path / "m").read_bytes() == MODEL
        await opened.sessions.model("s", tmp_path / "m", replace=True)

    assert not again.is_new
    assert (tmp_path / "m").read_bytes() == b"another"


async def test_more_than_is_allowed_is_not_fetched(
    client: Client, session: FakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federated, "MAX_MODEL_BYTES", len(MODEL) - 1)

    async with client as opened:
        with pytest.raises(TooLarge):
            await opened.sessions.model("s", tmp_path / "m")

    assert not (tmp_path / "m").exists()


async def test_a_session_that_has_ended_has_no_newest_model(
    client: Client, session: FakeSession, tmp_path: Path
) -> None:
    session.state = "completed"

    async with client as opened:
        with pytest.raises(NotFound):
            await opened.sessions.model("s", tmp_path / "m")


@pytest.mark.parametrize("headers", [{}, {"etag": '"short"'}, {"etag": 'W/"' + "ab" * 32 + '"'}])
async def test_a_market_that_does_not_name_the_bytes_is_not_believed(
    client: Client,
    market: FakeMarket,
    session: FakeSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    headers: dict[str, str],
) -> None:
    def nameless(*_: Any) -> httpx.Response:
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(MODEL))

    monkeypatch.setattr(market.training, "_model", nameless)

    async with client as opened:
        with pytest.raises(BadDocument, match="SHA-256"):
            await opened.sessions.model("s", tmp_path / "m")


async def test_a_folder_that_is_not_there_is_said(client: Client, session: FakeSession, tmp_path: Path) -> None:
    async with client as opened:
        with pytest.raises(InvalidInput, match="does not exist"):
            await opened.sessions.model("s", tmp_path / "nowhere" / "m")
        with pytest.raises(InvalidInput, match="is not a file"):
            await opened.sessions.model("s", tmp_path)


async def test_a_checkpoint_is_asked_for_by_its_round(client: Client, session: FakeSession) -> None:
    session.checkpoints = {2: "bafy2", 4: "bafy4"}

    async with client as opened:
        assert (await opened.sessions.checkpoint("s")).cid == "bafy4"
        assert (await opened.sessions.checkpoint("s", number=2)).cid == "bafy2"
        with pytest.raises(NotFound):
            await opened.sessions.checkpoint("s", number=3)
