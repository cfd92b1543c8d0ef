"""What the chain says, what is bound, earned, vouchered and paid. Amounts are integer base units.

Rows carry ``chain``: chain id, genesis hash and vault. Nothing here trusts a view of the chain that is too old, and
nothing is inferred from its absence.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from parity_market.domain.escrow import EscrowView
from parity_market.operations.context import Market
from parity_market.store import sql
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import ChainAccountRow, ChainEscrowRow, ChainPaidRow, NodeRow, from_us, to_us
from parity_protocol.api.tasks import AccountReply
from parity_protocol.errors import ChainUnavailable, ConfigInvalid, Forbidden, StakeTooLow
from parity_protocol.quantities import format_tokens

__all__ = [
    "ChainHead",
    "account_reply",
    "bond_of",
    "chain_head",
    "check_bond",
    "escrow_view",
    "is_covered",
    "pin_chain",
    "record_account",
    "record_escrow",
    "record_head",
    "record_paid",
    "unsettled",
]


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The newest block that the follower has read completely."""

    block: int
    seen_at: datetime  # UTC


def pin_chain(tx: Tx, *, chain_id: int, genesis: str, vault: str) -> str:
    """Tie this database to one chain and vault at the first start, and check it at every later one.

    Returns:
        The key that money rows carry: ``Market.chain``.

    Raises:
        ConfigInvalid: The database belongs to another chain or vault.
    """
    key = f"{chain_id}:{genesis}:{vault}"
    pinned: str | None = tx.one(sql.META, key="chain")
    if pinned is None:
        tx.insert(sql.META_PUT, ("chain", key))
    elif pinned != key:
        raise ConfigInvalid(
            [f"this market's money is on chain {pinned} (id:genesis:vault), but the configured one is {key}"]
        )
    return key


# -- the follower's view --------------------------------------------------------------------------------------------


def record_head(tx: Tx, chain: str, block: int, now: datetime) -> None:
    """Note that everything up to ``block`` has been read; call it even when nothing changed."""
    tx.insert(sql.META_PUT, (f"head {chain}", f"{block} {to_us(now)}"))


def chain_head(tx: ReadTx, chain: str) -> ChainHead | None:
    """Return the newest block that was read, or None before the first."""
    found: str | None = tx.one(sql.META, key=f"head {chain}")
    if found is None:
        return None
    block, seen_us = found.split(" ")
    return ChainHead(int(block), from_us(int(seen_us)))


def record_account(
    tx: Tx, chain: str, account: str, *, bond: int, operator: str, opened: bool, block: int, now: datetime
) -> None:
    """Store a vault account (a node's id) as of ``block``."""
    tx.insert(sql.CHAIN_ACCOUNT_PUT, ChainAccountRow(chain, account, bond, operator, int(opened), block, to_us(now)))


def record_escrow(
    tx: Tx,
    chain: str,
    creator: str,
    spender: str,
    *,
    escrow: int,
    releasing: int,
    redeemed: int,
    block: int,
    now: datetime,
) -> None:
    """Store what ``creator`` has set aside for ``spender`` as of ``block``.

    Args:
        escrow: On chain, releases included.
        releasing: The part that is being released.
        redeemed: Sum of what the vault paid on this creator's and spender's vouchers, of the same block: together with
            an escrow of another block money would be counted twice.
    """
    row = ChainEscrowRow(chain, creator, spender, escrow, releasing, redeemed, block, to_us(now))
    tx.insert(sql.CHAIN_ESCROW_PUT, row)


def record_paid(
    tx: Tx, chain: str, creator: str, spender: str, solver: str, *, paid: int, block: int, tx_hash: str | None
) -> None:
    """Store the vault's ledger entry ``paid[creator][spender][solver]`` as of ``block``."""
    tx.insert(sql.CHAIN_PAID_PUT, ChainPaidRow(chain, creator, spender, solver, paid, block, tx_hash))


