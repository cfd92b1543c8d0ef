"""The embedded chain as a process: what it acknowledged survives SIGKILL, its clock stays true, its folder is its own."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from parity_contracts.chain.encoding import sign
from parity_contracts.testing import DevChain
from parity_protocol.ids import Address
from parity_protocol.signing.keys import EvmKey
from parity_protocol.testing.keys import deterministic_evm_key

pytestmark = pytest.mark.timeout(60)

ALICE = deterministic_evm_key("alice")
BOB = Address("0x" + "b0" * 20)


class Client:
    """Plain JSON-RPC, so that nothing of the client library stands between the test and the wire."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=10)

    def post(self, document: Any) -> Any:
        return self.http.post("/", json=document).json()

    def __call__(self, method: str, *params: Any) -> Any:
        answer = self.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)})
        assert "error" not in answer, answer
        return answer["result"]

    def error(self, method: str, *params: Any) -> dict[str, Any]:
        answer = self.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)})
        assert "result" not in answer, answer
        error: dict[str, Any] = answer["error"]
        return error

    def batch(self, calls: list[tuple[str, list[Any]]]) -> list[Any]:
        answers = self.post(
            [{"jsonrpc": "2.0", "id": at, "method": name, "params": params} for at, (name, params) in enumerate(calls)]
        )
        assert [answer["id"] for answer in answers] == list(range(len(calls)))
        return [answer.get("result", answer.get("error")) for answer in answers]

    def send_all(self, signed: list[tuple[str, str]]) -> list[Any]:
        return self.batch([("eth_sendRawTransaction", [raw]) for raw, _ in signed])

    def receipts(self, tx_hashes: list[str]) -> list[Any]:
        return self.batch([("eth_getTransactionReceipt", [tx_hash]) for tx_hash in tx_hashes])

    def until_mined(self, tx_hash: str) -> dict[str, Any]:
        for _ in range(200):
            receipt = self("eth_getTransactionReceipt", tx_hash)
            if receipt is not None:
                return dict(receipt)
            time.sleep(0.05)
        raise AssertionError(f"{tx_hash} was not mined")


def transfer(nonce: int, *, value: int = 1, key: EvmKey = ALICE, tip: int = 10**9) -> tuple[str, str]:
    """Return a signed transfer to Bob and its hash."""
    tx = sign(
        key, chain_id=31337, nonce=nonce, gas=21_000, to=BOB, payload="0x", value=value,
        max_fee_per_gas=4 * 10**9 + tip, max_priority_fee_per_gas=tip,
    )  # fmt: skip
    return "0x" + tx.raw.hex(), tx.tx_hash


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevChain]:
    """A chain for tests that leave it running."""
    with DevChain(tmp_path_factory.mktemp("shared") / "chain") as running:
        yield running


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[DevChain]:
    with DevChain(tmp_path / "chain") as running:
        yield running


@pytest.fixture
def rpc(chain: DevChain) -> Iterator[Client]:
    client = Client(chain.rpc_url)
    client.until_mined(client("parity_faucet", ALICE.address))
    yield client
    client.http.close()


def test_everything_acknowledged_is_there_after_sigkill_while_mining(chain: DevChain, rpc: Client) -> None:
    acknowledged = []
    seen: dict[str, tuple[str, str]] = {}
    nonce = 0
    for round_number in range(3):
        signed = [transfer(nonce + at, value=10) for at in range(12)]
        nonce += 12
        assert rpc.send_all(signed[:9]) == [tx_hash for _, tx_hash in signed[:9]]
        assert [rpc("eth_sendRawTransaction", raw) for raw, _ in signed[9:]] == [tx_hash for _, tx_hash in signed[9:]]
        acknowledged += [tx_hash for _, tx_hash in signed]
        time.sleep((0, 0.6, 1.1)[round_number])  # before a block, about during one, after one
        for tx_hash, receipt in zip(acknowledged, rpc.receipts(acknowledged), strict=True):
            if receipt is not None:
                seen[tx_hash] = (receipt["blockHash"], receipt["gasUsed"])
        head = rpc("eth_getBlockByNumber", "latest", False)
        genesis = chain.genesis_hash

        chain.kill()
        chain.start()

        assert chain.genesis_hash == genesis
        assert rpc("eth_getBlockByHash", head["hash"], False) == head
        if seen:
            replayed = [(receipt["blockHash"], receipt["gasUsed"]) for receipt in rpc.receipts(list(seen))]
            assert replayed == list(seen.values())

    assert seen

    rpc.until_mined(acknowledged[-1])
    assert {receipt["status"] for receipt in rpc.receipts(acknowledged)} == {"0x1"}
    assert rpc("eth_getTransactionCount", ALICE.address, "latest") == hex(36)
    assert rpc("eth_getBalance", BOB, "latest") == hex(360)


def test_a_folder_is_one_process_and_one_chain(shared: DevChain, tmp_path: Path) -> None:
    second = _run_chain(shared.data)
    with DevChain(tmp_path / "other") as other:
        genesis = other.genesis_hash
    wrong_id = _run_chain(tmp_path / "other", "--chain-id", "5")

    assert (second.returncode, "another chain process uses" in second.stderr) == (1, True)
    assert (wrong_id.returncode, "holds a chain with id 31337, expected 5" in wrong_id.stderr) == (1, True)
    assert genesis != shared.genesis_hash


def test_a_stop_is_clean_and_its_files_are_private(tmp_path: Path) -> None:
    chain = DevChain(tmp_path / "chain").start()

    assert chain.stop() == 0

    assert not (chain.data / "ready.json").exists()
    for name in ("faucet.key", "journal", "genesis.json"):
        assert stat.S_IMODE((chain.data / name).stat().st_mode) == 0o600
    assert (chain.data / "faucet.key").read_text().strip() not in chain.log_path.read_text()


def test_the_clock_stays_true_under_150_transactions(shared: DevChain) -> None:
    rpc = Client(shared.rpc_url)
    rpc.until_mined(rpc("parity_faucet", ALICE.address))
    signed = [transfer(nonce) for nonce in range(150)]

    assert rpc.send_all(signed) == [tx_hash for _, tx_hash in signed]
    rpc.until_mined(signed[-1][1])

    head = rpc("eth_getBlockByNumber", "latest", False)
    times = [
        int(rpc("eth_getBlockByNumber", hex(number), False)["timestamp"], 16)
        for number in range(int(head["number"], 16) + 1)
    ]
    assert rpc("eth_getTransactionCount", ALICE.address, "latest") == hex(150)
    assert times == sorted(set(times))
    assert times[-1] <= time.time() + 1
    assert times[-1] >= time.time() - 5
    rpc.http.close()


def test_it_listens_on_loopback_only(tmp_path: Path) -> None:
    outside = _run_chain(tmp_path / "x", "--host", "0.0.0.0")

    assert (outside.returncode, "expected a loopback address" in outside.stderr) == (1, True)


def test_sigterm_during_the_start_ends_it(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "parity_contracts.devnet", "--data", str(tmp_path / "c")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGTERM)

    assert process.wait(15) in (0, -signal.SIGTERM)


def _run_chain(data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "parity_contracts.devnet", "--data", str(data), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
