"""Which vouchers go into the next payout, and why the others do not: decisions of what the chain and the store say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from parity_market.operations.vouchers import Paid
from parity_market.store.rows import VoucherRow
from parity_protocol.errors import BadDocument
from parity_protocol.quantities import format_tokens

__all__ = [
    "MAX_BATCH",
    "Funding",
    "NonceDecision",
    "Selection",
    "SkipReason",
    "batches",
    "choose_nonce",
    "describe_batch",
    "key_of",
    "keys_of_batch",
    "select_payable",
    "skip_text",
]

T = TypeVar("T")

MAX_BATCH = 50  # vouchers of one transaction: about five million gas


class SkipReason(IntEnum):
    """Why the vault passed over a voucher: the second argument of its event ``RedeemSkipped``."""

    ALREADY_PAID = 1
    ESCROW_EMPTY = 2
    SOLVER_NOT_OPEN = 3
    BAD_SIGNATURE = 4


_SKIPPED = {
    SkipReason.ESCROW_EMPTY: "EscrowEmpty: the creator's escrow for this market is empty",
    SkipReason.SOLVER_NOT_OPEN: "SolverNotOpen: nobody has opened the node's account in the vault",
    SkipReason.BAD_SIGNATURE: "BadSignature: the vault does not accept the voucher's signature",
}


def skip_text(reason: int) -> str | None:
    """Return in words why the vault did not pay a voucher; None when it had been paid before."""
    if reason == SkipReason.ALREADY_PAID:
        return None
    try:
        return _SKIPPED[SkipReason(reason)]
    except ValueError:
        return f"the vault skipped the voucher for its reason {reason}"


@dataclass(frozen=True, slots=True)
class Funding:
    """What the follower last saw of the two accounts of a voucher. Amounts are base units."""

    escrow: int  # of the creator for this spender, what is being released included: the vault still pays from it
    solver_is_open: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """The outcome of ``select_payable``."""

    payable: tuple[VoucherRow, ...]
    unfunded: Mapping[Paid, str]


def key_of(voucher: VoucherRow) -> Paid:
    """Return the key of the vault's ledger that a voucher draws on."""
    return Paid(voucher.creator, voucher.spender, voucher.solver)


def select_payable(
    unpaid: Sequence[VoucherRow], paid: Mapping[Paid, int], funding: Mapping[Paid, Funding], refused: Mapping[Paid, int]
) -> Selection:
    """Split vouchers into those that the vault would pay something on now, and those that it would skip.

    Args:
        unpaid: The newest signed voucher of each key.
        paid: What the vault has paid on each key at its newest block; whoever redeemed.
        funding: By key; one that is missing counts as not funded.
        refused: Cumulative amounts of vouchers whose signature the vault did not accept: not tried again.
    """
    payable: list[VoucherRow] = []
    unfunded: dict[Paid, str] = {}
    for voucher in unpaid:
        key = key_of(voucher)
        due = voucher.cumulative - paid.get(key, 0)
        has = funding.get(key, Funding(escrow=0, solver_is_open=False))
        if due <= 0:
            continue  # the node redeemed it itself, or another batch did
        if refused.get(key) == voucher.cumulative:
            unfunded[key] = _SKIPPED[SkipReason.BAD_SIGNATURE]
        elif has.escrow == 0:
            unfunded[key] = f"{_SKIPPED[SkipReason.ESCROW_EMPTY]}; {format_tokens(due)} tokens are owed"
        elif not has.solver_is_open:
            unfunded[key] = f"{_SKIPPED[SkipReason.SOLVER_NOT_OPEN]}; {format_tokens(due)} tokens are owed"
        else:
            payable.append(voucher)
    return Selection(tuple(payable), unfunded)


def batches(items: Sequence[T], size: int = MAX_BATCH) -> list[Sequence[T]]:
    """Cut a sequence into runs of at most ``size``."""
    return [items[start : start + size] for start in range(0, len(items), size)]


# -- the nonce ledger -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NonceDecision:
    """What to do before the next transaction.

    Attributes:
        nonce: Of the next transaction.
        resend_from: The chain has lost transactions from this nonce on: send those again first; None when it has all.
        is_foreign: Somebody else sent with this key: the ledger knows fewer transactions than the chain.
    """

    nonce: int
    resend_from: int | None = None
    is_foreign: bool = False


def choose_nonce(last: int | None, chain_next: int) -> NonceDecision:
    """Compare the ledger with the chain while nothing is in flight.

    Args:
        last: Highest nonce of the ledger; None when it is empty.
        chain_next: The chain's next nonce of the sender, pending transactions counted.
    """
    expected = 0 if last is None else last + 1
    if chain_next < expected:
        return NonceDecision(expected, resend_from=chain_next)
    return NonceDecision(chain_next, is_foreign=chain_next > expected and last is not None)


# -- what a transaction was for -------------------------------------------------------------------------------------


def describe_batch(vouchers: Sequence[VoucherRow]) -> str:
    """Return the ledger's text for a batch, in the order of its vouchers; ``payout_of`` looks for a key in it."""
    return json.dumps([f"{row.creator} {row.solver} {row.spender} {row.cumulative}" for row in vouchers])


def keys_of_batch(doc: str) -> list[tuple[Paid, int]]:
    """Return the keys and cumulative amounts that ``describe_batch`` wrote.

    Raises:
        BadDocument: It did not write this.
    """
    found = []
    try:
        for line in json.loads(doc):
            creator, solver, spender, cumulative = line.split(" ")
            found.append((Paid(creator, spender, solver), int(cumulative)))
    except (ValueError, AttributeError, TypeError) as exc:
        raise BadDocument(f"the ledger's description of a payout cannot be read: {doc[:80]!r}") from exc
    return found
