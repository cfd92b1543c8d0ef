"""What the nodes that held a part earn of its reward: by the rounds that their updates are in, and what those gave.

A round may be several phases, each one exchange with the parts: of a forest, a secure sum, shards that agree. Pay counts
phases, so that what was answered is paid though its round, or the session, never came to its end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Held", "asked_of", "shares_of"]

_SCALE = 1_000_000  # whole numbers: an amount of tokens does not fit a float


@dataclass(frozen=True, slots=True)
class Held:
    """What came of a part under one lease."""

    taken: int  # phases that have an accepted update of it
    gave: float = 0.0  # its contributions, summed; 0 where nobody is scored


def asked_of(
    phases: Sequence[tuple[int, Collection[int]]],
    *,
    part: int,
    open_round: int,
    rounds: range,
    left: int,
) -> tuple[int, int]:
    """Return in how many closed phases a part was asked, and in how many it is in the whole session.

    A session that ends early counts as if its other rounds had as many phases, and asked as many parts, as those before,
    and as if its open round had come to its end.

    Args:
        phases: Round and cohort of each that has closed, in order; round 0 is what shards agree on.
        part: Its number.
        open_round: Number of the one that is open; one more than the last when all are over.
        rounds: Numbers of all rounds of training that the session was to have.
        left: How many phases the open round has after those that closed; after round 0, the round after it.
    """
    asked = [number for number, cohort in phases if part in cohort]
    done = max(0, open_round - rounds.start)
    opened = [cohort for number, cohort in phases if number == open_round > 0 and cohort]
    is_in = open_round > 0 and open_round in asked
    closed = [cohort for number, cohort in phases if 0 < number < open_round]
    if there := {one for cohort in closed for one in cohort}:  # a session may go on without some of its parts
        answers, of = sum(map(len, closed)), done * len(there)
    elif opened:
        answers, of = len(opened) + left, 1
    else:
        answers, of = max(1, left), 1  # by Poisson sampling nobody may have been drawn yet
    remaining = max(0, len(rounds) - done - is_in)
    return len(asked), len(asked) + (left if is_in else 0) - (-answers * remaining // of)


def shares_of(
    reward: int,
    *,
    base_share: float,
    asked: int,
    expected: int,
    holders: Mapping[int, Held],
    contributions: Mapping[int, float],
    part: int,
) -> dict[int, int]:
    """Return what each lease of a part earns, base units, by fence; together never more than the reward.

    The base is paid by the rounds that the updates are in, of those that the part is asked for in the whole session.
    The rest follows what the part gave to the model: all for the part that gave most, nothing for one without which
    the model would be no worse; its holders share it by what each gave.

    Args:
        reward: Of the part's task.
        base_share: In [0, 1].
        asked: Phases so far whose cohort the part was in; no lease has more of them, nor all together.
        expected: The same for the whole session: more than ``asked`` when that has not come to its end.
        holders: By fence.
        contributions: By part, summed over rounds; empty when nobody was scored, and then all of it is base.
        part: Its number.
    """
    if asked == 0:
        return dict.fromkeys(holders, 0)
    best = max(contributions.values(), default=0.0)
    is_scored = best > 0 and base_share < 1
    base = round(base_share * _SCALE) if is_scored else _SCALE
    gave = round(max(0.0, contributions.get(part, 0.0)) / best * _SCALE) if is_scored else 0
    most = max((held.gave for held in holders.values()), default=0.0)
    whole = {fence: round(max(0.0, held.gave) / most * _SCALE) if most > 0 else 0 for fence, held in holders.items()}
    earned = {}
    for fence, held in holders.items():
        rest = reward * (_SCALE - base) * gave * whole[fence] * asked
        rest //= _SCALE * _SCALE * max(sum(whole.values()), 1) * expected
        earned[fence] = reward * base * held.taken // (_SCALE * expected) + rest
    return earned
