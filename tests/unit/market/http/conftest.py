"""A market's whole HTTP side in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from parity_market.testing.served import Served, serve_in_process


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """Serve a market with a minimum bond of ten tokens."""
    async with serve_in_process(tmp_path) as market:
        yield market
