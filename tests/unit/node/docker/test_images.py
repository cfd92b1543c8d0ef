"""Whose images a task may name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from parity_node.executors.docker.engine import Engine, Image
from parity_node.executors.docker.images import ImageLedger, Images
from parity_node.executors.folder import JobFolder
from parity_node.testing.inputs import StaticInputs
from parity_protocol.errors import ExecutionFailed, FailureReason, NotFound
from parity_protocol.task import DockerSpec
from parity_protocol.testing.clock import FakeClock

DIGEST = "sha256:" + "1" * 64
SPEC = DockerSpec(image=f"registry.example/private@{DIGEST}")


class HeldImage:
    """An engine that has the image, and a registry that shows it to nobody, or to everybody."""

    def __init__(self, *, is_public: bool) -> None:
        self.is_public = is_public
        self.asked = 0

    async def image(self, reference: str) -> Image:
        return cast("Image", type("Held", (), {"id": "sha256:" + "2" * 64, "reference": reference})())

    async def digest_of(self, reference: str) -> str:
        self.asked += 1
        if not self.is_public:
            raise NotFound(f"no {reference} for everybody")
        return DIGEST


class Ledger:
    def __init__(self, *, is_ours: bool) -> None:
        self.is_ours = is_ours

    def has(self, image_id: str) -> bool:
        return self.is_ours

    def used(self, image_id: str, *, execution_id: str) -> None:
        return


async def resolve(tmp_path: Path, engine: HeldImage, *, is_ours: bool) -> Any:
    images = Images(
        cast("Engine", engine),
        StaticInputs(),
        clock=FakeClock(),
        ledger=cast("ImageLedger", Ledger(is_ours=is_ours)),
        max_bytes=1 << 20,
        floor_bytes=0,
    )
    return await images.resolve(SPEC, JobFolder(tmp_path), execution_id="e", root=tmp_path)


async def test_a_private_image_that_the_operator_pulled_is_not_a_strangers_by_its_digest(tmp_path: Path) -> None:
    with pytest.raises(ExecutionFailed, match="for everybody") as caught:
        await resolve(tmp_path, HeldImage(is_public=False), is_ours=False)
    assert caught.value.reason is FailureReason.DATA_UNAVAILABLE


async def test_one_that_its_registry_gives_to_everybody_is(tmp_path: Path) -> None:
    engine = HeldImage(is_public=True)
    assert (await resolve(tmp_path, engine, is_ours=False)).digest == DIGEST
    assert engine.asked == 1


async def test_what_the_node_brought_itself_needs_no_registry(tmp_path: Path) -> None:
    engine = HeldImage(is_public=False)
    assert (await resolve(tmp_path, engine, is_ours=True)).digest == DIGEST
    assert engine.asked == 0
