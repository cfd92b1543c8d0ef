"""The demo's image is one that a node would load."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from parity_cli.demo import image
from parity_node.executors.docker.archive import rewrite_archive
from parity_protocol.errors import NotFound


def test_a_node_accepts_the_archive(tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(image.make_image())

    found = rewrite_archive(tmp_path / "image.tar", tmp_path / "out.tar", image=image.IMAGE, max_bytes=64 << 20)

    assert found.size < 32 << 20


def test_it_holds_the_tools_and_what_they_load() -> None:
    with tarfile.open(fileobj=io.BytesIO(image.make_image())) as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
        layer = archive.extractfile(manifest["Layers"][0])
        assert layer is not None
        with tarfile.open(fileobj=io.BytesIO(layer.read())) as files:
            names = files.getnames()
    assert {f"bin/{program}" for program in image.PROGRAMS} <= set(names)
    assert not [name for name in names if name.startswith(("/", "..")) or "/../" in name]


def test_a_machine_without_a_tool_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(NotFound, match="has no sh"):
        image.make_image()
