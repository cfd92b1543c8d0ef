"""Sessions that the market in memory has begun, for tests of `parity fl`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from parity_client.testing import FakeMarket, FakeSession

if TYPE_CHECKING:
    from .conftest import Done, Parity
else:
    Done = Parity = Any

__all__ = ["SPEC", "begun", "checkpoint", "close_rounds", "only"]

SPEC = {
    "model_type": "neural_network",
    "dataset_cid": "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am",
    "data_format": "csv",
    "model_config": {"hidden_size": 8},
    "train_config": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
    "partition_config": {"strategy": "random", "total_parts": 2, "min_samples": 2},
    "total_rounds": 3,
}


def only(market: FakeMarket) -> FakeSession:
    [session] = market.training.sessions.values()
    return session


def begun(parity: Parity, market: FakeMarket, spec: Path) -> FakeSession:
    """Return a session that was submitted and has its first round open."""
    assert parity("fl", "run", str(spec), "--reward", "1", "--no-wait").code == 0
    return list(market.training.sessions.values())[-1]


def close_rounds(market: FakeMarket, session: FakeSession, count: int) -> None:
    async def close() -> None:
        for _ in range(count):
            await market.training.close_round(session)

    anyio.run(close)


def checkpoint(market: FakeMarket, session: FakeSession, number: int) -> str:
    cid = anyio.run(market.storage.put, b"checkpoint %d" % number)
    session.checkpoints[number] = cid
    return cid
