"""The scripts of the image: from nothing to a node that takes work, on a real chain and market."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

START_S = 60.0
pytestmark = pytest.mark.serial


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process of this test; it is ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: str, env: dict[str, str]) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return started[-1]

    yield run
    for process in reversed(started):
        process.terminate()
    for process in reversed(started):
        process.wait(30)


def test_the_scripts_of_the_image_make_a_working_market_and_node(repo_root: Path, tmp_path: Path, start: Start) -> None:
    deploy = repo_root / "deploy"
    chain, market, metrics = free_port(), free_port(), free_port()
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse battery staple\n")
    passphrase.chmod(0o600)
    common = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "BLOCKCHAIN_RPC": f"http://127.0.0.1:{chain}",
        "PARITY_JOIN_FILE": str(tmp_path / "join"),
    }
    for_market = common | {
        "PARITY_HOME": str(tmp_path / "market"),
        "MARKET_PUBLIC_URL": f"https://localhost:{market}",
        "SERVER_PORT": str(market),
    }
    for_node = common | {"PARITY_HOME": str(tmp_path / "node"), "RUNNER_METRICS_PORT": str(metrics)}
    for_set_up = for_node | {
        "PARITY_PASSPHRASE_FILE": str(passphrase),
        "PARITY_STAKE": "10",
        "PARITY_FAUCET": "yes",
    }

    def healthy(*what: str) -> None:
        end = time.monotonic() + START_S
        while True:
            asked = subprocess.run(
                [sys.executable, deploy / "health.py", *what], capture_output=True, text=True, check=False, timeout=30
            )
            if asked.returncode == 0:
                return
            assert time.monotonic() < end, asked.stderr
            time.sleep(0.1)

    def set_up(script: str, env: dict[str, str]) -> str:
        done = subprocess.run(["sh", deploy / script], env=env, capture_output=True, text=True, check=False, timeout=90)
        assert done.returncode == 0, done.stderr
        return done.stdout

    fast = ("--idle-interval", "1s")
    start(
        "parity", "chain", "serve", "--port", str(chain), *fast, env=common | {"PARITY_HOME": str(tmp_path / "chain")}
    )
    healthy("--rpc", f"http://127.0.0.1:{chain}")
    set_up("set-up-market.sh", for_market)
    join = (tmp_path / "join").read_text()
    start("parity", "market", "serve", env=for_market)
    healthy(f"https://localhost:{market}/health")
    set_up("set-up-node.sh", for_set_up)
    again = set_up("set-up-node.sh", for_set_up)
    start("parity", "node", "run", env=for_node)
    healthy(f"http://127.0.0.1:{metrics}/ready")

    assert join.startswith(f"https://localhost:{market}/#market=")
    assert "has a bond already" in again
