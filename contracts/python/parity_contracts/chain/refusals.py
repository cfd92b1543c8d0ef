"""Which of our errors a contract's refusal is."""

from __future__ import annotations

from parity_contracts.reverts import Revert
from parity_protocol.errors import Conflict, Forbidden, NotFound, ParityError, Unprocessable

__all__ = ["refusal"]

_BY_NAME: dict[str, type[ParityError]] = {
    "NotOwner": Forbidden,
    "NotAdmin": Forbidden,
    "WalletMismatch": Forbidden,
    "OperatorMismatch": Forbidden,
    "UnknownAccount": NotFound,
    "Locked": Conflict,
}
_HINTS = {
    "ERC20InsufficientAllowance": "Approve the vault for the amount first.",
    "ERC20InsufficientBalance": "Get tokens first; on a dev chain `parity wallet faucet` mints some.",
    "Locked": "The unbonding time is not over yet.",
    "Paused": "Deposits are paused by the vault's admin; withdrawals and payouts go on.",
}


def refusal(revert: Revert) -> ParityError:
    """Return the error for a revert; its message has the contract's error name in brackets, and its numbers."""
    named = f" [{revert.name}]" if revert.name not in ("", "Error", "Panic") else ""
    kind = _BY_NAME.get(revert.name, Unprocessable)
    return kind(f"the contract refused: {revert.message}{named}", hint=_HINTS.get(revert.name, ""))
