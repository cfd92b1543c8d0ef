"""What every chain adapter must do, run on the fake, on the embedded chain, and on anvil where there is one."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from parity_contracts.chain.base import Chain, PaidKey
from parity_contracts.chain.calls import (
    AddFunds,
    Allow,
    Approve,
    Call,
    CancelUnstake,
    Faucet,
    FinishRelease,
    Redeem,
    RequestRelease,
    RequestUnstake,
    SetOperator,
    SetPayout,
    Stake,
    Withdraw,
)
from parity_contracts.chain.memory import MemoryChain
from parity_contracts.chain.rpc import Rpc
from parity_contracts.chain.sending import preview, send, wait_for, with_approval
from parity_contracts.chain.web3_chain import Web3Chain
from parity_contracts.deploy import deploy, faucet
from parity_contracts.deployment import Deployment
from parity_contracts.testing import DevChain
from parity_protocol.clock import Clock, SystemClock
from parity_protocol.errors import BadField, ChainUnavailable, Conflict, Forbidden, NotFound, ParityError, Unprocessable
from parity_protocol.receipt import Voucher
from parity_protocol.signing.eip712 import Eip712Domain, VoucherMessage, account_key, sign_voucher
from parity_protocol.signing.keys import EvmKey
from parity_protocol.testing.clock import FakeClock
from parity_protocol.testing.keys import deterministic_evm_key

TOKEN = 10**18
ALICE, BOB, SPENDER = (deterministic_evm_key(name) for name in ("alice", "bob", "spender"))
KEYS = (ALICE, BOB, SPENDER)
DEPLOYER = deterministic_evm_key("deployer")
UNBONDING_S = 2

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

_serial = itertools.count()


@dataclass
class World:
    """One chain under test. Nothing is shared between tests but the three keys, which are rich."""

    chain: Chain
    clock: Clock
    pass_time: Callable[[float], Awaitable[None]]

    async def do(self, *calls: Call, key: EvmKey = ALICE) -> None:
        await send(self.chain, calls, key, clock=self.clock, timeout_s=20)

    def new_node_id(self) -> str:
        return sha256(f"{next(_serial)} {time.time_ns()}".encode()).hexdigest()

    def voucher(self, creator: str, solver: str, cumulative: int, *, key: EvmKey = SPENDER) -> Voucher:
        deployment = self.chain.deployment
        message = VoucherMessage(
            account_key(creator), account_key(solver), SPENDER.address, cumulative, count=1, receipts_head=bytes(32)
        )
        domain = Eip712Domain.stake_vault(deployment.chain_id, deployment.vault)
        return Voucher(
            creator="0x" + message.creator.hex(),
            solver="0x" + message.solver.hex(),
            spender=message.spender,
            cumulative=cumulative,
            count=1,
            receipts_head="0x" + "00" * 32,
            signature="0x" + sign_voucher(domain, message, key).hex(),
        )


async def _equip(url: str, deployer: EvmKey) -> Deployment:
    """Deploy, and give each key tokens and an allowance that never ends. Their ether must be on its way already."""
    clock = SystemClock()
    rpc = Rpc(url, timeout_s=5, errors={})
    for key in (deployer, *KEYS):
        for _ in range(200):
            if int(await rpc.call("eth_getBalance", key.address, "latest"), 16):
                break
            await asyncio.sleep(0.05)
    await rpc.aclose()
    deployment = await deploy(url, deployer, unbonding_s=UNBONDING_S)
    async with await Web3Chain.connect(url, deployment) as chain:
        last = []
        for key in KEYS:
            calls: list[Call] = [Faucet(key.address, 10**6 * TOKEN), Approve(2**256 - 1)]
            for nonce, call in enumerate(calls):
                tx = await chain.prepare(call, key, nonce=nonce, gas=150_000)
                last.append(await chain.broadcast(tx.raw))
        for tx_hash in last:
            assert (await wait_for(chain, tx_hash, clock=clock, timeout_s=20)).succeeded
    return deployment


_deployments: dict[str, Deployment] = {}  # by RPC address: each chain is equipped once


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the embedded chain for this module."""
    with DevChain(tmp_path_factory.mktemp("embedded") / "chain") as chain:
        yield chain.rpc_url


