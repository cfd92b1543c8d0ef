"""StakeVault and DevToken as a Python object: the rules of contracts/src/StakeVault.sol, call by call."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

from parity_contracts.chain import calls
from parity_contracts.chain.calls import Call
from parity_contracts.chain.refusals import refusal
from parity_contracts.deployment import Deployment
from parity_contracts.reverts import Revert, in_words
from parity_protocol.errors import BadSignature
from parity_protocol.ids import Address
from parity_protocol.receipt import Voucher
from parity_protocol.signing.eip712 import Eip712Domain, account_key, recover_voucher

__all__ = ["Account", "Escrow", "Event", "MemoryVault"]

_ZERO = Address("0x" + "0" * 40)
_FAUCET_LIMIT = 1_000_000 * 10**18
_ADDRESS_LIKE = re.compile(r"0[xX][0-9a-fA-F]{40}")

_Values: TypeAlias = dict[str, int | str | bool]
Event: TypeAlias = tuple[str, _Values]


@dataclass(slots=True)
class Account:
    """As the contract's struct; times are Unix seconds."""

    owner: Address
    payout: Address
    operator: Address = _ZERO
    bond: int = 0
    unbonding: int = 0
    ready_at: int = 0
    credit: int = 0


@dataclass(slots=True)
class Escrow:
    """As the contract's struct; times are Unix seconds."""

    amount: int = 0
    releasing: int = 0
    ready_at: int = 0


