"""The JSON-RPC methods of the embedded chain: an explicit table, so that what is not in it does not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eth_typing import Address

from parity_contracts.devnet import wire
from parity_contracts.devnet.ledger import BLOCK_GAS_LIMIT, CallRequest, Execution, Sealed, created_address
from parity_contracts.devnet.node import PRIORITY_FEE, Accepted, ChainNode
from parity_contracts.devnet.wire import Json, hexed
from parity_contracts.reverts import error_string
from parity_protocol.errors import BadField, NotFound, TooLarge

__all__ = ["METHODS", "ExecutionReverted", "Method"]

_MAX_LOGS = 10_000  # entries of one eth_getLogs answer
_MAX_FEE_BLOCKS = 1024
_MAX_ADDRESSES = 128  # of one log filter

Method = Callable[[ChainNode, list[Any]], Any]


class ExecutionReverted(Exception):
    """A call reverted; ``data`` is what the contract returned. Never leaves the RPC server."""

    def __init__(self, data: bytes) -> None:
        reason = error_string(data)
        super().__init__("execution reverted" + (f": {reason}" if reason else ""))
        self.data = data


# -- the chain ---------------------------------------------------------------------------------------------------


def _chain_id(node: ChainNode, _: list[Any]) -> str:
    return hexed(node.ledger.chain_id)


def _net_version(node: ChainNode, _: list[Any]) -> str:
    return str(node.ledger.chain_id)


def _client_version(_node: ChainNode, _: list[Any]) -> str:
    return "parity-node/embedded-chain/py-evm"


def _syncing(_node: ChainNode, _: list[Any]) -> bool:
    return False


def _accounts(_node: ChainNode, _: list[Any]) -> list[str]:
    return []  # it signs for nobody


def _block_number(node: ChainNode, _: list[Any]) -> str:
    return hexed(node.ledger.head.block_number)


def _block_by_number(node: ChainNode, params: list[Any]) -> Json | None:
    try:
        sealed = node.ledger.block(wire.block_number(_at(params, 0), node.ledger))
    except NotFound:
        return None
    return wire.block_json(sealed, full=_at(params, 1) is True)


def _block_by_hash(node: ChainNode, params: list[Any]) -> Json | None:
    number = node.ledger.number_of(wire.hash32(_at(params, 0), "blockHash"))
    if number is None:
        return None
    return wire.block_json(node.ledger.block(number), full=_at(params, 1) is True)


# -- fees --------------------------------------------------------------------------------------------------------


def _gas_price(node: ChainNode, _: list[Any]) -> str:
    return hexed(node.ledger.next_base_fee() + PRIORITY_FEE)


def _max_priority_fee(_node: ChainNode, _: list[Any]) -> str:
    return hexed(PRIORITY_FEE)


def _fee_history(node: ChainNode, params: list[Any]) -> Json:
    asked = _at(params, 0)
    count = asked if isinstance(asked, int) and not isinstance(asked, bool) else wire.quantity(asked, "blockCount")
    if not 1 <= count <= _MAX_FEE_BLOCKS:
        raise BadField(f"blockCount: expected 1 to {_MAX_FEE_BLOCKS}, got {count}", field="blockCount")
    percentiles = _at(params, 2) or []
    if not isinstance(percentiles, list) or len(percentiles) > 100 or not all(map(_is_percentile, percentiles)):
        raise BadField("rewardPercentiles: expected at most 100 numbers from 0 to 100", field="rewardPercentiles")
    newest = wire.block_number(_at(params, 1), node.ledger)
    head: Any = node.ledger.head
    oldest = max(0, newest - count + 1)
    blocks = [node.ledger.block(number) for number in range(oldest, newest + 1)]
    following: int = (
        node.ledger.next_base_fee() if newest == head.block_number else _base_fee(node.ledger.block(newest + 1))
    )
    out: Json = {
        "oldestBlock": hexed(oldest),
        "baseFeePerGas": [hexed(_base_fee(block)) for block in blocks] + [hexed(following)],
        "gasUsedRatio": [block.header.gas_used / block.header.gas_limit for block in blocks],
        "baseFeePerBlobGas": ["0x1"] * (len(blocks) + 1),
        "blobGasUsedRatio": [0.0] * len(blocks),
    }
    if percentiles:
        out["reward"] = [_rewards(block, percentiles) for block in blocks]
    return out


def _base_fee(sealed: Sealed) -> int:
    header: Any = sealed.header
    return int(header.base_fee_per_gas)


def _is_percentile(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100


def _rewards(sealed: Sealed, percentiles: list[float]) -> list[str]:
    """Return the tips below which each percentage of the block's gas was spent, weighted by gas."""
    base_fee = _base_fee(sealed)
    tips = sorted(
        (min(tx.max_priority_fee_per_gas, tx.max_fee_per_gas - base_fee), gas)
        for tx, gas in zip(sealed.transactions, sealed.gas_used, strict=True)
    )
    out = []
    for percentile in percentiles:
        threshold, spent, tip = sealed.header.gas_used * percentile / 100, 0, 0
        for tip, gas in tips:  # noqa: B007  (the tip where the loop stops is the answer)
            spent += gas
            if spent >= threshold:
                break
        out.append(hexed(tip))
    return out


