"""The node's own image is made once, whoever asks for it at the same time."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from parity_node.executors.docker.engine import Engine, Image
from parity_node.executors.docker.own_image import own_image
from parity_protocol.errors import NotFound

pytestmark = pytest.mark.anyio

DATA = b"a tar"


class ImportingEngine(Engine):
    """Keeps one image and counts how often it came."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "docker.sock", timeout_s=1)
        self.imports = 0

    async def image(self, reference: str) -> Image:
        await anyio.lowlevel.checkpoint()
        if not self.imports:
            raise NotFound(reference)
        layer = f"sha256:{sha256(DATA).hexdigest()}"
        return Image("sha256:1", (), (), (), has_command=False, size=0, architecture="", system="", layers=(layer,))

    async def import_image(self, data: bytes, *, repository: str, tag: str) -> str:
        await anyio.lowlevel.checkpoint()
        self.imports += 1
        return "sha256:1"


async def test_two_runtimes_that_are_proven_at_once_import_it_once(tmp_path: Path) -> None:
    engine = ImportingEngine(tmp_path)

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(lambda: own_image(engine, DATA, repository="parity/empty", tag="1"))

    assert engine.imports == 1
