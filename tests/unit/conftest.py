"""Unit tests touch nothing: no network, not even loopback, and no disk where the system has a folder in memory.

asyncio's own socket pair is a Unix socket and stays.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import pytest
import pytest_socket
import structlog

MEMORY_FOLDER = Path("/dev/shm")
MIN_FREE_BYTES = 256 << 20


@pytest.fixture(autouse=True)
def _no_network() -> Iterator[None]:
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield
    pytest_socket.enable_socket()


@pytest.fixture(autouse=True)
def _default_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()  # a command that a test ran in this process set it up for its own streams


@pytest.fixture(scope="session")
def unit_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return where this run's files go: a folder in memory, or one of pytest's on a system without.

    Every store syncs what it writes, which is most of a market test's time on a disk and nothing in memory. What
    survives a power cut is not for unit tests.
    """
    if not _is_usable(MEMORY_FOLDER):
        yield tmp_path_factory.mktemp("unit")
        return
    with TemporaryDirectory(prefix="parity-unit-", dir=MEMORY_FOLDER) as folder:
        yield Path(folder)


@pytest.fixture
def tmp_path(unit_folder: Path) -> Iterator[Path]:
    """Return an empty folder of the test's own, gone after it."""
    folder = Path(mkdtemp(dir=unit_folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _is_usable(folder: Path) -> bool:
    """Tell whether programs may run there, as some tests want, and the largest files fit."""
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return False
    found = os.statvfs(folder)
    return not found.f_flag & os.ST_NOEXEC and found.f_bavail * found.f_frsize > MIN_FREE_BYTES
