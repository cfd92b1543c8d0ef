"""What the nodes that held a part earn of its reward: by the rounds that their updates are in, and what those gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Held", "shares_of"]

_SCALE = 1_000_000  # whole numbers: an amount of tokens does not fit a float


@dataclass(frozen=True, slots=True)
class Held:
    """What came of a part under one lease."""

    taken: int  # rounds and phases that have an accepted update of it
    gave: float = 0.0  # its contributions, summed; 0 where nobody is scored


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
        asked: Rounds so far whose cohort the part was in; no lease has more of them, nor all together.
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
