"""Who earns what of a part's reward: never more than all of it, whoever held it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parity_market.domain.round_pay import Held, asked_of, shares_of


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


# -- how much of a session is done ------------------------------------------------------------------------------------

ALL = (0, 1)


def asked(
    *phases: tuple[int, tuple[int, ...]], part: int = 0, at: int, total: int, left: int = 0, first: int = 1
) -> tuple[int, int]:
    return asked_of(phases, part=part, open_round=at, rounds=range(first, total + 1), left=left)


def test_a_session_that_came_to_its_end_has_nothing_left_to_ask() -> None:
    assert asked((1, ALL), (2, ALL), at=3, total=2) == (2, 2)
    assert asked((0, ALL), (0, ALL), (1, ALL), (1, ALL), at=2, total=1) == (4, 4)
    assert asked((1, ALL), (2, (1,)), at=3, total=2) == (1, 1)


def test_rounds_that_never_came_count_as_those_before() -> None:
    assert asked((1, ALL), (2, ALL), at=3, total=5) == (2, 5)
    assert asked((0, ALL), (1, ALL), (1, ALL), at=2, total=10) == (3, 1 + 20)
    assert asked((4, ALL), at=5, total=6, first=4) == (1, 3)  # it went on from a checkpoint after round 3


def test_a_forest_that_is_never_finished_counts_the_phases_that_were_left() -> None:
    assert asked((1, ALL), (1, ALL), at=1, total=1, left=6) == (2, 8)


def test_the_open_round_of_many_counts_as_one_of_them() -> None:
    assert asked((1, ALL), (1, ALL), (2, ALL), at=2, total=3, left=1) == (3, 6)
    assert asked((1, ALL), (1, ALL), at=1, total=3, left=2) == (2, 12)


def test_shards_that_agreed_on_something_are_paid_for_that_share_alone() -> None:
    assert asked((0, ALL), at=0, total=20, left=3) == (1, 61)
    assert asked((0, ALL), (0, ALL), at=1, total=20, left=2) == (2, 42)


def test_a_part_that_was_not_asked_yet_does_not_earn_all_for_what_was_agreed_on() -> None:
    assert asked((0, ALL), (1, (0,)), part=1, at=2, total=11) == (1, 1 + 10)
    assert asked((0, ALL), (1, (0,)), (2, (1,)), part=2, at=3, total=12) == (0, 5)


def test_a_part_that_is_left_out_for_good_makes_nothing_dearer_for_the_others() -> None:
    assert asked((0, (0, 1, 2)), (1, ALL), (2, ALL), at=3, total=10) == (3, 1 + 10)


def test_what_was_agreed_on_is_no_whole_session_though_nobody_was_drawn_for_its_rounds() -> None:
    assert asked((0, ALL), (1, ()), (2, ()), at=3, total=10) == (1, 1 + 8)


def test_nobody_was_asked_before_the_first_phase_has_closed() -> None:
    assert asked(at=1, total=3) == (0, 3)


@given(
    rounds=st.lists(st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=4), max_size=5),
    agreed=st.integers(0, 2),
    opened=st.lists(st.sets(st.integers(0, 3)), max_size=4),
    more=st.integers(0, 9),
    left=st.integers(0, 20),
    first=st.integers(1, 5),
    reward=st.integers(0, 10**27),
)
def test_what_is_paid_for_a_part_of_a_session_is_never_more_than_its_reward_and_all_of_it_only_at_the_end(
    rounds: list[list[set[int]]],
    agreed: int,
    opened: list[set[int]],
    more: int,
    left: int,
    first: int,
    reward: int,
) -> None:
    at = first + len(rounds)
    phases = [(0, set(range(4)))] * agreed
    phases += [(first + place, cohort) for place, cohorts in enumerate(rounds) for cohort in cohorts]
    if more:  # else it is over
        phases += [(at, cohort) for cohort in opened]
    number = range(first, at + more)
    left = left if more else 0

    for part in range(4):
        so_far, in_all = asked_of(phases, part=part, open_round=at, rounds=number, left=left)
        earned = shares_of(
            reward,
            base_share=1.0,
            asked=so_far,
            expected=in_all,
            holders={1: Held(so_far // 2), 2: Held(so_far - so_far // 2)},
            contributions={},
            part=part,
        )

        assert 0 <= so_far <= in_all
        assert sum(earned.values()) <= reward
        if not more and so_far:
            assert reward - sum(earned.values()) <= 1  # what does not divide stays the submitter's
