"""Earnings become vouchers, and vouchers get the spender's signature."""

from __future__ import annotations

from functools import partial

import structlog

from parity_market.operations import vouchers
from parity_market.state import MarketState
from parity_market.store import sql
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import VoucherRow
from parity_protocol.signing.eip712 import Eip712Domain, VoucherMessage, account_key, sign_voucher

__all__ = ["run", "step"]

log = structlog.get_logger(__name__)

IDLE_S = 0.25  # between looks at the store when there was nothing
MADE_AT_ONCE = 128  # earnings of one operation, which holds the writer for a few milliseconds
SIGNED_AT_ONCE = 32  # signatures of one turn of the event loop, likewise


async def run(state: MarketState) -> None:
    """Keep every earning under a signed voucher."""
    while True:
        if not await step(state):
            await state.clock.sleep(IDLE_S)


async def step(state: MarketState) -> int:
    """Put new earnings under vouchers and sign what waits; return how many vouchers were made or signed."""
    now, chain = state.clock.now(), state.market.chain
    made = 0
    if await state.store.read(partial(_has_new, chain=chain)):
        made = len(await state.store.write(lambda tx: vouchers.make_vouchers(tx, chain, now, MADE_AT_ONCE)))
    return made + await _sign(state)


def _has_new(tx: ReadTx, *, chain: str) -> bool:
    return bool(tx.all(sql.EARNINGS_NEW, chain=chain, limit=1))


async def _sign(state: MarketState) -> int:
    key = state.keys.spender
    waiting = await state.store.read(partial(vouchers.unsigned_vouchers, limit=SIGNED_AT_ONCE))
    ours = [row for row in waiting if row.spender == key.address]
    if len(ours) < len(waiting):
        others = sorted({row.spender for row in waiting} - {key.address})
        log.error("vouchers_cannot_be_signed", spenders=others, have=key.address, count=len(waiting) - len(ours))
    if not ours:
        return 0
    domain = Eip712Domain.stake_vault(state.deployment.chain_id, state.deployment.vault)
    signed = [(row, "0x" + sign_voucher(domain, _message(row), key).hex()) for row in ours]

    def store(tx: Tx) -> None:
        for row, signature in signed:
            vouchers.put_signature(tx, row, signature)

    await state.store.write(store)
    return len(signed)


def _message(row: VoucherRow) -> VoucherMessage:
    return VoucherMessage(
        creator=account_key(row.creator),
        solver=account_key(row.solver),
        spender=row.spender,  # type: ignore[arg-type]  # stored from an Address
        cumulative=row.cumulative,
        count=row.number,
        receipts_head=bytes.fromhex(row.receipts_head[2:]),
    )
