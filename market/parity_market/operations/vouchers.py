"""From earnings to vouchers, transactions and confirmed pay (design §6, "Payment is not execution")."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from parity_market.store import sql
from parity_market.store.base import ReadTx, Tx, Value
from parity_market.store.rows import ChainTxRow, EarningRow, VoucherRow, from_us, to_us
from parity_protocol.api.nodes import Earning, EarningsReply, PayoutState
from parity_protocol.errors import Conflict, Internal
from parity_protocol.receipt import Voucher
from parity_protocol.signing.eip712 import EMPTY_RECEIPTS_HEAD, account_key, extend_receipts_head

__all__ = [
    "Paid",
    "earnings",
    "earnings_of_task",
    "last_nonce",
    "make_vouchers",
    "mark_tx",
    "payout_of",
    "payout_of_task",
    "put_signature",
    "record_tx",
    "txs_from",
    "txs_in_state",
    "unpaid_vouchers",
    "unsigned_vouchers",
    "wire_voucher",
]

_MAX_ID = 2**63 - 1
_MAX_IN_FLIGHT = 64  # transactions looked at
_MAX_VOUCHERS = 200  # shown to one node at once


class Paid(NamedTuple):
    """Who pays whom on whose signature: the key of the vault's ledger."""

    creator: str
    spender: str
    solver: str


def make_vouchers(tx: Tx, chain: str, now: datetime, limit: int = 512) -> list[VoucherRow]:
    """Put new earnings, in the order they were earned, under one more unsigned voucher per (creator, spender, solver).

    The cumulative amount, the count and the receipts' hash chain continue from the newest voucher, so they only grow.

    Returns:
        The vouchers that were made; call it again at once while there are any.
    """
    totals: dict[Paid, VoucherRow] = {}
    for earning in tx.all(sql.EARNINGS_NEW, chain=chain, limit=limit):
        key = Paid(earning.creator, earning.spender, earning.solver)
        last = totals.get(key) or tx.one(sql.VOUCHER_NEWEST, chain=chain, **key._asdict())
        head = EMPTY_RECEIPTS_HEAD if last is None else bytes.fromhex(last.receipts_head[2:])
        made = VoucherRow(
            chain=chain,
            **key._asdict(),
            number=1 if last is None else last.number + 1,
            cumulative=earning.amount if last is None else last.cumulative + earning.amount,
            receipts_head="0x" + extend_receipts_head(head, bytes.fromhex(earning.receipt_digest[2:])).hex(),
            signature=None,
            created_us=to_us(now),
        )
        totals[key] = made
        tx.run(sql.EARNING_VOUCHERED, key_id=earning.id, voucher_count=made.number, cumulative=made.cumulative)
    tx.insert_many(sql.VOUCHER_INSERT, totals.values())
    return list(totals.values())


def unsigned_vouchers(tx: ReadTx, limit: int = 256) -> list[VoucherRow]:
    """Return vouchers that wait for the spender's signature, oldest first."""
    return tx.all(sql.VOUCHERS_UNSIGNED, limit=limit)


def put_signature(tx: Tx, voucher: VoucherRow, signature: str) -> None:
    """Store the spender's signature, 0x and 130 hex digits; a second one changes nothing.

    Earlier vouchers of the same key go: a cumulative one replaces them, and the earnings still tell how it came about.
    """
    key: dict[str, Value] = {
        "key_chain": voucher.chain,
        "key_creator": voucher.creator,
        "key_spender": voucher.spender,
        "key_solver": voucher.solver,
        "key_number": voucher.number,
    }
    if tx.run(sql.VOUCHER_SIGNED, **key, signature=signature):
        tx.run(sql.VOUCHERS_SUPERSEDED_DELETE, **key)


def unpaid_vouchers(tx: ReadTx, chain: str, limit: int = 256) -> list[VoucherRow]:
    """Return the newest signed voucher of each (creator, spender, solver) that the vault has not paid in full."""
    return tx.all(sql.VOUCHERS_UNPAID, chain=chain, limit=limit)


