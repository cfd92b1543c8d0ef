"""A market whose federated mathematics runs in this process, and data that it can hold."""

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
async def rig(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path, MemoryChain(clock, DEPLOYMENT), clock, offload=inline) as found:
        await found.bench.open("n1", "n2", "n3")
        yield found
