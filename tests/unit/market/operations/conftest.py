"""A bench on a real SQLite store in a temporary folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from parity_market.store import open_sqlite
from parity_market.testing import Bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = await open_sqlite(tmp_path / "market.db")
    found = Bench(store)
    await found.open("ada", "bob")
    yield found
    await store.close()
