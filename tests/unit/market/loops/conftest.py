"""A market on a chain in memory, with a clock that only the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from parity_contracts.chain.memory import MemoryChain
from parity_market.testing.rig import DEPLOYMENT, Rig, inline, open_rig
from parity_protocol.testing.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def chain(clock: FakeClock) -> MemoryChain:
    return MemoryChain(clock, DEPLOYMENT)


@pytest.fixture
async def rig(tmp_path: Path, chain: MemoryChain, clock: FakeClock) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path, chain, clock, offload=inline) as found:
        yield found
