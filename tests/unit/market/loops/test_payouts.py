"""Paying exactly once, whatever stops in between."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from parity_contracts.chain.base import PaidKey, Quote
from parity_contracts.chain.calls import Call, Faucet, FinishRelease, Redeem, RequestRelease
from parity_contracts.chain.memory import MemoryChain
from parity_market.loops import payouts, starting, vouchers
from parity_market.loops.chain_follower import Follower, refresh_account
from parity_market.loops.payouts import Payouts
from parity_market.operations import vouchers as ledger
from parity_market.operations.vouchers import Paid, payout_of_task, wire_voucher
from parity_market.store import sql
from parity_market.store.rows import ChainTxRow
from parity_market.testing.builders import SPENDER, TOKEN, new_node
from parity_market.testing.rig import Rig, inline, open_rig
from parity_protocol.api.nodes import PayoutState
from parity_protocol.errors import ChainUnavailable, ConfigInvalid, Unprocessable
from parity_protocol.ids import Address
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_evm_key

CREATOR = deterministic_evm_key("creator").address
OWNER = deterministic_evm_key("creator")
NODE = new_node("n1").node_id
KEY = Paid(CREATOR, SPENDER, NODE)
SENDER = deterministic_evm_key("transaction").address


class Crash(Exception):
    """The process ends here."""


async def prepared(rig: Rig, *, escrow: int = 10 * TOKEN) -> None:
    """Stake a node, fund the creator, and let the market see both."""
    await rig.stake("n1")
    await rig.bench.enrol("n1")
    await rig.allow(escrow)
    await follow(rig)


async def follow(rig: Rig) -> None:
    follower = Follower(rig.state)
    await refresh_account(rig.state, CREATOR)
    assert await follower.step()


async def paid_on_chain(rig: Rig, solver: str = NODE) -> int:
    return (await rig.state.chain.paid([PaidKey(CREATOR, Address(SPENDER), solver)])).amounts[0]


async def ledger_of(rig: Rig) -> list[ChainTxRow]:
    chain = rig.state.market.chain
    return await rig.store.read(partial(ledger.txs_from, chain=chain, sender=SENDER, nonce=0))


async def payout(rig: Rig, task_id: str) -> PayoutState | None:
    unfunded = rig.state.chain_health.unfunded
    return await rig.store.read(lambda tx: payout_of_task(tx, task_id, unfunded))


async def later(clock: FakeClock, seconds: float = 30.0) -> None:
    await clock.advance(timedelta(seconds=seconds))


async def test_an_accepted_task_is_paid_and_confirmed(rig: Rig) -> None:
    await prepared(rig)
    task_id = await rig.earn("n1", 3 * TOKEN)
    before = await payout(rig, task_id)

    assert await vouchers.step(rig.state) > 0
    signed = await payout(rig, task_id)
    paying = Payouts(rig.state)
    await paying.step()
    sent = await payout(rig, task_id)
    await paying.step()
    await follow(rig)
    after = await payout(rig, task_id)

    assert [each.state for each in (before, signed, sent, after) if each] == [
        "earned", "vouchered", "submitted", "confirmed",
    ]  # fmt: skip
    [row] = await ledger_of(rig)
    assert (row.state, row.nonce) == ("mined", 0)
    assert after is not None
    assert after.tx_hash == row.hash
    assert await paid_on_chain(rig) == 3 * TOKEN
    assert (await rig.state.chain.account(NODE)).credit == 3 * TOKEN


async def test_later_earnings_go_in_one_transaction_and_add_up(rig: Rig, clock: FakeClock) -> None:
    await prepared(rig)
    paying = Payouts(rig.state)
    for _ in range(3):
        await rig.earn("n1")
    await pay_all(rig, paying)

    for _ in range(2):
        await rig.earn("n1")
    await later(clock)
    await pay_all(rig, paying)

    assert [row.state for row in await ledger_of(rig)] == ["mined", "mined"]
    assert await paid_on_chain(rig) == 5 * TOKEN


async def pay_all(rig: Rig, paying: Payouts) -> None:
    while await vouchers.step(rig.state):
        pass
    await follow(rig)
    await paying.step()
    await paying.step()
    await follow(rig)


async def test_nothing_is_sent_while_nothing_new_is_owed(rig: Rig, clock: FakeClock) -> None:
    await prepared(rig)
    paying = Payouts(rig.state)
    await rig.earn("n1")
    await pay_all(rig, paying)

    for _ in range(5):
        await later(clock)
        await pay_all(rig, paying)

    assert len(await ledger_of(rig)) == 1


CRASH_POINTS = ["quote", "prepare", "broadcast", "broadcast lost", "receipt"]


@pytest.mark.parametrize("point", CRASH_POINTS)
async def test_a_crash_between_two_steps_pays_exactly_once(
    point: str, tmp_path: Path, chain: MemoryChain, clock: FakeClock
) -> None:
    crashing = CrashingChain(chain, point)
    async with open_rig(tmp_path, crashing, clock, offload=inline) as rig:
        await prepared(rig)
        await rig.earn("n1", 2 * TOKEN)
        await vouchers.step(rig.state)
        crashing.is_armed = True
        with pytest.raises(Crash):
            await pay_all(rig, Payouts(rig.state))

    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        await starting.start_up(rig.state)
        await follow(rig)
        paying = Payouts(rig.state)
        for _ in range(4):
            await paying.step()
            await later(clock, 6)
        await rig.earn("n1", TOKEN)
        for _ in range(4):
            await pay_all(rig, paying)
            await later(clock, 6)

        assert await paid_on_chain(rig) == 3 * TOKEN
        assert (await rig.state.chain.account(NODE)).credit == 3 * TOKEN
        rows = await ledger_of(rig)
        assert [row.nonce for row in rows] == [0, 1]
        assert {row.state for row in rows} == {"mined"}
        assert all(raw == rows[0].raw for raw in crashing.sent)


class CrashingChain(MemoryChain):
    """A chain whose caller dies at a call, before or after it had its effect."""

    def __init__(self, inner: MemoryChain, point: str) -> None:
        self.__dict__ = inner.__dict__  # the same chain
        self.point = point
        self.is_armed = False
        self.sent: list[bytes] = []

    def _maybe(self, here: str) -> None:
        if self.is_armed and self.point == here:
            raise Crash(here)

    async def quote(self, call, sender):  # type: ignore[no-untyped-def]  # as the port
        self._maybe("quote")
        return await super().quote(call, sender)

    async def prepare(self, call, key, *, nonce=None, gas=None):  # type: ignore[no-untyped-def]  # as the port
        made = await super().prepare(call, key, nonce=nonce, gas=gas)
        self._maybe("prepare")
        return made

    async def broadcast(self, raw: bytes) -> str:
        if self.is_armed:
            self.sent.append(raw)
        self._maybe("broadcast lost")
        tx_hash = await super().broadcast(raw)
        self._maybe("broadcast")
        return tx_hash

    async def receipt(self, tx_hash: str):  # type: ignore[no-untyped-def]  # as the port
        self._maybe("receipt")
        return await super().receipt(tx_hash)


async def test_a_transaction_that_nobody_mines_is_sent_again_verbatim(
    rig: Rig, chain: MemoryChain, clock: FakeClock
) -> None:
    await prepared(rig)
    await rig.earn("n1")
    await vouchers.step(rig.state)
    seen: list[bytes] = []
    original = chain.broadcast

    async def dropping(raw: bytes) -> str:
        seen.append(raw)
        return "0x"  # accepted, and forgotten

    chain.broadcast = dropping  # type: ignore[method-assign]  # the mempool's behaviour under test
    paying = Payouts(rig.state)
    await paying.step()
    await paying.step()
    assert len(seen) == 1  # not every half second

    chain.broadcast = original  # type: ignore[method-assign]
    await later(clock, payouts.RESEND_S)
    await paying.step()
    await paying.step()

    [row] = await ledger_of(rig)
    assert row.raw == seen[0]
    assert row.state == "mined"
    assert await paid_on_chain(rig) == TOKEN


async def test_payouts_wait_for_a_chain_that_is_away_and_then_pay_once(
    rig: Rig, chain: MemoryChain, clock: FakeClock
) -> None:
    await prepared(rig)
    paying, follower = Payouts(rig.state), Follower(rig.state)
    chain.go_offline()
    task_id = await rig.earn("n1", 2 * TOKEN)  # work goes on with what was seen last
    await vouchers.step(rig.state)

    assert not await follower.step()
    for _ in range(3):
        await paying.step()
        await later(clock)
    assert rig.state.chain_health.problem
    assert await ledger_of(rig) == []

    chain.go_online()
    assert await follower.step()
    await paying.step()
    await paying.step()
    await follower.step()

    assert rig.state.chain_health.problem == ""
    assert await paid_on_chain(rig) == 2 * TOKEN
    found = await payout(rig, task_id)
    assert found is not None
    assert found.state == "confirmed"


async def test_the_chain_going_away_after_the_broadcast_pays_once(
    rig: Rig, chain: MemoryChain, clock: FakeClock
) -> None:
    await prepared(rig)
    await rig.earn("n1")
    await vouchers.step(rig.state)
    chain.auto_mine = False
    paying = Payouts(rig.state)
    await paying.step()
    chain.go_offline()
    await paying.step()  # says so in the log, raises nothing

    chain.go_online()
    chain.mine()
    await later(clock)
    await paying.step()
    await later(clock)
    await follow(rig)
    await paying.step()

    assert [row.state for row in await ledger_of(rig)] == ["mined"]
    assert await paid_on_chain(rig) == TOKEN


async def test_a_payout_is_final_only_after_its_confirmations(
    tmp_path: Path, chain: MemoryChain, clock: FakeClock
) -> None:
    async with open_rig(tmp_path, chain, clock, offload=inline, settings={"market_confirmations": 3}) as rig:
        await rig.stake("n1")
        await rig.bench.enrol("n1")
        await rig.allow(10 * TOKEN)
        chain.mine(2)
        await follow(rig)
        task_id = await rig.earn("n1")
        await vouchers.step(rig.state)
        paying = Payouts(rig.state)
        await paying.step()
        states = []
        for _ in range(3):
            await follow(rig)
            await paying.step()
            found = await payout(rig, task_id)
            assert found is not None
            states.append((found.state, (await ledger_of(rig))[0].state))
            chain.mine()

    assert states == [("submitted", "sent"), ("submitted", "sent"), ("confirmed", "mined")]


async def test_transactions_that_a_reorganisation_lost_are_sent_again(
    rig: Rig, chain: MemoryChain, clock: FakeClock
) -> None:
    await prepared(rig)
    paying = Payouts(rig.state)
    blocks, receipts, nonces = list(chain._blocks), dict(chain._receipts), dict(chain._nonces)
    await rig.earn("n1")
    await pay_all(rig, paying)
    assert await paid_on_chain(rig) == TOKEN

    chain._blocks, chain._receipts, chain._nonces = blocks, receipts, nonces  # the branch with the payout is gone
    chain.mine()
    assert await paid_on_chain(rig) == 0
    for _ in range(5):
        await later(clock, 700)
        await pay_all(rig, paying)

    [row] = await ledger_of(rig)
    assert row.state == "mined"
    assert await paid_on_chain(rig) == TOKEN


async def test_a_voucher_that_the_node_redeemed_itself_is_not_sent(rig: Rig) -> None:
    await prepared(rig)
    task_id = await rig.earn("n1")
    await vouchers.step(rig.state)
    [row] = await rig.store.read(partial(ledger.unpaid_vouchers, chain=rig.state.market.chain))
    await rig.on_chain(deterministic_evm_key("n1"), Redeem((wire_voucher(row),)))

    await Payouts(rig.state).step()
    await follow(rig)

    assert await ledger_of(rig) == []
    found = await payout(rig, task_id)
    assert found is not None
    assert found.state == "confirmed"


async def test_an_empty_escrow_is_named_and_paid_when_it_is_filled(
    rig: Rig, chain: MemoryChain, clock: FakeClock
) -> None:
    await prepared(rig, escrow=2 * TOKEN)
    paying = Payouts(rig.state)
    task_id = await rig.earn("n1", 2 * TOKEN)
    release = RequestRelease(CREATOR, Address(SPENDER), 2 * TOKEN)
    await rig.on_chain(OWNER, release)
    await later(clock, 120)
    await rig.on_chain(OWNER, FinishRelease(CREATOR, Address(SPENDER)))
    await pay_all(rig, paying)

    found = await payout(rig, task_id)
    assert found is not None
    assert found.state == "unfunded"
    assert "EscrowEmpty" in (found.reason or "")
    assert "2 tokens" in (found.reason or "")
    assert await ledger_of(rig) == []  # no gas is spent on what the vault would skip

    await rig.allow(5 * TOKEN)
    await later(clock)
    await pay_all(rig, paying)

    assert rig.state.chain_health.unfunded == {}
    assert await paid_on_chain(rig) == 2 * TOKEN


async def test_an_escrow_that_covers_a_part_pays_that_part(rig: Rig, clock: FakeClock) -> None:
    await prepared(rig, escrow=3 * TOKEN)
    paying = Payouts(rig.state)
    await rig.earn("n1", 3 * TOKEN)
    await rig.on_chain(OWNER, RequestRelease(CREATOR, Address(SPENDER), TOKEN))
    await later(clock, 120)
    await rig.on_chain(OWNER, FinishRelease(CREATOR, Address(SPENDER)))
    await pay_all(rig, paying)
    await later(clock)
    await pay_all(rig, paying)

    assert await paid_on_chain(rig) == 2 * TOKEN
    assert "1 tokens are owed" in rig.state.chain_health.unfunded[KEY]


async def test_a_solver_without_an_account_is_named(tmp_path: Path, chain: MemoryChain, clock: FakeClock) -> None:
    async with open_rig(tmp_path, chain, clock, offload=inline, settings={"market_min_bond": "0"}) as rig:
        await rig.bench.enrol("n1")
        await rig.allow(10 * TOKEN)
        await follow(rig)
        await rig.earn("n1")
        paying = Payouts(rig.state)
        await pay_all(rig, paying)
        assert "SolverNotOpen" in rig.state.chain_health.unfunded[KEY]

        await rig.stake("n1")
        await later(clock)
        await pay_all(rig, paying)

        assert await paid_on_chain(rig) == TOKEN


async def test_without_ether_the_faucet_is_asked_and_the_payout_goes_on(
    rig: Rig, chain: MemoryChain, clock: FakeClock
) -> None:
    await prepared(rig)
    await rig.earn("n1")
    await vouchers.step(rig.state)
    asked: list[str] = []
    chain._blocks[-1].wei[SENDER] = 1

    async def faucet(address: Address) -> str:
        asked.append(address)
        chain._blocks[-1].wei[SENDER] = 10**18
        return "0x" + "00" * 32

    paying = Payouts(rig.state, faucet=faucet)
    await paying.step()
    reason = rig.state.chain_health.unfunded[KEY]
    await later(clock)
    await paying.step()
    await paying.step()

    assert asked == [SENDER]
    assert "cannot pay the gas" in reason
    assert await paid_on_chain(rig) == TOKEN


async def test_an_endpoint_that_does_not_estimate_without_ether_asks_the_faucet_too(
    rig: Rig, chain: MemoryChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    await prepared(rig)
    await rig.earn("n1")
    await vouchers.step(rig.state)
    asked: list[str] = []

    async def refuse(call: Call, sender: Address) -> Quote:
        raise Unprocessable("not enough ether for the transaction")

    async def faucet(address: Address) -> str:
        asked.append(address)
        return "0x" + "00" * 32

    monkeypatch.setattr(chain, "quote", refuse)
    await Payouts(rig.state, faucet=faucet).step()

    assert asked == [SENDER]
    assert "not enough ether" in rig.state.chain_health.unfunded[KEY]


async def test_without_ether_and_faucet_the_reason_is_shown(rig: Rig, chain: MemoryChain, clock: FakeClock) -> None:
    await prepared(rig)
    task_id = await rig.earn("n1")
    await vouchers.step(rig.state)
    chain._blocks[-1].wei[SENDER] = 1

    async def faucet(address: Address) -> str:
        raise ChainUnavailable("not an embedded chain")

    paying = Payouts(rig.state, faucet=faucet)
    await paying.step()
    found = await payout(rig, task_id)

    assert found is not None
    assert found.state == "unfunded"
    assert SENDER in (found.reason or "")
    assert await ledger_of(rig) == []


async def test_more_vouchers_than_a_batch_holds_go_in_several_transactions(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await prepared(rig)
    monkeypatch.setattr(payouts, "batches", lambda items: [items[i : i + 1] for i in range(len(items))])
    await rig.stake("n2")
    await rig.bench.enrol("n2")
    await rig.earn("n1")
    await rig.earn("n2", 2 * TOKEN)

    await pay_all(rig, Payouts(rig.state))

    assert [row.nonce for row in await ledger_of(rig)] == [0, 1]
    assert await paid_on_chain(rig) == TOKEN
    assert await paid_on_chain(rig, new_node("n2").node_id) == 2 * TOKEN


async def test_a_ledger_behind_the_chain_skips_the_used_nonces(rig: Rig, clock: FakeClock) -> None:
    await prepared(rig)
    paying = Payouts(rig.state)
    await rig.earn("n1")
    await pay_all(rig, paying)
    await rig.on_chain(deterministic_evm_key("transaction"), Faucet(CREATOR, 1))  # somebody uses the key
    await rig.earn("n1")
    await later(clock)
    await pay_all(rig, paying)

    assert [row.nonce for row in await ledger_of(rig)] == [0, 2]
    assert await paid_on_chain(rig) == 2 * TOKEN


async def test_a_nonce_taken_by_somebody_else_leaves_the_money_owed_and_pays_later(
    rig: Rig, chain: MemoryChain, clock: FakeClock
) -> None:
    await prepared(rig)
    await rig.earn("n1")
    await vouchers.step(rig.state)
    original = chain.broadcast

    async def lost(raw: bytes) -> str:
        raise ChainUnavailable("gone")

    chain.broadcast = lost  # type: ignore[method-assign]
    paying = Payouts(rig.state)
    await paying.step()
    chain.broadcast = original  # type: ignore[method-assign]
    await rig.on_chain(deterministic_evm_key("transaction"), Faucet(CREATOR, 1))
    for _ in range(4):
        await later(clock)
        await paying.step()

    assert [row.state for row in await ledger_of(rig)] == ["failed", "mined"]
    assert await paid_on_chain(rig) == TOKEN


async def test_only_the_newest_voucher_of_a_pair_is_kept(rig: Rig) -> None:
    await prepared(rig)
    for _ in range(3):
        await rig.earn("n1")
        await vouchers.step(rig.state)

    rows = await rig.store.read(lambda tx: tx.all(sql.VOUCHERS_NEWEST_OF_SOLVER, solver=NODE, limit=10))

    assert [(row.number, row.cumulative) for row in rows] == [(3, 3 * TOKEN)]
    assert await rig.store.read(ledger.unsigned_vouchers) == []


async def test_another_chain_stops_the_market(rig: Rig) -> None:
    async def other(state: object) -> None:
        raise ConfigInvalid(["genesis hash: expected 0xaa, the endpoint has 0xbb"])

    with pytest.raises(ConfigInvalid, match="genesis"):
        await Follower(rig.state, check=other).step()


async def test_vouchers_that_cannot_be_paid_do_not_hold_up_younger_ones(
    rig: Rig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payouts, "ROUND_VOUCHERS", 1)
    await prepared(rig, escrow=TOKEN)
    await rig.earn("n1")
    await rig.on_chain(OWNER, RequestRelease(CREATOR, Address(SPENDER), TOKEN))
    await later(clock, 120)
    await rig.on_chain(OWNER, FinishRelease(CREATOR, Address(SPENDER)))
    paying = Payouts(rig.state)
    await pay_all(rig, paying)  # the oldest voucher has no money behind it
    other = await rig.allow(5 * TOKEN, creator="other")
    await refresh_account(rig.state, other)
    task_id = await rig.earn("n1", creator="other")

    await later(clock)
    await pay_all(rig, paying)

    found = await payout(rig, task_id)
    assert found is not None
    assert found.state == "confirmed"
    assert KEY in rig.state.chain_health.unfunded
