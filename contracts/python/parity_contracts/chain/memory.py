"""The chain port without a chain: same rules, same errors, time from a clock. For tests and for trying things."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType

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
from parity_contracts.chain.calls import Call, arguments, gas_ceiling
from parity_contracts.chain.memory_vault import Account, Escrow, Event, MemoryVault
from parity_contracts.deployment import Deployment
from parity_protocol.clock import Clock
from parity_protocol.errors import BadDocument, ChainUnavailable, Conflict, ParityError
from parity_protocol.ids import Address
from parity_protocol.signing.eip712 import account_key
from parity_protocol.signing.keccak import keccak256
from parity_protocol.signing.keys import EvmKey

__all__ = ["MemoryChain"]

_GAS_PRICE = 10**9  # wei
_START_WEI = 100 * 10**18  # what every address begins with
_ZERO = "0x" + "0" * 40


@dataclass(frozen=True, slots=True)
class _Pending:
    tx: PreparedTx
    call: Call


@dataclass(frozen=True, slots=True)
class _Block:
    time: int
    block_hash: str
    vault: MemoryVault
    wei: dict[Address, int]
    events: tuple[VaultEvent, ...]


class MemoryChain:
    """One deployment in memory.

    Args:
        clock: Gives blocks their time; a block is never before its parent plus one second.
        auto_mine: True mines each transaction when it is broadcast; False waits for ``mine``.
    """

    def __init__(self, clock: Clock, deployment: Deployment | None = None, *, auto_mine: bool = True) -> None:
        self._clock = clock
        self.auto_mine = auto_mine
        self._offline = False
        self._deployment = deployment or Deployment(
            chain_id=31337,
            genesis_hash="0x" + keccak256(b"memory chain").hex(),
            token=Address("0x" + "aa" * 20),
            vault=Address("0x" + "bb" * 20),
            unbonding_s=60,
            symbol="PDEV",
            decimals=18,
        )
        start = int(clock.now().timestamp())
        self._blocks = [_Block(start, self._deployment.genesis_hash, MemoryVault(self._deployment), {}, ())]
        self._prepared: dict[bytes, _Pending] = {}
        self._pool: dict[tuple[Address, int], _Pending] = {}
        self._nonces: dict[Address, int] = {}
        self._receipts: dict[str, TxReceipt] = {}

    # -- for tests -----------------------------------------------------------------------------------------------

    def go_offline(self) -> None:
        """Answer nothing but ChainUnavailable from now on."""
        self._offline = True

    def go_online(self) -> None:
        """Answer again."""
        self._offline = False

    def mine(self, blocks: int = 1) -> None:
        """Make blocks; the first takes everything pending that has no gap before it."""
        for _ in range(blocks):
            self._mine_one()

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def deployment(self) -> Deployment:
        """What this pretends to be."""
        return self._deployment

    async def head(self) -> Head:
        """Return the newest block."""
        self._check_online()
        block = self._blocks[-1]
        return Head(len(self._blocks) - 1, block.block_hash, datetime.fromtimestamp(block.time, UTC))

    async def account(self, account: str, *, at: int | None = None) -> AccountState:
        """Return an account by its id."""
        height, block = self._at(at)
        found = block.vault.accounts.get(account_key(account))
        state = found or Account(Address(_ZERO), Address(_ZERO))
        return AccountState(
            block=height,
            exists=found is not None,
            bond=state.bond,
            unbonding=state.unbonding,
            unbonding_ready_at=datetime.fromtimestamp(state.ready_at, UTC) if state.unbonding else None,
            credit=state.credit,
            owner=_or_none(state.owner),
            payout=_or_none(state.payout),
            operator=_or_none(state.operator),
        )

    async def escrow(self, account: str, spender: Address, *, at: int | None = None) -> EscrowState:
        """Return what ``account`` has set aside for ``spender``."""
        height, block = self._at(at)
        found = block.vault.escrows.get((account_key(account), spender), Escrow())
        ready_at = datetime.fromtimestamp(found.ready_at, UTC) if found.releasing else None
        return EscrowState(height, found.amount, found.releasing, ready_at)

    async def paid(self, keys: Sequence[PaidKey], *, at: int | None = None) -> PaidAmounts:
        """Return what vouchers have paid on each key."""
        height, block = self._at(at)
        places = [(account_key(key.creator), key.spender, account_key(key.solver)) for key in keys]
        return PaidAmounts(height, tuple(block.vault.paid.get(place, 0) for place in places))

    async def holdings(self, address: Address, *, at: int | None = None) -> Holdings:
        """Return an address's ether, tokens and allowance to the vault."""
        height, block = self._at(at)
        vault = block.vault
        wei = block.wei.get(address, _START_WEI)
        return Holdings(height, wei, vault.tokens.get(address, 0), vault.allowances.get(address, 0))

    async def events(self, first: int, last: int) -> list[VaultEvent]:
        """Return the vault's events from block ``first`` to ``last``, both included."""
        self._check_online()
        return [event for block in self._blocks[max(0, first) : last + 1] for event in block.events]

    async def receipt(self, tx_hash: str) -> TxReceipt | None:
        """Return how a transaction ended; None while it is not mined."""
        self._check_online()
        found = self._receipts.get(tx_hash)
        if found is None:
            return None
        confirmations = len(self._blocks) - found.block
        return TxReceipt(
            found.tx_hash, found.block, found.succeeded, found.gas_used, found.fee_wei, confirmations, found.events
        )

    # -- writing -------------------------------------------------------------------------------------------------

    async def quote(self, call: Call, sender: Address) -> Quote:
        """Return what ``call`` would cost; raises what the contract would refuse it with."""
        holdings = await self.holdings(sender)
        self._try(call, sender)
        return Quote(gas_ceiling(call), _GAS_PRICE, _GAS_PRICE, self._next_nonce(sender), holdings)

    async def prepare(self, call: Call, key: EvmKey, *, nonce: int | None = None, gas: int | None = None) -> PreparedTx:
        """Sign ``call`` without sending it; ``raw`` means something to this object only."""
        self._check_online()
        if gas is None:
            self._try(call, key.address)
        nonce = self._next_nonce(key.address) if nonce is None else nonce
        name, values, _ = arguments(call, self._deployment.vault)
        body = json.dumps([self._deployment.genesis_hash, name, repr(values), nonce], separators=(",", ":")).encode()
        raw = key.sign_digest(keccak256(body)) + body
        tx = PreparedTx(raw, "0x" + keccak256(raw).hex(), key.address, nonce, gas or gas_ceiling(call), _GAS_PRICE)
        self._prepared[raw] = _Pending(tx, call)
        return tx

    async def broadcast(self, raw: bytes) -> str:
        """Send a prepared transaction and return its hash; sending it again is not an error."""
        self._check_online()
        pending = self._prepared.get(raw)
        if pending is None:
            raise BadDocument("not a transaction that this chain prepared")
        tx = pending.tx
        if tx.tx_hash in self._receipts or self._pool.get((tx.sender, tx.nonce)) == pending:
            return tx.tx_hash
        if tx.nonce < self._nonces.get(tx.sender, 0) or (tx.sender, tx.nonce) in self._pool:
            raise Conflict(f"the transaction's nonce is used: nonce {tx.nonce} of {tx.sender}")
        self._pool[tx.sender, tx.nonce] = pending
        if self.auto_mine:
            self._mine_one()
        return tx.tx_hash

    # -- private -------------------------------------------------------------------------------------------------

    def _check_online(self) -> None:
        if self._offline:
            raise ChainUnavailable("the chain does not answer: it was taken offline")

    def _at(self, at: int | None) -> tuple[int, _Block]:
        self._check_online()
        height = len(self._blocks) - 1 if at is None else at
        if not 0 <= height < len(self._blocks):
            raise ChainUnavailable(f"the chain does not have block {height}")
        return height, self._blocks[height]

    def _now(self) -> int:
        return max(int(self._clock.now().timestamp()), self._blocks[-1].time)

    def _next_nonce(self, sender: Address) -> int:
        nonce = self._nonces.get(sender, 0)
        while (sender, nonce) in self._pool:
            nonce += 1
        return nonce

    def _try(self, call: Call, sender: Address) -> None:
        self._blocks[-1].vault.snapshot().apply(call, sender, self._now())

    def _mine_one(self) -> None:
        parent = self._blocks[-1]
        number = len(self._blocks)
        time = max(int(self._clock.now().timestamp()), parent.time + 1)
        vault, wei, events = parent.vault, dict(parent.wei), list[VaultEvent]()
        while ready := [p for (sender, nonce), p in self._pool.items() if nonce == self._nonces.get(sender, 0)]:
            for pending in ready:
                vault, found = self._execute(pending, vault, time)
                tx = pending.tx
                mine = tuple(
                    VaultEvent(name, MappingProxyType(values), number, len(events) + index, tx.tx_hash)
                    for index, (name, values) in enumerate(found or ())
                )
                events += mine
                gas_used = gas_ceiling(pending.call) // 2
                fee = gas_used * _GAS_PRICE
                wei[tx.sender] = wei.get(tx.sender, _START_WEI) - fee
                self._receipts[tx.tx_hash] = TxReceipt(tx.tx_hash, number, found is not None, gas_used, fee, 1, mine)
        block_hash = "0x" + keccak256(bytes.fromhex(parent.block_hash[2:]) + time.to_bytes(8, "big")).hex()
        self._blocks.append(_Block(time, block_hash, vault, wei, tuple(events)))

    def _execute(self, pending: _Pending, vault: MemoryVault, time: int) -> tuple[MemoryVault, list[Event] | None]:
        """Return the state after a transaction and its events; the state before it and None if it failed."""
        tx = pending.tx
        del self._pool[tx.sender, tx.nonce]
        self._nonces[tx.sender] = tx.nonce + 1
        after = vault.snapshot()
        try:
            return after, after.apply(pending.call, tx.sender, time)
        except ParityError:
            return vault, None


def _or_none(address: Address) -> Address | None:
    return None if address == _ZERO else address
