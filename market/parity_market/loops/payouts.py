"""Paying: batches of vouchers go to the vault, each transaction kept on disk before it is sent.

One loop of one process sends with the transaction key. A transaction is prepared, its bytes are committed, then they are
broadcast, and from then on only those bytes are ever sent for their nonce; so a crash between any two steps repeats a
step and pays nothing twice. Vouchers are cumulative: even a second transaction for the same earnings pays nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import anyio
import structlog

from parity_contracts.chain.base import PaidKey, TxReceipt
from parity_contracts.chain.calls import Redeem
from parity_contracts.deploy import faucet
from parity_market.domain.settlement import (
    SkipReason,
    batches,
    choose_nonce,
    describe_batch,
    key_of,
    keys_of_batch,
    select_payable,
    skip_text,
)
from parity_market.metrics import PAYOUTS
from parity_market.operations import following, vouchers
from parity_market.operations.vouchers import Paid, wire_voucher
from parity_market.state import MarketState
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import ChainTxRow, VoucherRow, from_us
from parity_protocol.errors import BadDocument, ChainUnavailable, Conflict, ParityError, Unprocessable
from parity_protocol.ids import Address

__all__ = ["Faucet", "Payouts", "resend", "run"]

log = structlog.get_logger(__name__)

POLL_S = 0.5  # between looks at what is in flight
RESEND_S = 15.0  # after which a transaction that nobody has mined is sent again
STUCK_S = 600.0  # after which that is worth an alarm
ROUND_VOUCHERS = 200  # of one round: at most four transactions in flight
MAX_LOOKED_AT = 5_000  # vouchers of one look, unfunded ones included
MAX_ROUND_DELAY_S = 600.0  # after rounds that failed
FAUCET_S = 3.0  # until what a faucet gave has been mined
START_UP_S = 5.0  # that start-up spends on sending again
_PURPOSE = "redeem"

Faucet = Callable[[Address], Awaitable[str]]


async def run(state: MarketState) -> None:
    """Pay for as long as the market runs; while the chain is away, wait for it."""
    payouts = Payouts(state)
    while True:
        await payouts.step()
        await state.clock.sleep(POLL_S)


async def resend(state: MarketState) -> None:
    """Send again, verbatim, what was signed before the market stopped. Never waits long for a chain that is away."""
    with anyio.move_on_after(START_UP_S):
        await Payouts(state).settle()


class Payouts:
    """Takes what is owed to the chain, one round at a time.

    Args:
        faucet: Gives the sender ether on a development chain; raises ChainUnavailable on any other.
    """

    def __init__(self, state: MarketState, *, faucet: Faucet | None = None) -> None:
        self._state = state
        self._key = state.keys.transaction
        self._faucet = faucet or partial(_dev_faucet, state)
        self._next_round = state.clock.monotonic()
        self._failures = 0
        self._refused: dict[Paid, int] = {}
        self._sent_at: dict[str, float] = {}  # transaction hash → monotonic, of the last broadcast

    async def step(self) -> None:
        """Look after what is in flight; when nothing is and it is time, start a round."""
        state = self._state
        if state.chain_health.problem:
            return  # the follower knows first when it is back, and that it still is the same chain
        try:
            if await self.settle():
                return
            if state.clock.monotonic() < self._next_round:
                return
            self._next_round = state.clock.monotonic() + self._interval()
            await self._pay_round()
        except ChainUnavailable as exc:
            log.warning("payouts_wait", problem=exc.message)

    def _interval(self) -> float:
        base = self._state.settings.market_payout_interval.total_seconds()
        return min(base * (1 << min(self._failures, 16)), max(MAX_ROUND_DELAY_S, base))

    # -- what is in flight --------------------------------------------------------------------------------------------

    async def settle(self) -> int:
        """Move every open transaction on; return how many are still open.

        Raises:
            ChainUnavailable: The chain does not answer.
        """
        still_open = 0
        for row in await self._state.store.read(partial(_open_transactions, chain=self._state.market.chain)):
            receipt = await self._state.chain.receipt(row.hash)
            if receipt is None:
                still_open += await self._send(row)
            elif receipt.confirmations < self._state.settings.market_confirmations:
                still_open += 1
            else:
                await self._finish(row, receipt)
        return still_open

    async def _send(self, row: ChainTxRow) -> bool:
        """Broadcast if it is time; return whether the transaction is still open."""
        state, now = self._state, self._state.clock.monotonic()
        last = self._sent_at.get(row.hash)
        if last is not None and now - last < RESEND_S:
            return True
        waited_s = (state.clock.now() - from_us(row.created_us)).total_seconds()
        if waited_s > STUCK_S:
            log.error("payout_stuck", tx_hash=row.hash, nonce=row.nonce, waited_s=round(waited_s))
        try:
            await state.chain.broadcast(row.raw)
        except Conflict as exc:
            # Another transaction of this key has taken the nonce. What was owed stays owed and goes in a later one.
            log.warning("payout_replaced", tx_hash=row.hash, nonce=row.nonce, problem=exc.message)
            await self._mark(row, "failed", None)
            PAYOUTS.labels("replaced").inc()
            return False
        except Unprocessable as exc:
            log.warning("payout_refused", tx_hash=row.hash, nonce=row.nonce, problem=exc.message)
            self._sent_at[row.hash] = now - RESEND_S + FAUCET_S
            await self._fund()
            return True
        self._sent_at[row.hash] = now
        if row.state == "signed":
            await self._mark(row, "sent", None)
            log.info("payout_sent", tx_hash=row.hash, nonce=row.nonce)
        return True

    async def _finish(self, row: ChainTxRow, receipt: TxReceipt) -> None:
        self._sent_at.pop(row.hash, None)
        await self._mark(row, "mined" if receipt.succeeded else "failed", receipt.block)
        PAYOUTS.labels("mined" if receipt.succeeded else "failed").inc()
        if not receipt.succeeded:
            self._failures += 1
            log.error("payout_failed", tx_hash=row.hash, block=receipt.block, gas_used=receipt.gas_used)
            return
        self._failures = 0
        log.info("payout_mined", tx_hash=row.hash, block=receipt.block, gas_used=receipt.gas_used)
        try:
            batch = keys_of_batch(row.doc)
        except BadDocument:
            log.exception("payout_unreadable", tx_hash=row.hash)
            return
        for event in receipt.events:
            if event.name != "RedeemSkipped":
                continue
            index, reason = int(event.arguments["index"]), int(event.arguments["reason"])
            if index < len(batch):
                self._skipped(*batch[index], reason)

    def _skipped(self, key: Paid, cumulative: int, reason: int) -> None:
        text = skip_text(reason)
        if text is None:
            return
        log.warning("payout_skipped", creator=key.creator, solver=key.solver, reason=text)
        self._state.chain_health.unfunded[key] = text
        if reason == SkipReason.BAD_SIGNATURE:
            self._refused[key] = cumulative

    async def _mark(self, row: ChainTxRow, state: str, block: int | None) -> None:
        now = self._state.clock.now()
        await self._state.store.write(
            lambda tx: vouchers.mark_tx(tx, row.chain, row.sender, row.nonce, state, block=block, now=now)
        )

    # -- a round ------------------------------------------------------------------------------------------------------

    async def _pay_round(self) -> None:
        payable = await self._payable()
        for batch in batches(payable):
            if not await self._pay(batch):
                return

    async def _payable(self) -> Sequence[VoucherRow]:
        """Return what to pay now, and let ``ChainHealth.unfunded`` say why the rest must wait."""
        state, chain = self._state, self._state.market.chain
        unfunded = state.chain_health.unfunded
        # Vouchers that wait for somebody's money must not stand in the way of younger ones that can be paid.
        limit = min(ROUND_VOUCHERS + len(unfunded), MAX_LOOKED_AT)
        unpaid = await state.store.read(partial(vouchers.unpaid_vouchers, chain=chain, limit=limit))
        funding = await state.store.read(partial(following.funding_of, chain=chain, vouchers=unpaid))
        seen = await state.store.read(partial(following.paid_of, chain=chain, vouchers=unpaid))
        selected = select_payable(unpaid, seen, funding, self._refused)
        chosen = selected.payable[:ROUND_VOUCHERS]
        for key, reason in selected.unfunded.items():
            if unfunded.get(key) != reason:
                log.warning("payout_unfunded", creator=key.creator, solver=key.solver, reason=reason)
        unfunded.clear()
        unfunded.update(selected.unfunded)
        if not chosen:
            return ()
        keys = [key_of(row) for row in chosen]
        amounts = (await state.chain.paid([PaidKey(k.creator, Address(k.spender), k.solver) for k in keys])).amounts
        return select_payable(chosen, dict(zip(keys, amounts, strict=True)), funding, self._refused).payable

    async def _pay(self, batch: Sequence[VoucherRow]) -> bool:
        """Prepare, keep and send one transaction; return whether the next may follow."""
        state, chain = self._state, self._state.market.chain
        call = Redeem(tuple(wire_voucher(row) for row in batch))
        try:
            quote = await state.chain.quote(call, self._key.address)
        except Unprocessable as exc:  # some endpoints do not even estimate for a sender without ether
            await self._cannot_send(batch, exc.message)
            return False
        if quote.holdings.wei < quote.max_cost_wei:
            has, needs = quote.holdings.wei, quote.max_cost_wei
            await self._cannot_send(batch, f"it has {has} wei, and a payout may cost {needs}")
            return False
        last = await state.store.read(partial(vouchers.last_nonce, chain=chain, sender=self._key.address))
        decision = choose_nonce(last, quote.nonce)
        if decision.resend_from is not None:
            await self._reopen(decision.resend_from)
            return False
        if decision.is_foreign:
            log.warning("transaction_key_shared", sender=self._key.address, expected=last, chain_next=quote.nonce)
        prepared = await state.chain.prepare(call, self._key, nonce=decision.nonce, gas=quote.gas)
        now = state.clock.now()
        await state.store.write(
            lambda tx: vouchers.record_tx(
                tx,
                chain,
                prepared.sender,
                prepared.nonce,
                prepared.raw,
                prepared.tx_hash,
                purpose=_PURPOSE,
                doc=describe_batch(batch),
                now=now,
            )
        )
        [row] = await state.store.read(partial(_transaction, chain=chain, tx_hash=prepared.tx_hash))
        return await self._send(row)

    async def _reopen(self, first: int) -> None:
        """A reorganisation or a restored chain has lost transactions: they go out again, the same bytes."""
        state, chain, now = self._state, self._state.market.chain, self._state.clock.now()
        log.warning("payouts_reopened", sender=self._key.address, first_nonce=first)

        def reopen(tx: Tx) -> None:
            for row in vouchers.txs_from(tx, chain, self._key.address, first):
                vouchers.mark_tx(tx, chain, row.sender, row.nonce, "signed", block=None, now=now)

        await state.store.write(reopen)
        self._sent_at.clear()
        self._next_round = state.clock.monotonic()

    # -- gas ----------------------------------------------------------------------------------------------------------

    async def _cannot_send(self, batch: Sequence[VoucherRow], problem: str) -> None:
        text = f"the market's transaction key {self._key.address} cannot pay the gas: {problem}"
        log.error("payouts_without_gas", problem=text)
        for row in batch:
            self._state.chain_health.unfunded[key_of(row)] = text
        await self._fund()

    async def _fund(self) -> None:
        self._failures += 1
        try:
            tx_hash = await self._faucet(self._key.address)
        except ParityError as exc:
            log.warning("payouts_need_ether", sender=self._key.address, problem=exc.message)
            return
        log.info("gas_from_faucet", sender=self._key.address, tx_hash=tx_hash)
        self._failures = 0
        self._next_round = self._state.clock.monotonic() + FAUCET_S


async def _dev_faucet(state: MarketState, address: Address) -> str:
    return await faucet(state.settings.blockchain_rpc, address)


def _open_transactions(tx: ReadTx, *, chain: str) -> list[ChainTxRow]:
    found = vouchers.txs_in_state(tx, chain, "signed") + vouchers.txs_in_state(tx, chain, "sent")
    return sorted(found, key=lambda row: (row.sender, row.nonce))


def _transaction(tx: ReadTx, *, chain: str, tx_hash: str) -> list[ChainTxRow]:
    return [row for row in vouchers.txs_in_state(tx, chain, "signed") if row.hash == tx_hash]
