"""Between values and what goes over the wire: call data, signed transactions, events. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError, EncodingError
from eth_account import Account

from parity_contracts.artifacts import EventAbi, FunctionAbi
from parity_contracts.chain.base import PreparedTx
from parity_protocol.errors import BadField, ChainUnavailable
from parity_protocol.ids import Address
from parity_protocol.signing.keccak import keccak256
from parity_protocol.signing.keys import EvmKey

__all__ = ["call_data", "event_arguments", "sign", "transaction_hash"]


def sign(
    key: EvmKey,
    *,
    chain_id: int,
    nonce: int,
    gas: int,
    to: Address | None,
    payload: str,
    max_fee_per_gas: int,
    max_priority_fee_per_gas: int,
    value: int = 0,
) -> PreparedTx:
    """Sign a transaction of type 2; ``to`` None creates a contract."""
    fields: dict[str, Any] = {
        "type": 2,
        "chainId": chain_id,
        "nonce": nonce,
        "gas": gas,
        "value": value,
        "data": payload,
        "maxFeePerGas": max_fee_per_gas,
        "maxPriorityFeePerGas": max_priority_fee_per_gas,
    }
    if to is not None:
        fields["to"] = bytes.fromhex(to[2:])
    signed = Account.sign_transaction(fields, key.reveal_secret())
    raw = bytes(signed.raw_transaction)
    return PreparedTx(raw, "0x" + bytes(signed.hash).hex(), key.address, nonce, gas, max_fee_per_gas)


def transaction_hash(raw: bytes) -> str:
    """Return the hash that the chain knows a signed transaction by."""
    return "0x" + keccak256(raw).hex()


def call_data(function: FunctionAbi, values: Sequence[Any]) -> str:
    """Return what to send a contract to call one of its functions, ``0x…``.

    Raises:
        BadField: A value does not fit its ABI type.
    """
    try:
        return "0x" + (function.selector + encode(function.inputs, values)).hex()
    except (EncodingError, TypeError, ValueError) as exc:
        raise BadField(f"{function.name}: an argument does not fit its type: {exc}", field="arguments") from exc


def event_arguments(abi: EventAbi, topics: Sequence[bytes], plain: bytes) -> Mapping[str, int | str | bool]:
    """Read a log entry.

    Args:
        topics: 32 bytes each, without the first one, which names the event.
        plain: Its data.

    Raises:
        ChainUnavailable: The entry does not fit the event.
    """
    values: dict[str, Any] = {}
    try:
        for (name, kind), topic in zip(abi.indexed, topics, strict=True):
            # An indexed text is only there as its hash.
            values[name] = topic if kind in ("string", "bytes") else decode((kind,), topic)[0]
        kinds = [kind for _, kind in abi.plain]
        values.update(zip((name for name, _ in abi.plain), decode(kinds, plain), strict=True))
    except (DecodingError, ValueError) as exc:
        raise ChainUnavailable(f"an event {abi.name} of the chain does not decode: {exc}") from exc
    return MappingProxyType(
        {name: "0x" + value.hex() if isinstance(value, bytes) else value for name, value in values.items()}
    )
