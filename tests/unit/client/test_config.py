from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from parity_client import Client, Config, Home, Wallet
from parity_client.config import MarketEntry, checked_name
from parity_client.testing import FakeMarket
from parity_client.wallet import passphrase_from_file
from parity_contracts import keystore
from parity_protocol.errors import BadField, ConfigInvalid, NotFound, Unauthenticated
from parity_protocol.signing.keys import EvmKey

JOIN = str(FakeMarket().join)


def test_settings_come_back_and_are_private(tmp_path: Path) -> None:
    home = Home(tmp_path / "new" / "home")
    config = Config(current="m", markets={"m": MarketEntry(join=JOIN, rpc="http://127.0.0.1:8545")})

    home.save(config)

    assert home.load() == config
    assert stat.S_IMODE(home.config_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert [path.name for path in home.path.iterdir()] == ["config.json"]


def test_without_a_file_there_are_defaults_and_no_market(tmp_path: Path) -> None:
    config = Home(tmp_path).load()

    assert config == Config()
    with pytest.raises(ConfigInvalid, match="parity config use"):
        config.market()


def test_a_market_that_was_not_joined_is_named(tmp_path: Path) -> None:
    config = Config(current="m", markets={"m": MarketEntry(join=JOIN)})

    with pytest.raises(ConfigInvalid, match=r"other.*joined: m"):
        config.market("other")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version": 2}',
        '{"colour": "red"}',
        '{"wallet": "a", "wallet": "b"}',
        json.dumps({"markets": {"m": {"join": "http://market.example/#market=x"}}}),
    ],
)
def test_settings_that_cannot_be_read_are_named_with_their_file(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    home.config_file.write_text(text)

    with pytest.raises(ConfigInvalid, match=r"config\.json"):
        home.load()


@pytest.mark.parametrize("name", ["", "../x", "A", "a b", ".hidden", "x" * 65, "a/b"])
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadField):
        checked_name(name)
    with pytest.raises(BadField):
        Home(tmp_path).wallet_file(name)


def test_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_HOME", str(tmp_path / "elsewhere"))

    assert Home().path == tmp_path / "elsewhere"


def test_a_client_from_the_settings_needs_a_market_and_a_wallet(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(ConfigInvalid):
        Client.from_config(home=tmp_path)
    home.save(Config(current="m", markets={"m": MarketEntry(join=JOIN)}))
    with pytest.raises(NotFound, match="no wallet"):
        Client.from_config(home=tmp_path)


@pytest.fixture
def stored(tmp_path: Path, key: EvmKey) -> Path:
    path = tmp_path / "wallets" / "default.json"
    keystore.create(path, key, "correct horse", scrypt_n=2**4)
    return path


def test_a_wallet_knows_its_address_without_the_passphrase(stored: Path, key: EvmKey) -> None:
    def never() -> str:
        raise AssertionError("the passphrase was asked for")

    wallet = Wallet.of_keystore(stored, never)

    assert wallet.address == key.address
    assert key.reveal_secret().hex() not in repr(wallet)


@pytest.mark.parametrize("asks_person", [True, False])
async def test_a_key_is_unlocked_once_and_a_person_is_asked_on_the_main_thread(key: EvmKey, asks_person: bool) -> None:
    threads: list[threading.Thread] = []

    def unlock() -> EvmKey:
        threads.append(threading.current_thread())
        return key

    wallet = Wallet(key.address, unlock, asks_person=asks_person)

    assert await wallet.unlocked() is await wallet.unlocked() is wallet.key() is key
    assert [thread is threading.main_thread() for thread in threads] == [asks_person]


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"address": "xyz"}', '{"address": 5}'])
def test_a_keystore_that_is_none_is_refused(stored: Path, damage: str) -> None:
    stored.write_text(damage)

    with pytest.raises(ConfigInvalid, match=r"default\.json"):
        Wallet.of_keystore(stored, str)


def test_a_passphrase_comes_from_the_named_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pass"
    file.write_text("correct horse\nnot this\n")
    monkeypatch.delenv("PARITY_PASSPHRASE_FILE", raising=False)

    assert passphrase_from_file(file) == "correct horse"
    with pytest.raises(Unauthenticated, match="locked"):
        passphrase_from_file()
    monkeypatch.setenv("PARITY_PASSPHRASE_FILE", str(file))
    assert passphrase_from_file() == "correct horse"
    monkeypatch.setenv("PARITY_PASSPHRASE_FILE", str(tmp_path / "missing"))
    with pytest.raises(ConfigInvalid, match="missing"):
        passphrase_from_file()
