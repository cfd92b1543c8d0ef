"""The market as a process: it stops in words when its chain is exchanged, and a second one stays off its folder."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from parity_contracts.testing import DevChain
from parity_market.init import initialise
from parity_market.settings import MarketSettings

SERVE = """
import sys
from parity_market.serve import serve
from parity_market.settings import load_settings
from parity_protocol.errors import ParityError
try:
    serve(load_settings(), version="0.1.0", ready=lambda join: print("ready", flush=True))
except ParityError as exc:
    sys.exit(f"{type(exc).__name__}: {exc.message}")
"""
WAIT_S = 30.0


class Market:
    """A market process on its own chain."""

    def __init__(self, folder: Path, chain: DevChain, port: int) -> None:
        self.folder, self.port = folder, port
        self.env = {
            "PATH": os.environ["PATH"],
            "MARKET_STATE_DIR": str(folder),
            "SERVER_PORT": str(port),
            "BLOCKCHAIN_RPC": chain.rpc_url,
            "MARKET_UNBONDING": "1m",
        }
        settings = MarketSettings(
            market_state_dir=folder, server_port=port, blockchain_rpc=chain.rpc_url, market_unbonding="1m"
        )
        asyncio.run(initialise(settings, version="0.1.0"))
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", SERVE],
            env=self.env,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()[1]
            try:
                httpx.get(f"http://127.0.0.1:{self.port}/api/health", timeout=2.0, trust_env=False).raise_for_status()
            except httpx.HTTPError:
                time.sleep(0.1)
            else:
                return
        pytest.fail("the market did not answer")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[DevChain]:
    with DevChain(tmp_path / "chain") as running:
        yield running


@pytest.fixture
def market(tmp_path: Path, chain: DevChain, unused_port: int) -> Iterator[Market]:
    running = Market(tmp_path / "market", chain, unused_port)
    try:
        running.wait_ready()
        yield running
    finally:
        running.end()


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_exchanged_chain_stops_the_market_in_words(tmp_path: Path, chain: DevChain, market: Market) -> None:
    port = int(chain.rpc_url.rpartition(":")[2])
    chain.kill()
    with DevChain(tmp_path / "other chain", port=port):
        out, err = market.process.communicate(timeout=WAIT_S)

    assert market.process.returncode == 1, out
    assert "ConfigInvalid" in err
    assert "genesis hash" in err


def test_a_second_market_stays_off_the_first_ones_folder(market: Market) -> None:
    second = market.start()

    _, err = second.communicate(timeout=WAIT_S)

    assert second.returncode == 1
    assert "another market runs on" in err
    assert market.process.poll() is None


def test_sigterm_ends_it_with_status_0(market: Market) -> None:
    market.process.send_signal(signal.SIGTERM)
    market.process.communicate(timeout=WAIT_S)

    assert market.process.returncode == 0
