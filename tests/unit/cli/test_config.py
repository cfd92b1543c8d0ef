from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from parity_client import Home, money
from parity_client.testing import FakeMarket
from parity_protocol.errors import ChainUnavailable
from parity_protocol.testing.keys import deterministic_ed25519

if TYPE_CHECKING:
    from .conftest import ClosableChain, Parity
else:
    ClosableChain = Parity = Any


def test_a_market_is_joined_checked_and_used(parity: Parity, home: Home, market: FakeMarket) -> None:
    done = parity("config", "use", str(market.join), "--rpc", "http://127.0.0.1:9", "--json")

    assert done.code == 0
    assert done.json["market"]["name"] == "fake market"
    config = home.load()
    assert config.current == done.json["name"] == "127.0.0.1-8080"
    assert config.market()[1].parsed() == market.join
    assert config.market()[1].rpc == "http://127.0.0.1:9"


def test_a_market_with_another_identity_is_not_joined(parity: Parity, home: Home, market: FakeMarket) -> None:
    other = deterministic_ed25519("other").public_key.thumbprint()

    done = parity("config", "use", str(replace(market.join, market=other)))

    assert done.code == 30
    assert home.load().markets == {}


def test_another_market_at_the_same_address_is_remarked_upon(parity: Parity, home: Home, market: FakeMarket) -> None:
    other = deterministic_ed25519("other").public_key.thumbprint()
    parity("config", "use", str(replace(market.join, market=other)), "--no-check")

    done = parity("config", "use", str(market.join))

    assert done.code == 0
    assert "pinned identity is replaced" in done.err
    assert home.load().market()[1].parsed() == market.join


@pytest.mark.parametrize(
    "join", ["", "http://127.0.0.1:8080", "http://market.example/#market=x", "ftp://x/#market=" + "A" * 43]
)
def test_what_is_no_join_string_is_refused(parity: Parity, home: Home, join: str) -> None:
    done = parity("config", "use", join)

    assert done.code == 20
    assert home.load().markets == {}


def test_joined_markets_are_used_by_name(parity: Parity, home: Home, market: FakeMarket) -> None:
    parity("config", "use", str(market.join), "--name", "one")
    parity("config", "use", str(market.join), "--name", "two", "--no-check")

    done = parity("config", "use", "one")

    assert done.code == 0
    assert home.load().current == "one"
    shown = parity("config", "show").out
    assert "* one" in shown
    assert "two" in shown


def test_check_looks_at_everything_and_names_what_is_wrong(
    parity: Parity, joined: FakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise ChainUnavailable("the chain is away")

    monkeypatch.setattr(money, "connect", away)
    monkeypatch.setenv("RUNNER_SLOTS", "-3")

    done = parity("config", "check", "--json")

    results = {check["name"]: check["ok"] for check in done.json["checks"]}
    assert done.code == 1
    assert done.json["ok"] is False
    assert results["config"] is results["wallet"] is results["market"] is results["market.settings"] is True
    assert results["chain"] is results["node.settings"] is False
    assert "RUNNER_SLOTS" in parity("config", "check").out


def test_a_machine_that_only_runs_a_node_lacks_no_wallet(
    parity: Parity, home: Home, joined: FakeMarket, chain: object
) -> None:
    home.wallet_file("default").rename(home.wallet_file("node-owner"))

    done = parity("config", "check", "--json")

    [wallet] = [check for check in done.json["checks"] if check["name"] == "wallet"]
    assert wallet["ok"] is True
    assert "node-owner" in wallet["result"]


def test_check_goes_no_further_than_it_can(parity: Parity) -> None:
    done = parity("config", "check", "--json")

    assert done.code == 1
    assert [check["name"] for check in done.json["checks"]] == ["config"]
