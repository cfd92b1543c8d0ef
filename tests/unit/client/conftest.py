from __future__ import annotations

import pytest

from parity_client import Client
from parity_client.testing import FakeMarket
from parity_protocol.signing.keys import EvmKey
from parity_protocol.testing.keys import deterministic_evm_key


@pytest.fixture
def market() -> FakeMarket:
    return FakeMarket()


@pytest.fixture
def key() -> EvmKey:
    return deterministic_evm_key("submitter")


@pytest.fixture
def client(market: FakeMarket, key: EvmKey) -> Client:
    return Client(market.join, key, clock=market.clock, transport=market, jitter=lambda: 0.5)
