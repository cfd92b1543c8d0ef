"""What JSON-RPC calls quantities, data, blocks, transactions and receipts, read and written.

Everything leaves as hex: go-ethereum's client refuses numbers.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

from eth.abc import BlockHeaderAPI, LogAPI, SignedTransactionAPI

from parity_contracts.devnet.ledger import Ledger, Sealed, block_size
from parity_protocol.errors import BadField, NotFound

__all__ = [
    "Json",
    "address",
    "block_json",
    "block_number",
    "data",
    "hash32",
    "hexed",
    "log_json",
    "quantity",
    "receipt_json",
    "transaction_json",
]

_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")
_DATA = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_MAX_DATA_BYTES = 256 * 1024
_TAGS = ("latest", "pending", "safe", "finalized")

Json: TypeAlias = dict[str, Any]


# -- reading -----------------------------------------------------------------------------------------------------


def quantity(value: object, field: str) -> int:
    """Read ``0x…`` as an integer below 2**256; leading zeros are let through, as some clients send them.

    Raises:
        BadField: It is not one.
    """
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise BadField(f"{field}: expected a quantity such as 0x1f, got {_shown(value)}", field=field)
    return int(value, 16)


def data(value: object, field: str) -> bytes:
    """Read ``0x…`` as bytes, 256 KiB at most.

    Raises:
        BadField: It is not hex of whole bytes, or is too long.
    """
    if not isinstance(value, str) or not _DATA.fullmatch(value) or len(value) > 2 * _MAX_DATA_BYTES + 2:
        raise BadField(f"{field}: expected 0x and whole bytes in hex, got {_shown(value)}", field=field)
    return bytes.fromhex(value[2:])


def address(value: object, field: str) -> bytes:
    """Read a 20-byte address; checksums are not checked.

    Raises:
        BadField: It is not one.
    """
    found = data(value, field)
    if len(found) != 20:
        raise BadField(f"{field}: expected an address of 20 bytes, got {len(found)} bytes", field=field)
    return found


def hash32(value: object, field: str) -> bytes:
    """Read a 32-byte hash.

    Raises:
        BadField: It is not one.
    """
    found = data(value, field)
    if len(found) != 32:
        raise BadField(f"{field}: expected a hash of 32 bytes, got {len(found)} bytes", field=field)
    return found


def block_number(value: object, ledger: Ledger, field: str = "block") -> int:
    """Read a block: a tag, a height, or the object of EIP-1898. ``pending`` is the newest block.

    Raises:
        BadField: It is none of these.
        NotFound: The chain has no such block.
    """
    head = int(ledger.head.block_number)
    if isinstance(value, dict) and "blockHash" in value:
        number = ledger.number_of(hash32(value["blockHash"], field))
        if number is None:
            raise NotFound("header not found")
        return number
    if isinstance(value, dict):
        value = value.get("blockNumber")
    if value is None or value in _TAGS:
        return head
    if value == "earliest":
        return 0
    height = quantity(value, field)
    if height > head:
        raise NotFound(f"header not found: block {height} is after the newest, {head}")
    return height


def _shown(value: object) -> str:
    return repr(value)[:80]


# -- writing -----------------------------------------------------------------------------------------------------


def hexed(value: int | bytes) -> str:
    """Write an integer as a quantity, bytes as data."""
    return hex(value) if isinstance(value, int) else "0x" + value.hex()


def block_json(sealed: Sealed, *, full: bool) -> Json:
    """Write a block as go-ethereum does; ``full`` writes whole transactions instead of their hashes."""
    header: Any = sealed.header
    transactions: list[Any] = [
        transaction_json(tx, sealed, index) if full else hexed(bytes(tx.hash))
        for index, tx in enumerate(sealed.transactions)
    ]
    return {
        "number": hexed(header.block_number),
        "hash": hexed(header.hash),
        "parentHash": hexed(header.parent_hash),
        "nonce": hexed(header.nonce),
        "sha3Uncles": hexed(header.uncles_hash),
        "logsBloom": hexed(_bloom(header.bloom)),
        "transactionsRoot": hexed(header.transaction_root),
        "stateRoot": hexed(header.state_root),
        "receiptsRoot": hexed(header.receipt_root),
        "miner": hexed(header.coinbase),
        "difficulty": "0x0",
        "totalDifficulty": "0x0",
        "extraData": hexed(header.extra_data),
        "size": hexed(block_size(sealed)),
        "gasLimit": hexed(header.gas_limit),
        "gasUsed": hexed(header.gas_used),
        "timestamp": hexed(header.timestamp),
        "mixHash": hexed(header.mix_hash),
        "baseFeePerGas": hexed(header.base_fee_per_gas),
        "withdrawalsRoot": hexed(header.withdrawals_root),
        "blobGasUsed": hexed(header.blob_gas_used),
        "excessBlobGas": hexed(header.excess_blob_gas),
        "parentBeaconBlockRoot": hexed(header.parent_beacon_block_root),
        "transactions": transactions,
        "uncles": [],
        "withdrawals": [],
    }


def transaction_json(tx: SignedTransactionAPI, sealed: Sealed | None, index: int | None) -> Json:
    """Write a transaction; without a block it is pending."""
    kind = _kind(tx)
    out: Json = {
        "blockHash": None if sealed is None else hexed(sealed.header.hash),
        "blockNumber": None if sealed is None else hexed(sealed.header.block_number),
        "transactionIndex": None if index is None else hexed(index),
        "hash": hexed(bytes(tx.hash)),
        "type": hexed(kind),
        "nonce": hexed(tx.nonce),
        "from": hexed(bytes(tx.sender)),
        "to": hexed(bytes(tx.to)) if tx.to else None,
        "value": hexed(tx.value),
        "gas": hexed(tx.gas),
        "input": hexed(bytes(tx.data)),
        "chainId": None if tx.chain_id is None else hexed(tx.chain_id),
        "r": hexed(tx.r),
        "s": hexed(tx.s),
        "v": hexed(tx.y_parity if kind else _v(tx)),
    }
    if kind:
        out["yParity"] = hexed(tx.y_parity)
        out["accessList"] = [
            {"address": hexed(bytes(account)), "storageKeys": [hexed(key.to_bytes(32, "big")) for key in keys]}
            for account, keys in tx.access_list
        ]
    if kind == 2:
        out["maxFeePerGas"] = hexed(tx.max_fee_per_gas)
        out["maxPriorityFeePerGas"] = hexed(tx.max_priority_fee_per_gas)
    out["gasPrice"] = hexed(tx.max_fee_per_gas if sealed is None else _price(tx, sealed.header))
    return out


def receipt_json(sealed: Sealed, index: int, contract: bytes | None) -> Json:
    """Write the receipt of a mined transaction; ``contract`` is what it created, if it did."""
    tx, receipt = sealed.transactions[index], sealed.receipts[index]
    first_log = sum(len(other.logs) for other in sealed.receipts[:index])
    return {
        "transactionHash": hexed(bytes(tx.hash)),
        "transactionIndex": hexed(index),
        "blockHash": hexed(sealed.header.hash),
        "blockNumber": hexed(sealed.header.block_number),
        "from": hexed(bytes(tx.sender)),
        "to": hexed(bytes(tx.to)) if tx.to else None,
        "contractAddress": None if contract is None else hexed(contract),
        "cumulativeGasUsed": hexed(receipt.gas_used),
        "gasUsed": hexed(sealed.gas_used[index]),
        "effectiveGasPrice": hexed(_price(tx, sealed.header)),
        "logs": [log_json(log, sealed, index, first_log + at) for at, log in enumerate(receipt.logs)],
        "logsBloom": hexed(_bloom(receipt.bloom)),
        "status": "0x1" if receipt.state_root == b"\x01" else "0x0",
        "type": hexed(_kind(tx)),
    }


def log_json(log: LogAPI, sealed: Sealed, tx_index: int, log_index: int) -> Json:
    """Write one log entry; ``log_index`` counts within the block."""
    return {
        "address": hexed(bytes(log.address)),
        "topics": [hexed(topic.to_bytes(32, "big")) for topic in log.topics],
        "data": hexed(bytes(log.data)),
        "blockNumber": hexed(sealed.header.block_number),
        "blockHash": hexed(sealed.header.hash),
        "blockTimestamp": hexed(sealed.header.timestamp),
        "transactionHash": hexed(bytes(sealed.transactions[tx_index].hash)),
        "transactionIndex": hexed(tx_index),
        "logIndex": hexed(log_index),
        "removed": False,
    }


def _price(tx: SignedTransactionAPI, header: BlockHeaderAPI) -> int:
    block: Any = header  # base_fee_per_gas is None before London, and this chain starts after it
    return min(int(tx.max_fee_per_gas), int(tx.max_priority_fee_per_gas + block.base_fee_per_gas))


def _bloom(value: int) -> bytes:
    return value.to_bytes(256, "big")


def _kind(tx: SignedTransactionAPI) -> int:
    return int(getattr(tx, "type_id", None) or 0)


def _v(legacy: Any) -> int:
    return int(legacy.v)
