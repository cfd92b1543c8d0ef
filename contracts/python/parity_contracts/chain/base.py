"""The chain as the market, the nodes and the command line see it: reads at one block, and writes in two steps.

A write is first *prepared* (nonce, fees, signature: raw bytes), then *broadcast*. Between the two the caller journals
the raw bytes, so that a crash can only ever send the same transaction again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from parity_contracts.chain.calls import Call
from parity_contracts.deployment import Deployment
from parity_protocol.ids import Address
from parity_protocol.quantities import TokenAmount
from parity_protocol.signing.keys import EvmKey

__all__ = [
    "AccountState",
    "Chain",
    "ChainReader",
    "ChainWriter",
    "EscrowState",
    "Head",
    "Holdings",
    "PaidAmounts",
    "PaidKey",
    "PreparedTx",
    "Quote",
    "TxReceipt",
    "VaultEvent",
]


@dataclass(frozen=True, slots=True)
class Head:
    """The newest block. ``block_hash`` is ``0x`` and 64 hex digits, ``time`` is UTC."""

    number: int
    block_hash: str
    time: datetime


@dataclass(frozen=True, slots=True)
class AccountState:
    """One account of the vault after a block; everything is zero or None if nobody has opened it.

    Attributes:
        block: Height that was read.
        bond: What the stake gate counts, base units.
        unbonding: On its way out of the bond, withdrawable from ``unbonding_ready_at`` on.
        unbonding_ready_at: UTC; None when nothing is unbonding.
        credit: Free money: earnings, deposits, finished releases.
        operator: The hot key of the running node; None when there is none.
    """

    block: int
    exists: bool
    bond: TokenAmount
    unbonding: TokenAmount
    unbonding_ready_at: datetime | None
    credit: TokenAmount
    owner: Address | None
    payout: Address | None
    operator: Address | None


@dataclass(frozen=True, slots=True)
class EscrowState:
    """What an account has set aside for a spender.

    Attributes:
        amount: All that the spender's vouchers can draw, including ``releasing``.
        releasing: The part that the owner may take back from ``ready_at`` on. A market must not rely on it.
    """

    block: int
    amount: TokenAmount
    releasing: TokenAmount
    ready_at: datetime | None

    @property
    def reliable(self) -> TokenAmount:
        """What a market may promise against."""
        return self.amount - self.releasing


@dataclass(frozen=True, slots=True)
class PaidKey:
    """Whose money, whose signature, whose earnings. ``creator`` and ``solver`` are account ids."""

    creator: str
    spender: Address
    solver: str


@dataclass(frozen=True, slots=True)
class PaidAmounts:
    """What the vault has paid on each key that was asked for, in that order, after one block."""

    block: int
    amounts: tuple[TokenAmount, ...]


@dataclass(frozen=True, slots=True)
class Holdings:
    """What an address has outside the vault. ``allowance`` is what the vault may pull from it."""

    block: int
    wei: int
    tokens: TokenAmount
    allowance: TokenAmount


@dataclass(frozen=True, slots=True)
class VaultEvent:
    """One event of the vault. Integers are ints, addresses lower-case text, other values ``0x…`` or text."""

    name: str
    arguments: Mapping[str, int | str | bool]
    block: int
    log_index: int
    tx_hash: str


@dataclass(frozen=True, slots=True)
class Quote:
    """What a call would cost and what there is to pay it with; nothing was sent.

    Attributes:
        gas: Gas limit that would be set, margin included.
        max_fee_per_gas: Wei.
        holdings: Of the sender, at the block the estimate was made for.
    """

    gas: int
    max_fee_per_gas: int
    max_priority_fee_per_gas: int
    nonce: int
    holdings: Holdings

    @property
    def max_cost_wei(self) -> int:
        """The most that the transaction can cost in fees."""
        return self.gas * self.max_fee_per_gas


@dataclass(frozen=True, slots=True)
class PreparedTx:
    """A signed transaction that was not sent. ``raw`` may be sent any number of times: it counts once."""

    raw: bytes
    tx_hash: str
    sender: Address
    nonce: int
    gas: int
    max_fee_per_gas: int


@dataclass(frozen=True, slots=True)
class TxReceipt:
    """How a mined transaction ended. ``confirmations`` counts its own block: 1 in the newest one."""

    tx_hash: str
    block: int
    succeeded: bool
    gas_used: int
    fee_wei: int
    confirmations: int
    events: tuple[VaultEvent, ...]


class ChainReader(Protocol):
    """Reads of one deployment. ``at`` is a block height; None is the newest, which the answer names.

    Every method MUST raise ChainUnavailable, and nothing else, when the chain does not answer in time. Values of one
    answer MUST come from one block.
    """

    @property
    def deployment(self) -> Deployment:
        """The chain, vault and token that this speaks to; pinned when it connected."""
        ...

    async def head(self) -> Head:
        """Return the newest block."""
        ...

    async def account(self, account: str, *, at: int | None = None) -> AccountState:
        """Return an account by its id (a node id, or a lower-case address)."""
        ...

    async def escrow(self, account: str, spender: Address, *, at: int | None = None) -> EscrowState:
        """Return what ``account`` has set aside for ``spender``."""
        ...

    async def paid(self, keys: Sequence[PaidKey], *, at: int | None = None) -> PaidAmounts:
        """Return what vouchers have paid on each of any number of keys."""
        ...

    async def holdings(self, address: Address, *, at: int | None = None) -> Holdings:
        """Return an address's ether, tokens and allowance to the vault."""
        ...

    async def events(self, first: int, last: int) -> list[VaultEvent]:
        """Return the vault's events from block ``first`` to ``last``, both included, in order."""
        ...

    async def receipt(self, tx_hash: str) -> TxReceipt | None:
        """Return how a transaction ended; None while it is not mined."""
        ...


class ChainWriter(Protocol):
    """Writes of one deployment."""

    async def quote(self, call: Call, sender: Address) -> Quote:
        """Return what ``call`` would cost, without sending it.

        MUST raise what the contract would refuse with (Forbidden, NotFound, Conflict, Unprocessable: the message
        holds the contract's error name and its numbers), ChainUnavailable when fees are above the adapter's cap.
        """
        ...

    async def prepare(self, call: Call, key: EvmKey, *, nonce: int | None = None, gas: int | None = None) -> PreparedTx:
        """Sign ``call`` without sending it; journal ``raw``, then broadcast it.

        Args:
            key: Who sends and pays.
            nonce: None takes the next one, pending transactions counted.
            gas: Gas limit; None estimates, which refuses what would revert (as ``quote`` does).
        """
        ...

    async def broadcast(self, raw: bytes) -> str:
        """Send a prepared transaction and return its hash.

        MUST succeed when the chain knows the transaction already, mined or not. MUST raise Conflict when its nonce
        was used by another one.
        """
        ...


class Chain(ChainReader, ChainWriter, Protocol):
    """All of it."""