@dataclass(slots=True)
class MemoryVault:
    """The state after a block."""

    deployment: Deployment
    accounts: dict[bytes, Account] = field(default_factory=dict)
    escrows: dict[tuple[bytes, Address], Escrow] = field(default_factory=dict)
    paid: dict[tuple[bytes, Address, bytes], int] = field(default_factory=dict)
    tokens: dict[Address, int] = field(default_factory=dict)
    allowances: dict[Address, int] = field(default_factory=dict)

    def snapshot(self) -> MemoryVault:
        """Return a copy that no later call changes."""
        return copy.deepcopy(self)

    def apply(self, call: Call, sender: Address, now: int) -> list[Event]:
        """Do what the contract does, in place: after an error this object is half changed, so work on a ``snapshot``.

        Args:
            now: The block's Unix seconds.

        Raises:
            ParityError: As the chain adapter reports what the contract refuses.
        """
        calls.arguments(call, self.deployment.vault)  # the same bounds as on a wire
        match call:
            case calls.Approve():
                self.allowances[sender] = call.amount
                return []
            case calls.Faucet():
                if call.amount > _FAUCET_LIMIT:
                    _refuse("AboveFaucetLimit", limit=_FAUCET_LIMIT)
                self.tokens[call.to] = self.tokens.get(call.to, 0) + call.amount
                return []
            case calls.Stake() | calls.AddFunds():
                return self._deposit(call, sender)
            case calls.Redeem():
                return [self._redeem(index, voucher) for index, voucher in enumerate(call.vouchers)]
            case calls.SetOperator() | calls.SetPayout():
                return self._set_key(call, sender)
            case calls.RequestUnstake() | calls.CancelUnstake() | calls.Withdraw():
                return self._move_bond(call, sender, now)
            case calls.Allow() | calls.RequestRelease() | calls.CancelRelease() | calls.FinishRelease():
                return self._move_escrow(call, sender, now)

    def _deposit(self, call: calls.Stake | calls.AddFunds, sender: Address) -> list[Event]:
        key = account_key(call.account)
        account = self.accounts.get(key)
        events: list[Event] = []
        if account is None:
            if call.wallet in (_ZERO, self.deployment.vault):
                _refuse("BadAddress", given=call.wallet)
            _check_new_id(call.account, call.wallet)
            account = self.accounts[key] = Account(owner=call.wallet, payout=call.wallet)
            events.append(("AccountOpened", {"key": _hex(key), "id": call.account, "owner": call.wallet}))
            events.append(_keys_changed(key, account))
        elif account.owner != call.wallet:
            _refuse("WalletMismatch", expected=account.owner)
        if isinstance(call, calls.Stake):
            if call.operator not in (None, _ZERO, account.operator):
                if account.operator != _ZERO or sender != call.wallet:
                    _refuse("OperatorMismatch", expected=account.operator)
                account.operator = call.operator or _ZERO
                events.append(_keys_changed(key, account))
            account.bond += call.amount
            staked: _Values = {"key": _hex(key), "from": sender, "amount": call.amount, "bond": account.bond}
            events.append(("Staked", staked))
        else:
            account.credit += call.amount
            events.append(("FundsAdded", {"deviceId": _hex(key), "from": sender, "amount": call.amount}))
        self._pull(sender, call.amount)
        return events

    def _pull(self, sender: Address, amount: int) -> None:
        if amount == 0:
            _refuse("ZeroAmount")
        vault = self.deployment.vault
        allowance, balance = self.allowances.get(sender, 0), self.tokens.get(sender, 0)
        if allowance < amount:
            _refuse("ERC20InsufficientAllowance", spender=vault, allowance=allowance, needed=amount)
        if balance < amount:
            _refuse("ERC20InsufficientBalance", sender=sender, balance=balance, needed=amount)
        if allowance != 2**256 - 1:
            self.allowances[sender] = allowance - amount
        self.tokens[sender] = balance - amount
        self.tokens[vault] = self.tokens.get(vault, 0) + amount

    def _set_key(self, call: calls.SetOperator | calls.SetPayout, sender: Address) -> list[Event]:
        key, account = self._owned(call.account, sender)
        if isinstance(call, calls.SetOperator):
            account.operator = call.operator or _ZERO
        elif call.payout in (_ZERO, self.deployment.vault):
            _refuse("BadAddress", given=call.payout)
        else:
            account.payout = call.payout
        return [_keys_changed(key, account)]

    def _move_bond(
        self, call: calls.RequestUnstake | calls.CancelUnstake | calls.Withdraw, sender: Address, now: int
    ) -> list[Event]:
        key, account = self._owned(call.account, sender)
        if isinstance(call, calls.RequestUnstake):
            _within(call.amount, account.bond)
            account.bond -= call.amount
            account.unbonding += call.amount
            account.ready_at = now + self.deployment.unbonding_s
            what: _Values = {"key": _hex(key), "unbonding": account.unbonding, "readyAt": account.ready_at}
            return [("UnstakeRequested", what)]
        if isinstance(call, calls.CancelUnstake):
            amount = account.unbonding
            if amount == 0:
                _refuse("ZeroAmount")
            account.bond += amount
            account.unbonding = account.ready_at = 0
            return [("UnstakeCancelled", {"key": _hex(key), "amount": amount})]
        if call.amount <= account.credit:
            _within(call.amount, account.credit)
            account.credit -= call.amount
        else:
            _within(call.amount, account.credit + account.unbonding)
            if now < account.ready_at:
                _refuse("Locked", until=account.ready_at)
            account.unbonding -= call.amount - account.credit
            account.credit = 0
        vault = self.deployment.vault
        self.tokens[vault] = self.tokens.get(vault, 0) - call.amount
        self.tokens[account.payout] = self.tokens.get(account.payout, 0) + call.amount
        return [("FundsWithdrawn", {"deviceId": _hex(key), "to": account.payout, "amount": call.amount})]

    def _move_escrow(
        self,
        call: calls.Allow | calls.RequestRelease | calls.CancelRelease | calls.FinishRelease,
        sender: Address,
        now: int,
    ) -> list[Event]:
        key, account = self._owned(call.account, sender)
        who: _Values = {"key": _hex(key), "spender": call.spender}
        if isinstance(call, calls.Allow) and call.spender == _ZERO:
            _refuse("BadAddress", given=call.spender)
        escrow = self.escrows.setdefault((key, call.spender), Escrow())
        if isinstance(call, calls.Allow):
            _within(call.amount, account.credit)
            account.credit -= call.amount
            escrow.amount += call.amount
            return [("Allowed", {**who, "amount": call.amount, "escrow": escrow.amount})]
        if isinstance(call, calls.RequestRelease):
            _within(call.amount, escrow.amount - escrow.releasing)
            escrow.releasing += call.amount
            escrow.ready_at = now + self.deployment.unbonding_s
            return [("ReleaseRequested", {**who, "releasing": escrow.releasing, "readyAt": escrow.ready_at})]
        amount = escrow.releasing
        if amount == 0:
            _refuse("ZeroAmount")
        if isinstance(call, calls.FinishRelease):
            if now < escrow.ready_at:
                _refuse("Locked", until=escrow.ready_at)
            escrow.amount -= amount
            account.credit += amount
        escrow.releasing = escrow.ready_at = 0
        return [
            ("Released" if isinstance(call, calls.FinishRelease) else "ReleaseCancelled", {**who, "amount": amount})
        ]

    def _redeem(self, index: int, voucher: Voucher) -> Event:
        message = voucher.message()
        place = (message.creator, message.spender, message.solver)
        before = self.paid.get(place, 0)
        escrow = self.escrows.get((message.creator, message.spender), Escrow())
        solver = self.accounts.get(message.solver)
        reason = 0
        if message.cumulative <= before:
            reason = 1
        elif escrow.amount == 0:
            reason = 2
        elif solver is None:
            reason = 3
        elif not self._is_signed(voucher):
            reason = 4
        if reason or solver is None:
            return "RedeemSkipped", {"index": index, "reason": reason}
        amount = min(message.cumulative - before, escrow.amount)
        escrow.amount -= amount
        escrow.releasing = min(escrow.releasing, escrow.amount)
        self.paid[place] = before + amount
        solver.credit += amount
        return "Redeemed", {
            "creator": _hex(message.creator),
            "spender": message.spender,
            "solver": _hex(message.solver),
            "amount": amount,
            "paidTotal": before + amount,
        }

    def _is_signed(self, voucher: Voucher) -> bool:
        domain = Eip712Domain.stake_vault(self.deployment.chain_id, self.deployment.vault)
        try:
            return recover_voucher(domain, voucher.message(), bytes.fromhex(voucher.signature[2:])) == voucher.spender
        except BadSignature:
            return False

    def _owned(self, account_id: str, sender: Address) -> tuple[bytes, Account]:
        key = account_key(account_id)
        account = self.accounts.get(key)
        if account is None:
            _refuse("UnknownAccount", key=_hex(key))
        if account.owner != sender:
            _refuse("NotOwner", owner=account.owner)
        return key, account


def _check_new_id(account_id: str, wallet: Address) -> None:
    length = len(account_id.encode())
    if not 1 <= length <= 64:
        _refuse("BadIdLength", given=length, maximum=64)
    if not _ADDRESS_LIKE.fullmatch(account_id):
        return
    if account_id != account_id.lower():
        _refuse("IdNotLowerCase")
    if account_id != wallet:
        _refuse("WalletMismatch", expected=account_id)


def _within(amount: int, available: int) -> None:
    if amount == 0:
        _refuse("ZeroAmount")
    if amount > available:
        _refuse("Insufficient", available=available)


def _refuse(name: str, **arguments: int | str) -> NoReturn:
    raise refusal(Revert(name, arguments, in_words(name, arguments)))


def _keys_changed(key: bytes, account: Account) -> Event:
    keys = {"owner": account.owner, "payout": account.payout, "operator": account.operator}
    return "KeysChanged", {"key": _hex(key), **keys}


def _hex(value: bytes) -> str:
    return "0x" + value.hex()
