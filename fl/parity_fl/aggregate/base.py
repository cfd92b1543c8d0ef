"""The port of aggregation: what a round hands in, what it gets back, and what a rule promises."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from parity_fl.models.base import Weights
from parity_fl.strategy import StrategyConfig

__all__ = ["Aggregated", "Arbiter", "Strategy", "Update", "Updates", "UpdatesOf", "make_strategy"]


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One part's contribution to a round.

    Attributes:
        part: Its number; updates come in ascending order of it.
        weight: Rows, already capped by what the market assigned to the part; above 0.
        delta: Trained parameters less the round's model, by name. float32; memory-mapped float16 is read as well, so
            that a spool need not widen what it received.
    """

    part: int
    weight: float
    delta: Weights


Updates = Callable[[], Iterator[Update]]
UpdatesOf = Callable[[Collection[int]], Iterator[Update]]
"""Gives a fresh iterator over the updates of some parts, in ascending order of them."""


class Arbiter(Protocol):
    """Says whose update it is, when several parts of a round sent the same one."""

    def __call__(self, base: Weights, updates: Updates, groups: Sequence[tuple[int, ...]]) -> dict[int, str]:
        """Return why parts are refused; who is not named was right. MUST be a function of its arguments and the round.

        Args:
            base: The model that the updates started from.
            updates: The round's.
            groups: Parts, ascending, that sent equal updates.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Aggregated:
    """The outcome of a round.

    Attributes:
        weights: The next model, float32.
        accepted: Parts that passed every check, ascending.
        rejected: Reason by part; the first word is a stable code (``not_finite: …``).
        metrics: What people are shown: norms, counts; finite.
        influence: Share of each accepted part in the model, where the rule has shares; Krum's is 1 for one part.
    """

    weights: Weights
    accepted: tuple[int, ...]
    rejected: dict[int, str]
    metrics: dict[str, float]
    influence: dict[int, float] = field(default_factory=dict)


class Strategy(Protocol):
    """Combines the updates of a round into the next model.

    ``aggregate`` MUST be a function of its arguments and of ``state()`` alone, MUST take memory that does not grow with
    the number of updates, and MUST leave its state as it was when it raises.
    """

    name: str

    def aggregate(self, base: Weights, updates: Updates, n: int) -> Aggregated:
        """Return the next model.

        Args:
            base: The model that the updates started from.
            updates: Gives a fresh iterator over the same ``n`` updates each time; called several times.
            n: How many there are.

        Raises:
            TooFewUpdates: Too few passed the checks to keep the rule's promise.
            Unprocessable: The next model would not be finite.
        """
        ...

    def without_each(self, base: Weights, updates: UpdatesOf, parts: Sequence[int]) -> Iterator[tuple[int, Weights]]:
        """Yield what the next model would be without each part in turn; one that the rule cannot miss is left out.

        The state stays as it is: call this before ``aggregate``, or on a rule restored to the state before it. Rules
        that sum read every update twice, the others every update once for each part.

        Args:
            base: The model that the updates started from.
            updates: The round's.
            parts: Those that ``aggregate`` accepts, ascending.
        """
        ...

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return what the next round depends on beside the model; read-only, and not changed by a later round."""
        ...

    def restore(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Go on from a ``state()``, whose arrays are read from here on and MUST NOT be written to.

        Raises:
            BadDocument: It is not one of this rule.
        """
        ...


def make_strategy(config: StrategyConfig, arbiter: Arbiter | None = None) -> Strategy:
    """Return the rule, at the beginning of a session; ``restore`` continues one.

    Args:
        arbiter: Of the next round; None leaves the lowest part of those that sent the same update and refuses the others.
    """
    from parity_fl.aggregate.pipeline import Pipeline  # it imports the types above

    return Pipeline(config, arbiter)
