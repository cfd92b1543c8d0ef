"""The ledger of the node's own images: caps, pins, uses, crashes, and nobody else's images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from parity_node.cache import ImageCache, Uses
from parity_protocol.errors import NotFound, StorageFull, Unreachable
from parity_protocol.testing.clock import FakeClock

pytestmark = pytest.mark.anyio

MIB = 1 << 20


def image(number: int) -> str:
    return f"sha256:{number:02x}" + 31 * f"{number:02x}"


class Engine:
    """An engine with images of its own and of others."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {image(99): 7 * MIB}  # the operator's own
        self.names: dict[str, str] = {"postgres:15": image(99)}
        self.busy: set[str] = set()
        self.is_away = False

    async def images(self) -> Mapping[str, int]:
        return dict(self.sizes)

    async def find_image(self, reference: str) -> str | None:
        return self.names.get(reference)

    async def remove_image(self, image_id: str, reference: str) -> bool:
        if self.is_away:
            raise Unreachable("the engine does not answer")
        if image_id in self.busy:
            return False
        self.sizes.pop(image_id, None)
        return True

    async def pull(self, cache: ImageCache, number: int, size: int = 10 * MIB, execution_id: str = "") -> str:
        reference = f"image:{number}"
        cache.expect(reference)
        self.sizes[image(number)] = size
        self.names[reference] = image(number)
        await cache.brought(
            image(number), reference=reference, size_bytes=size, execution_id=execution_id or f"execution-{number}"
        )
        return image(number)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def uses() -> Uses:
    return Uses()


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def cache(tmp_path: Path, clock: FakeClock, uses: Uses, engine: Engine) -> ImageCache:
    made = ImageCache(tmp_path / "images.json", max_bytes=35 * MIB, clock=clock, uses=uses)
    await made.serve(engine)
    return made


async def pull_all(engine: Engine, cache: ImageCache, uses: Uses, clock: FakeClock, count: int) -> None:
    for number in range(count):
        await engine.pull(cache, number)
        uses.drop(f"execution-{number}")
        await clock.advance(timedelta(hours=1))


async def test_image_over_the_cap_makes_the_least_recently_used_go(
    cache: ImageCache, engine: Engine, uses: Uses, clock: FakeClock
) -> None:
    await pull_all(engine, cache, uses, clock, 3)
    cache.used(image(0), execution_id="again")
    uses.drop("again")

    await engine.pull(cache, 3)

    assert set(engine.sizes) == {image(0), image(2), image(3), image(99)}
    assert cache.used_bytes <= cache.max_bytes


async def test_image_of_the_operator_is_never_a_candidate(
    cache: ImageCache, engine: Engine, uses: Uses, clock: FakeClock
) -> None:
    await pull_all(engine, cache, uses, clock, 3)
    cache.used(image(99), execution_id="x")
    uses.drop("x")

    await cache.trim(0)

    assert set(engine.sizes) == {image(99)}


async def test_image_in_use_or_pinned_stays_and_the_next_one_goes(
    cache: ImageCache, engine: Engine, uses: Uses, clock: FakeClock
) -> None:
    await pull_all(engine, cache, uses, clock, 3)
    cache.used(image(0), execution_id="runs")
    cache.pin("image:1", keep=True)

    await engine.pull(cache, 3)

    assert set(engine.sizes) == {image(0), image(1), image(3), image(99)}
    assert cache.kept_bytes == 30 * MIB


async def test_image_that_does_not_fit_is_removed_again_and_takes_nothing_with_it_that_runs(
    cache: ImageCache, engine: Engine
) -> None:
    await engine.pull(cache, 1, execution_id="runs")

    with pytest.raises(StorageFull, match="RUNNER_IMAGE_CACHE_MAX_BYTES"):
        await engine.pull(cache, 2, size=30 * MIB)

    assert set(engine.sizes) == {image(1), image(99)}
    assert [row.id for row in cache.rows] == [image(1)]


async def test_node_killed_during_a_pull_knows_the_image_as_its_own_afterwards(
    cache: ImageCache, engine: Engine, tmp_path: Path, clock: FakeClock
) -> None:
    cache.expect("image:5")
    engine.sizes[image(5)], engine.names["image:5"] = 4 * MIB, image(5)

    again = ImageCache(tmp_path / "images.json", max_bytes=35 * MIB, clock=clock, uses=Uses())
    await again.serve(engine)

    assert [(row.id, row.size_bytes) for row in again.rows] == [(image(5), 4 * MIB)]


