"""Server optimizers: what becomes of the combined update (Reddi et al., 2021; Hsu et al., 2019 for the momentum).

The combined update is the negative of a gradient, so steps add it. Moments are float64 and belong to a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from parity_fl.aggregate.layout import Block, Layout
from parity_fl.strategy import StrategyConfig
from parity_protocol.errors import BadDocument

__all__ = ["ServerOptimizer"]

Vector = NDArray[np.float64]

_BETA_1: Final = 0.9
_BETA_2: Final = 0.99
_TAU: Final = 1e-3
_MOMENTUM: Final = 0.9
_MOMENTS: Final[dict[str, tuple[Literal["first", "second"], ...]]] = {
    "fedadam": ("first", "second"),
    "fedyogi": ("first", "second"),
    "fedavgm": ("first",),
}


class ServerOptimizer:
    """Turns combined updates into steps of the model; under rules without an optimizer the update is the step.

    A round is ``begin``, ``step`` for each block of coordinates once, ``commit``. Until then nothing has changed.
    """

    def __init__(self, config: StrategyConfig) -> None:
        self._kind = config.strategy
        self._rate = config.server_rate if self._kind in _MOMENTS else 1.0
        self._beta_1 = _BETA_1 if config.beta_1 is None else config.beta_1
        self._beta_2 = _BETA_2 if config.beta_2 is None else config.beta_2
        self._tau = _TAU if config.tau is None else config.tau
        self._momentum = _MOMENTUM if config.server_momentum is None else config.server_momentum
        self._moments = _MOMENTS.get(self._kind, ())
        self._rounds = 0
        self._now: dict[str, Vector] = {}
        self._next: dict[str, Vector] = {}

    def begin(self, layout: Layout) -> None:
        """Start a round.

        Raises:
            BadDocument: The moments that were restored are of another model.
        """
        wanted = {f"{moment}.{name}": layout.size(name) for moment in self._moments for name in layout.shapes}
        if self._rounds and {key: len(array) for key, array in self._now.items()} != wanted:
            raise BadDocument("the optimizer's moments belong to a model of another shape")
        self._next = {key: np.empty(size) for key, size in wanted.items()}

    def step(self, block: Block, at: slice, delta: Vector) -> Vector:
        """Return what to add to the model.

        Args:
            block: Which tensor and where.
            at: Which coordinates of the block.
            delta: The combined update there; may be overwritten.
        """
        if not self._moments:
            return delta
        place = slice(block.begin + at.start, block.begin + at.stop)
        if self._kind == "fedavgm":
            # Coordinates of the first round start from the update itself, as in torch's SGD, which Flower follows.
            velocity = delta + self._momentum * self._old("first", block, place) if self._rounds else delta
            self._next[f"first.{block.name}"][place] = velocity
            return self._rate * velocity
        square = delta * delta
        first = self._beta_1 * self._old("first", block, place) + (1 - self._beta_1) * delta
        second = self._old("second", block, place)
        if self._kind == "fedyogi":
            second = second - (1 - self._beta_2) * square * np.sign(second - square)
            rate = self._rate
        else:
            second = self._beta_2 * second + (1 - self._beta_2) * square
            # Bias correction of Kingma & Ba, 2015, with t = 1 in the first round. Flower counts one round too many.
            t = self._rounds + 1
            rate = self._rate * float(np.sqrt(1 - self._beta_2**t)) / (1 - self._beta_1**t)
        self._next[f"first.{block.name}"][place] = first
        self._next[f"second.{block.name}"][place] = second
        return rate * first / (np.sqrt(second) + self._tau)

    def commit(self) -> None:
        """End the round: what the steps made of the moments holds from now on."""
        self._now, self._next = self._next, {}
        for array in self._now.values():
            array.flags.writeable = False
        self._rounds += 1

    def state(self) -> dict[str, Vector]:
        """Return rounds and moments, read-only: nothing is written into them any more, so they need no copy."""
        return {"rounds": np.array([float(self._rounds)])} | self._now

    def restore(self, state: Mapping[str, Vector]) -> None:
        """Go on from a ``state()``.

        Raises:
            BadDocument: It is none of this optimizer's.
        """
        rounds = state.get("rounds")
        moments = {key: array for key, array in state.items() if key != "rounds"}
        if rounds is None or rounds.shape != (1,) or not 0 <= rounds[0] < 1 << 53 or rounds[0] % 1:
            raise BadDocument("the optimizer's state has no number of rounds")
        if {key.partition(".")[0] for key in moments} != (set(self._moments) if rounds[0] else set()):
            raise BadDocument("the optimizer's state is of another strategy")
        for key, array in moments.items():
            if array.dtype != np.float64 or array.ndim != 1 or not np.isfinite(array).all():
                raise BadDocument(f"the optimizer's {key} must be one row of finite float64")
        self._rounds = int(rounds[0])
        self._now = moments  # only read: a mapped file's take no memory

    def _old(self, moment: str, block: Block, place: slice) -> Vector:
        return self._now[f"{moment}.{block.name}"][place] if self._rounds else np.zeros(place.stop - place.start)