@pytest.fixture(scope="module")
def anvil(service_path: Callable[[str], Path]) -> Iterator[str]:
    """Run anvil for this module."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(service_path("anvil")), "--port", str(port), "--silent", "--block-time", "1", "--mixed-mining"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


async def _give_ether(kind: str, url: str) -> None:
    if kind == "embedded":
        for key in (DEPLOYER, *KEYS):
            await faucet(url, key.address, wait_s=0)
        return
    rpc = Rpc(url, timeout_s=5, errors={})
    for attempt in range(150):
        try:
            for key in (DEPLOYER, *KEYS):
                await rpc.call("anvil_setBalance", key.address, hex(100 * TOKEN))
            break
        except ChainUnavailable:
            assert attempt < 149, "anvil does not answer"
            await asyncio.sleep(0.1)
    await rpc.aclose()


@pytest.fixture(params=["memory", "embedded", pytest.param("anvil", marks=pytest.mark.service("anvil"))])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Each implementation in turn."""
    if request.param == "memory":
        fake_clock = FakeClock()
        fake = MemoryChain(fake_clock)
        world = World(fake, fake_clock, lambda seconds: fake_clock.advance(timedelta(seconds=seconds)))
        for key in KEYS:
            await world.do(Faucet(key.address, 10**6 * TOKEN), Approve(2**256 - 1), key=key)
        yield world
        return
    url = request.getfixturevalue(request.param)
    if url not in _deployments:
        await _give_ether(request.param, url)
        _deployments[url] = await _equip(url, DEPLOYER)
    async with await Web3Chain.connect(url, _deployments[url]) as chain:
        yield World(chain, SystemClock(), asyncio.sleep)


