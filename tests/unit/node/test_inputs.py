"""Inputs of every kind: brought once, kept under the digest that was signed, and never written to by a task."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

import anyio
import pytest

from parity_blobs import cid_of_bytes
from parity_blobs.memory import MemoryBlobStore
from parity_node.inputs import TaskInputs
from parity_node.testing.inputs import StaticInputs
from parity_protocol.errors import (
    DigestMismatch,
    ExecutionFailed,
    FailureReason,
    Forbidden,
    NotFound,
    ParityError,
    PolicyDenied,
    StorageFull,
    TooLarge,
    Unreachable,
)
from parity_protocol.needs import CidInput, HttpsInput, ShardInput
from parity_protocol.testing.clock import FakeClock

SMALL, LARGE = b"a,b\n1,2\n", bytes(range(251)) * 3_000


class Web:
    """Serves content by its digest; or fails."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {hashlib.sha256(content).hexdigest(): content for content in contents}
        self.error: ParityError | None = None
        self.fetched = 0

    async def stream(self, source: HttpsInput) -> AsyncGenerator[bytes]:
        self.fetched += 1
        content = self.contents[source.sha256]
        for at in range(0, len(content), 100_000):
            yield content[at : at + 100_000]
            await anyio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error


def by_https(content: bytes, name: str = "data") -> HttpsInput:
    digest = hashlib.sha256(content).hexdigest()
    return HttpsInput(name=name, url="https://example.org/x", sha256=digest, size=len(content))


class Desk:
    def __init__(self, folder: Path, web: Web, **shards: Path) -> None:
        self.web = web
        self.store = MemoryBlobStore(max_bytes=8 << 20)
        self.by_cid = StaticInputs()
        self.known = folder / "known"
        self.folder = folder
        self.shards = shards
        self.inputs = self.fresh()

    def fresh(self) -> TaskInputs:
        """The inputs of a node that has just started."""
        return TaskInputs(
            self.by_cid, store=self._open, known=self.known, clock=FakeClock(), shards=self.shards, https=self.web
        )

    async def _open(self) -> MemoryBlobStore:
        return self.store


@pytest.mark.parametrize("content", [SMALL, LARGE, b""], ids=["one block", "many blocks", "empty"])
async def test_content_by_https_is_fetched_once_and_found_by_its_digest(tmp_path: Path, content: bytes) -> None:
    desk = Desk(tmp_path, Web(content))

    size = await desk.inputs.bring(by_https(content), tmp_path / "x")
    await desk.fresh().bring(by_https(content), tmp_path / "y")

    assert (size, desk.web.fetched) == (len(content), 1)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes() == content
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o444


async def test_a_lost_note_costs_another_download(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Web(LARGE))
    await desk.inputs.bring(by_https(LARGE), tmp_path / "x")
    (note,) = desk.known.iterdir()
    note.write_text("not a CID")

    await desk.inputs.bring(by_https(LARGE), tmp_path / "y")

    assert desk.web.fetched == 2


async def test_what_two_tasks_need_at_once_is_fetched_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Web(LARGE))

    async with anyio.create_task_group() as group:
        for name in ("x", "y", "z"):
            group.start_soon(partial(desk.inputs.bring, by_https(LARGE), tmp_path / name))

    assert desk.web.fetched == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DigestMismatch("expected sha256 a, got b"), FailureReason.DIGEST_MISMATCH),
        (PolicyDenied("a private address"), FailureReason.SPEC_INVALID),
        (TooLarge("more than it said"), FailureReason.DATA_INVALID),
        (Forbidden("expired"), FailureReason.DATA_UNAVAILABLE),
        (NotFound("gone"), FailureReason.DATA_UNAVAILABLE),
        (Unreachable("away"), FailureReason.DATA_UNAVAILABLE),
        (StorageFull("full"), FailureReason.DISK_FULL),
    ],
)
async def test_a_failed_download_says_whose_fault_it_is_and_leaves_nothing(
    tmp_path: Path, error: ParityError, reason: FailureReason
) -> None:
    desk = Desk(tmp_path, Web(LARGE))
    desk.web.error = error

    with pytest.raises(ExecutionFailed, match="input train") as caught:
        await desk.inputs.bring(by_https(LARGE, "train"), tmp_path / "x")

    assert caught.value.reason is reason
    assert error.message in caught.value.message
    assert not (tmp_path / "x").exists()
    assert not desk.known.exists()
    assert await desk.store.stat(cid_of_bytes(LARGE)) is None


async def test_content_by_cid_comes_from_the_market(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Web())
    cid = desk.by_cid.add(SMALL)

    await desk.inputs.bring(CidInput(cid=cid, max_bytes=100), tmp_path / "x")

    assert (tmp_path / "x").read_bytes() == SMALL


async def test_a_data_set_of_the_operator_is_linked_and_left_as_it_is(tmp_path: Path) -> None:
    lent = _open_folder(tmp_path)
    (lent / "1.png").write_bytes(b"1")
    (lent / "1.png").chmod(0o644)
    desk = Desk(tmp_path, Web(), mnist=lent)

    await desk.inputs.bring(ShardInput(name="data", shard="mnist"), tmp_path / "x")

    assert (tmp_path / "x").readlink() == lent.resolve()
    assert (lent / "1.png").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["other", "gone"])
async def test_a_data_set_that_is_not_here_is_the_nodes_fault_and_its_place_no_secret_told(
    tmp_path: Path, name: str
) -> None:
    desk = Desk(tmp_path, Web(), mnist=tmp_path, gone=tmp_path / "secret place")

    with pytest.raises(ExecutionFailed) as caught:
        await desk.inputs.bring(ShardInput(name="data", shard=name), tmp_path / "x")

    assert caught.value.reason is FailureReason.EXECUTOR_UNAVAILABLE
    assert "secret" not in caught.value.message


def _open_folder(tmp_path: Path) -> Path:
    """A folder that everybody can reach, whatever the umask of the one who runs the tests."""
    lent = tmp_path / "lent"
    lent.mkdir()
    for folder in (lent, *lent.parents):
        if folder.stat().st_mode & 0o005 != 0o005 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    return lent
