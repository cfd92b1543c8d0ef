"""What the chain follower and the payouts read and write together, each in one operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from parity_market.domain.settlement import Funding, key_of
from parity_market.operations import money
from parity_market.operations.vouchers import Paid
from parity_market.store import sql
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import ChainPaidRow, VoucherRow

__all__ = [
    "SeenCreator",
    "SeenNode",
    "SeenPaid",
    "creators_count",
    "followed_creators",
    "followed_nodes",
    "funding_of",
    "paid_of",
    "record_seen_chain",
    "solvers_of",
]


@dataclass(frozen=True, slots=True)
class SeenNode:
    """A node's vault account after a block."""

    node_id: str
    bond: int  # base units
    operator: str  # empty when there is none
    opened: bool


@dataclass(frozen=True, slots=True)
class SeenPaid:
    """The vault's ledger for one solver of a creator after a block."""

    solver: str
    paid: int  # base units
    tx_hash: str | None  # that paid last, when its event was read
    block: int | None  # of that transaction


@dataclass(frozen=True, slots=True)
class SeenCreator:
    """What a creator has set aside and what was paid from it, all after the same block."""

    creator: str
    escrow: int  # base units
    releasing: int
    paid: tuple[SeenPaid, ...]

    @property
    def redeemed(self) -> int:
        """Everything paid on this creator's vouchers."""
        return sum(item.paid for item in self.paid)


def creators_count(tx: ReadTx, chain: str, spender: str) -> int:
    """Return of how many creators the escrow is followed; it never falls."""
    return tx.one(sql.CHAIN_ESCROW_COUNT, chain=chain, spender=spender) or 0


def followed_nodes(tx: ReadTx) -> list[str]:
    """Return the ids of all enrolled nodes."""
    return tx.all(sql.NODE_IDS)


def followed_creators(tx: ReadTx, chain: str, spender: str) -> list[str]:
    """Return everybody whose escrow was ever looked at, and everybody who has ever promised a reward."""
    promised = [row.creator for row in tx.all(sql.ACCOUNTS, chain=chain)]
    return sorted({*tx.all(sql.CHAIN_ESCROW_CREATORS, chain=chain, spender=spender), *promised})


def solvers_of(tx: ReadTx, chain: str, creator: str, spender: str) -> list[str]:
    """Return every node that a creator owes or has paid."""
    return sorted(tx.all(sql.VOUCHER_SOLVERS, chain=chain, creator=creator, spender=spender))


def record_seen_chain(
    tx: Tx,
    chain: str,
    spender: str,
    *,
    nodes: Sequence[SeenNode],
    creators: Sequence[SeenCreator],
    block: int,
    head: bool,
    now: datetime,
    force: bool = False,
) -> None:
    """Store what was read after ``block``. A row that was read after a later block stays, unless ``force``.

    Args:
        head: Everything up to ``block`` has been read, not these accounts alone.
        force: The chain may have gone back: what it says now counts.
    """
    for node in nodes:
        known = tx.one(sql.CHAIN_ACCOUNT, chain=chain, account=node.node_id)
        if known is None or force or known.block <= block:
            money.record_account(
                tx,
                chain,
                node.node_id,
                bond=node.bond,
                operator=node.operator,
                opened=node.opened,
                block=block,
                now=now,
            )
    for creator in creators:
        known_escrow = tx.one(sql.CHAIN_ESCROW, chain=chain, creator=creator.creator, spender=spender)
        if known_escrow is not None and not force and known_escrow.block > block:
            continue
        for item in creator.paid:
            _record_paid(tx, chain, creator.creator, spender, item, block)
        money.record_escrow(
            tx,
            chain,
            creator.creator,
            spender,
            escrow=creator.escrow,
            releasing=creator.releasing,
            redeemed=creator.redeemed,
            block=block,
            now=now,
        )
    if head:
        money.record_head(tx, chain, block, now)


def _record_paid(tx: Tx, chain: str, creator: str, spender: str, item: SeenPaid, block: int) -> None:
    known: ChainPaidRow | None = tx.one(
        sql.CHAIN_PAID, chain=chain, creator=creator, spender=spender, solver=item.solver
    )
    if known is None and item.paid == 0:
        return
    if known is not None and known.paid == item.paid and item.tx_hash in (None, known.tx_hash):
        return  # keep the block and the transaction that paid it
    money.record_paid(
        tx,
        chain,
        creator,
        spender,
        item.solver,
        paid=item.paid,
        block=block if item.block is None else item.block,
        tx_hash=item.tx_hash,
    )


def funding_of(tx: ReadTx, chain: str, vouchers: Sequence[VoucherRow]) -> dict[Paid, Funding]:
    """Return what the follower last saw of the accounts of each voucher."""
    found = {}
    for voucher in vouchers:
        escrow = tx.one(sql.CHAIN_ESCROW, chain=chain, creator=voucher.creator, spender=voucher.spender)
        solver = tx.one(sql.CHAIN_ACCOUNT, chain=chain, account=voucher.solver)
        found[key_of(voucher)] = Funding(
            escrow=0 if escrow is None else escrow.escrow, solver_is_open=solver is not None and bool(solver.opened)
        )
    return found


def paid_of(tx: ReadTx, chain: str, vouchers: Sequence[VoucherRow]) -> dict[Paid, int]:
    """Return what the follower last saw the vault to have paid on each voucher's key."""
    found = {}
    for voucher in vouchers:
        key = key_of(voucher)
        row = tx.one(sql.CHAIN_PAID, chain=chain, **key._asdict())
        found[key] = 0 if row is None else row.paid
    return found
