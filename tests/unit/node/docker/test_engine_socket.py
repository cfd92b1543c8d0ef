"""An engine's socket that is not there, or lies where this user may not look, is no engine and no foreign exception."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_node.executors.docker.engine import Engine
from parity_protocol.errors import Unreachable


async def test_a_socket_that_is_not_there_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="there is no"):
        await Engine(tmp_path / "docker.sock", timeout_s=1.0).facts()


async def test_a_file_in_place_of_a_folder_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "run").touch()

    with pytest.raises(Unreachable, match="there is no"):
        await Engine(tmp_path / "run" / "docker.sock", timeout_s=1.0).facts()


async def test_a_socket_in_a_closed_folder_may_not_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "docker.sock"
    see = Path.stat

    def stat(self: Path, **options: bool) -> object:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return see(self, **options)

    monkeypatch.setattr(Path, "stat", stat)

    with pytest.raises(Unreachable, match="may not be used by this user"):
        await Engine(path, timeout_s=1.0).facts()
