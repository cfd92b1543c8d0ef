"""The client of training rounds, against a market that says what it likes."""

from __future__ import annotations

from hashlib import sha256
from typing import cast

import pytest

from parity_node.executors.rounds import Place
from parity_node.market.http import REPLY_TIMEOUT_S, HttpMarket
from parity_node.market.rounds import HttpRounds
from parity_protocol.api.rounds import RoundStep

pytestmark = pytest.mark.anyio

MODEL = b"model"


class Market:
    def __init__(self) -> None:
        self.timeout_s = 0.0

    async def get(self, path: str, query: str = "", *, timeout_s: float, max_bytes: int) -> bytes:
        self.timeout_s = timeout_s
        return MODEL


async def test_a_model_is_waited_for_no_longer_than_what_is_accepted_of_it_takes() -> None:
    market = Market()
    step = RoundStep(state="train", round=1, phase=0, total_rounds=1, base=sha256(MODEL).hexdigest(), base_size=1 << 60)

    await HttpRounds(cast("HttpMarket", market)).model(Place("group", 0, "lease", 1), step, max_bytes=1 << 20)

    assert market.timeout_s <= REPLY_TIMEOUT_S + 16
