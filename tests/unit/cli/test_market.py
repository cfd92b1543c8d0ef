from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from parity_cli.commands import market as commands
from parity_cli.market_place import market_settings, write_settings
from parity_client import Home
from parity_protocol.errors import BadField, ConfigInvalid

if TYPE_CHECKING:
    from .conftest import Parity
else:
    Parity = Any


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://market.example:8443", "0.0.0.0", 8443),
        ("https://market.example", "0.0.0.0", 443),
        ("http://127.0.0.1:9000", "127.0.0.1", 9000),
        ("http://localhost", "127.0.0.1", 80),
    ],
)
def test_where_to_listen_follows_from_the_public_url(url: str, host: str, port: int) -> None:
    found = commands._overrides({"public_url": url, "host": None, "port": None})

    assert (found["server_host"], found["server_port"]) == (host, port)


def test_what_is_said_wins_over_what_follows() -> None:
    found = commands._overrides({"public_url": "https://market.example", "host": "127.0.0.1", "port": 8080})

    assert (found["server_host"], found["server_port"]) == ("127.0.0.1", 8080)


@pytest.mark.parametrize(
    "value", ["plain", "with 'quotes' and \"more\"", "# not a comment", "a\\b", "$HOME $(x)", "ü é"]
)
def test_a_written_setting_is_read_as_it_was(home: Home, value: str) -> None:
    write_settings(home, home.path / "market.env", {"MARKET_NAME": value, "SERVER_PORT": "8081"}, title="t")

    settings = market_settings()

    assert settings.market_name == value
    assert settings.server_port == 8081
    assert stat.S_IMODE((home.path / "market.env").stat().st_mode) == 0o600


def test_what_somebody_added_to_a_settings_file_stays(home: Home) -> None:
    file = home.path / "market.env"
    write_settings(home, file, {"MARKET_NAME": "one", "SERVER_PORT": "8081"}, title="t")
    with file.open("a") as added:
        added.write("# mine\nMARKET_STORAGE=20g\n")

    write_settings(home, file, {"MARKET_NAME": "two", "SERVER_PORT": None}, title="t")

    assert file.read_text().splitlines() == ["# t", "MARKET_NAME=two", "# mine", "MARKET_STORAGE=20g"]


def test_a_setting_that_would_be_read_as_another_is_refused(home: Home) -> None:
    with pytest.raises(BadField):
        write_settings(home, home.path / "market.env", {"MARKET_NAME": "a ${HOME} b"}, title="t")

    assert not (home.path / "market.env").exists()


def test_the_state_folder_is_below_home(home: Home) -> None:
    assert market_settings().state_dir() == home.path / "market"


def test_mistakes_in_settings_are_told_all_at_once(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_LEASE_TTL", "soon")
    monkeypatch.setenv("SERVER_PORT", "70000")
    monkeypatch.setenv("FL_TRIM_BETA", "0.7")

    done = parity("market", "serve")

    assert done.code == 10
    assert "MARKET_LEASE_TTL" in done.err
    assert "SERVER_PORT" in done.err
    assert "FL_TRIM_BETA" in done.err
    with pytest.raises(ConfigInvalid):
        market_settings()


def test_serve_before_init_names_the_first_step(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity_market.serve._listen", lambda _: pytest.fail("it listened"))
    monkeypatch.setattr("parity_market.serve.configure_logging", lambda *_: None)

    class Listener:
        def getsockname(self) -> tuple[str, int]:
            return ("127.0.0.1", 8080)

        def close(self) -> None:
            """Have nothing to close."""

    monkeypatch.setattr("parity_market.serve._listen", lambda _: Listener())

    done = parity("market", "serve")

    assert done.code == 10
    assert "parity market init" in done.err


def test_init_writes_what_serve_reads_and_keeps_it(parity: Parity, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stop(*_: object, **__: object) -> None:
        raise ConfigInvalid(["no chain in this test"])

    monkeypatch.setattr("parity_market.init.initialise", stop)

    parity("market", "init", "--public-url", "https://market.example:8443", "--min-bond", "2.5", "--name", "A 'B'")
    parity("market", "init", "--rpc", "http://127.0.0.1:9")

    settings = market_settings()
    assert settings.public_url(1) == "https://market.example:8443"
    assert (settings.server_host, settings.server_port) == ("0.0.0.0", 8443)
    assert settings.market_min_bond == 25 * 10**17
    assert settings.market_name == "A 'B'"
    assert settings.blockchain_rpc == "http://127.0.0.1:9"


def test_init_with_a_file_of_ones_own_does_not_write_it(
    parity: Parity, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stop(*_: object, **__: object) -> None:
        raise ConfigInvalid(["no chain in this test"])

    monkeypatch.setattr("parity_market.init.initialise", stop)
    file = tmp_path / "own.env"
    file.write_text("MARKET_NAME=own\n")

    done = parity("market", "init", "--config-path", str(file), "--port", "81")

    assert "this run only" in done.err
    assert file.read_text() == "MARKET_NAME=own\n"
    assert not (home.path / "market.env").exists()


def test_serve_reads_what_sessions_train_with_from_the_same_file(
    parity: Parity, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.env"
    file.write_text("FL_STRATEGY=fedprox\nFL_PROXIMAL_MU=0.3\n")
    told: dict[str, Any] = {}
    monkeypatch.setattr("parity_market.serve.serve", lambda *_, **given: told.update(given))

    assert parity("market", "serve", "--config-path", str(file)).code == 0

    assert (told["training"].fl_strategy, told["training"].fl_proximal_mu) == ("FedProx", 0.3)