# -- accounts ----------------------------------------------------------------------------------------------------


def _state_at(node: ChainNode, params: list[Any], position: int) -> Any:
    return node.ledger.state(wire.block_number(_at(params, position), node.ledger))


def _balance(node: ChainNode, params: list[Any]) -> str:
    return hexed(_state_at(node, params, 1).get_balance(Address(wire.address(_at(params, 0), "address"))))


def _transaction_count(node: ChainNode, params: list[Any]) -> str:
    account = Address(wire.address(_at(params, 0), "address"))
    nonce = int(_state_at(node, params, 1).get_nonce(account))
    return hexed(node.pool.next_nonce(account, nonce) if _at(params, 1) == "pending" else nonce)


def _code(node: ChainNode, params: list[Any]) -> str:
    return hexed(bytes(_state_at(node, params, 1).get_code(Address(wire.address(_at(params, 0), "address")))))


def _storage_at(node: ChainNode, params: list[Any]) -> str:
    account = Address(wire.address(_at(params, 0), "address"))
    value = _state_at(node, params, 2).get_storage(account, wire.quantity(_at(params, 1), "position"))
    return hexed(int(value).to_bytes(32, "big"))


# -- calls -------------------------------------------------------------------------------------------------------


def _call(node: ChainNode, params: list[Any]) -> str:
    request = _call_request(params)
    execution = node.ledger.call(request, wire.block_number(_at(params, 1), node.ledger))
    _raise_if_failed(execution)
    return hexed(execution.output)


def _estimate_gas(node: ChainNode, params: list[Any]) -> str:
    request = _call_request(params)
    gas, execution = node.ledger.estimate(request, wire.block_number(_at(params, 1), node.ledger))
    _raise_if_failed(execution)
    return hexed(gas)


def _call_request(params: list[Any]) -> CallRequest:
    asked = _at(params, 0)
    if not isinstance(asked, dict):
        raise BadField("params[0]: expected a call object", field="params")
    if _at(params, 2):
        raise BadField("params[2]: state overrides are not taken here", field="params")
    old, new = asked.get("data"), asked.get("input")
    if old is not None and new is not None and old != new:
        raise BadField('both "data" and "input" are set and not equal. Please use "input"', field="input")
    payload = new if new is not None else old
    sender, to, gas, value = asked.get("from"), asked.get("to"), asked.get("gas"), asked.get("value")
    return CallRequest(
        sender=bytes(20) if sender is None else wire.address(sender, "from"),
        to=b"" if to in (None, "0x") else wire.address(to, "to"),
        data=b"" if payload is None else wire.data(payload, "input"),
        value=0 if value is None else wire.quantity(value, "value"),
        gas=BLOCK_GAS_LIMIT if gas is None else min(wire.quantity(gas, "gas"), BLOCK_GAS_LIMIT),
    )


def _raise_if_failed(execution: Execution) -> None:
    if execution.is_revert:
        raise ExecutionReverted(execution.output)
    if execution.error is not None:
        raise BadField(execution.error, field="params")


# -- transactions ------------------------------------------------------------------------------------------------


def _send_raw(node: ChainNode, params: list[Any]) -> Accepted:
    return node.submit(wire.data(_at(params, 0), "data"))


def _faucet(node: ChainNode, params: list[Any]) -> Accepted:
    return node.grant(wire.address(_at(params, 0), "address"))


def _receipt(node: ChainNode, params: list[Any]) -> Json | None:
    found = node.ledger.locate(wire.hash32(_at(params, 0), "hash"))
    return None if found is None else _receipt_at(*found)


def _block_receipts(node: ChainNode, params: list[Any]) -> list[Json] | None:
    try:
        sealed = node.ledger.block(wire.block_number(_at(params, 0), node.ledger))
    except NotFound:
        return None
    return [_receipt_at(sealed, index) for index in range(len(sealed.transactions))]


