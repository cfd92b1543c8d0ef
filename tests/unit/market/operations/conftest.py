"""A bench on a real SQLite store in a temporary folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from parity_market.testing import Bench
from parity_market.testing.database import open_empty


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = await open_empty(tmp_path / "market.db")
    found = Bench(store)
    await found.open("ada", "bob")
    yield found
    await store.close()
