"""The chain client when the other side is wrong, slow, dead or back again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from parity_contracts.chain.calls import AddFunds, Approve, Call, Faucet, Stake
from parity_contracts.chain.sending import send, wait_for
from parity_contracts.chain.web3_chain import Web3Chain
from parity_contracts.deploy import deploy, faucet
from parity_contracts.deployment import Deployment
from parity_contracts.testing import DevChain
from parity_protocol.clock import SystemClock
from parity_protocol.errors import ChainUnavailable, ConfigInvalid, Unprocessable
from parity_protocol.ids import Address
from parity_protocol.testing.keys import deterministic_evm_key

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

ALICE = deterministic_evm_key("alice")
CLOCK = SystemClock()
SOMEWHERE = Deployment(
    chain_id=31337,
    genesis_hash="0x" + "11" * 32,
    token=Address("0x" + "22" * 20),
    vault=Address("0x" + "33" * 20),
    unbonding_s=60,
    symbol="PDEV",
    decimals=18,
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevChain]:
    with DevChain(tmp_path_factory.mktemp("client") / "chain") as running:
        yield running


@pytest.fixture
async def deployment(chain: DevChain) -> Deployment:
    """The contracts on the chain, deployed by the first test that asks."""
    path = chain.data.parent / "deployment.json"
    if not path.exists():
        await faucet(chain.rpc_url, ALICE.address)
        (await deploy(chain.rpc_url, ALICE, unbonding_s=60)).save(path)
    return Deployment.load(path)


@asynccontextmanager
async def server(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """Run something on loopback that is not a chain."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        listener.close()


def saying(body: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    return answer


async def test_a_bond_is_safe_across_sigkill_and_the_client_recovers(chain: DevChain, deployment: Deployment) -> None:
    node = "ab" * 32
    async with await Web3Chain.connect(chain.rpc_url, deployment, timeout_s=5) as client:
        calls: list[Call] = [Faucet(ALICE.address, 10**20), Approve(10**20), Stake(10**19, node, ALICE.address)]
        await send(client, calls, ALICE, clock=CLOCK, timeout_s=20)
        before = await client.account(node)
        waiting = await client.prepare(AddFunds(5, node, ALICE.address), ALICE)

        chain.kill()
        with pytest.raises(ChainUnavailable):
            await client.account(node)
        chain.start()

        assert replace(await client.account(node), block=0) == replace(before, block=0)
        await client.broadcast(waiting.raw)
        assert (await wait_for(client, waiting.tx_hash, clock=CLOCK, timeout_s=20)).succeeded
        assert (await client.account(node)).credit == 5


async def test_connecting_to_another_chain_or_vault_names_everything_that_differs(
    chain: DevChain, deployment: Deployment
) -> None:
    wrong = replace(deployment, chain_id=5, genesis_hash="0x" + "11" * 32, vault=Address("0x" + "33" * 20))

    with pytest.raises(ConfigInvalid) as caught:
        await Web3Chain.connect(chain.rpc_url, wrong)
    with pytest.raises(ConfigInvalid, match=f"vault at {deployment.vault} holds {deployment.token}"):
        await Web3Chain.connect(chain.rpc_url, replace(deployment, token=deployment.vault))

    assert [problem.split(":")[0] for problem in caught.value.problems] == ["chain id", "genesis hash", "vault"]


async def test_nothing_is_signed_above_the_fee_cap(chain: DevChain, deployment: Deployment) -> None:

    async with await Web3Chain.connect(chain.rpc_url, deployment, max_fee_per_gas=10**6) as client:
        with pytest.raises(ChainUnavailable, match="more than the 1000000 that may be paid"):
            await client.prepare(Approve(1), ALICE, gas=100_000)


async def test_deploying_needs_ether_and_a_token_that_is_one(chain: DevChain) -> None:
    with pytest.raises(Unprocessable, match="insufficient funds"):
        await deploy(chain.rpc_url, deterministic_evm_key("poor"), unbonding_s=60)
    with pytest.raises(ConfigInvalid, match="not an ERC-20"):
        await deploy(chain.rpc_url, ALICE, unbonding_s=60, token=Address("0x" + "44" * 20))


async def test_an_endpoint_that_does_not_listen_is_unavailable() -> None:
    with pytest.raises(ChainUnavailable, match="does not answer"):
        await Web3Chain.connect("http://127.0.0.1:9", SOMEWHERE)


async def test_an_endpoint_that_never_answers_is_given_up() -> None:
    async def stall(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with server(stall) as url:
        with pytest.raises(ChainUnavailable, match=r"within 0\.3 s"):
            await Web3Chain.connect(url, SOMEWHERE, timeout_s=0.3)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"null",
        b'[{"id":1}]',
        json.dumps([{"jsonrpc": "2.0", "id": at, "result": "nonsense"} for at in range(4)]).encode(),
        json.dumps([{"jsonrpc": "2.0", "id": at, "error": "no"} for at in range(4)]).encode(),
        json.dumps(
            [{"jsonrpc": "2.0", "id": at, "error": {"code": -32005, "message": "slow down"}} for at in range(4)]
        ).encode(),
    ],
)
async def test_an_answer_that_is_not_a_chains_is_unavailable(body: bytes) -> None:
    async with server(saying(body)) as url:
        with pytest.raises(ChainUnavailable):
            await Web3Chain.connect(url, SOMEWHERE)


async def test_only_http_addresses_are_taken() -> None:
    with pytest.raises(ConfigInvalid, match="BLOCKCHAIN_RPC"):
        await Web3Chain.connect("ftp://127.0.0.1", SOMEWHERE)


async def test_an_error_of_the_chain_keeps_what_it_said() -> None:
    refused: dict[str, Any] = {"jsonrpc": "2.0", "id": 0, "error": {"code": -32005, "message": "limit exceeded"}}

    async with server(saying(json.dumps(refused).encode())) as url:
        with pytest.raises(ChainUnavailable, match=r"eth_chainId|parity_faucet.*limit exceeded"):
            await faucet(url, ALICE.address)
