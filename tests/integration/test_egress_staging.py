"""The copy of the interpreter that sidecars run from: made once, whole, and replaced with the interpreter."""

from __future__ import annotations

import subprocess
from pathlib import Path, PurePosixPath

import pytest

from parity_node.executors.egress.sidecar import stage_sidecar


def test_the_copy_is_made_once_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    earlier = tmp_path / "egress-python-0123456789abcdef"
    earlier.mkdir()

    first = stage_sidecar(tmp_path)
    changed_at = first.folder.stat().st_mtime_ns
    second = stage_sidecar(tmp_path)

    assert (first.folder, changed_at) == (second.folder, second.folder.stat().st_mtime_ns)
    assert [each.name for each in tmp_path.iterdir()] == [first.folder.name]


def test_the_copy_runs_the_sidecars_program(tmp_path: Path) -> None:
    staged = stage_sidecar(tmp_path)

    ended = subprocess.run(
        [
            *staged.argv(
                PurePosixPath(staged.folder),
                ["-c", "import socket, signal, time; print(open('/proc/self/cmdline').read()[:1])"],
            )
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        env={},
    )

    assert ended.stdout == "/\n"
    assert "send_fds" in (staged.folder / "sidecar.py").read_text()


@pytest.mark.parametrize("name", ["bin/python", "sidecar.py", "loader"])
def test_everybody_may_read_the_copy(tmp_path: Path, name: str) -> None:
    assert (stage_sidecar(tmp_path).folder / name).stat().st_mode & 0o004
