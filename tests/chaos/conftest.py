"""A market of real processes for the tests that kill its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from parity_cli.testing.town import Town


@pytest.fixture(scope="session")
async def whole_town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    folder.chmod(0o711)
    async with Town.open(folder, nodes=1) as town:
        yield town


@pytest.fixture
async def town(whole_town: Town) -> AsyncIterator[Town]:
    """Return the town; no node runs and no task is open before a test, nor after it."""
    yield whole_town
    whole_town.stop(*whole_town.nodes, within_s=2.0)
    await whole_town.cancel_open()
