"""A command executor with folders of its own; nothing may be left in them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from parity_node.executors.command import CommandExecutor
from parity_node.testing.inputs import StaticInputs
from parity_protocol.capability import ExecutorState
from parity_protocol.clock import SystemClock

from .commands import Runner, left_in

PROVEN: list[ExecutorState] = []
"""What the first trial run found: it makes ninety attempts, and once is enough for these tests."""


@pytest.fixture
def exec_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="parity-exec-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def inputs() -> StaticInputs:
    return StaticInputs()


@pytest.fixture
async def executor(exec_dir: Path, inputs: StaticInputs) -> CommandExecutor:
    found = CommandExecutor(exec_dir=exec_dir, inputs=inputs, clock=SystemClock(), enabled=True)
    if not PROVEN:
        PROVEN.append(await found.describe())
    if not PROVEN[0].available:
        pytest.skip(PROVEN[0].reason)
    found._trial._found = PROVEN[0]
    return found


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A folder that a slot's user can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="parity-lent-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def runner(executor: CommandExecutor, exec_dir: Path) -> AsyncIterator[Runner]:
    yield Runner(executor, exec_dir)
    assert not left_in(exec_dir), "an execution left something"
