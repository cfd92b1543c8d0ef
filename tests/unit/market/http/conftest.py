"""A market's whole HTTP side in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from parity_market.testing.rig import inline
from parity_market.testing.served import Served, serve_in_process
from parity_protocol.api import paths
from parity_protocol.testing.keys import deterministic_evm_key

from .old_network import DATA, Old


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """Serve a market with a minimum bond of ten tokens."""
    async with serve_in_process(tmp_path) as market:
        yield market


@pytest.fixture
async def old(tmp_path: Path) -> AsyncIterator[Old]:
    async with serve_in_process(tmp_path, offload=inline) as served:
        uploader = await served.sign_in(deterministic_evm_key("uploader"))
        stored = await served.call("POST", f"{paths.STORAGE_UPLOAD}?visibility=public", raw=DATA, by=uploader)
        yield Old(served, stored.json()["cid"])
