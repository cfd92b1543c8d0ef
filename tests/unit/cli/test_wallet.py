from __future__ import annotations

import io
import signal
import stat
from typing import TYPE_CHECKING, Any

import click.termui
import pytest

from parity_cli.app import run as run_cli
from parity_client import Home, Wallet
from parity_client.testing import FakeMarket, JumpClock
from parity_contracts import keystore
from parity_contracts.chain.calls import Faucet
from parity_contracts.chain.sending import send
from parity_protocol.signing.keys import EvmKey

if TYPE_CHECKING:
    from .conftest import ClosableChain, Parity
else:
    ClosableChain = Parity = Any

TOKEN = 10**18
PASSPHRASE = "correct horse battery staple"


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


async def fund(chain: ClosableChain, key: EvmKey, tokens: int) -> None:
    await send(chain, [Faucet(key.address, tokens * TOKEN)], key, clock=JumpClock())


@pytest.fixture
def rich(joined: FakeMarket, chain: ClosableChain, key: EvmKey) -> ClosableChain:
    """A chain on which the wallet has 10 tokens."""
    import anyio

    anyio.run(fund, chain, key, 10)
    return chain


def test_a_new_wallet_is_encrypted_private_and_in_use(parity: Parity, home: Home) -> None:
    done = parity("wallet", "create", "--name", "work", "--json")

    path = home.wallet_file("work")
    assert done.code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keystore.load(path, PASSPHRASE).address == done.json["address"]
    assert home.load().wallet == "work"


def test_a_new_wallet_is_told_what_comes_before_its_first_task(parity: Parity, home: Home, market: FakeMarket) -> None:
    alone = parity("wallet", "create")
    parity("config", "use", str(market.join))
    joined = parity("wallet", "create", "--name", "second")

    assert alone.out.splitlines()[-1].startswith("next: parity config use")
    assert [line.partition(": ")[2] for line in joined.out.splitlines()[-2:]] == [
        "parity wallet faucet --wallet second",
        "parity wallet deposit --amount 10 --wallet second, then parity wallet allow --amount 10 --wallet second",
    ]


def test_a_second_wallet_does_not_push_the_first_aside(parity: Parity, home: Home) -> None:
    parity("wallet", "create")

    parity("wallet", "create", "--name", "second")

    assert home.load().wallet == "default"
    assert home.wallets() == ["default", "second"]


def test_a_keystore_is_never_overwritten(parity: Parity, home: Home) -> None:
    parity("wallet", "create")
    before = home.wallet_file("default").read_bytes()

    done = parity("wallet", "create")

    assert done.code == 40
    assert home.wallet_file("default").read_bytes() == before


@pytest.mark.parametrize("way", ["file", "stdin", "argument", "prompt"])
def test_a_key_may_come_from_anywhere_and_is_never_printed(
    parity: Parity, home: Home, key: EvmKey, way: str, tmp_path: Any
) -> None:
    secret = key.reveal_secret().hex()
    file = tmp_path / "key"
    file.write_text(f"0x{secret}\n")
    calls: dict[str, Any] = {
        "file": lambda: parity("wallet", "create", "--key-file", str(file)),
        "stdin": lambda: parity("wallet", "create", "--key-file", "-", stdin=secret + "\n"),
        "argument": lambda: parity("wallet", "create", "--private-key", secret),
        "prompt": lambda: parity("node", "auth", types=[secret]),
    }

    done = calls[way]()

    name = "node-owner" if way == "prompt" else "default"
    assert done.code == 0
    assert Wallet.of_keystore(home.wallet_file(name), str).address == key.address
    assert secret not in done.out + done.err
    assert ("visible to every user" in done.err) == (way == "argument")


def test_two_ways_at_once_are_refused(parity: Parity, home: Home) -> None:
    done = parity("wallet", "create", "--generate", "--key-file", "-", stdin="00")

    assert done.code == 2
    assert "exclude each other" in done.err
    assert home.wallets() == []


def test_a_key_that_is_none_is_refused_without_repeating_it(parity: Parity, home: Home) -> None:
    done = parity("wallet", "create", "--private-key", "deadbeef-not-a-key")

    assert done.code == 20
    assert "deadbeef" not in done.out + done.err
    assert home.wallets() == []


