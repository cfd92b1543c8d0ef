"""This machine's interpreter, somewhere else: a copy that needs nothing beside itself."""

from __future__ import annotations

import subprocess
from pathlib import Path, PurePosixPath

import pytest

from parity_node.executors.sandbox.host_python import OPTIONS, interpreter, stage_python
from parity_protocol.errors import ExecutionFailed

PROGRAM = "import ctypes, json, socket, sys; print(json.dumps([sys.prefix, *sys.path]))"


def test_a_copy_runs_by_its_own_files_alone(tmp_path: Path) -> None:
    python = stage_python(tmp_path)

    answer = subprocess.run(
        python.argv(PurePosixPath(tmp_path), ["-c", PROGRAM]),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={},
    )

    assert str(tmp_path) in answer.stdout
    assert str(interpreter().parent.parent) not in answer.stdout


def test_everybody_may_read_a_copy(tmp_path: Path) -> None:
    stage_python(tmp_path)

    assert all(path.stat().st_mode & 0o444 == 0o444 for path in tmp_path.rglob("*") if path.is_file())
    assert all(path.stat().st_mode & 0o555 == 0o555 for path in tmp_path.rglob("*") if path.is_dir())


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ExecutionFailed, match="cannot copy"):
        stage_python(tmp_path / "missing")


def test_the_interpreter_is_none_of_a_virtual_environment() -> None:
    answer = subprocess.run(
        [str(interpreter()), *OPTIONS, "-c", "import sys; print(sys.prefix == sys.base_prefix)"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert answer.stdout.strip() == "True"
