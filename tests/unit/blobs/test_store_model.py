"""The local store does what the store in memory does, whatever happens in whatever order, restarts included."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from parity_blobs.base import BlobStore
from parity_blobs.importer import cid_of_bytes
from parity_blobs.local import LocalBlobStore
from parity_blobs.memory import MemoryBlobStore
from parity_blobs.testing import deterministic_bytes
from parity_protocol.errors import ParityError

MAX_BYTES = 100_000
CONTENTS = [deterministic_bytes(300 + number, size) for number, size in enumerate((10, 20_000, 30_000, 40_000, 60_000))]
CIDS = [cid_of_bytes(data) for data in CONTENTS]

ACTIONS = ("put", "put pinned", "pin", "unpin", "delete", "read", "restart")
steps = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, len(CONTENTS) - 1)), min_size=1, max_size=25)

did: Counter[str] = Counter()


async def act(store: BlobStore, action: str, number: int) -> str:
    """Do one thing and return what came of it, as text."""
    cid, data = CIDS[number], CONTENTS[number]
    try:
        match action:
            case "put" | "put pinned":
                return str(await store.put_bytes(data, pin=action == "put pinned"))
            case "pin" | "unpin":
                await store.pin(cid, keep=action == "pin")
                return "done"
            case "delete":
                return str(await store.delete(cid))
            case _:
                return str([piece async for piece in store.open(cid, max_bytes=MAX_BYTES)] == [data])
    except ParityError as exc:
        return exc.code


async def run(sequence: list[tuple[str, int]], folder: Path) -> None:
    model = MemoryBlobStore(max_bytes=MAX_BYTES)
    real = LocalBlobStore(folder, max_bytes=MAX_BYTES)
    await real.__aenter__()
    try:
        for action, number in sequence:
            if action == "restart":
                await real.__aexit__(None, None, None)
                real = LocalBlobStore(folder, max_bytes=MAX_BYTES)
                await real.__aenter__()
                result = expected = "done"
            else:
                expected = await act(model, action, number)
                result = await act(real, action, number)
            assert result == expected, (action, number)
            assert [await real.stat(cid) for cid in CIDS] == [await model.stat(cid) for cid in CIDS]
            did[f"{action}: {'done' if result in ('done', 'True') or len(result) > 20 else result}"] += 1
    finally:
        await real.__aexit__(None, None, None)


@pytest.mark.usefixtures("_every_outcome_is_met")
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
@example([("put pinned", 4), ("put pinned", 2), ("put", 3), ("put", 1), ("unpin", 4), ("put", 3), ("read", 4)])
@example([("put", 1), ("put", 2), ("put", 3), ("restart", 0), ("read", 1), ("put", 4), ("pin", 2), ("pin", 1)])
@example([("put pinned", 0), ("delete", 0), ("unpin", 0), ("delete", 0), ("delete", 0), ("read", 0)])
def test_local_and_memory_agree(tmp_path: Path, sequence: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        asyncio.run(run(sequence, Path(folder)))


@pytest.fixture
def _every_outcome_is_met() -> Iterator[None]:
    """Fail when the sequences never met an outcome: a model that does nothing agrees with everything."""
    did.clear()
    yield
    wanted = [f"{action}: done" for action in ACTIONS]
    wanted += ["put: storage_full", "pin: not_found", "read: not_found", "delete: conflict", "delete: False"]
    assert [each for each in wanted if not did[each]] == []
