"""The client of training rounds, against a market that says what it likes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import cast

import anyio
import pytest

from parity_node.executors.rounds import Place
from parity_node.market.http import REPLY_TIMEOUT_S, HttpMarket
from parity_node.market.rounds import HttpRounds
from parity_protocol.api.rounds import RoundStep
from parity_protocol.errors import DigestMismatch, ParityError, Unreachable

pytestmark = pytest.mark.anyio

MODEL = b"model"


class Market:
    def __init__(self) -> None:
        self.timeout_s = 0.0
        self.asked = 0

    async def get(
        self, path: str, query: str = "", *, timeout_s: float, max_bytes: int, sink: Callable[[bytes], object]
    ) -> bytes:
        self.timeout_s = timeout_s
        self.asked += 1
        for piece in (MODEL[:2], MODEL[2:]):
            sink(piece)
        return b""


async def test_a_model_is_waited_for_no_longer_than_what_is_accepted_of_it_takes(tmp_path: Path) -> None:
    market = Market()
    step = RoundStep(state="train", round=1, phase=0, total_rounds=1, base=sha256(MODEL).hexdigest(), base_size=1 << 60)

    await HttpRounds(cast("HttpMarket", market)).model(
        Place("group", 0, "lease", 1), step, tmp_path / "model", max_bytes=1 << 20
    )

    assert market.timeout_s <= REPLY_TIMEOUT_S + 16


def small(model: str) -> RoundStep:
    digest = sha256(MODEL).hexdigest()
    return RoundStep(state="train", round=1, phase=0, total_rounds=1, base=digest, base_size=5, model=model)


async def test_a_small_model_comes_with_the_answer_and_is_not_fetched(tmp_path: Path) -> None:
    market = Market()
    rounds = HttpRounds(cast("HttpMarket", market))

    await rounds.model(
        Place("group", 0, "lease", 1), small(b64encode(MODEL).decode()), tmp_path / "model", max_bytes=1 << 20
    )

    assert ((tmp_path / "model").read_bytes(), market.asked) == (MODEL, 0)


@pytest.mark.parametrize(
    ("sent", "error"),
    [(b64encode(b"other").decode(), DigestMismatch), ("%%%%", Unreachable)],
    ids=["another model", "no Base64"],
)
async def test_a_model_in_the_answer_is_checked_as_one_that_was_fetched(
    sent: str, error: type[ParityError], tmp_path: Path
) -> None:
    rounds = HttpRounds(cast("HttpMarket", Market()))
    await anyio.Path(tmp_path / "model").write_bytes(b"before")

    with pytest.raises(error):
        await rounds.model(Place("group", 0, "lease", 1), small(sent), tmp_path / "model", max_bytes=1 << 20)

    assert [path.name async for path in anyio.Path(tmp_path).iterdir()] == ["model"]
    assert await anyio.Path(tmp_path / "model").read_bytes() == b"before"


async def test_a_fetched_model_that_is_another_does_not_take_the_place_of_the_one_before(tmp_path: Path) -> None:
    step = RoundStep(state="train", round=1, phase=0, total_rounds=1, base="0" * 64, base_size=5)
    await anyio.Path(tmp_path / "model").write_bytes(b"before")

    with pytest.raises(DigestMismatch):
        await HttpRounds(cast("HttpMarket", Market())).model(
            Place("group", 0, "lease", 1), step, tmp_path / "model", max_bytes=1 << 20
        )

    assert [path.name async for path in anyio.Path(tmp_path).iterdir()] == ["model"]
    assert await anyio.Path(tmp_path / "model").read_bytes() == b"before"


async def test_a_model_in_the_answer_that_is_longer_than_it_may_be_is_not_decoded(tmp_path: Path) -> None:
    market = Market()

    await HttpRounds(cast("HttpMarket", market)).model(
        Place("group", 0, "lease", 1), small("A" * 1_000), tmp_path / "model", max_bytes=100
    )

    assert market.asked == 1