def wire_voucher(row: VoucherRow) -> Voucher:
    """Return a signed voucher as it travels.

    Raises:
        Internal: It is not signed yet.
    """
    if row.signature is None:
        raise Internal("an unsigned voucher cannot leave the market")
    return Voucher(
        creator="0x" + account_key(row.creator).hex(),
        solver="0x" + account_key(row.solver).hex(),
        spender=row.spender,  # type: ignore[arg-type]  # stored from an Address
        cumulative=row.cumulative,
        count=row.number,
        receipts_head=row.receipts_head,
        signature=row.signature,
    )


# -- the transaction ledger -------------------------------------------------------------------------------------------


def last_nonce(tx: ReadTx, chain: str, sender: str) -> int | None:
    """Return the highest nonce that was ever used here, or None."""
    found: int | None = tx.one(sql.TX_LAST_NONCE, chain=chain, sender=sender)
    return found


def record_tx(
    tx: Tx, chain: str, sender: str, nonce: int, raw: bytes, tx_hash: str, *, purpose: str, doc: str, now: datetime
) -> None:
    """Keep a signed transaction before it is broadcast; from then on only these bytes are ever sent for its nonce.

    Raises:
        Conflict: Another transaction has this nonce.
    """
    known = tx.one(sql.TX, chain=chain, sender=sender, nonce=nonce)
    if known is not None:
        if known.raw != raw:
            raise Conflict(f"nonce {nonce} of {sender} was used for transaction {known.hash}")
        return
    now_us = to_us(now)
    tx.insert(
        sql.TX_INSERT,
        ChainTxRow(chain, sender, nonce, raw, tx_hash, purpose, doc, "signed", None, now_us, now_us),
    )


def mark_tx(tx: Tx, chain: str, sender: str, nonce: int, state: str, *, block: int | None, now: datetime) -> None:
    """Set a transaction's state: ``signed`` (again, after a reorganisation), ``sent``, ``mined`` or ``failed``."""
    tx.run(
        sql.TX_MARKED,
        key_chain=chain,
        key_sender=sender,
        key_nonce=nonce,
        state=state,
        block=block,
        updated_us=to_us(now),
    )


def txs_in_state(tx: ReadTx, chain: str, state: str, limit: int = 256) -> list[ChainTxRow]:
    """Return transactions by nonce."""
    return tx.all(sql.TXS_IN_STATE, chain=chain, state=state, limit=limit)


def txs_from(tx: ReadTx, chain: str, sender: str, nonce: int, limit: int = 256) -> list[ChainTxRow]:
    """Return a sender's transactions from ``nonce`` on, by nonce."""
    return tx.all(sql.TXS_FROM, chain=chain, sender=sender, nonce=nonce, limit=limit)


# -- where an earning's money is ----------------------------------------------------------------------------------------


def payout_of(tx: ReadTx, earning: EarningRow, unfunded: Mapping[Paid, str] | None = None) -> PayoutState:
    """Derive where an earning's money is: confirmed when the vault has paid at least its cumulative amount.

    Args:
        unfunded: Why the vault skipped a voucher, as the payout loop knows it.
    """
    key = Paid(earning.creator, earning.spender, earning.solver)
    if earning.cumulative is None or earning.voucher_count is None:
        return PayoutState(state="earned")
    paid = tx.one(sql.CHAIN_PAID, chain=earning.chain, **key._asdict())
    if paid is not None and paid.paid >= earning.cumulative:
        head: str | None = tx.one(sql.META, key=f"head {earning.chain}")
        confirmations = None if head is None else max(int(head.split(" ")[0]) - paid.block + 1, 0)
        return PayoutState(state="confirmed", tx_hash=paid.tx_hash, confirmations=confirmations)
    if unfunded is not None and key in unfunded:
        return PayoutState(state="unfunded", reason=unfunded[key])
    signed = tx.one(sql.VOUCHER_NEWEST_SIGNED, chain=earning.chain, **key._asdict())
    if signed is None or signed.number < earning.voucher_count:
        return PayoutState(state="earned")
    tx_hash = _in_flight(tx, key, earning)
    if tx_hash is not None:
        return PayoutState(state="submitted", tx_hash=tx_hash)
    return PayoutState(state="vouchered")


