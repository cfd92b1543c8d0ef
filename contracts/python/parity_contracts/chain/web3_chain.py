"""The chain port over any JSON-RPC endpoint: the embedded chain, anvil or a public network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any, Self, cast

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError

from parity_contracts import artifacts
from parity_contracts.chain.base import (
    AccountState,
    EscrowState,
    Head,
    Holdings,
    PaidAmounts,
    PaidKey,
    PreparedTx,
    Quote,
    TxReceipt,
    VaultEvent,
)
from parity_contracts.chain.calls import Call, arguments
from parity_contracts.chain.encoding import call_data, event_arguments, sign, transaction_hash
from parity_contracts.chain.rpc import Rpc, data, header, is_already_known, quantity
from parity_contracts.deployment import Deployment
from parity_protocol.errors import ChainUnavailable, ConfigInvalid, Conflict, ParityError
from parity_protocol.ids import Address
from parity_protocol.signing.eip712 import account_key
from parity_protocol.signing.keys import EvmKey

__all__ = ["DEFAULT_MAX_FEE_PER_GAS", "DEFAULT_TIMEOUT_S", "Web3Chain"]

DEFAULT_TIMEOUT_S = 10.0
DEFAULT_MAX_FEE_PER_GAS = 500 * 10**9  # wei: above this nothing is sent
_GAS_MARGIN_PERCENT = 25  # the state may have moved when the transaction is mined
_ZERO = "0x" + "0" * 40
_RECEIPT_MEMBERS = {"blockNumber", "gasUsed", "status", "effectiveGasPrice", "logs"}
_LOG_MEMBERS = {"address", "topics", "data", "blockNumber", "logIndex", "transactionHash"}
_EVENT_SPAN = 2_000  # blocks of one eth_getLogs; public endpoints commonly allow that


class Web3Chain:
    """One deployment behind one RPC endpoint. Make it with ``connect``, which checks that it is the right chain."""

    def __init__(self, rpc: Rpc, deployment: Deployment, *, max_fee_per_gas: int) -> None:
        self._rpc = rpc
        self._deployment = deployment
        self._max_fee_per_gas = max_fee_per_gas
        self._vault = artifacts.load("StakeVault")
        self._token = artifacts.load("DevToken")  # an ERC-20 with a faucet; only that function is its own

    @classmethod
    async def connect(
        cls,
        url: str,
        deployment: Deployment,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_fee_per_gas: int = DEFAULT_MAX_FEE_PER_GAS,
    ) -> Web3Chain:
        """Connect and check chain id, genesis hash, vault and token.

        Args:
            timeout_s: For each request.
            max_fee_per_gas: Wei; nothing is signed that offers more.

        Raises:
            ChainUnavailable: The endpoint does not answer.
            ConfigInvalid: It is another chain, or the vault is not there; names everything that differs.
        """
        rpc = Rpc(url, timeout_s=timeout_s, errors=known_errors())
        chain = cls(rpc, deployment, max_fee_per_gas=max_fee_per_gas)
        try:
            await chain._check_pin()
        except BaseException:
            await rpc.aclose()
            raise
        return chain

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._rpc.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def deployment(self) -> Deployment:
        """The chain, vault and token that were pinned."""
        return self._deployment

    async def head(self) -> Head:
        """Return the newest block."""
        block = await self._rpc.block("latest")
        return Head(quantity(block["number"]), str(block["hash"]), _time(quantity(block["timestamp"])))

    async def account(self, account: str, *, at: int | None = None) -> AccountState:
        """Return an account by its id."""
        block = await self._height(at)
        [found] = await self._read(block, ("accountOf", account_key(account)))
        (owner, credit, payout, bond, operator, unbonding, ready_at) = found[0]
        return AccountState(
            block=block,
            exists=owner != _ZERO,
            bond=bond,
            unbonding=unbonding,
            unbonding_ready_at=_time(ready_at) if unbonding else None,
            credit=credit,
            owner=_address(owner),
            payout=_address(payout),
            operator=_address(operator),
        )

    async def escrow(self, account: str, spender: Address, *, at: int | None = None) -> EscrowState:
        """Return what ``account`` has set aside for ``spender``."""
        block = await self._height(at)
        [[amount], [releasing, ready_at]] = await self._read(
            block, ("escrowOf", account, spender), ("releaseOf", account, spender)
        )
        return EscrowState(block, amount, releasing, _time(ready_at) if releasing else None)

    async def paid(self, keys: Sequence[PaidKey], *, at: int | None = None) -> PaidAmounts:
        """Return what vouchers have paid on each key, all at one block."""
        block = await self._height(at)
        asked = [("paid", account_key(key.creator), key.spender, account_key(key.solver)) for key in keys]
        return PaidAmounts(block, tuple(amount for [amount] in await self._read(block, *asked)))

    async def holdings(self, address: Address, *, at: int | None = None) -> Holdings:
        """Return an address's ether, tokens and allowance to the vault."""
        block = await self._height(at)
        token, vault = self._deployment.token, self._deployment.vault
        wei, tokens, allowance = await self._rpc.batch(
            [
                ("eth_getBalance", [address, hex(block)]),
                ("eth_call", [{"to": token, "input": self._input("balanceOf", (address,))}, hex(block)]),
                ("eth_call", [{"to": token, "input": self._input("allowance", (address, vault))}, hex(block)]),
            ]
        )
        return Holdings(block, quantity(wei), _word(tokens), _word(allowance))

    async def events(self, first: int, last: int) -> list[VaultEvent]:
        """Return the vault's events of a span of blocks, asked for in parts that public endpoints take."""
        out: list[VaultEvent] = []
        for start in range(first, last + 1, _EVENT_SPAN):
            end = min(last, start + _EVENT_SPAN - 1)
            asked = {"address": self._deployment.vault, "fromBlock": hex(start), "toBlock": hex(end)}
            out += self._events(await self._rpc.call("eth_getLogs", asked))
        return out

    async def receipt(self, tx_hash: str) -> TxReceipt | None:
        """Return how a transaction ended; None while it is not mined."""
        found, newest = await self._rpc.batch([("eth_getTransactionReceipt", [tx_hash]), ("eth_blockNumber", [])])
        if found is None:
            return None
        if not isinstance(found, dict) or not found.keys() >= _RECEIPT_MEMBERS or not isinstance(found["logs"], list):
            raise ChainUnavailable(f"expected a receipt from the chain, got {str(found)[:60]!r}")
        block, gas_used = quantity(found["blockNumber"]), quantity(found["gasUsed"])
        vault = self._deployment.vault
        return TxReceipt(
            tx_hash=tx_hash,
            block=block,
            succeeded=quantity(found["status"]) == 1,
            gas_used=gas_used,
            fee_wei=gas_used * quantity(found["effectiveGasPrice"]),
            confirmations=max(1, quantity(newest) - block + 1),
            events=tuple(self._events([log for log in found["logs"] if str(log.get("address")).lower() == vault])),
        )

    # -- writing -------------------------------------------------------------------------------------------------

    async def quote(self, call: Call, sender: Address) -> Quote:
        """Return what ``call`` would cost; raises what the contract would refuse it with."""
        to, payload = self._target(call)
        holdings = await self.holdings(sender)
        max_fee, priority = await self._fees()
        nonce = quantity(await self._rpc.call("eth_getTransactionCount", sender, "pending"))
        gas = quantity(await self._rpc.call("eth_estimateGas", {"from": sender, "to": to, "input": payload}))
        return Quote(gas + gas * _GAS_MARGIN_PERCENT // 100, max_fee, priority, nonce, holdings)

    async def prepare(self, call: Call, key: EvmKey, *, nonce: int | None = None, gas: int | None = None) -> PreparedTx:
        """Sign ``call`` without sending it."""
        to, payload = self._target(call)
        max_fee, priority = await self._fees()
        if nonce is None:
            nonce = quantity(await self._rpc.call("eth_getTransactionCount", key.address, "pending"))
        if gas is None:
            asked = {"from": key.address, "to": to, "input": payload}
            estimate = quantity(await self._rpc.call("eth_estimateGas", asked))
            gas = estimate + estimate * _GAS_MARGIN_PERCENT // 100
        return sign(
            key, chain_id=self._deployment.chain_id, nonce=nonce, gas=gas, to=to, payload=payload,
            max_fee_per_gas=max_fee, max_priority_fee_per_gas=priority,
        )  # fmt: skip

    async def broadcast(self, raw: bytes) -> str:
        """Send a prepared transaction and return its hash; sending it again is not an error."""
        tx_hash = transaction_hash(raw)
        try:
            await self._rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
        except ParityError as exc:
            if is_already_known(exc):
                return tx_hash
            if isinstance(exc, Conflict) and await self._rpc.call("eth_getTransactionByHash", tx_hash) is not None:
                return tx_hash  # the nonce is used by this very transaction
            raise
        return tx_hash

    # -- private -------------------------------------------------------------------------------------------------

    async def _check_pin(self) -> None:
        want = self._deployment
        chain_id, genesis, vault_code, token_code = await self._rpc.batch(
            [
                ("eth_chainId", []),
                ("eth_getBlockByNumber", ["0x0", False]),
                ("eth_getCode", [want.vault, "latest"]),
                ("eth_getCode", [want.token, "latest"]),
            ]
        )
        problems = []
        if quantity(chain_id) != want.chain_id:
            problems.append(f"chain id: expected {want.chain_id}, the endpoint has {quantity(chain_id)}")
        genesis_hash = genesis.get("hash") if isinstance(genesis, dict) else None
        if genesis_hash != want.genesis_hash:
            problems.append(f"genesis hash: expected {want.genesis_hash}, the endpoint has {genesis_hash}")
        if not data(vault_code):
            problems.append(f"vault: there is no contract at {want.vault}")
        if not data(token_code):
            problems.append(f"token: there is no contract at {want.token}")
        if not problems:
            [[token]] = await self._read(await self._height(None), ("token",))
            if token != want.token:
                problems.append(f"token: expected {want.token}, the vault at {want.vault} holds {token}")
        if problems:
            raise ConfigInvalid(problems)

    async def _height(self, at: int | None) -> int:
        return quantity(await self._rpc.call("eth_blockNumber")) if at is None else at

    async def _read(self, block: int, *asked: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Call views of the vault, all at one height: (name, argument…) each."""
        functions = [self._vault.functions[name] for name, *_ in asked]
        answers = await self._rpc.batch(
            [
                ("eth_call", [{"to": self._deployment.vault, "input": call_data(one, values)}, hex(block)])
                for one, (_, *values) in zip(functions, asked, strict=True)
            ]
        )
        try:
            return [decode(one.outputs, data(answer)) for one, answer in zip(functions, answers, strict=True)]
        except DecodingError as exc:
            raise ChainUnavailable(f"the vault's answer does not decode: {exc}") from exc

    def _input(self, name: str, values: Sequence[Any]) -> str:
        return call_data(self._token.functions[name], values)

    def _target(self, call: Call) -> tuple[Address, str]:
        name, values, is_token = arguments(call, self._deployment.vault)
        artifact = self._token if is_token else self._vault
        to = self._deployment.token if is_token else self._deployment.vault
        return to, call_data(artifact.functions[name], values)

    async def _fees(self) -> tuple[int, int]:
        block, tip = await self._rpc.batch(
            [("eth_getBlockByNumber", ["latest", False]), ("eth_maxPriorityFeePerGas", [])]
        )
        priority = quantity(tip)
        base_fee = quantity(header(block)["baseFeePerGas"])
        if base_fee + priority > self._max_fee_per_gas:
            raise ChainUnavailable(
                f"gas costs {base_fee + priority} wei, more than the {self._max_fee_per_gas} that may be paid"
            )
        return min(2 * base_fee + priority, self._max_fee_per_gas), priority

    def _events(self, logs: Any) -> list[VaultEvent]:
        out = []
        if not isinstance(logs, list):
            raise ChainUnavailable(f"expected logs from the chain, got {str(logs)[:60]!r}")
        for log in logs:
            if not isinstance(log, dict) or not log.keys() >= _LOG_MEMBERS or not isinstance(log["topics"], list):
                raise ChainUnavailable(f"expected a log entry from the chain, got {str(log)[:60]!r}")
            topics = [data(topic) for topic in log["topics"]]
            abi = self._vault.events.get(topics[0]) if topics else None
            if abi is None or log.get("removed"):
                continue
            out.append(
                VaultEvent(
                    name=abi.name,
                    arguments=event_arguments(abi, topics[1:], data(log["data"])),
                    block=quantity(log["blockNumber"]),
                    log_index=quantity(log["logIndex"]),
                    tx_hash=str(log["transactionHash"]),
                )
            )
        return out


def known_errors() -> Mapping[bytes, Any]:
    """Return the custom errors of every contract here, by selector."""
    return MappingProxyType({**artifacts.load("DevToken").errors, **artifacts.load("StakeVault").errors})


def _word(answer: Any) -> int:
    return int.from_bytes(data(answer), "big")


def _time(unix_seconds: int) -> datetime:
    return datetime.fromtimestamp(unix_seconds, UTC)


def _address(value: str) -> Address | None:
    return None if value == _ZERO else cast("Address", value.lower())
