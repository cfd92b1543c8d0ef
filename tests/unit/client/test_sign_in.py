from __future__ import annotations

import json
import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from parity_client import Client, Home, Wallet
from parity_client.testing import FakeMarket, JumpClock
from parity_protocol.api import paths
from parity_protocol.api.market import JWKS_TYPE
from parity_protocol.errors import (
    BadField,
    ClockSkew,
    Conflict,
    Expired,
    NotYetValid,
    Unauthenticated,
    Untrusted,
    WrongAudience,
)
from parity_protocol.signing import jws
from parity_protocol.signing.keys import EvmKey
from parity_protocol.testing.keys import deterministic_ed25519


def sign_ins(market: FakeMarket) -> int:
    return market.requests.count(("POST", paths.SIWE))


def test_a_join_string_with_plain_http_to_another_machine_is_refused(market: FakeMarket, key: EvmKey) -> None:
    with pytest.raises(BadField, match="https"):
        Client(f"http://market.example/#market={market.join.market}", key)


async def test_a_market_with_another_identity_than_the_pinned_one_is_not_opened(
    market: FakeMarket, key: EvmKey
) -> None:
    other = deterministic_ed25519("other").public_key.thumbprint()

    with pytest.raises(Untrusted, match="pinned"):
        async with Client(replace(market.join, market=other), key, clock=market.clock, transport=market):
            pass

    assert market.requests == [("GET", paths.JWKS)]


async def test_a_document_that_the_identity_did_not_sign_is_refused(market: FakeMarket, key: EvmKey) -> None:
    class Forger(FakeMarket):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            document = self.document(spender="0x" + "ee" * 20)
            token = jws.sign(document, self.manifest_key, JWKS_TYPE)
            return httpx.Response(200, json={"keys": document["keys"], "signed": token})

    with pytest.raises(Untrusted):
        async with Client(market.join, key, clock=market.clock, transport=Forger()):
            pass


async def test_an_expired_document_is_refused(market: FakeMarket, key: EvmKey) -> None:
    real = market.document

    def old(**changes: Any) -> dict[str, Any]:
        document = real(**changes)
        return document | {"iat": document["iat"] - 10**7, "nbf": document["nbf"] - 10**7, "exp": document["iat"] - 1}

    market.document = old  # type: ignore[method-assign]

    with pytest.raises(Expired):
        async with Client(market.join, key, clock=market.clock, transport=market):
            pass


async def test_one_sign_in_serves_many_requests(client: Client, market: FakeMarket) -> None:
    async with client:
        await client.tasks()
        await client.tasks()
        await client.account()

    assert sign_ins(market) == 1


async def test_public_things_need_no_wallet_and_the_rest_says_so(market: FakeMarket) -> None:
    async with Client(market.join, clock=market.clock, transport=market) as client:
        assert client.document.name == "fake market"
        with pytest.raises(Unauthenticated, match="wallet"):
            await client.tasks()

    assert market.requests == [("GET", paths.JWKS)]


async def test_nothing_is_signed_for_another_market_than_the_pinned_one(client: Client, market: FakeMarket) -> None:
    market.nonce_domain = "other.example"

    async with client:
        with pytest.raises(WrongAudience, match=r"other\.example"):
            await client.tasks()

    assert sign_ins(market) == 0


async def test_a_session_that_the_market_forgot_is_replaced_once(client: Client, market: FakeMarket) -> None:
    async with client:
        await client.tasks()
        market.sessions.clear()

        await client.tasks()

    assert sign_ins(market) == 2


async def test_a_market_that_forgets_every_session_is_not_asked_for_ever(client: Client, market: FakeMarket) -> None:
    async with client:
        market.fail_next(Unauthenticated("no"), times=10, path=paths.TASKS)
        with pytest.raises(Unauthenticated):
            await client.tasks()

    assert sign_ins(market) == 2


async def test_a_session_is_renewed_before_it_ends(client: Client, market: FakeMarket) -> None:
    async with client:
        await client.tasks()
        market.clock.advance(3_550)

        await client.tasks()

    assert sign_ins(market) == 2


async def test_a_kept_session_spares_the_next_program_the_passphrase(
    market: FakeMarket, key: EvmKey, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    async with Client(market.join, key, home=home, clock=market.clock, transport=market) as client:
        await client.tasks()

    def locked() -> EvmKey:
        raise AssertionError("the wallet was unlocked")

    wallet = Wallet(key.address, locked)
    async with Client(market.join, wallet, home=home, clock=market.clock, transport=market) as client:
        await client.tasks()

    assert sign_ins(market) == 1
    [file] = (home.path / "sessions").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key.reveal_secret().hex() not in file.read_text()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"account": "0x1"}', "readable by others"])
async def test_a_kept_session_that_cannot_be_used_is_replaced(
    market: FakeMarket, key: EvmKey, tmp_path: Path, damage: str
) -> None:
    home = Home(tmp_path / "home")
    async with Client(market.join, key, home=home, clock=market.clock, transport=market) as client:
        await client.tasks()
    [file] = (home.path / "sessions").iterdir()
    if damage == "readable by others":
        file.chmod(0o644)
    else:
        file.write_text(damage)

    async with Client(market.join, key, home=home, clock=market.clock, transport=market) as client:
        await client.tasks()

    assert sign_ins(market) == 2
    assert json.loads(file.read_text())["id"] == "session-2"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_a_session_of_another_account_is_not_used(market: FakeMarket, key: EvmKey, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    other = EvmKey(bytes([7]) * 32)
    for each in (key, other):
        async with Client(market.join, each, home=home, clock=market.clock, transport=market) as client:
            await client.tasks()

    assert {account for account, _, _ in market.sessions.values()} == {key.address, other.address}


@pytest.mark.parametrize(("offset_s", "told"), [(-600, r"600 s apart"), (600, r"600 s ahead")])
async def test_a_clock_that_is_off_is_told_so_in_words(
    market: FakeMarket, key: EvmKey, offset_s: float, told: str
) -> None:
    wrong = JumpClock(market.clock.now() + timedelta(seconds=offset_s))

    async with Client(market.join, key, clock=wrong, transport=market) as client:
        with pytest.raises((ClockSkew, NotYetValid), match=told) as caught:
            await client.tasks()

    assert "clock" in caught.value.hint()


async def test_a_client_that_is_not_open_says_so(client: Client) -> None:
    with pytest.raises(Conflict, match="async with"):
        await client.tasks()
