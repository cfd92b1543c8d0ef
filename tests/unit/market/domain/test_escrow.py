"""Promised money cannot be spent elsewhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_market.domain.escrow import EscrowView, check_escrow
from parity_protocol.errors import EscrowTooLow

AMOUNT = st.integers(0, 2**96 - 1)
VIEWS = st.builds(EscrowView, AMOUNT, AMOUNT, AMOUNT, AMOUNT, AMOUNT)


@given(view=VIEWS)
def test_what_is_free_is_never_negative_nor_more_than_is_there(view: EscrowView) -> None:
    assert 0 <= view.available <= view.escrow


@given(view=VIEWS, reward=AMOUNT)
def test_a_reward_is_taken_exactly_when_everything_promised_is_covered(view: EscrowView, reward: int) -> None:
    promised = view.reserved + view.owed + view.releasing
    covered = reward == 0 or promised + reward <= view.escrow

    if covered:
        check_escrow(view, reward, creator="0x")
    else:
        with pytest.raises(EscrowTooLow):
            check_escrow(view, reward, creator="0x")


@given(view=VIEWS, paid=AMOUNT)
def test_a_redemption_moves_money_without_freeing_any(view: EscrowView, paid: int) -> None:
    """The vault lowers the escrow by what it pays; what is owed falls by the same amount."""
    paid = min(paid, view.escrow, view.owed)

    after = EscrowView(view.escrow - paid, view.releasing, view.redeemed + paid, view.reserved, view.earned)

    assert after.available == view.available


def test_the_refusal_names_what_is_bound_in_whole_tokens() -> None:
    token = 10**18
    view = EscrowView(10 * token, token, 2 * token, 3 * token, 4 * token)

    with pytest.raises(
        EscrowTooLow, match=r"reward is 5 tokens.*10 that 0xabc.*only 4 are free \(3 reserved, 2 owed, 1 "
    ):
        check_escrow(view, 5 * token, creator="0xabc")