async def test_restart_keeps_pins_and_ages_and_forgets_what_others_removed(
    cache: ImageCache, engine: Engine, uses: Uses, clock: FakeClock, tmp_path: Path
) -> None:
    await pull_all(engine, cache, uses, clock, 3)
    cache.pin(image(2)[:19], keep=True)
    del engine.sizes[image(1)]

    again = ImageCache(tmp_path / "images.json", max_bytes=35 * MIB, clock=clock, uses=Uses())
    await again.serve(engine)

    assert [(row.id, row.is_pinned) for row in again.rows] == [(image(0), False), (image(2), True)]
    assert [row.used_at for row in again.rows] == [row.used_at for row in cache.rows if row.id != image(1)]


async def test_image_that_a_foreign_container_uses_stays_in_the_ledger(
    cache: ImageCache, engine: Engine, uses: Uses, clock: FakeClock
) -> None:
    await pull_all(engine, cache, uses, clock, 2)
    engine.busy.add(image(0))

    gone = await cache.trim(0)

    assert [row.id for row in gone] == [image(1)]
    assert [row.id for row in cache.rows] == [image(0)]


async def test_engine_that_does_not_answer_loses_nothing_of_the_ledger(
    cache: ImageCache, engine: Engine, uses: Uses, clock: FakeClock
) -> None:
    await pull_all(engine, cache, uses, clock, 2)
    engine.is_away = True

    assert await cache.trim(0) == []
    assert len(cache.rows) == 2


@pytest.mark.parametrize("content", [b"", b"[]", b'{"images": [{"id": 3}], "expected": {}}', b"\xff"])
async def test_ledger_that_is_broken_is_begun_anew_and_removes_nothing(
    content: bytes, tmp_path: Path, engine: Engine, clock: FakeClock
) -> None:
    (tmp_path / "images.json").write_bytes(content)

    cache = ImageCache(tmp_path / "images.json", max_bytes=0, clock=clock, uses=Uses())
    await cache.serve(engine)
    await cache.trim()

    assert cache.rows == ()
    assert set(engine.sizes) == {image(99)}
    assert json.loads((tmp_path / "images.json").read_bytes())["images"] == []


async def test_image_that_is_brought_while_the_ledger_is_compared_stays_in_it(
    cache: ImageCache, engine: Engine, uses: Uses, clock: FakeClock
) -> None:
    await pull_all(engine, cache, uses, clock, 1)
    listed = engine.images

    async def images() -> Mapping[str, int]:
        found = await listed()
        await engine.pull(cache, 1)  # by an execution, while the engine's answer is on its way
        return found

    engine.images = images  # type: ignore[method-assign]

    await cache.serve(engine)

    assert {row.id for row in cache.rows} == {image(0), image(1)}


async def test_pull_under_way_when_the_engine_comes_back_is_still_known_after_a_crash(
    cache: ImageCache, engine: Engine, clock: FakeClock, tmp_path: Path
) -> None:
    cache.expect("image:1")
    await cache.serve(engine)  # the engine was started again meanwhile

    engine.sizes[image(1)], engine.names["image:1"] = MIB, image(1)
    again = ImageCache(tmp_path / "images.json", max_bytes=35 * MIB, clock=clock, uses=Uses())
    await again.serve(engine)

    assert [row.id for row in again.rows] == [image(1)]


async def test_pin_of_an_unknown_image_is_refused(cache: ImageCache) -> None:
    with pytest.raises(NotFound):
        cache.pin("postgres:15", keep=True)


async def test_beginning_of_an_id_that_two_images_share_names_neither(cache: ImageCache, engine: Engine) -> None:
    for number, digest in enumerate(("a" * 62 + "01", "a" * 62 + "02")):
        engine.sizes[f"sha256:{digest}"] = MIB
        await cache.brought(f"sha256:{digest}", reference=f"twin:{number}", size_bytes=MIB, execution_id="x")

    with pytest.raises(NotFound, match="2 images"):
        cache.pin("a" * 12, keep=True)
    assert cache.pin("twin:1", keep=True).id.endswith("02")
