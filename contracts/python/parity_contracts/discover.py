"""Reading what is on a chain already, before a deployment is known to pin."""

from __future__ import annotations

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError

from parity_contracts import artifacts
from parity_contracts.chain.rpc import Rpc, data, quantity
from parity_contracts.chain.web3_chain import DEFAULT_TIMEOUT_S, known_errors
from parity_contracts.deployment import Deployment
from parity_protocol.errors import ConfigInvalid, Unprocessable
from parity_protocol.ids import Address

__all__ = ["describe_token", "discover", "ether_of"]


async def discover(rpc_url: str, vault: Address, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Deployment:
    """Return the deployment of a vault that is there already.

    Raises:
        ChainUnavailable: The chain does not answer.
        ConfigInvalid: There is no such vault, or its token is not an ERC-20 with a symbol and decimals.
    """
    rpc = Rpc(rpc_url, timeout_s=timeout_s, errors=known_errors())
    functions = artifacts.load("StakeVault").functions
    try:
        chain_id = quantity(await rpc.call("eth_chainId"))
        genesis = await rpc.block("0x0")
        try:
            token, unbonding = await rpc.batch(
                [
                    ("eth_call", [{"to": vault, "input": "0x" + functions[name].selector.hex()}, "latest"])
                    for name in ("token", "unbonding")
                ]
            )
            address = Address(str(decode(("address",), data(token))[0]).lower())
            seconds = int(decode(("uint64",), data(unbonding))[0])
        except (ValueError, DecodingError, Unprocessable) as exc:
            raise ConfigInvalid([f"vault: {vault} on chain {chain_id} is not a StakeVault"]) from exc
        symbol, decimals = await describe_token(rpc, address)
        return Deployment(
            chain_id=chain_id,
            genesis_hash=str(genesis["hash"]),
            token=address,
            vault=vault,
            unbonding_s=seconds,
            symbol=symbol,
            decimals=decimals,
        )
    finally:
        await rpc.aclose()


async def ether_of(rpc_url: str, address: Address, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
    """Return an address's wei in the newest block.

    Raises:
        ChainUnavailable: The chain does not answer.
    """
    rpc = Rpc(rpc_url, timeout_s=timeout_s, errors={})
    try:
        return quantity(await rpc.call("eth_getBalance", address, "latest"))
    finally:
        await rpc.aclose()


async def describe_token(rpc: Rpc, token: Address) -> tuple[str, int]:
    """Return the symbol and decimals of an ERC-20.

    Raises:
        ConfigInvalid: It is not one.
    """
    functions = artifacts.load("DevToken").functions
    try:
        symbol, decimals = await rpc.batch(
            [
                ("eth_call", [{"to": token, "input": "0x" + functions[name].selector.hex()}, "latest"])
                for name in ("symbol", "decimals")
            ]
        )
        return str(decode(("string",), data(symbol))[0]), int(decode(("uint8",), data(decimals))[0])
    except (ValueError, DecodingError, Unprocessable) as exc:
        raise ConfigInvalid([f"token: {token} is not an ERC-20 with a symbol and decimals"]) from exc
