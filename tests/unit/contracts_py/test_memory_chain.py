"""The fake: what only it can do. Its vault is held against the contract in ``tests/contracts/test_memory_vault.py``."""

from __future__ import annotations

from datetime import timedelta

import pytest

from parity_contracts.chain.calls import AddFunds, Approve, Faucet
from parity_contracts.chain.memory import MemoryChain
from parity_contracts.chain.sending import send, wait_for
from parity_protocol.errors import BadDocument, ChainUnavailable, Unprocessable
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_evm_key

ALICE, BOB = deterministic_evm_key("alice"), deterministic_evm_key("bob")

# -- the fake's own abilities ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_nothing_answers_while_it_is_offline() -> None:
    chain = MemoryChain(FakeClock())
    tx = await chain.prepare(Faucet(ALICE.address, 1), ALICE)

    chain.go_offline()

    for attempt in (
        chain.head,
        lambda: chain.account("x"),
        lambda: chain.broadcast(tx.raw),
        lambda: chain.receipt("0x"),
    ):
        with pytest.raises(ChainUnavailable):
            await attempt()
    chain.go_online()
    assert await chain.broadcast(tx.raw) == tx.tx_hash


@pytest.mark.anyio
async def test_without_auto_mining_a_transaction_waits_for_a_block_and_for_its_turn() -> None:
    chain = MemoryChain(FakeClock(), auto_mine=False)
    second = await chain.prepare(Approve(1), ALICE, nonce=1, gas=1)
    await chain.broadcast(second.raw)
    chain.mine()
    assert await chain.receipt(second.tx_hash) is None
    first = await chain.prepare(Faucet(ALICE.address, 1), ALICE, nonce=0)
    await chain.broadcast(first.raw)

    chain.mine()

    receipts = [await chain.receipt(tx.tx_hash) for tx in (first, second)]
    assert [receipt is not None and receipt.block for receipt in receipts] == [2, 2]


@pytest.mark.anyio
async def test_waiting_for_what_is_never_mined_ends() -> None:
    clock = FakeClock()
    chain = MemoryChain(clock, auto_mine=False)
    tx = await chain.prepare(Faucet(ALICE.address, 1), ALICE)
    await chain.broadcast(tx.raw)
    clock_at_timeout = clock.monotonic()

    with pytest.raises(ChainUnavailable, match="was not mined within 0 s"):
        await wait_for(chain, tx.tx_hash, clock=clock, timeout_s=0)

    assert clock.monotonic() == clock_at_timeout


@pytest.mark.anyio
async def test_sending_stops_at_the_call_that_failed() -> None:
    chain = MemoryChain(FakeClock())

    with pytest.raises(Unprocessable, match=r"\(AddFunds\) was mined and failed"):
        await send(chain, [Approve(5), AddFunds(5, "id", ALICE.address)], ALICE, clock=FakeClock())

    assert (await chain.holdings(ALICE.address)).allowance == 5


@pytest.mark.anyio
async def test_bytes_it_did_not_prepare_are_refused() -> None:
    with pytest.raises(BadDocument):
        await MemoryChain(FakeClock()).broadcast(b"\x02abc")


@pytest.mark.anyio
async def test_blocks_follow_the_clock_and_each_other() -> None:
    clock = FakeClock()
    chain = MemoryChain(clock)
    start = (await chain.head()).time
    chain.mine(3)
    assert (await chain.head()).time == start + timedelta(seconds=3)

    await clock.advance(timedelta(minutes=1))
    chain.mine()

    assert (await chain.head()).time == start + timedelta(minutes=1)
