"""A hypothesis machine that keeps its own books of a vault built from the committed bytecode, and compares them.

It is the second fuzzer over the same promises (contracts/test/Invariants.t.sol is the first): another language, another
EVM, and it runs where there is no Node. Every rule counts its successes over all examples, because a machine in which
nothing was ever released says nothing about releases.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from parity_protocol.ids import Address
from parity_protocol.signing.eip712 import Eip712Domain, VoucherMessage, account_key, sign_voucher
from parity_protocol.signing.keys import EvmKey

CHAIN_ID = 31337
UNBONDING = 1000
ZERO = "0x" + "00" * 20
ADMIN = "0x" + "ad" * 20
THIEF = "0x" + "bd" * 20
WALLETS = tuple(f"0x{n:040x}" for n in (0xA1, 0xA2, 0xA3))
OPERATORS = tuple(f"0x{n:040x}" for n in (0x91, 0x92))
SPENDERS = tuple(EvmKey(bytes([n]) * 32) for n in (7, 8))
FORGER = EvmKey(bytes([9]) * 32)
IDS = (WALLETS[0], "1" * 64, "2" * 64, "an-older-device")
CLOSED = "never-opened"

accounts = st.sampled_from(IDS)
wallets = st.sampled_from(WALLETS)
named = st.none() | wallets  # None: whom an honest deposit names
spenders = st.sampled_from(SPENDERS)
amounts = st.integers(1, 10**20)
percents = st.integers(1, 100)
often = st.sampled_from([True, True, True, False])


@dataclass
class Book:
    """What the vault should say about one account."""

    owner: str = ZERO
    payout: str = ZERO
    operator: str = ZERO
    bond: int = 0
    unbonding: int = 0
    ready_at: int = 0
    credit: int = 0


@dataclass
class Pot:
    """What the vault should say about one escrow."""

    amount: int = 0
    releasing: int = 0
    ready_at: int = 0
    paid: Counter[str] = field(default_factory=Counter)
    promised: Counter[str] = field(default_factory=Counter)


def share(percent: int, of: int) -> int:
    """Return that part of an amount, at least 1."""
    return max(1, of * percent // 100)


class VaultMachine(RuleBasedStateMachine):
    """Owners, sponsors, two markets, an admin and a thief."""

    evm: ClassVar[Any]
    token: ClassVar[Any]
    vault: ClassVar[Any]
    refused: ClassVar[type[Exception]]
    successes: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.snapshot = self.evm.snapshot()
        self.books = {account: Book() for account in IDS}
        self.pots = {(account, key.address): Pot() for account in IDS for key in SPENDERS}
        self.domain = Eip712Domain.stake_vault(CHAIN_ID, Address(self.vault.address))

    def teardown(self) -> None:
        self.evm.revert(self.snapshot)

    def done(self, action: str) -> None:
        self.successes[action] += 1

    def must_refuse(self, name: str, function: str, *args: Any, sender: str) -> None:
        with pytest.raises(self.refused) as caught:
            self.vault(function, *args, sender=sender)
        assert caught.value.args[0] == name, caught.value

    def opened(self) -> list[str]:
        return [account for account, book in self.books.items() if book.owner != ZERO]

    # -- deposits ----------------------------------------------------------------------------------------------------

    @initialize(amount=amounts)
    def begin_with_a_submitter_and_a_node(self, amount: int) -> None:
        """Hypothesis leaves out whole rules in some examples; money in every place lets the others still work."""
        self.add_funds(IDS[0], WALLETS[1], None, amount + 100)
        self.stake(IDS[1], WALLETS[1], None, OPERATORS[0], amount + 100)
        self.move_to_escrow(IDS[0], SPENDERS[0].address, amount + 50)
        self.start_release(IDS[0], SPENDERS[0].address, amount // 2 + 1)
        self.start_unstake(IDS[1], amount // 2 + 1)

    @rule(account=accounts, sender=wallets, named=named, operator=st.sampled_from(OPERATORS), amount=amounts)
    def stake(self, account: str, sender: str, named: str | None, operator: str, amount: int) -> None:
        book = self.books[account]
        wallet = named or self.honest(account, sender)
        if not self.may_deposit("stake", (amount, account, wallet, ZERO), account, sender, wallet):
            return
        if operator != book.operator and (book.operator != ZERO or sender != wallet):
            self.must_refuse("OperatorMismatch", "stake", amount, account, wallet, operator, sender=sender)
            operator = book.operator
        self.vault("stake", amount, account, wallet, operator, sender=sender)
        book.owner, book.payout, book.operator = wallet, book.payout if book.owner != ZERO else wallet, operator
        book.bond += amount
        self.done("stake")

    @rule(account=accounts, sender=wallets, named=named, amount=amounts)
    def add_funds(self, account: str, sender: str, named: str | None, amount: int) -> None:
        book = self.books[account]
        wallet = named or self.honest(account, sender)
        if not self.may_deposit("addFunds", (amount, account, wallet), account, sender, wallet):
            return
        self.vault("addFunds", amount, account, wallet, sender=sender)
        book.owner, book.payout = wallet, book.payout if book.owner != ZERO else wallet
        book.credit += amount
        self.done("addFunds")

    def honest(self, account: str, sender: str) -> str:
        """Return whom an honest deposit names."""
        owner = self.books[account].owner
        if owner != ZERO:
            return owner
        return account if account.startswith("0x") else sender

    def may_deposit(self, function: str, args: tuple[Any, ...], account: str, sender: str, wallet: str) -> bool:
        """A deposit is for the account's owner, or opens an account that may be that wallet's."""
        owner = self.books[account].owner
        if owner == ZERO and account.startswith("0x"):
            owner = account
        if owner in (ZERO, wallet):
            return True
        self.must_refuse("WalletMismatch", function, *args, sender=sender)
        self.done("misdirected deposit refused")
        return False

    @rule(lift=st.booleans(), amount=amounts)
    def administer(self, lift: bool, amount: int) -> None:
        """Pause deposits, which ends by itself, and recover what somebody sent by mistake."""
        self.vault("pauseDeposits", True, sender=ADMIN)
        self.must_refuse("Paused", "addFunds", 1, IDS[0], self.books[IDS[0]].owner, sender=THIEF)
        if lift:
            self.vault("pauseDeposits", False, sender=ADMIN)
        else:
            self.evm.warp(self.vault("depositsPausedUntil"))
        self.done("pause")

        self.token("transfer", self.vault.address, amount, sender=THIEF)
        self.must_refuse("Insufficient", "recoverTokens", self.token.address, amount + 1, sender=ADMIN)
        self.vault("recoverTokens", self.token.address, amount, sender=ADMIN)
        self.done("recoverTokens")

    # -- bond and credit ---------------------------------------------------------------------------------------------

    @precondition(lambda self: any(book.bond for book in self.books.values()))
    @rule(data=st.data(), percent=percents)
    def request_unstake(self, data: st.DataObject, percent: int) -> None:
        account = data.draw(st.sampled_from([a for a, b in self.books.items() if b.bond]))
        book = self.books[account]
        amount = share(percent, book.bond)
        self.must_refuse("Insufficient", "requestUnstake", account, book.bond + 1, sender=book.owner)
        self.start_unstake(account, amount)
        self.done("requestUnstake")

    def start_unstake(self, account: str, amount: int) -> None:
        book = self.books[account]
        self.vault("requestUnstake", account, amount, sender=book.owner)
        book.bond -= amount
        book.unbonding += amount
        book.ready_at = self.evm.now + UNBONDING

    @precondition(lambda self: any(book.unbonding for book in self.books.values()))
    @rule(data=st.data())
    def cancel_unstake(self, data: st.DataObject) -> None:
        account = data.draw(st.sampled_from([a for a, b in self.books.items() if b.unbonding]))
        book = self.books[account]
        self.vault("cancelUnstake", account, sender=book.owner)
        book.bond, book.unbonding, book.ready_at = book.bond + book.unbonding, 0, 0
        self.done("cancelUnstake")

    @precondition(lambda self: any(book.credit for book in self.books.values()))
    @rule(data=st.data(), percent=percents)
    def withdraw_credit(self, data: st.DataObject, percent: int) -> None:
        account = data.draw(st.sampled_from([a for a, b in self.books.items() if b.credit]))
        book = self.books[account]
        amount = share(percent, book.credit)
        self.withdraw(account, amount)
        book.credit -= amount
        self.done("withdrawFunds of credit")

    @precondition(lambda self: any(book.unbonding for book in self.books.values()))
    @rule(data=st.data(), percent=percents, wait=often)
    def withdraw_bond(self, data: st.DataObject, percent: int, wait: bool) -> None:
        account = data.draw(st.sampled_from([a for a, b in self.books.items() if b.unbonding]))
        book = self.books[account]
        amount = book.credit + share(percent, book.unbonding)
        if self.evm.now < book.ready_at:
            self.must_refuse("Locked", "withdrawFunds", account, amount, sender=book.owner)
            self.done("early withdrawal refused")
            if not wait:
                return
            self.evm.warp(book.ready_at)
        self.withdraw(account, amount)
        book.credit, book.unbonding = 0, book.unbonding - (amount - book.credit)
        self.done("withdrawFunds of bond")

    def withdraw(self, account: str, amount: int) -> None:
        book = self.books[account]
        everything = book.credit + book.unbonding
        self.must_refuse("Insufficient", "withdrawFunds", account, everything + 1, sender=book.owner)
        before = self.token("balanceOf", book.payout)
        self.vault("withdrawFunds", account, amount, sender=book.owner)
        assert self.token("balanceOf", book.payout) == before + amount

    # -- escrow and vouchers -----------------------------------------------------------------------------------------

    @precondition(lambda self: any(book.credit for book in self.books.values()))
    @rule(data=st.data(), spender=spenders, percent=percents)
    def allow(self, data: st.DataObject, spender: EvmKey, percent: int) -> None:
        account = data.draw(st.sampled_from([a for a, b in self.books.items() if b.credit]))
        book = self.books[account]
        amount = share(percent, book.credit)
        self.must_refuse("Insufficient", "allow", account, spender.address, book.credit + 1, sender=book.owner)
        self.move_to_escrow(account, spender.address, amount)
        self.done("allow")

    def move_to_escrow(self, account: str, spender: str, amount: int) -> None:
        self.vault("allow", account, spender, amount, sender=self.books[account].owner)
        self.books[account].credit -= amount
        self.pots[account, spender].amount += amount

    @precondition(lambda self: any(pot.amount > pot.releasing for pot in self.pots.values()))
    @rule(data=st.data(), percent=percents)
    def request_release(self, data: st.DataObject, percent: int) -> None:
        account, spender = data.draw(st.sampled_from([k for k, p in self.pots.items() if p.amount > p.releasing]))
        pot, owner = self.pots[account, spender], self.books[account].owner
        amount = share(percent, pot.amount - pot.releasing)
        too_much = pot.amount - pot.releasing + 1
        self.must_refuse("Insufficient", "requestRelease", account, spender, too_much, sender=owner)
        self.start_release(account, spender, amount)
        self.done("requestRelease")

    def start_release(self, account: str, spender: str, amount: int) -> None:
        pot = self.pots[account, spender]
        self.vault("requestRelease", account, spender, amount, sender=self.books[account].owner)
        pot.releasing += amount
        pot.ready_at = self.evm.now + UNBONDING

    @precondition(lambda self: any(pot.releasing for pot in self.pots.values()))
    @rule(data=st.data())
    def cancel_release(self, data: st.DataObject) -> None:
        account, spender = data.draw(st.sampled_from([k for k, p in self.pots.items() if p.releasing]))
        self.vault("cancelRelease", account, spender, sender=self.books[account].owner)
        self.pots[account, spender].releasing = 0
        self.done("cancelRelease")

    @precondition(lambda self: any(pot.releasing for pot in self.pots.values()))
    @rule(data=st.data(), wait=often)
    def finish_release(self, data: st.DataObject, wait: bool) -> None:
        account, spender = data.draw(st.sampled_from([k for k, p in self.pots.items() if p.releasing]))
        pot, book = self.pots[account, spender], self.books[account]
        if self.evm.now < pot.ready_at:
            self.must_refuse("Locked", "finishRelease", account, spender, sender=book.owner)
            self.done("early release refused")
            if not wait:
                return
            self.evm.warp(pot.ready_at)
        self.vault("finishRelease", account, spender, sender=book.owner)
        book.credit += pot.releasing
        pot.amount, pot.releasing = pot.amount - pot.releasing, 0
        self.done("finishRelease")

    @precondition(lambda self: any(pot.amount for pot in self.pots.values()))
    @rule(data=st.data(), percent=st.integers(1, 130))
    def redeem(self, data: st.DataObject, percent: int) -> None:
        """A new promise of up to more than the escrow holds, then the same voucher again, then an older one."""
        creator, spender = data.draw(st.sampled_from([k for k, p in self.pots.items() if p.amount]))
        solver = data.draw(st.sampled_from(self.opened()))
        pot = self.pots[creator, spender]
        pot.promised[solver] = max(pot.promised[solver], pot.paid[solver] + share(percent, pot.amount))
        expected = min(pot.promised[solver] - pot.paid[solver], pot.amount)
        signer = next(key for key in SPENDERS if key.address == spender)

        assert self.redeemed(creator, spender, solver, pot.promised[solver], signer) == expected
        self.done("redeem")
        if expected < pot.promised[solver] - (pot.paid[solver] - expected):
            self.done("redeem in part")
        assert self.redeemed(creator, spender, solver, pot.promised[solver], signer) == 0
        assert self.redeemed(creator, spender, solver, pot.paid[solver] // 2, signer) == 0
        self.done("replay refused")

    @precondition(lambda self: any(pot.amount for pot in self.pots.values()))
    @rule(data=st.data(), signer=st.sampled_from([FORGER, *SPENDERS]), more=amounts)
    def redeem_what_must_not_pay(self, data: st.DataObject, signer: EvmKey, more: int) -> None:
        """A signature of another key, or a solver without an account."""
        creator, spender = data.draw(st.sampled_from([k for k, p in self.pots.items() if p.amount]))
        if signer.address == spender:
            assert self.redeemed(creator, spender, CLOSED, more, signer) == 0
            self.done("closed account not paid")
            return
        solver = data.draw(st.sampled_from(self.opened()))
        cumulative = self.pots[creator, spender].promised[solver] + more
        assert self.redeemed(creator, spender, solver, cumulative, signer) == 0
        self.done("forgery not paid")

    def redeemed(self, creator: str, spender: str, solver: str, cumulative: int, signer: EvmKey) -> int:
        """Redeem one voucher as a stranger; book and return what it paid."""
        keys = (account_key(creator), account_key(solver))
        message = VoucherMessage(*keys, Address(spender), cumulative, 3, bytes(32))
        before = self.vault("paid", keys[0], spender, keys[1])
        voucher = (*keys, spender, cumulative, 3, bytes(32))
        self.vault("redeem", [voucher], [sign_voucher(self.domain, message, signer)], sender=THIEF)
        amount: int = self.vault("paid", keys[0], spender, keys[1]) - before
        pot = self.pots[creator, spender]
        pot.amount -= amount
        pot.releasing = min(pot.releasing, pot.amount)
        pot.paid[solver] += amount
        if amount:
            self.books[solver].credit += amount
        return amount

    # -- keys and thieves --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.opened())
    @rule(data=st.data(), to=wallets)
    def update_wallet_address(self, data: st.DataObject, to: str) -> None:
        account = data.draw(st.sampled_from(self.opened()))
        self.vault("updateWalletAddress", account, to, sender=self.books[account].owner)
        self.books[account].payout = to
        self.done("updateWalletAddress")

    @precondition(lambda self: self.opened())
    @rule(data=st.data(), to=st.sampled_from([ZERO, *OPERATORS]))
    def set_operator(self, data: st.DataObject, to: str) -> None:
        account = data.draw(st.sampled_from(self.opened()))
        self.vault("setOperator", account, to, sender=self.books[account].owner)
        self.books[account].operator = to
        self.done("setOperator")

    @precondition(lambda self: self.opened())
    @rule(data=st.data(), to=wallets)
    def set_owner(self, data: st.DataObject, to: str) -> None:
        account = data.draw(st.sampled_from(self.opened()))
        book = self.books[account]
        self.vault("setOwner", account, to, sender=book.owner)
        book.owner, book.payout, book.operator = to, to, ZERO
        self.done("setOwner")

    @precondition(lambda self: self.opened())
    @rule(data=st.data(), spender=spenders)
    def steal(self, data: st.DataObject, spender: EvmKey) -> None:
        account = data.draw(st.sampled_from(self.opened()))
        book = self.books[account]
        others = {THIEF, ADMIN, spender.address, book.payout, book.operator, *WALLETS} - {ZERO, book.owner}
        sender = data.draw(st.sampled_from(sorted(others)))
        for function, *args in (
            ("withdrawFunds", 1),
            ("requestUnstake", 1),
            ("cancelUnstake",),
            ("allow", THIEF, 1),
            ("requestRelease", spender.address, 1),
            ("cancelRelease", spender.address),
            ("finishRelease", spender.address),
            ("updateWalletAddress", THIEF),
            ("setOperator", THIEF),
            ("setOwner", THIEF),
        ):
            self.must_refuse("NotOwner", function, account, *args, sender=sender)
        self.done("theft refused")

    # -- what must hold after every step -----------------------------------------------------------------------------

    @invariant()
    def every_ledger_is_what_the_books_say(self) -> None:
        for account, book in self.books.items():
            assert self.vault("accountOf", account_key(account)) == (
                book.owner,
                book.credit,
                book.payout,
                book.bond,
                book.operator,
                book.unbonding,
                book.ready_at,
            ), account
        for (account, spender), pot in self.pots.items():
            if self.books[account].owner != ZERO:
                assert self.vault("escrowOf", account, spender) == pot.amount
                assert self.vault("releaseOf", account, spender)[0] == pot.releasing <= pot.amount
                assert all(pot.paid[solver] <= pot.promised[solver] for solver in pot.paid)

    @invariant()
    def the_vault_holds_exactly_what_it_owes(self) -> None:
        owed = sum(book.bond + book.unbonding + book.credit for book in self.books.values())
        owed += sum(pot.amount for pot in self.pots.values())
        assert self.vault("accounted") == owed
        assert self.token("balanceOf", self.vault.address) == owed

    @invariant()
    def nothing_is_on_an_account_that_nobody_opened(self) -> None:
        assert self.vault("accountOf", account_key(CLOSED)) == (ZERO, 0, ZERO, 0, ZERO, 0, 0)


ACTIONS = frozenset(
    {
        "stake",
        "addFunds",
        "misdirected deposit refused",
        "pause",
        "recoverTokens",
        "requestUnstake",
        "cancelUnstake",
        "withdrawFunds of credit",
        "withdrawFunds of bond",
        "early withdrawal refused",
        "allow",
        "requestRelease",
        "cancelRelease",
        "finishRelease",
        "early release refused",
        "redeem",
        "redeem in part",
        "replay refused",
        "closed account not paid",
        "forgery not paid",
        "updateWalletAddress",
        "setOperator",
        "setOwner",
        "theft refused",
    }
)


def test_vault_keeps_its_books_whatever_is_done_to_it(evm: Any, reverted: type[Exception]) -> None:
    token = evm.deploy("DevToken")
    vault = evm.deploy("StakeVault", token.address, UNBONDING, ADMIN)
    for wallet in (*WALLETS, THIEF):
        for _ in range(10):
            token("faucet", wallet, 10**24)
        token("approve", vault.address, 2**256 - 1, sender=wallet)
    VaultMachine.evm, VaultMachine.token, VaultMachine.vault = evm, token, vault
    VaultMachine.refused = reverted
    VaultMachine.successes = Counter()

    run_state_machine_as_test(
        VaultMachine,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            derandomize=True,
            phases=[Phase.generate],  # shrinking takes minutes; add Phase.shrink to study a failure
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

    assert ACTIONS - VaultMachine.successes.keys() == set(), f"never happened; counts: {VaultMachine.successes}"
    assert VaultMachine.successes.keys() == ACTIONS
