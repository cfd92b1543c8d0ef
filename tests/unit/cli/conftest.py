from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click.termui
import pytest

import parity_client
from parity_cli.app import run
from parity_client import Client, Config, Home, money
from parity_client.config import MarketEntry
from parity_client.testing import FakeMarket, JumpClock
from parity_contracts import keystore
from parity_contracts.chain.memory import MemoryChain
from parity_contracts.chain.sending import send
from parity_fl.settings import FlSettings
from parity_protocol.signing.keys import EvmKey
from parity_protocol.testing.keys import deterministic_evm_key

from .fl_sessions import SPEC

PASSPHRASE = "correct horse battery staple"
LIGHT = 2**4  # scrypt work factor of tests


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Parity = Callable[..., Done]


class Terminal(io.StringIO):
    """A person's keyboard."""

    def isatty(self) -> bool:
        return True


class ClosableChain(MemoryChain):
    """The chain in memory, as the commands use one."""

    async def aclose(self) -> None:
        """Have nothing to close."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A user's folder of this test's own; nothing of the real one is seen."""
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(PASSPHRASE + "\n")
    for name in ("BLOCKCHAIN_RPC", "PARITY_CONFIG_PATH", "PARITY_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PARITY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PARITY_PASSPHRASE_FILE", str(passphrase))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    return Home()


@pytest.fixture(autouse=True)
def _light_keystores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystore, "create", partial(keystore.create, scrypt_n=LIGHT))
    monkeypatch.setattr(keystore, "load", partial(keystore.load, min_scrypt_n=LIGHT))


@pytest.fixture
def parity(home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Parity:
    """Run the command line in this process; ``types`` is what a person at a terminal answers."""

    def call(*arguments: str, stdin: str = "", types: list[str] | None = None) -> Done:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin) if types is None else Terminal())
        if types is not None:
            answers = iter(types)
            monkeypatch.setattr(click.termui, "visible_prompt_func", lambda _="": next(answers))
            monkeypatch.setattr(click.termui, "hidden_prompt_func", lambda _="": next(answers))
        capsys.readouterr()
        code = run(arguments)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture
def market(monkeypatch: pytest.MonkeyPatch) -> FakeMarket:
    """A market in memory that every command of this test talks to."""
    found = FakeMarket()
    here = partial(Client, transport=found, clock=found.clock)
    monkeypatch.setattr(parity_client, "Client", here)
    monkeypatch.setattr("parity_cli.checks.Client", here)
    return found


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> ClosableChain:
    """The market's chain in memory."""
    clock = JumpClock()
    found = ClosableChain(clock)

    async def connect(*_: object, **__: object) -> ClosableChain:
        return found

    monkeypatch.setattr(money, "connect", connect)
    monkeypatch.setattr(money, "send", partial(_send, clock))
    return found


async def _send(clock: JumpClock, chain: Any, calls: Any, key: EvmKey) -> Any:
    return await send(chain, calls, key, clock=clock)


@pytest.fixture
def key() -> EvmKey:
    return deterministic_evm_key("submitter")


@pytest.fixture
def joined(home: Home, market: FakeMarket, key: EvmKey) -> FakeMarket:
    """A machine that has joined the market and has a wallet."""
    home.save(Config(current="fake", markets={"fake": MarketEntry(join=str(market.join))}))
    keystore.create(home.wallet_file("default"), key, PASSPHRASE)
    return market


@pytest.fixture(autouse=True)
def _no_fl_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FlSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "session.json"
    path.write_text(json.dumps(SPEC))
    return path