def _check_fresh(tx: ReadTx, market: Market, now: datetime) -> ChainHead:
    head = chain_head(tx, market.chain)
    if head is None:
        raise ChainUnavailable("the market has not read the chain yet", retry_after_s=2.0)
    if now - head.seen_at > market.chain_grace:
        age = round((now - head.seen_at).total_seconds())
        raise ChainUnavailable(
            f"the market last read the chain {age} s ago and takes no risk on that", retry_after_s=10.0
        )
    return head


def bond_of(tx: ReadTx, market: Market, node_id: str) -> int:
    """Return a node's bond as it was last seen, base units; 0 when it never was."""
    row = tx.one(sql.CHAIN_ACCOUNT, chain=market.chain, account=node_id)
    return 0 if row is None else row.bond


def check_bond(tx: ReadTx, market: Market, node: NodeRow, now: datetime) -> None:
    """Let only a node with the market's minimum bond have work, and only under the operator that was staked with.

    Raises:
        StakeTooLow: Its bond is below.
        Forbidden: The chain names another operator than the one that signed its enrolment.
        ChainUnavailable: The view of the chain is too old to tell.
    """
    if market.min_bond == 0:
        return
    _check_fresh(tx, market, now)
    row = tx.one(sql.CHAIN_ACCOUNT, chain=market.chain, account=node.id)
    bond, operator = (0, "") if row is None else (row.bond, row.operator)
    if bond < market.min_bond:
        raise StakeTooLow(
            f"the node's bond is {format_tokens(bond)} tokens, this market requires {format_tokens(market.min_bond)}"
        )
    if operator != node.operator:
        raise Forbidden(
            f"the chain names {operator or 'nobody'} as the node's operator, it enrolled with {node.operator}",
            hint="Run `parity node stake` or `parity node auth` again with the operator key that is in use.",
        )


def escrow_view(tx: ReadTx, market: Market, creator: str, now: datetime) -> EscrowView:
    """Return a creator's money at this market, fresh enough to promise on.

    Raises:
        ChainUnavailable: The view of the chain is too old to tell.
    """
    _check_fresh(tx, market, now)
    return _view(tx, market.chain, market.spender, creator)


def is_covered(tx: ReadTx, chain: str, spender: str, creator: str) -> bool:
    """Return whether a creator's escrow still covers all that was promised from it, as the chain was last seen.

    It does when a task is submitted. Afterwards its creator may ask for the money back; what is being released pays for
    work that is under way, within the unbonding time, but must not have more work begun on it.
    """
    view = _view(tx, chain, spender, creator)
    return view.reserved + view.owed <= view.escrow - view.releasing


def _view(tx: ReadTx, chain: str, spender: str, creator: str) -> EscrowView:
    escrow = tx.one(sql.CHAIN_ESCROW, chain=chain, creator=creator, spender=spender)
    account = tx.one(sql.ACCOUNT, chain=chain, creator=creator)
    return EscrowView(
        escrow=0 if escrow is None else escrow.escrow,
        releasing=0 if escrow is None else escrow.releasing,
        redeemed=0 if escrow is None else escrow.redeemed,
        reserved=0 if account is None else account.reserved,
        earned=0 if account is None else account.earned,
    )


def unsettled(tx: ReadTx, market: Market) -> int:
    """Return what nodes have earned in all and the vault has not paid as of the last look, base units."""
    rows = tx.all(sql.ACCOUNTS, chain=market.chain)
    return sum(_view(tx, market.chain, market.spender, row.creator).owed for row in rows)


def account_reply(tx: ReadTx, market: Market, creator: str) -> AccountReply:
    """Return a creator's money for people, however old the view of the chain is."""
    view = _view(tx, market.chain, market.spender, creator)
    head = chain_head(tx, market.chain)
    return AccountReply(
        account=creator,
        spender=market.spender,
        escrow=max(view.escrow - view.releasing, 0),
        releasing=view.releasing,
        reserved=view.reserved,
        owed=view.owed,
        available=view.available,
        spent=view.redeemed,
        as_of_block=None if head is None else head.block,
    )
