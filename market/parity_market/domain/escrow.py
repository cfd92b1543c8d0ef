"""How much of a creator's escrow is still free: promised money cannot be spent elsewhere (design §8)."""

from __future__ import annotations

from dataclasses import dataclass

from parity_protocol.errors import EscrowTooLow
from parity_protocol.quantities import TokenAmount, format_tokens

__all__ = ["EscrowView", "check_escrow"]


@dataclass(frozen=True, slots=True)
class EscrowView:
    """A creator's money at this market, base units; all of one moment."""

    escrow: int  # on chain for this market's spender, releases included
    releasing: int
    redeemed: int  # paid by the vault on this spender's vouchers, ever
    reserved: int  # rewards of tasks that are not final
    earned: int  # rewards of accepted tasks, ever

    @property
    def owed(self) -> int:
        """Earned and not yet redeemed."""
        return max(self.earned - self.redeemed, 0)

    @property
    def available(self) -> int:
        """What a new task may promise; never below zero."""
        return max(self.escrow - self.releasing - self.reserved - self.owed, 0)


def check_escrow(view: EscrowView, reward: TokenAmount, *, creator: str) -> None:
    """Refuse a reward that the free escrow does not cover.

    Raises:
        EscrowTooLow: With what is there, what is bound and what is missing.
    """
    if reward > view.available:
        raise EscrowTooLow(
            f"the reward is {format_tokens(reward)} tokens, but of the {format_tokens(view.escrow)} that {creator} has set "
            f"aside here only {format_tokens(view.available)} are free ({format_tokens(view.reserved)} reserved, "
            f"{format_tokens(view.owed)} owed, {format_tokens(view.releasing)} being released)"
        )