def test_a_passphrase_is_asked_twice_and_must_be_long(
    parity: Parity, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PARITY_PASSPHRASE_FILE")

    done = parity("wallet", "create", types=["short", "short", "long enough", "other", "long enough", "long enough"])

    assert done.code == 0
    assert "at least 8 characters" in done.err
    assert keystore.load(home.wallet_file("default"), "long enough").address


def test_without_a_person_or_a_file_there_is_no_passphrase(
    parity: Parity, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PARITY_PASSPHRASE_FILE")

    done = parity("wallet", "create")

    assert done.code == 32
    assert "PARITY_PASSPHRASE_FILE" in done.err
    assert home.wallets() == []


async def credit(chain: ClosableChain, key: EvmKey) -> int:
    return (await chain.account(key.address)).credit


def run(function: Any, *args: Any) -> Any:
    import anyio

    return anyio.run(function, *args)


def test_a_dry_run_shows_everything_and_sends_nothing(parity: Parity, rich: ClosableChain, key: EvmKey) -> None:
    done = parity("wallet", "deposit", "--amount", "2.5", "--dry-run", "--json")

    assert done.code == 0
    assert done.json["dry_run"] is True
    assert [call["name"] for call in done.json["calls"]] == ["Approve", "AddFunds"]
    assert done.json["calls"][1]["amount"] == "2500000000000000000"
    assert done.json["before"]["tokens"] == str(10 * TOKEN)
    assert int(done.json["max_fee_wei"]) > 0
    assert done.json["transactions"] == []
    for word in ("2.5 PDEV (2500000000000000000 base units)", "gas ≤", "ether", "vault may pull", "nothing was sent"):
        assert word in done.err
    assert run(credit, rich, key) == 0


def test_a_deposit_is_sent_after_consent(parity: Parity, rich: ClosableChain, key: EvmKey) -> None:
    refused = parity("wallet", "deposit", "--amount", "2.5", types=["n"])
    assert refused.code == 130
    assert run(credit, rich, key) == 0

    agreed = parity("wallet", "deposit", "--amount", "2.5", types=["y"])
    assert agreed.code == 0
    assert run(credit, rich, key) == 25 * 10**17
    assert "next: parity wallet allow" in agreed.out


def test_without_a_person_consent_must_be_given_beforehand(parity: Parity, rich: ClosableChain, key: EvmKey) -> None:
    done = parity("wallet", "deposit", "--amount", "1")

    assert done.code == 2
    assert "--yes" in done.err
    assert run(credit, rich, key) == 0


@pytest.mark.parametrize("amount", ["0", "-1", "1e3", "0.0000000000000000001", "abc", "", "1,5", "99999999999999"])
def test_an_amount_that_is_not_exact_moves_nothing(
    parity: Parity, rich: ClosableChain, key: EvmKey, amount: str
) -> None:
    done = parity("wallet", "deposit", "--amount", amount, "--yes")

    assert done.code in (2, 20)
    assert run(credit, rich, key) == 0


def test_more_than_there_is_is_refused_in_words(parity: Parity, rich: ClosableChain, key: EvmKey) -> None:
    done = parity("wallet", "deposit", "--amount", "11", "--yes")

    assert done.code == 50
    assert "needs 11 PDEV" in done.err
    assert "has 10" in done.err
    assert "faucet" in done.err


def test_credit_becomes_escrow_and_comes_back(parity: Parity, rich: ClosableChain, key: EvmKey) -> None:
    async def escrow() -> tuple[int, int]:
        found = await rich.escrow(key.address, FakeMarket().document()["spender"])
        return found.amount, found.releasing

    too_early = parity("wallet", "allow", "--amount", "1", "--yes")
    parity("wallet", "deposit", "--amount", "3", "--yes")
    parity("wallet", "allow", "--amount", "2", "--yes")
    allowed = run(escrow)
    parity("wallet", "release", "--amount", "1.5", "--yes")
    releasing = run(escrow)
    locked = parity("wallet", "release", "--finish", "--yes")
    too_much = parity("wallet", "withdraw", "--amount", "1.5", "--yes")
    parity("wallet", "release", "--cancel", "--yes")

    assert too_early.code == 50
    assert "Deposit first" in too_early.err
    assert allowed == (2 * TOKEN, 0)
    assert releasing == (2 * TOKEN, 15 * 10**17)
    assert locked.code == 40
    assert "time is not over: it is ready from" in locked.err
    assert too_much.code == 50
    assert "1 PDEV (1000000000000000000 base units) can be paid out now" in too_much.err
    assert run(escrow) == (2 * TOKEN, 0)
    assert parity("wallet", "withdraw", "--amount", "1", "--yes").code == 0
    assert parity("wallet", "release", "--finish", "--cancel", "--yes").code == 2


def test_a_wrong_passphrase_sends_nothing(parity: Parity, rich: ClosableChain, key: EvmKey, tmp_path: Any) -> None:
    (tmp_path / "wrong").write_text("wrong passphrase\n")

    done = parity("wallet", "deposit", "--amount", "1", "--yes", "--passphrase-file", str(tmp_path / "wrong"))

    assert done.code == 32
    assert run(credit, rich, key) == 0


def test_a_mistyped_passphrase_is_asked_again_three_times_in_all(
    parity: Parity, rich: ClosableChain, key: EvmKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PARITY_PASSPHRASE_FILE")
    deposit = ("wallet", "deposit", "--amount", "1", "--yes")

    given_up = parity(*deposit, types=["wrong-1", "wrong-2", "wrong-3", PASSPHRASE])
    before = run(credit, rich, key)
    done = parity(*deposit, types=["wrong-1", "wrong-2", PASSPHRASE])

    assert (given_up.code, before) == (32, 0)
    assert given_up.err.count("the passphrase is wrong") == 3
    assert done.code == 0
    assert run(credit, rich, key) == TOKEN


@pytest.mark.parametrize("question", ["visible_prompt_func", "hidden_prompt_func"])
def test_one_ctrl_c_ends_a_question_inside_the_event_loop(
    parity: Parity, rich: ClosableChain, key: EvmKey, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    monkeypatch.delenv("PARITY_PASSPHRASE_FILE")

    def interrupted(_: str = "") -> str:
        signal.raise_signal(signal.SIGINT)
        return "y"

    def typed(*arguments: str) -> Any:
        monkeypatch.setattr("sys.stdin", Keyboard())
        for name in ("visible_prompt_func", "hidden_prompt_func"):
            monkeypatch.setattr(click.termui, name, interrupted if name == question else lambda _="": "y")
        return run_cli(arguments)

    assert typed("wallet", "deposit", "--amount", "1") == 130
    assert run(credit, rich, key) == 0


def test_show_has_chain_and_market(parity: Parity, rich: ClosableChain, key: EvmKey) -> None:
    document = parity("wallet", "show", "--json").json
    screen = parity("wallet", "show").out

    assert document["chain"]["tokens"] == str(10 * TOKEN)
    assert document["account"]["available"] == "0"
    assert "10 PDEV" in screen


def test_show_goes_on_without_chain_or_market(
    parity: Parity, joined: FakeMarket, monkeypatch: pytest.MonkeyPatch
) -> None:
    from parity_client import money
    from parity_protocol.errors import ChainUnavailable, Internal

    async def away(*_: object) -> None:
        raise ChainUnavailable("the chain is away")

    monkeypatch.setattr(money, "connect", away)
    joined.fail_next(Internal("broken"), path="/api/v1/accounts")

    done = parity("wallet", "show", "--json")

    assert done.code == 0
    assert done.json["chain"] == {"error": "the chain is away"}
    assert done.json["account"] == {"error": "broken"}
    assert parity("wallet", "show", "--market", "nope").code == 10


def test_an_address_with_a_mistyped_letter_is_refused(parity: Parity, joined: FakeMarket) -> None:
    done = parity("wallet", "faucet", "--to", "0x02F0a8B25B1AA88C06392bed4b0f8F43Ce2F95d7")

    assert done.code == 20
    assert "checksum" in done.err