def _receipt_at(sealed: Sealed, index: int) -> Json:
    tx = sealed.transactions[index]
    contract = None
    if not tx.to:
        contract = created_address(bytes(tx.sender), tx.nonce)
    return wire.receipt_json(sealed, index, contract)


def _transaction(node: ChainNode, params: list[Any]) -> Json | None:
    tx_hash = wire.hash32(_at(params, 0), "hash")
    found = node.ledger.locate(tx_hash)
    if found is not None:
        sealed, index = found
        return wire.transaction_json(sealed.transactions[index], sealed, index)
    pending = node.pool.get(tx_hash)
    return None if pending is None else wire.transaction_json(pending, None, None)


def _logs(node: ChainNode, params: list[Any]) -> list[Json]:
    asked = _at(params, 0)
    if not isinstance(asked, dict):
        raise BadField("params[0]: expected a filter object", field="params")
    if "blockHash" in asked:
        first = last = wire.block_number({"blockHash": asked["blockHash"]}, node.ledger, "blockHash")
    else:
        head = int(node.ledger.head.block_number)
        first = _height(node, asked.get("fromBlock"), "fromBlock")
        last = min(head, _height(node, asked.get("toBlock"), "toBlock"))
    addresses = _addresses(asked.get("address"))
    topics = _topics(asked.get("topics"))
    out: list[Json] = []
    for sealed in node.ledger.blocks_with_logs(first, last):
        log_index = 0
        for tx_index, receipt in enumerate(sealed.receipts):
            for log in receipt.logs:
                if (not addresses or bytes(log.address) in addresses) and _topics_match(log.topics, topics):
                    out.append(wire.log_json(log, sealed, tx_index, log_index))
                log_index += 1
        if len(out) > _MAX_LOGS:
            raise TooLarge(f"query returned more than {_MAX_LOGS} results; ask for fewer blocks")
    return out


def _height(node: ChainNode, value: object, field: str) -> int:
    """Read a height of a filter, which may be after the newest block."""
    if isinstance(value, str) and value.startswith("0x"):
        return wire.quantity(value, field)
    return wire.block_number(value, node.ledger, field)


def _addresses(value: object) -> frozenset[bytes]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if len(listed) > _MAX_ADDRESSES:
        raise BadField(f"address: expected at most {_MAX_ADDRESSES}, got {len(listed)}", field="address")
    return frozenset(wire.address(item, "address") for item in listed)


def _topics(value: object) -> list[frozenset[int] | None]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > 4:
        raise BadField("topics: expected at most 4 of null, a topic or a list of topics", field="topics")
    out: list[frozenset[int] | None] = []
    for item in value:
        listed = item if isinstance(item, list) else [] if item is None else [item]
        if len(listed) > _MAX_ADDRESSES:
            raise BadField(f"topics: expected at most {_MAX_ADDRESSES} alternatives", field="topics")
        found = frozenset(int.from_bytes(wire.hash32(topic, "topics"), "big") for topic in listed)
        out.append(found or None)
    return out


def _topics_match(have: Any, want: list[frozenset[int] | None]) -> bool:
    if len(want) > len(have):
        return False
    return all(one is None or topic in one for topic, one in zip(have, want, strict=False))


def _at(params: list[Any], position: int) -> Any:
    return params[position] if position < len(params) else None


METHODS: dict[str, Method] = {
    "eth_accounts": _accounts,
    "eth_blockNumber": _block_number,
    "eth_call": _call,
    "eth_chainId": _chain_id,
    "eth_estimateGas": _estimate_gas,
    "eth_feeHistory": _fee_history,
    "eth_gasPrice": _gas_price,
    "eth_getBalance": _balance,
    "eth_getBlockByHash": _block_by_hash,
    "eth_getBlockByNumber": _block_by_number,
    "eth_getBlockReceipts": _block_receipts,
    "eth_getCode": _code,
    "eth_getLogs": _logs,
    "eth_getStorageAt": _storage_at,
    "eth_getTransactionByHash": _transaction,
    "eth_getTransactionCount": _transaction_count,
    "eth_getTransactionReceipt": _receipt,
    "eth_maxPriorityFeePerGas": _max_priority_fee,
    "eth_sendRawTransaction": _send_raw,
    "eth_syncing": _syncing,
    "net_version": _net_version,
    "parity_faucet": _faucet,
    "web3_clientVersion": _client_version,
}
