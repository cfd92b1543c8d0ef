"""From earnings to vouchers to confirmed pay: amounts and counts only grow, and nothing is paid twice."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from parity_market.domain.settlement import describe_batch
from parity_market.operations import money, vouchers
from parity_market.operations.vouchers import Paid
from parity_market.store import sql
from parity_market.store.rows import VoucherRow
from parity_market.testing import CHAIN_KEY, SPENDER, Bench, command_submission, final_report, new_node
from parity_protocol.errors import ChainUnavailable, Conflict, Internal, StakeTooLow
from parity_protocol.receipt import check_voucher
from parity_protocol.signing.eip712 import EMPTY_RECEIPTS_HEAD, Eip712Domain, extend_receipts_head, sign_voucher
from parity_protocol.testing.keys import deterministic_evm_key

TOKEN = 10**18
VAULT_DOMAIN = Eip712Domain.stake_vault(31_337, "0x" + "11" * 20)  # type: ignore[arg-type]  # an address
CREATOR = deterministic_evm_key("creator").address


async def work(bench: Bench, name: str, reward: int) -> str:
    new = command_submission(reward=reward)
    reply = await bench.submit(new)
    lease = await bench.lease(name, reply.id)
    answer = await bench.report(name, final_report(name, lease, order_hash=new.order_hash))
    assert answer.task_state == "completed"
    return reply.id


async def voucher_round(bench: Bench) -> Sequence[VoucherRow]:
    return await bench.store.write(lambda tx: vouchers.make_vouchers(tx, CHAIN_KEY, bench.now))


async def sign_all(bench: Bench) -> None:
    for row in await bench.store.read(vouchers.unsigned_vouchers):
        unsigned = vouchers.wire_voucher(row._replace(signature="0x" + "00" * 65))
        signature = "0x" + sign_voucher(VAULT_DOMAIN, unsigned.message(), deterministic_evm_key("spender")).hex()
        await bench.store.write(lambda tx, row=row, signature=signature: vouchers.put_signature(tx, row, signature))  # type: ignore[misc]


async def payout(bench: Bench, task_id: str, unfunded: dict[Paid, str] | None = None) -> str:
    found = await bench.store.read(lambda tx: vouchers.payout_of_task(tx, task_id, unfunded))
    assert found is not None
    return found.state


async def test_a_voucher_sums_its_earnings_in_order_and_chains_their_receipts(bench: Bench) -> None:
    await work(bench, "ada", 5)
    await work(bench, "bob", 7)
    await work(bench, "ada", 11)

    made = {row.solver: row for row in await voucher_round(bench)}
    earned = await bench.store.read(
        lambda tx: tx.all(sql.EARNINGS_OF_SOLVER, solver=new_node("ada").node_id, before=2**62, limit=10)
    )

    head = EMPTY_RECEIPTS_HEAD
    for row in reversed(earned):
        head = extend_receipts_head(head, bytes.fromhex(row.receipt_digest[2:]))
    ada, bob = made[new_node("ada").node_id], made[new_node("bob").node_id]
    assert (ada.number, ada.cumulative, ada.receipts_head) == (2, 16, "0x" + head.hex())
    assert (bob.number, bob.cumulative) == (1, 7)
    assert [(row.voucher_count, row.cumulative) for row in reversed(earned)] == [(1, 5), (2, 16)]


async def test_the_next_voucher_continues_where_the_last_ended(bench: Bench) -> None:
    await work(bench, "ada", 5)
    first = (await voucher_round(bench))[0]
    await sign_all(bench)
    await work(bench, "ada", 6)

    second = (await voucher_round(bench))[0]

    assert (second.number, second.cumulative) == (first.number + 1, first.cumulative + 6)
    assert await voucher_round(bench) == [], "an earning is vouchered once"


async def test_signed_vouchers_verify_and_replace_earlier_ones(bench: Bench) -> None:
    for reward in (5, 6):
        await work(bench, "ada", reward)
        await voucher_round(bench)
    await sign_all(bench)

    unpaid = await bench.store.read(lambda tx: vouchers.unpaid_vouchers(tx, CHAIN_KEY))
    everything = await bench.store.read(lambda tx: vouchers.earnings(tx, new_node("ada").node_id))

    assert [row.cumulative for row in unpaid] == [11]
    assert [voucher.cumulative for voucher in everything.vouchers] == [11]
    check_voucher(everything.vouchers[0], domain=VAULT_DOMAIN, spender=SPENDER)


async def test_a_second_signature_changes_nothing(bench: Bench) -> None:
    await work(bench, "ada", 5)
    (row,) = await voucher_round(bench)
    await sign_all(bench)

    await bench.store.write(lambda tx: vouchers.put_signature(tx, row, "0x" + "ee" * 65))
    (kept,) = await bench.store.read(lambda tx: vouchers.unpaid_vouchers(tx, CHAIN_KEY))

    assert kept.signature != "0x" + "ee" * 65


async def test_an_unsigned_voucher_does_not_leave_the_market(bench: Bench) -> None:
    await work(bench, "ada", 5)
    (row,) = await voucher_round(bench)

    with pytest.raises(Internal):
        vouchers.wire_voucher(row)
    assert (await bench.store.read(lambda tx: vouchers.earnings(tx, row.solver))).vouchers == ()


async def test_the_payout_state_is_derived_step_by_step(bench: Bench) -> None:
    task_id = await work(bench, "ada", 5)
    solver = new_node("ada").node_id
    seen = [await payout(bench, task_id)]
    (row,) = await voucher_round(bench)
    seen.append(await payout(bench, task_id))
    await sign_all(bench)
    seen.append(await payout(bench, task_id))
    seen.append(await payout(bench, task_id, {Paid(CREATOR, SPENDER, solver): "EscrowEmpty"}))
    await bench.store.write(
        lambda tx: vouchers.record_tx(
            tx, CHAIN_KEY, SPENDER, 0, b"raw", "0xhash", purpose="redeem", doc=describe_batch([row]), now=bench.now
        )
    )
    seen.append(await payout(bench, task_id))
    await bench.store.write(
        lambda tx: money.record_paid(tx, CHAIN_KEY, CREATOR, SPENDER, solver, paid=5, block=1, tx_hash="0xhash")
    )
    seen.append(await payout(bench, task_id))

    assert seen == ["earned", "earned", "vouchered", "unfunded", "submitted", "confirmed"]
    final = await bench.store.read(lambda tx: vouchers.payout_of_task(tx, task_id))
    assert final is not None
    assert (final.tx_hash, final.confirmations) == ("0xhash", 1)


async def test_a_transaction_for_earlier_earnings_does_not_make_a_later_one_submitted(bench: Bench) -> None:
    await work(bench, "ada", 5)
    (first,) = await voucher_round(bench)
    await bench.store.write(
        lambda tx: vouchers.record_tx(
            tx, CHAIN_KEY, SPENDER, 0, b"raw", "0xhash", purpose="redeem", doc=describe_batch([first]), now=bench.now
        )
    )
    later = await work(bench, "ada", 6)
    await voucher_round(bench)
    await sign_all(bench)

    assert await payout(bench, later) == "vouchered"


async def test_partial_pay_confirms_only_what_it_covers(bench: Bench) -> None:
    first, second = await work(bench, "ada", 5), await work(bench, "ada", 6)
    await voucher_round(bench)
    await sign_all(bench)
    solver = new_node("ada").node_id

    await bench.store.write(
        lambda tx: money.record_paid(tx, CHAIN_KEY, CREATOR, SPENDER, solver, paid=10, block=1, tx_hash=None)
    )
    totals = await bench.store.read(lambda tx: vouchers.totals_of(tx, solver))

    assert [await payout(bench, first), await payout(bench, second)] == ["confirmed", "vouchered"]
    assert totals == (11, 10)
    assert [row.cumulative for row in await bench.store.read(lambda tx: vouchers.unpaid_vouchers(tx, CHAIN_KEY))] == [
        11
    ]


async def test_what_was_redeemed_is_free_again_as_escrow_shrinks(bench: Bench) -> None:
    await bench.fund("creator", 100)
    await work(bench, "ada", 30)

    before = await bench.store.read(lambda tx: money.account_reply(tx, bench.market, CREATOR))
    await bench.fund("creator", 70, redeemed=30)
    after = await bench.store.read(lambda tx: money.account_reply(tx, bench.market, CREATOR))

    assert (before.escrow, before.owed, before.available, before.spent) == (100, 30, 70, 0)
    assert (after.escrow, after.owed, after.available, after.spent) == (70, 0, 70, 30)


async def test_earnings_are_listed_newest_first_page_by_page(bench: Bench) -> None:
    made = [await work(bench, "ada", reward) for reward in (1, 2, 3)]
    solver = new_node("ada").node_id

    first = await bench.store.read(lambda tx: vouchers.earnings(tx, solver, limit=2))
    assert first.next_cursor is not None
    cursor = int(first.next_cursor)
    second = await bench.store.read(lambda tx: vouchers.earnings(tx, solver, before=cursor, limit=2))

    assert [row.task_id for row in (*first.earnings, *second.earnings)] == made[::-1]
    assert (first.earned, second.next_cursor) == (6, None)


async def test_a_nonce_has_one_transaction_for_ever(bench: Bench) -> None:
    async def keep(raw: bytes) -> None:
        await bench.store.write(
            lambda tx: vouchers.record_tx(
                tx, CHAIN_KEY, SPENDER, 3, raw, "0x1", purpose="redeem", doc="[]", now=bench.now
            )
        )

    await keep(b"first")
    await keep(b"first")

    with pytest.raises(Conflict):
        await keep(b"second")
    assert await bench.store.read(lambda tx: vouchers.last_nonce(tx, CHAIN_KEY, SPENDER)) == 3
    assert [row.raw for row in await bench.store.read(lambda tx: vouchers.txs_in_state(tx, CHAIN_KEY, "signed"))] == [
        b"first"
    ]


async def test_a_node_without_the_minimum_bond_gets_no_lease(bench: Bench) -> None:
    await bench.enrol("poor", bond=TOKEN - 1)
    reply = await bench.submit(command_submission())

    with pytest.raises(StakeTooLow):
        await bench.claim("poor", reply.id)


async def test_a_bond_counts_for_ten_minutes_while_the_chain_is_down(bench: Bench) -> None:
    reply = await bench.submit(command_submission())
    bench.now += timedelta(minutes=11)

    with pytest.raises(ChainUnavailable):
        await bench.claim("ada", reply.id)
    bench.now -= timedelta(minutes=2)
    await bench.lease("ada", reply.id)
