"""The embedded chain's JSON-RPC as web3.py and go-ethereum's client speak it, and as a stranger might."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from eth_account import Account
from web3 import HTTPProvider, Web3
from web3.exceptions import ContractCustomError

from parity_contracts import artifacts
from parity_contracts.deploy import deploy
from parity_contracts.deployment import Deployment
from parity_contracts.devnet.methods import METHODS
from parity_contracts.devnet.rpc import MAX_BATCH, MAX_BODY_BYTES
from parity_contracts.testing import DevChain, faucet
from parity_protocol.ids import Address
from parity_protocol.testing.keys import deterministic_evm_key

pytestmark = pytest.mark.timeout(60)

ALICE = deterministic_evm_key("alice")
ACCOUNT = Account.from_key(ALICE.reveal_secret())
BOB = Address("0x" + "b0" * 20)
HTTP = httpx.Client(timeout=10)  # one for all: making one costs more than a call
ZERO = "0x" + "0" * 40


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Deployment]]:
    folder: Path = tmp_path_factory.mktemp("rpc")
    with DevChain(folder / "chain") as chain:

        async def start() -> Deployment:
            await faucet(chain.rpc_url, ALICE.address)
            return await deploy(chain.rpc_url, ALICE, unbonding_s=60)

        yield chain.rpc_url, asyncio.run(start())
        HTTP.close()


@pytest.fixture
def url(world: tuple[str, Deployment]) -> str:
    return world[0]


@pytest.fixture
def deployment(world: tuple[str, Deployment]) -> Deployment:
    return world[1]


@pytest.fixture
def web3(url: str) -> Iterator[Web3]:
    with requests.Session() as session:
        yield Web3(HTTPProvider(url, session=session))


def call(method: str, *params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": list(params)}


def ask(url: str, method: str, *params: Any) -> Any:
    answer = HTTP.post(url, json=call(method, *params)).json()
    assert answer["id"] == 7
    return answer.get("result") if "error" not in answer else answer["error"]


def signed(nonce: int, **changes: Any) -> str:
    fields: dict[str, Any] = {
        "type": 2, "chainId": 31337, "nonce": nonce, "gas": 21_000, "to": bytes.fromhex(BOB[2:]), "value": 1,
        "maxFeePerGas": 10**10, "maxPriorityFeePerGas": 10**9,
    }  # fmt: skip
    fields |= changes
    return (
        "0x" + bytes(ACCOUNT.sign_transaction({k: v for k, v in fields.items() if v is not None}).raw_transaction).hex()
    )


def next_nonce(url: str) -> int:
    return int(ask(url, "eth_getTransactionCount", ALICE.address, "pending"), 16)


def until_mined(url: str, tx_hash: str) -> dict[str, Any]:
    for _ in range(100):
        receipt = ask(url, "eth_getTransactionReceipt", tx_hash)
        if receipt is not None:
            return dict(receipt)
        time.sleep(0.05)
    raise AssertionError(f"{tx_hash} was not mined")


# -- web3.py -----------------------------------------------------------------------------------------------------


def test_web3_reads_blocks_fees_and_accounts(web3: Web3, deployment: Deployment) -> None:
    assert web3.is_connected()
    assert web3.eth.chain_id == 31337
    assert web3.net.version == "31337"
    assert "parity-node" in web3.client_version
    assert web3.eth.syncing is False
    block = web3.eth.get_block("latest", full_transactions=True)
    assert web3.eth.get_block(block["hash"])["number"] == block["number"]
    assert web3.eth.get_block(0)["hash"].to_0x_hex() == deployment.genesis_hash
    assert web3.eth.gas_price > web3.eth.max_priority_fee > 0
    history = web3.eth.fee_history(4, "latest", [10, 50])
    assert len(history["baseFeePerGas"]) == len(history["gasUsedRatio"]) + 1 == len(history["reward"]) + 1
    assert web3.eth.get_balance(Web3.to_checksum_address(ALICE.address)) > 10**18
    assert len(web3.eth.get_code(Web3.to_checksum_address(deployment.vault))) > 10_000
    assert web3.eth.get_storage_at(Web3.to_checksum_address(deployment.vault), 0) == bytes(32)


def test_web3_sends_finds_and_decodes_a_transaction(web3: Web3, deployment: Deployment) -> None:
    token = web3.eth.contract(Web3.to_checksum_address(deployment.token), abi=artifacts.load("DevToken").abi)
    fields = token.functions.faucet(Web3.to_checksum_address(BOB), 5).build_transaction(
        {"from": ACCOUNT.address, "nonce": web3.eth.get_transaction_count(ACCOUNT.address, "pending")}
    )

    tx_hash = web3.eth.send_raw_transaction(ACCOUNT.sign_transaction(fields).raw_transaction)
    receipt = web3.eth.wait_for_transaction_receipt(tx_hash, timeout=20, poll_latency=0.05)

    assert receipt["status"] == 1
    found = web3.eth.get_transaction(tx_hash)
    assert (found["from"], found["blockNumber"]) == (ACCOUNT.address, receipt["blockNumber"])
    [event] = token.events.Transfer().get_logs(
        from_block=receipt["blockNumber"], argument_filters={"to": Web3.to_checksum_address(BOB)}
    )
    assert (event["args"]["value"], event["transactionHash"]) == (5, tx_hash)
    assert (
        token.events.Transfer().get_logs(from_block=receipt["blockNumber"], argument_filters={"to": ACCOUNT.address})
        == []
    )
    assert receipt["logsBloom"] != bytes(256)
    assert web3.eth.get_block(receipt["blockNumber"])["size"] > 500


def test_web3_sees_a_custom_error_with_its_data(web3: Web3, deployment: Deployment) -> None:
    vault = web3.eth.contract(Web3.to_checksum_address(deployment.vault), abi=artifacts.load("StakeVault").abi)

    with pytest.raises(ContractCustomError, match="0x"):
        vault.functions.withdrawFunds("ab" * 32, 1).call({"from": ACCOUNT.address})
    with pytest.raises(ContractCustomError, match="0x"):
        vault.functions.withdrawFunds("ab" * 32, 1).estimate_gas({"from": ACCOUNT.address})


def test_web3_batches(web3: Web3) -> None:
    with web3.batch_requests() as batch:
        batch.add(web3.eth.get_block_number())
        batch.add(web3.eth.get_block(0))
        answers: list[Any] = list(batch.execute())

    assert answers[0] >= 2
    assert answers[1]["number"] == 0


# -- go-ethereum's client ----------------------------------------------------------------------------------------


def test_calls_as_go_ethereum_makes_them_for_a_stake_check_and_a_payment(url: str, deployment: Deployment) -> None:
    bond_of = artifacts.load("StakeVault").functions["bondOf"].selector.hex()
    argument = f"{32:064x}{2:064x}" + b"id".hex().ljust(64, "0")

    word = ask(url, "eth_call", {"from": ZERO, "input": f"0x{bond_of}{argument}", "to": deployment.vault}, "latest")
    block = ask(url, "eth_getBlockByNumber", "latest", False)
    code = ask(url, "eth_getCode", deployment.vault, "pending")
    gas = ask(url, "eth_estimateGas", {"from": ALICE.address, "to": BOB, "value": "0x1", "input": "0x"})

    assert word == "0x" + "0" * 64
    assert all(
        isinstance(block[name], str) for name in ("number", "baseFeePerGas", "gasLimit", "timestamp", "logsBloom")
    )
    assert (len(block["logsBloom"]), len(block["nonce"]), block["uncles"]) == (514, 18, [])
    assert code.startswith("0x60")
    assert gas == hex(21_000)


def test_the_simulated_state_is_forgotten(url: str) -> None:
    before = ask(url, "eth_getBalance", BOB, "latest")

    assert ask(url, "eth_call", {"from": ALICE.address, "to": BOB, "value": "0x5"}, "latest") == "0x"

    assert ask(url, "eth_getBalance", BOB, "latest") == before


def test_a_legacy_and_an_access_list_transaction_are_taken(url: str) -> None:
    nonce = next_nonce(url)
    legacy = signed(nonce, type=None, maxFeePerGas=None, maxPriorityFeePerGas=None, gasPrice=10**10)
    listed = signed(
        nonce + 1, type=1, maxFeePerGas=None, maxPriorityFeePerGas=None, gasPrice=10**10, accessList=[], gas=21_000
    )

    hashes = [ask(url, "eth_sendRawTransaction", raw) for raw in (legacy, listed)]

    assert [until_mined(url, tx_hash)["type"] for tx_hash in hashes] == ["0x0", "0x1"]
    assert ask(url, "eth_getTransactionByHash", hashes[0])["v"] in (hex(31337 * 2 + 35), hex(31337 * 2 + 36))


def test_a_pending_transaction_counts_and_can_be_outbid(url: str) -> None:
    nonce = next_nonce(url)
    until_mined(url, ask(url, "eth_sendRawTransaction", signed(nonce)))  # a block was just made: the next is 1 s away
    nonce += 1
    first = ask(url, "eth_sendRawTransaction", signed(nonce))

    assert next_nonce(url) == nonce + 1
    assert ask(url, "eth_getTransactionCount", ALICE.address, "latest") == hex(nonce)
    assert ask(url, "eth_getTransactionByHash", first)["blockNumber"] is None
    assert ask(url, "eth_sendRawTransaction", signed(nonce))["message"] == "already known"
    little = ask(url, "eth_sendRawTransaction", signed(nonce, maxPriorityFeePerGas=10**9 + 1))
    assert little == {"code": -32000, "message": "replacement transaction underpriced"}
    more = ask(url, "eth_sendRawTransaction", signed(nonce, maxFeePerGas=2 * 10**10, maxPriorityFeePerGas=2 * 10**9))
    until_mined(url, more)
    assert ask(url, "eth_getTransactionReceipt", first) is None
    assert "nonce too low" in ask(url, "eth_sendRawTransaction", signed(nonce))["message"]


# -- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chainId": 1}, "invalid chain id: expected 31337, got 1"),
        ({"gas": 20_999}, "intrinsic gas too low"),
        ({"gas": 40_000_000}, "exceeds block gas limit"),
        ({"value": 10**30}, "insufficient funds for gas * price + value"),
        ({"maxPriorityFeePerGas": 10**11}, "max priority fee per gas higher than max fee per gas"),
        ({"nonce": 10_000}, "nonce too high"),
        (
            {"chainId": None, "type": None, "maxFeePerGas": None, "maxPriorityFeePerGas": None, "gasPrice": 10**10},
            "only replay-protected (EIP-155) transactions allowed over RPC",
        ),
    ],
)
def test_a_transaction_that_cannot_count_is_refused_with_the_reason(
    url: str, changes: dict[str, Any], words: str
) -> None:
    error = ask(url, "eth_sendRawTransaction", signed(**{"nonce": next_nonce(url), **changes}))

    assert error["code"] in (-32000, -32602)
    assert words in error["message"]


@pytest.mark.parametrize("raw", ["0x", "0x01", "0x03" + "00" * 40, "0xc0", "0x02c0", "0x" + "ff" * 300])
def test_bytes_that_are_no_transaction_are_refused(url: str, raw: str) -> None:
    assert ask(url, "eth_sendRawTransaction", raw)["code"] == -32000


@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_parameters_make_a_method_fail_inside(url: str, method: str) -> None:
    strange: list[list[Any]] = [
        [],
        [None],
        [5],
        ["0xzz", "0xzz", "0xzz"],
        [{}],
        [[[]], {}, []],
        ["0x" + "f" * 70, "latest"],
        [{"to": BOB, "gas": "0x0"}, {"blockHash": "0x"}],
        ["0x1", "0x" + "f" * 64],
        [2**63, "latest", [float(at) for at in range(200)]],
    ]

    answers = HTTP.post(url, json=[call(method, *params) for params in strange]).json()

    assert [answer for answer in answers if answer.get("error", {}).get("code") == -32603] == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId","method":"eth_call"}', -32700),
        (b"[" * 5_000, -32700),
        (b"[]", -32600),
        (b"5", -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"eth_chainId"}', -32600),
        (b'{"jsonrpc":"2.0","id":{},"method":"eth_chainId"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"eth_sendTransaction"}', -32601),
        (b'{"jsonrpc":"2.0","id":1,"method":"eth_getBalance","params":{"a":1}}', -32602),
        (json.dumps([call("eth_chainId")] * (MAX_BATCH + 1)).encode(), -32600),
    ],
)
def test_a_request_that_is_none_gets_its_code(url: str, body: bytes, code: int) -> None:
    answer = HTTP.post(url, content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 200
    assert answer.json()["error"]["code"] == code


def test_a_notification_is_done_and_not_answered(url: str) -> None:
    body = {"jsonrpc": "2.0", "method": "eth_chainId"}

    assert HTTP.post(url, json=body).content == b""
    assert [answer["id"] for answer in HTTP.post(url, json=[body, call("eth_chainId")]).json()] == [7]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/json", "host": "evil.example"}, 403),
        ({"content-type": "application/json", "host": "localhost:1"}, 200),
    ],
)
def test_a_page_in_a_browser_cannot_reach_the_chain(url: str, headers: dict[str, str], status: int) -> None:
    assert HTTP.post(url, content=json.dumps(call("eth_chainId")), headers=headers).status_code == status


def test_only_post_is_answered_and_long_bodies_are_cut_off(url: str) -> None:
    assert HTTP.get(url).status_code == 405
    too_long = b" " * (MAX_BODY_BYTES + 1)
    assert HTTP.post(url, content=too_long, headers={"content-type": "application/json"}).status_code == 413

    def parts() -> Iterator[bytes]:
        for _ in range(3):
            yield b" " * (1024 * 1024)

    streamed = HTTP.post(url, content=parts(), headers={"content-type": "application/json"})
    assert streamed.status_code == 413
