"""The cap on images against a real engine: ours go, least recently used first; nobody else's, and none that is in use."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from parity_node.cache import ImageCache, Uses
from parity_node.executors.docker.engine import Engine
from parity_node.testing.dockerd import PrivateDockerd
from parity_protocol.clock import SystemClock
from parity_protocol.errors import StorageFull

pytestmark = [pytest.mark.root, pytest.mark.service("docker", "busybox"), pytest.mark.anyio]

MIB = 1 << 20


def layer(size: int, seed: str) -> bytes:
    """Return a file system with one file that no other has."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo(f"data-{seed}")
        info.size = size
        tar.addfile(info, io.BytesIO(seed.encode().ljust(size, b"\0")))
    return packed.getvalue()


@pytest.fixture
async def api(engine: PrivateDockerd) -> AsyncIterator[Engine]:
    found = Engine(engine.socket, timeout_s=20.0)
    yield found
    await found.close()


async def bring(cache: ImageCache, engine: PrivateDockerd, name: str, execution_id: str, size: int = 2 * MIB) -> str:
    reference = f"parity/cap-{name}:1"
    cache.expect(reference)
    image_id = engine.import_tar(reference, layer(size, name))
    await cache.brought(image_id, reference=reference, size_bytes=size, execution_id=execution_id)
    return image_id


async def test_cap_removes_our_oldest_and_spares_the_operators_and_what_runs(
    engine: PrivateDockerd, api: Engine, tmp_path: Path
) -> None:
    foreign = engine.import_tar("parity-test/foreign:1", layer(3 * MIB, "foreign"))
    uses = Uses()
    cache = ImageCache(tmp_path / "images.json", max_bytes=5 * MIB, clock=SystemClock(), uses=uses)
    await cache.serve(api)

    first = await bring(cache, engine, "first", "runs")
    second = await bring(cache, engine, "second", "ended")
    uses.drop("ended")
    third = await bring(cache, engine, "third", "next")

    there = await api.images()
    assert {first, third, foreign} <= set(there)
    assert second not in there
    assert [row.id for row in cache.rows] == [first, third]
    with pytest.raises(StorageFull, match="RUNNER_IMAGE_CACHE_MAX_BYTES"):
        await bring(cache, engine, "fourth", "last")
    assert await api.find_image("parity/cap-fourth:1") is None
    uses.drop("runs")
    uses.drop("next")
    assert {row.id for row in await cache.trim(0)} == {first, third}
    assert foreign in await api.images()


async def test_image_of_a_container_stays_and_goes_when_the_container_has(
    engine: PrivateDockerd, api: Engine, tmp_path: Path
) -> None:
    uses = Uses()
    cache = ImageCache(tmp_path / "images.json", max_bytes=100 * MIB, clock=SystemClock(), uses=uses)
    await cache.serve(api)
    image_id = await bring(cache, engine, "held", "x")
    uses.drop("x")
    body = json.dumps({"Image": image_id, "Cmd": ["/none"]}).encode()
    _, answer = engine.call("POST", "/containers/create", body, {"Content-Type": "application/json"})
    container = json.loads(answer)["Id"]

    assert await cache.trim(0) == []
    assert [row.id for row in cache.rows] == [image_id]

    engine.call("DELETE", f"/containers/{container}?force=1")
    assert [row.id for row in await cache.trim(0)] == [image_id]
    assert image_id not in await api.images()


async def test_node_killed_after_a_pull_takes_the_image_for_its_own_at_the_next_start(
    engine: PrivateDockerd, api: Engine, tmp_path: Path
) -> None:
    cache = ImageCache(tmp_path / "images.json", max_bytes=100 * MIB, clock=SystemClock(), uses=Uses())
    await cache.serve(api)
    cache.expect("parity/cap-killed:1")
    image_id = engine.import_tar("parity/cap-killed:1", layer(MIB, "killed"))

    again = ImageCache(tmp_path / "images.json", max_bytes=100 * MIB, clock=SystemClock(), uses=Uses())
    await again.serve(api)

    assert [(row.id, row.size_bytes >= MIB) for row in again.rows] == [(image_id, True)]
    assert [row.id for row in await again.trim(0)] == [image_id]