async def _past(world: World, moment_ready: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the chain's own clock, which is its newest block's, has come far enough."""
    for _ in range(100):
        if await moment_ready():
            return
        await world.pass_time(world.chain.deployment.unbonding_s / 4)
        if isinstance(world.chain, MemoryChain):
            world.chain.mine()
    raise AssertionError("the chain's clock stands still")


# -- reading and simple writes -----------------------------------------------------------------------------------


async def test_an_account_that_nobody_opened_is_empty(world: World) -> None:
    account = await world.chain.account(world.new_node_id())

    assert not account.exists
    assert (account.bond, account.unbonding, account.credit) == (0, 0, 0)
    assert (account.owner, account.operator, account.unbonding_ready_at) == (None, None, None)


async def test_deposits_show_in_bond_credit_escrow_and_events(world: World) -> None:
    node = world.new_node_id()
    before = await world.chain.holdings(ALICE.address)

    await world.do(
        Stake(10 * TOKEN, node, ALICE.address, BOB.address),
        AddFunds(3 * TOKEN + 1, node, ALICE.address),
        Allow(node, SPENDER.address, 2 * TOKEN),
        SetPayout(node, BOB.address),
    )

    account = await world.chain.account(node)
    escrow = await world.chain.escrow(node, SPENDER.address, at=account.block)
    after = await world.chain.holdings(ALICE.address)
    assert (account.bond, account.credit, account.exists) == (10 * TOKEN, TOKEN + 1, True)
    assert (account.owner, account.operator, account.payout) == (ALICE.address, BOB.address, BOB.address)
    assert (escrow.amount, escrow.releasing, escrow.reliable, escrow.block) == (2 * TOKEN, 0, 2 * TOKEN, account.block)
    assert before.tokens - after.tokens == 13 * TOKEN + 1
    assert after.wei < before.wei
    key = "0x" + account_key(node).hex()
    events = [e for e in await world.chain.events(0, account.block) if key in e.arguments.values()]
    assert [e.name for e in events if e.name in ("AccountOpened", "Staked", "Allowed")] == [
        "AccountOpened",
        "Staked",
        "Allowed",
    ]
    assert next(e for e in events if e.name == "Staked").arguments["bond"] == 10 * TOKEN


async def test_bond_leaves_only_after_the_unbonding_time(world: World) -> None:
    node = world.new_node_id()
    await world.do(Stake(5 * TOKEN, node, ALICE.address), RequestUnstake(node, 2 * TOKEN))
    waiting = await world.chain.account(node)
    assert (waiting.bond, waiting.unbonding) == (3 * TOKEN, 2 * TOKEN)
    with pytest.raises(Conflict, match=r"Locked"):
        await world.chain.quote(Withdraw(node, 2 * TOKEN), ALICE.address)

    async def matured() -> bool:
        head = await world.chain.head()
        return waiting.unbonding_ready_at is not None and head.time >= waiting.unbonding_ready_at

    await _past(world, matured)
    before = await world.chain.holdings(ALICE.address)
    await world.do(Withdraw(node, 2 * TOKEN))

    assert (await world.chain.holdings(ALICE.address)).tokens - before.tokens == 2 * TOKEN
    assert (await world.chain.account(node)).unbonding == 0


async def test_an_unstake_can_be_cancelled_and_keys_changed(world: World) -> None:
    node = world.new_node_id()

    await world.do(
        Stake(5 * TOKEN, node, ALICE.address),
        RequestUnstake(node, 5 * TOKEN),
        CancelUnstake(node),
        SetOperator(node, BOB.address),
    )

    account = await world.chain.account(node)
    assert (account.bond, account.unbonding, account.operator) == (5 * TOKEN, 0, BOB.address)


async def test_escrow_comes_back_only_after_the_unbonding_time(world: World) -> None:
    await world.do(
        AddFunds(TOKEN, BOB.address, BOB.address),
        Allow(BOB.address, ALICE.address, TOKEN),
        RequestRelease(BOB.address, ALICE.address, TOKEN),
        key=BOB,
    )
    escrow = await world.chain.escrow(BOB.address, ALICE.address)
    assert (escrow.reliable, escrow.releasing) == (0, escrow.amount)
    with pytest.raises(Conflict, match=r"Locked"):
        await world.chain.quote(FinishRelease(BOB.address, ALICE.address), BOB.address)

    async def matured() -> bool:
        return escrow.ready_at is not None and (await world.chain.head()).time >= escrow.ready_at

    await _past(world, matured)
    await world.do(FinishRelease(BOB.address, ALICE.address), key=BOB)

    assert (await world.chain.escrow(BOB.address, ALICE.address)).amount == 0


# -- vouchers ----------------------------------------------------------------------------------------------------


async def test_vouchers_pay_once_and_bad_ones_are_skipped(world: World) -> None:
    creator, solver = world.new_node_id(), world.new_node_id()
    await world.do(
        AddFunds(10 * TOKEN, creator, ALICE.address),
        Allow(creator, SPENDER.address, 5 * TOKEN),
        Stake(TOKEN, solver, ALICE.address),
    )
    good = world.voucher(creator, solver, 3 * TOKEN)
    forged = world.voucher(creator, solver, 4 * TOKEN, key=BOB)
    to_nobody = world.voucher(creator, world.new_node_id(), TOKEN)
    more_than_there_is = world.voucher(creator, solver, 9 * TOKEN)

    [receipt] = await send(
        world.chain, [Redeem((good, good, forged, to_nobody, more_than_there_is))], BOB, clock=world.clock
    )

    skipped = [(e.arguments["index"], e.arguments["reason"]) for e in receipt.events if e.name == "RedeemSkipped"]
    paid = await world.chain.paid(
        [PaidKey(creator, SPENDER.address, solver), PaidKey(creator, BOB.address, solver)], at=receipt.block
    )
    assert skipped == [(1, 1), (2, 4), (3, 3)]
    assert paid.amounts == (5 * TOKEN, 0)
    assert (await world.chain.account(solver, at=receipt.block)).credit == 5 * TOKEN
    assert (await world.chain.escrow(creator, SPENDER.address, at=receipt.block)).amount == 0
    assert (await world.chain.account(solver, at=receipt.block - 1)).credit == 0


async def test_many_paid_amounts_are_read_at_one_block(world: World) -> None:
    keys = [PaidKey(world.new_node_id(), SPENDER.address, world.new_node_id()) for _ in range(230)]

    paid = await world.chain.paid(keys)

    assert paid.amounts == (0,) * 230
    assert paid.block <= (await world.chain.head()).number


# -- refusals ----------------------------------------------------------------------------------------------------


async def test_what_the_contract_refuses_is_said_in_words_before_anything_is_sent(world: World) -> None:
    node = world.new_node_id()
    await world.do(AddFunds(5, node, ALICE.address))
    cases: list[tuple[Call, EvmKey, type[ParityError], str]] = [
        (Withdraw(node, 6), ALICE, Unprocessable, r"insufficient \(available 5\) \[Insufficient\]"),
        (Withdraw(node, 1), BOB, Forbidden, rf"not owner \(owner {ALICE.address}\) \[NotOwner\]"),
        (Stake(1, node, BOB.address), BOB, Forbidden, r"WalletMismatch"),
        (Stake(1, node, ALICE.address, BOB.address), BOB, Forbidden, r"OperatorMismatch"),
        (Withdraw(world.new_node_id(), 1), ALICE, NotFound, r"UnknownAccount"),
        (Stake(0, node, ALICE.address), ALICE, Unprocessable, r"ZeroAmount"),
        (AddFunds(1, ALICE.address, BOB.address), BOB, Forbidden, r"WalletMismatch"),
        (AddFunds(1, "x" * 65, ALICE.address), ALICE, Unprocessable, r"BadIdLength"),
        (AddFunds(2 * 10**6 * TOKEN, node, ALICE.address), ALICE, Unprocessable, r"ERC20InsufficientBalance"),
        (Faucet(ALICE.address, 10**6 * TOKEN + 1), ALICE, Unprocessable, r"AboveFaucetLimit"),
    ]

    for call, key, kind, words in cases:
        with pytest.raises(kind, match=words):
            await world.chain.quote(call, key.address)
        with pytest.raises(kind, match=words):
            await world.chain.prepare(call, key)


@pytest.mark.parametrize("amount", [-1, 2**96])
async def test_an_amount_that_the_vault_cannot_hold_is_refused_at_once(world: World, amount: int) -> None:
    with pytest.raises(BadField, match="base units"):
        await world.chain.prepare(AddFunds(amount, world.new_node_id(), ALICE.address), ALICE)


async def test_a_transaction_that_fails_when_mined_says_so_in_its_receipt(world: World) -> None:
    tx = await world.chain.prepare(Withdraw(world.new_node_id(), 1), ALICE, gas=200_000)
    await world.chain.broadcast(tx.raw)

    receipt = await wait_for(world.chain, tx.tx_hash, clock=world.clock, timeout_s=20)

    assert not receipt.succeeded
    assert receipt.events == ()
    assert receipt.fee_wei > 0


# -- sending -----------------------------------------------------------------------------------------------------


async def test_a_quote_names_gas_fees_balance_and_allowance(world: World) -> None:
    quote = await world.chain.quote(AddFunds(1, world.new_node_id(), ALICE.address), ALICE.address)

    assert 21_000 < quote.gas < 1_000_000
    assert quote.max_cost_wei == quote.gas * quote.max_fee_per_gas
    assert quote.holdings.wei > quote.max_cost_wei
    assert quote.holdings.allowance >= 2**256 - 10**30


async def test_a_deposit_without_an_allowance_gets_its_approval_and_a_preview(world: World) -> None:
    node = world.new_node_id()
    stake = Stake(7, node, SPENDER.address)
    await world.do(Approve(6), key=SPENDER)

    calls = await with_approval(world.chain, stake, SPENDER.address)
    plan = await preview(world.chain, calls, SPENDER.address)
    await world.do(*calls, key=SPENDER)

    assert calls == [Approve(7), stake]
    assert (plan.deposit, plan.missing_tokens, plan.missing_wei) == (7, 0, 0)
    assert plan.max_cost_wei == sum(plan.gas) * plan.max_fee_per_gas
    assert (await world.chain.account(node)).bond == 7
    assert (await world.chain.holdings(SPENDER.address)).allowance == 0


async def test_sending_the_same_bytes_again_is_harmless(world: World) -> None:
    node = world.new_node_id()
    tx = await world.chain.prepare(AddFunds(7, node, ALICE.address), ALICE)

    first = await world.chain.broadcast(tx.raw)
    second = await world.chain.broadcast(tx.raw)
    await wait_for(world.chain, tx.tx_hash, clock=world.clock, timeout_s=20)
    third = await world.chain.broadcast(tx.raw)

    assert first == second == third == tx.tx_hash
    assert (await world.chain.account(node)).credit == 7


async def test_another_transaction_with_a_used_nonce_is_a_conflict(world: World) -> None:
    tx = await world.chain.prepare(AddFunds(1, world.new_node_id(), BOB.address), BOB)
    await world.chain.broadcast(tx.raw)
    await wait_for(world.chain, tx.tx_hash, clock=world.clock, timeout_s=20)

    rival = await world.chain.prepare(AddFunds(2, world.new_node_id(), BOB.address), BOB, nonce=tx.nonce)

    with pytest.raises(Conflict, match="nonce"):
        await world.chain.broadcast(rival.raw)


async def test_confirmations_grow_with_the_chain(world: World) -> None:
    tx = await world.chain.prepare(AddFunds(1, world.new_node_id(), ALICE.address), ALICE)
    assert await world.chain.receipt(tx.tx_hash) is None
    await world.chain.broadcast(tx.raw)
    first = await wait_for(world.chain, tx.tx_hash, clock=world.clock, timeout_s=20)

    if isinstance(world.chain, MemoryChain):
        world.chain.mine()
    later = await wait_for(world.chain, tx.tx_hash, clock=world.clock, timeout_s=20, confirmations=2)

    assert first.confirmations >= 1
    assert later.confirmations >= 2
    assert later.block == first.block


async def test_the_key_never_shows(world: World) -> None:
    tx = await world.chain.prepare(AddFunds(1, world.new_node_id(), ALICE.address), ALICE)

    assert ALICE.reveal_secret().hex() not in repr(ALICE) + repr(tx) + repr(tx.raw.hex())
