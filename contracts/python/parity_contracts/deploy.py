"""Put the contracts on a chain."""

from __future__ import annotations

from typing import Any

from eth_abi.abi import encode

from parity_contracts import artifacts
from parity_contracts.artifacts import Artifact
from parity_contracts.chain.encoding import sign
from parity_contracts.chain.rpc import Rpc, quantity
from parity_contracts.chain.web3_chain import DEFAULT_TIMEOUT_S, known_errors
from parity_contracts.deployment import Deployment
from parity_contracts.discover import describe_token, discover, ether_of
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import ChainUnavailable, Unprocessable
from parity_protocol.ids import Address
from parity_protocol.signing.keys import EvmKey

__all__ = ["deploy", "discover", "ether_of", "faucet"]

_POLL_S = 0.1
_MINED_WITHIN_S = 120.0


async def deploy(
    rpc_url: str,
    key: EvmKey,
    *,
    unbonding_s: int,
    token: Address | None = None,
    admin: Address | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    clock: Clock | None = None,
) -> Deployment:
    """Deploy a vault, and DevToken unless a token is given.

    Args:
        key: Who deploys and pays.
        unbonding_s: Seconds between asking for bond or escrow back and having it, 1 to a year.
        token: An ERC-20 that is there already; None deploys DevToken, whose faucet mints for anybody.
        admin: Who may pause deposits; None is the deployer.
        timeout_s: For each request.

    Raises:
        ChainUnavailable: The chain does not answer, or does not mine within two minutes.
        Unprocessable: The deployer has no ether, or a constructor refuses.
        ConfigInvalid: ``token`` is not an ERC-20 with a symbol and decimals.
    """
    clock = clock or SystemClock()
    rpc = Rpc(rpc_url, timeout_s=timeout_s, errors=known_errors())
    try:
        chain_id = quantity(await rpc.call("eth_chainId"))
        genesis = await rpc.block("0x0")
        if token is None:
            token = await _create(rpc, key, chain_id, artifacts.load("DevToken"), (), clock)
        symbol, decimals = await describe_token(rpc, token)
        values = (token, unbonding_s, admin or key.address)
        vault = await _create(rpc, key, chain_id, artifacts.load("StakeVault"), values, clock)
        return Deployment(
            chain_id=chain_id,
            genesis_hash=str(genesis["hash"]),
            token=token,
            vault=vault,
            unbonding_s=unbonding_s,
            symbol=symbol,
            decimals=decimals,
        )
    finally:
        await rpc.aclose()


async def faucet(
    rpc_url: str,
    address: Address,
    *,
    wait_s: float = 10.0,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    clock: Clock | None = None,
) -> str:
    """Have the embedded chain send 100 ether to an address, and return the transaction's hash.

    Args:
        wait_s: How long to wait until it is mined; 0 returns at once.
        timeout_s: For each request.

    Raises:
        ChainUnavailable: The chain does not answer, is not an embedded one, or did not mine it in time.
    """
    clock = clock or SystemClock()
    rpc = Rpc(rpc_url, timeout_s=timeout_s, errors={})
    try:
        tx_hash = str(await rpc.call("parity_faucet", address))
        if wait_s > 0:
            await _mined(rpc, tx_hash, wait_s, clock)
        return tx_hash
    finally:
        await rpc.aclose()


async def _create(
    rpc: Rpc, key: EvmKey, chain_id: int, artifact: Artifact, values: tuple[Any, ...], clock: Clock
) -> Address:
    payload = "0x" + (artifact.bytecode + encode(artifact.constructor, values)).hex()
    gas = quantity(await rpc.call("eth_estimateGas", {"from": key.address, "input": payload}))
    block, tip, nonce = await rpc.batch(
        [
            ("eth_getBlockByNumber", ["latest", False]),
            ("eth_maxPriorityFeePerGas", []),
            ("eth_getTransactionCount", [key.address, "pending"]),
        ]
    )
    prepared = sign(
        key,
        chain_id=chain_id,
        nonce=quantity(nonce),
        gas=gas + gas // 10,
        to=None,
        payload=payload,
        max_fee_per_gas=2 * quantity(block["baseFeePerGas"]) + quantity(tip),
        max_priority_fee_per_gas=quantity(tip),
    )
    await rpc.call("eth_sendRawTransaction", "0x" + prepared.raw.hex())
    receipt = await _mined(rpc, prepared.tx_hash, _MINED_WITHIN_S, clock)
    if quantity(receipt["status"]) != 1:
        raise Unprocessable(f"deploying {artifact.name} failed in transaction {prepared.tx_hash}")
    return Address(str(receipt["contractAddress"]).lower())


async def _mined(rpc: Rpc, tx_hash: str, wait_s: float, clock: Clock) -> Any:
    deadline = clock.monotonic() + wait_s
    while (receipt := await rpc.call("eth_getTransactionReceipt", tx_hash)) is None:
        if clock.monotonic() >= deadline:
            raise ChainUnavailable(f"the transaction {tx_hash} was not mined within {wait_s:g} s")
        await clock.sleep(_POLL_S)
    return receipt
