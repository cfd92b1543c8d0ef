"""A market of real processes for all tests of this folder; nodes are started and ended by each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from parity_cli.testing.town import Town


@pytest.fixture(scope="session")
async def whole_town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    folder.chmod(0o711)
    async with Town.open(folder, nodes=3) as town:
        yield town


@pytest.fixture
async def town(whole_town: Town) -> AsyncIterator[Town]:
    """Return the town; no node runs and no task is open before a test, nor after it."""
    yield whole_town
    running = [node.process for node in whole_town.nodes if node.process is not None]
    whole_town.stack.processes.stop(running, within_s=2.0)
    await whole_town.revive()
    await whole_town.cancel_open()
