"""The market sees stakes, allowances and payments as of the newest final block, and nothing that is older or gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from parity_contracts.chain.base import AccountState, Head
from parity_contracts.chain.calls import FinishRelease, Redeem, RequestRelease, RequestUnstake
from parity_contracts.chain.memory import MemoryChain
from parity_market.loops import chain_follower, vouchers
from parity_market.loops.chain_follower import Follower, refresh_account
from parity_market.operations import money
from parity_market.operations import vouchers as ledger
from parity_market.operations.vouchers import wire_voucher
from parity_market.store import sql
from parity_market.store.rows import ChainEscrowRow
from parity_market.testing.builders import SPENDER, TOKEN, command_submission, new_node
from parity_market.testing.rig import DEPLOYMENT, Rig, inline, open_rig
from parity_protocol.api.tasks import AccountReply
from parity_protocol.errors import ChainUnavailable, EscrowTooLow, StakeTooLow, Unprocessable
from parity_protocol.ids import Address
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_evm_key

OWNER = deterministic_evm_key("creator")
CREATOR = OWNER.address
NODE = new_node("n1").node_id


async def bond(rig: Rig, node_id: str = NODE) -> int:
    return await rig.store.read(lambda tx: money.bond_of(tx, rig.state.market, node_id))


async def account(rig: Rig) -> AccountReply:
    return await rig.store.read(partial(money.account_reply, market=rig.state.market, creator=CREATOR))


async def escrow_row(rig: Rig) -> ChainEscrowRow:
    found = await rig.store.read(
        lambda tx: tx.one(sql.CHAIN_ESCROW, chain=rig.state.market.chain, creator=CREATOR, spender=SPENDER)
    )
    assert found is not None
    return found


async def enrolled(rig: Rig, name: str = "n1") -> None:
    """Enrol a node of which the chain has not been asked yet."""
    await rig.bench.enrol(name, bond=0)
    await rig.state.scheduler.load()


async def test_a_bond_is_seen_when_it_is_staked_and_when_it_leaves(rig: Rig) -> None:
    follower = Follower(rig.state)
    await enrolled(rig)
    await follower.step()
    before = await bond(rig)

    await rig.stake("n1", 5 * TOKEN)
    await follower.step()
    staked = await bond(rig)
    present = rig.state.scheduler.presence.get(NODE)
    await rig.on_chain(deterministic_evm_key("n1 owner"), RequestUnstake(NODE, 2 * TOKEN))
    await follower.step()

    assert (before, staked, await bond(rig)) == (0, 5 * TOKEN, 3 * TOKEN)
    assert present is not None
    assert present.bond == 3 * TOKEN  # the scheduler is told


async def test_a_node_whose_bond_left_gets_no_work(rig: Rig) -> None:
    follower = Follower(rig.state)
    await rig.stake("n1")
    await enrolled(rig)
    await rig.allow(10 * TOKEN)
    await refresh_account(rig.state, CREATOR)
    await follower.step()
    task_id = (await rig.bench.submit(command_submission())).id
    await rig.on_chain(deterministic_evm_key("n1 owner"), RequestUnstake(NODE, 1))
    await follower.step()

    with pytest.raises(StakeTooLow):
        await rig.bench.lease("n1", task_id)


async def test_escrow_and_what_was_paid_from_it_are_of_one_block(rig: Rig) -> None:
    follower = Follower(rig.state)
    await rig.stake("n1")
    await enrolled(rig)
    await rig.allow(10 * TOKEN)
    await refresh_account(rig.state, CREATOR)
    await follower.step()
    await rig.earn("n1", 4 * TOKEN)
    await vouchers.step(rig.state)
    [voucher] = await rig.store.read(partial(ledger.unpaid_vouchers, chain=rig.state.market.chain))
    owed = await account(rig)

    await rig.on_chain(OWNER, Redeem((wire_voucher(voucher),)))
    await follower.step()
    row, after = await escrow_row(rig), await account(rig)

    assert (row.escrow, row.redeemed) == (6 * TOKEN, 4 * TOKEN)
    assert (owed.owed, owed.available) == (4 * TOKEN, 6 * TOKEN)
    assert (after.owed, after.available) == (0, 6 * TOKEN)


async def test_money_on_its_way_out_cannot_be_promised(rig: Rig, clock: FakeClock) -> None:
    follower = Follower(rig.state)
    await rig.allow(10 * TOKEN)
    await refresh_account(rig.state, CREATOR)
    await follower.step()

    await rig.on_chain(OWNER, RequestRelease(CREATOR, Address(SPENDER), 8 * TOKEN))
    await follower.step()
    with pytest.raises(EscrowTooLow):
        await rig.bench.submit(command_submission(reward=3 * TOKEN))
    asked = await account(rig)
    await clock.advance(timedelta(seconds=120))
    await rig.on_chain(OWNER, FinishRelease(CREATOR, Address(SPENDER)))
    await follower.step()

    assert (asked.releasing, asked.available) == (8 * TOKEN, 2 * TOKEN)
    assert (await escrow_row(rig)).escrow == 2 * TOKEN


async def test_a_creator_seen_before_a_restart_is_still_followed(
    tmp_path: Path, chain: MemoryChain, clock: FakeClock
) -> None:
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        await rig.allow(10 * TOKEN)
        await refresh_account(rig.state, CREATOR)
        await Follower(rig.state).step()
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        follower = Follower(rig.state)
        await rig.on_chain(OWNER, RequestRelease(CREATOR, Address(SPENDER), 9 * TOKEN))

        await follower.step()

        assert (await account(rig)).available == TOKEN


async def test_an_allowance_of_a_moment_ago_counts_on_demand(rig: Rig) -> None:
    await rig.allow(10 * TOKEN)

    assert await refresh_account(rig.state, CREATOR) is None

    assert (await account(rig)).available == 10 * TOKEN


async def test_a_node_is_read_on_demand_with_its_operator(rig: Rig) -> None:
    await rig.stake("n1", 3 * TOKEN)

    found = await refresh_account(rig.state, NODE)

    assert found is not None
    assert (found.bond, found.operator) == (3 * TOKEN, new_node("n1").operator)
    assert await bond(rig) == 3 * TOKEN


async def test_an_account_is_not_read_again_within_a_second(rig: Rig, clock: FakeClock) -> None:
    await rig.allow(10 * TOKEN)
    await refresh_account(rig.state, CREATOR)
    await rig.allow(TOKEN)

    await refresh_account(rig.state, CREATOR)
    first = (await escrow_row(rig)).escrow
    await clock.advance(timedelta(seconds=1))
    await refresh_account(rig.state, CREATOR)

    assert (first, (await escrow_row(rig)).escrow) == (10 * TOKEN, 11 * TOKEN)


async def test_a_chain_that_is_away_leaves_what_was_seen_last(rig: Rig, chain: MemoryChain) -> None:
    await rig.allow(10 * TOKEN)
    await refresh_account(rig.state, CREATOR)
    await Follower(rig.state).step()
    chain.go_offline()

    assert await refresh_account(rig.state, NODE) is None
    assert not await Follower(rig.state).step()

    assert (await rig.bench.submit(command_submission())).created
    assert "does not answer" in rig.state.chain_health.problem


async def test_what_was_seen_last_counts_for_the_grace_time_only(
    rig: Rig, chain: MemoryChain, clock: FakeClock
) -> None:
    await rig.allow(10 * TOKEN)
    await refresh_account(rig.state, CREATOR)
    follower = Follower(rig.state)
    await follower.step()
    chain.go_offline()
    await clock.advance(rig.state.market.chain_grace + timedelta(seconds=1))
    await follower.step()
    rig.bench.now = clock.now()

    with pytest.raises(ChainUnavailable):
        await rig.bench.submit(command_submission(deadline=clock.now() + timedelta(hours=1)))
    chain.go_online()
    await follower.step()

    assert (await rig.bench.submit(command_submission(deadline=clock.now() + timedelta(hours=1)))).created


async def test_the_head_is_noted_while_nothing_changes(rig: Rig, chain: MemoryChain, clock: FakeClock) -> None:
    follower = Follower(rig.state)
    for _ in range(3):
        await follower.step()
        await clock.advance(timedelta(seconds=chain_follower.RECORD_S))
    await follower.step()

    head = await rig.store.read(partial(money.chain_head, chain=rig.state.market.chain))

    assert head is not None
    assert clock.now() - head.seen_at < timedelta(seconds=1)


async def test_an_unconfirmed_stake_does_not_count(tmp_path: Path, chain: MemoryChain, clock: FakeClock) -> None:
    async with open_rig(tmp_path, chain, clock, offload=inline, settings={"market_confirmations": 3}) as rig:
        await enrolled(rig)
        follower = Follower(rig.state)
        await rig.stake("n1")
        seen = []
        for _ in range(3):
            await follower.step()
            await refresh_account(rig.state, NODE)
            seen.append(await bond(rig))
            chain.mine()

    assert seen == [0, 0, TOKEN]


async def test_a_chain_that_went_back_is_believed(rig: Rig, chain: MemoryChain) -> None:
    follower = Follower(rig.state)
    await enrolled(rig)
    blocks = list(chain._blocks)
    await rig.stake("n1")
    await follower.step()
    seen = await bond(rig)

    chain._blocks = blocks  # the branch with the stake is gone
    chain.mine()
    await follower.step()

    assert (seen, await bond(rig)) == (TOKEN, 0)


class LateChain(MemoryChain):
    """A chain in which something happens between the reading of the head and of an account."""

    happens: Callable[[], Awaitable[None]] | None = None

    async def head(self) -> Head:
        found = await super().head()
        happens, self.happens = self.happens, None
        if happens is not None:
            await happens()
        return found


async def test_a_late_answer_does_not_undo_a_newer_one(tmp_path: Path, clock: FakeClock) -> None:
    chain = LateChain(clock, DEPLOYMENT)
    async with open_rig(tmp_path, chain, clock, offload=inline) as rig:
        follower = Follower(rig.state)
        await enrolled(rig)
        await follower.step()
        chain.mine()

        async def stake_and_look() -> None:
            await rig.stake("n1")
            await refresh_account(rig.state, NODE)

        chain.happens = stake_and_look
        await follower.step()  # reads the block before the stake
        after_late_answer = await bond(rig)
        await follower.step()

        assert (after_late_answer, await bond(rig)) == (TOKEN, TOKEN)


async def test_many_accounts_are_read_a_few_at_a_time_and_a_failure_ends_it(
    rig: Rig, chain: MemoryChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(20):
        await rig.bench.enrol(f"m{index}", bond=0)
    now, most = 0, 0
    original = chain.account

    async def counted(name: str, *, at: int | None = None) -> AccountState:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await rig.state.clock.sleep(0)
        now -= 1
        return await original(name, at=at)

    monkeypatch.setattr(chain, "account", counted)
    assert await Follower(rig.state).step()
    assert 1 < most <= chain_follower.PARALLEL

    async def failing(name: str, *, at: int | None = None) -> AccountState:
        raise ChainUnavailable("gone in the middle")

    monkeypatch.setattr(chain, "account", failing)
    assert not await Follower(rig.state).step()
    assert rig.state.chain_health.problem == "gone in the middle"


async def test_an_endpoint_that_forgot_the_block_is_a_problem_and_no_crash(
    rig: Rig, chain: MemoryChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enrolled(rig)

    async def pruned(name: str, *, at: int | None = None) -> AccountState:
        raise Unprocessable("missing trie node")

    monkeypatch.setattr(chain, "account", pruned)

    assert not await Follower(rig.state).step()
    assert rig.state.chain_health.problem == "missing trie node"
    assert await refresh_account(rig.state, NODE) is None
