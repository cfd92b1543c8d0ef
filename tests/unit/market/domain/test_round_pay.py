"""Who earns what of a part's reward: never more than all of it, whoever held it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parity_market.domain.round_pay import Held, shares_of


def pay(part: int, contributions: dict[int, float]) -> int:
    holders = {1: Held(5, contributions.get(part, 0.0))}
    return shares_of(
        1_000, base_share=0.4, asked=5, expected=5, holders=holders, contributions=contributions, part=part
    )[1]


def test_the_share_above_the_base_follows_the_contribution() -> None:
    scored = {0: 0.2, 1: 0.1, 2: -0.3}

    assert [pay(part, scored) for part in range(4)] == [1_000, 700, 400, 400]
    assert pay(0, {}) == 1_000
    assert pay(0, {0: -1.0, 1: -2.0}) == 1_000


def test_each_holder_is_paid_for_its_own_rounds_and_what_they_gave() -> None:
    holders = {1: Held(3, 0.25), 2: Held(0, 0.0), 4: Held(1, 0.125)}

    earned = shares_of(
        1_000, base_share=0.5, asked=5, expected=5, holders=holders, contributions={0: 0.375, 1: 0.375}, part=0
    )

    assert earned == {1: 300 + 333, 2: 0, 4: 100 + 166}


def test_of_a_session_that_ends_early_only_what_was_done_is_paid() -> None:
    earned = shares_of(
        1_000, base_share=1.0, asked=4, expected=20, holders={1: Held(3), 2: Held(1)}, contributions={}, part=0
    )

    assert earned == {1: 150, 2: 50}


def test_nobody_is_paid_for_a_part_that_was_never_asked() -> None:
    assert shares_of(1_000, base_share=1.0, asked=0, expected=0, holders={1: Held(0)}, contributions={}, part=0) == {
        1: 0
    }


GAVE = st.floats(-10, 10, allow_nan=False)


@given(
    reward=st.integers(0, 10**27),
    base_share=st.floats(0, 1),
    taken=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    gave=st.lists(GAVE, min_size=5, max_size=5),
    spare=st.integers(0, 5),
    more=st.integers(0, 1_000),
    others=st.lists(GAVE, max_size=3),
)
def test_all_holders_together_never_earn_more_than_the_reward_and_none_less_than_nothing(
    reward: int,
    base_share: float,
    taken: list[int],
    gave: list[float],
    spare: int,
    more: int,
    others: list[float],
) -> None:
    holders = {fence: Held(count, gave[fence]) for fence, count in enumerate(taken)}
    contributions = dict(enumerate([sum(held.gave for held in holders.values()), *others]))
    asked = sum(taken) + spare

    earned = shares_of(
        reward,
        base_share=base_share,
        asked=asked,
        expected=asked + more,
        holders=holders,
        contributions=contributions,
        part=0,
    )

    assert all(amount >= 0 for amount in earned.values())
    assert sum(earned.values()) <= reward
