"""What can be asked of the vault and the token, as values: printable, comparable, free of any chain library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from parity_protocol.errors import BadField
from parity_protocol.ids import Address
from parity_protocol.quantities import MAX_TOKEN_AMOUNT, TokenAmount
from parity_protocol.receipt import Voucher

__all__ = [
    "AddFunds",
    "Allow",
    "Approve",
    "Call",
    "CancelRelease",
    "CancelUnstake",
    "Faucet",
    "FinishRelease",
    "Redeem",
    "RequestRelease",
    "RequestUnstake",
    "SetOperator",
    "SetPayout",
    "Stake",
    "Withdraw",
    "gas_ceiling",
]

_ZERO = Address("0x" + "0" * 40)
_MAX_REDEEM = 200  # vouchers of one transaction: about 20 million gas


@dataclass(frozen=True, slots=True)
class Approve:
    """Let the vault pull up to ``amount`` tokens from the sender."""

    amount: TokenAmount


@dataclass(frozen=True, slots=True)
class Stake:
    """Add to the bond of ``account``, which belongs to ``wallet``; None leaves the operator as it is."""

    amount: TokenAmount
    account: str
    wallet: Address
    operator: Address | None = None


@dataclass(frozen=True, slots=True)
class AddFunds:
    """Add to the credit of ``account``, which belongs to ``wallet``."""

    amount: TokenAmount
    account: str
    wallet: Address


@dataclass(frozen=True, slots=True)
class Allow:
    """Move credit into the escrow that ``spender`` draws on."""

    account: str
    spender: Address
    amount: TokenAmount


@dataclass(frozen=True, slots=True)
class RequestUnstake:
    """Start taking ``amount`` out of the bond; restarts the clock for all that is unbonding."""

    account: str
    amount: TokenAmount


@dataclass(frozen=True, slots=True)
class CancelUnstake:
    """Put everything that is unbonding back into the bond."""

    account: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Pay out: credit first, then what has finished unbonding."""

    account: str
    amount: TokenAmount


@dataclass(frozen=True, slots=True)
class SetOperator:
    """Choose the node's hot key; None takes it away."""

    account: str
    operator: Address | None


@dataclass(frozen=True, slots=True)
class SetPayout:
    """Choose where withdrawals go."""

    account: str
    payout: Address


@dataclass(frozen=True, slots=True)
class RequestRelease:
    """Start taking ``amount`` back from a spender's escrow."""

    account: str
    spender: Address
    amount: TokenAmount


@dataclass(frozen=True, slots=True)
class CancelRelease:
    """Leave a spender what was being taken back from it."""

    account: str
    spender: Address


@dataclass(frozen=True, slots=True)
class FinishRelease:
    """Move what is left of a matured release back to credit."""

    account: str
    spender: Address


@dataclass(frozen=True, slots=True)
class Redeem:
    """Pay solvers what vouchers promise. One that cannot be paid is skipped, never the others."""

    vouchers: tuple[Voucher, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.vouchers) <= _MAX_REDEEM:
            raise BadField(f"expected 1 to {_MAX_REDEEM} vouchers, got {len(self.vouchers)}", field="vouchers")


@dataclass(frozen=True, slots=True)
class Faucet:
    """Mint play money; only DevToken has this."""

    to: Address
    amount: TokenAmount


Call: TypeAlias = (
    Approve
    | Stake
    | AddFunds
    | Allow
    | RequestUnstake
    | CancelUnstake
    | Withdraw
    | SetOperator
    | SetPayout
    | RequestRelease
    | CancelRelease
    | FinishRelease
    | Redeem
    | Faucet
)


def gas_ceiling(call: Call) -> int:
    """Return a gas limit that is enough for ``call`` in any state that lets it succeed.

    For sending calls that build on each other (approve, then stake) without waiting for a block between them: the
    second cannot be estimated before the first is mined.
    """
    if isinstance(call, Redeem):
        return 60_000 + 130_000 * len(call.vouchers)
    return _CEILINGS[type(call)]


# Deposits that open an account write five new slots; the rest write one or two. Twice what was measured, at least.
_CEILINGS: dict[type[Call], int] = {
    Approve: 80_000,
    Stake: 400_000,
    AddFunds: 350_000,
    Allow: 150_000,
    RequestUnstake: 150_000,
    CancelUnstake: 120_000,
    Withdraw: 200_000,
    SetOperator: 120_000,
    SetPayout: 120_000,
    RequestRelease: 150_000,
    CancelRelease: 120_000,
    FinishRelease: 150_000,
    Faucet: 150_000,
}


def arguments(call: Call, vault: Address) -> tuple[str, Sequence[object], bool]:
    """Return the contract function's name, its arguments in ABI order, and whether it is the token's.

    Raises:
        BadField: An amount is negative or over 2**96 - 1.
    """
    amount = getattr(call, "amount", 0)
    most = 2**256 - 1 if isinstance(call, Approve) else MAX_TOKEN_AMOUNT  # "unlimited" is a custom among approvals
    if not 0 <= amount <= most:
        raise BadField(f"an amount is 0 to {most} base units, got {amount}", field="amount")
    match call:
        case Approve():
            return "approve", (vault, call.amount), True
        case Faucet():
            return "faucet", (call.to, call.amount), True
        case Stake():
            return "stake", (call.amount, call.account, call.wallet, call.operator or _ZERO), False
        case AddFunds():
            return "addFunds", (call.amount, call.account, call.wallet), False
        case Allow():
            return "allow", (call.account, call.spender, call.amount), False
        case RequestUnstake():
            return "requestUnstake", (call.account, call.amount), False
        case CancelUnstake():
            return "cancelUnstake", (call.account,), False
        case Withdraw():
            return "withdrawFunds", (call.account, call.amount), False
        case SetOperator():
            return "setOperator", (call.account, call.operator or _ZERO), False
        case SetPayout():
            return "updateWalletAddress", (call.account, call.payout), False
        case RequestRelease():
            return "requestRelease", (call.account, call.spender, call.amount), False
        case CancelRelease():
            return "cancelRelease", (call.account, call.spender), False
        case FinishRelease():
            return "finishRelease", (call.account, call.spender), False
        case Redeem():
            return "redeem", (_vouchers(call.vouchers), [_signature(voucher) for voucher in call.vouchers]), False


def _vouchers(vouchers: tuple[Voucher, ...]) -> list[tuple[object, ...]]:
    messages = [voucher.message() for voucher in vouchers]
    return [
        (item.creator, item.solver, item.spender, item.cumulative, item.count, item.receipts_head) for item in messages
    ]


def _signature(voucher: Voucher) -> bytes:
    return bytes.fromhex(voucher.signature[2:])