def _in_flight(tx: ReadTx, key: Paid, earning: EarningRow) -> str | None:
    """Return the transaction on its way that pays this earning, or None; its description is ``describe_batch``'s."""
    prefix = f"{key.creator} {key.solver} {key.spender} "
    for state in ("sent", "signed"):
        for row in tx.all(sql.TXS_IN_STATE, chain=earning.chain, state=state, limit=_MAX_IN_FLIGHT):
            at = row.doc.find(prefix)
            if at < 0:
                continue
            amount = row.doc[at + len(prefix) :].split('"', 1)[0]
            if amount.isdigit() and int(amount) >= (earning.cumulative or 0):
                return row.hash
    return None


def payout_of_task(tx: ReadTx, task_id: str, unfunded: Mapping[Paid, str] | None = None) -> PayoutState | None:
    """Return where a task's pay is, of several nodes' the one that is least far; None when it has earned none."""
    found = [payout_of(tx, earning, unfunded) for earning in tx.all(sql.EARNING_OF_TASK, task_id=task_id)]
    return next((payout for payout in found if payout.state != "confirmed"), found[0] if found else None)


def earnings_of_task(tx: ReadTx, task_id: str, unfunded: Mapping[Paid, str] | None = None) -> tuple[Earning, ...]:
    """Return who has earned what of a task: a training part may have had several holders."""
    return tuple(_shown(tx, row, unfunded) for row in tx.all(sql.EARNING_OF_TASK, task_id=task_id))


def earnings(
    tx: ReadTx, node_id: str, *, before: int | None = None, limit: int = 50, unfunded: Mapping[Paid, str] | None = None
) -> EarningsReply:
    """Return a node's earnings, newest first, with the vouchers that it could redeem itself.

    Args:
        before: Cursor of the last page.
    """
    limit = max(1, min(limit, sql.MAX_PAGE))
    found = tx.all(
        sql.EARNINGS_OF_SOLVER, solver=node_id, before=_MAX_ID if before is None else before, limit=limit + 1
    )
    shown = found[:limit]
    earned, confirmed = totals_of(tx, node_id)
    vouchers = tx.all(sql.VOUCHERS_OF_SOLVER, solver=node_id, limit=_MAX_VOUCHERS)
    return EarningsReply(
        node_id=node_id,
        earned=earned,
        confirmed=confirmed,
        earnings=tuple(_shown(tx, row, unfunded) for row in shown),
        vouchers=tuple(wire_voucher(row) for row in vouchers),
        next_cursor=str(shown[-1].id) if len(found) > limit else None,
    )


def _shown(tx: ReadTx, row: EarningRow, unfunded: Mapping[Paid, str] | None) -> Earning:
    return Earning(
        task_id=row.task_id,
        node_id=row.solver,
        creator=row.creator,
        kind=row.kind,
        amount=row.amount,
        earned_at=from_us(row.earned_us),
        payout=payout_of(tx, row, unfunded),
    )


def totals_of(tx: ReadTx, node_id: str) -> tuple[int, int]:
    """Return what a node has earned in all and what of it is confirmed on chain, base units."""
    newest = tx.all(sql.VOUCHERS_NEWEST_OF_SOLVER, solver=node_id, limit=1_000_000)
    chain: str | None = tx.one(sql.META, key="chain")
    waiting = tx.all(sql.EARNINGS_UNVOUCHERED_OF_SOLVER, solver=node_id, chain=chain)
    earned = sum(row.cumulative for row in newest) + sum(row.amount for row in waiting)
    confirmed = 0
    for row in newest:
        paid = tx.one(sql.CHAIN_PAID, chain=row.chain, creator=row.creator, spender=row.spender, solver=row.solver)
        confirmed += 0 if paid is None else min(paid.paid, row.cumulative)
    return earned, confirmed
