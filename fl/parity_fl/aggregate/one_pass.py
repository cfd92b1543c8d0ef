"""A round of a rule that sums, in one walk over its updates: their lengths and the next model at the same time.

Nearly always every update passes the checks, and then what each weighs is known before the first is read. When one does
not, what was summed here is thrown away and the round is walked again without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parity_fl.aggregate.base import Updates
from parity_fl.aggregate.layout import Block, Layout, pieces, take_block
from parity_fl.aggregate.optimizers import ServerOptimizer
from parity_fl.aggregate.screen import square_of
from parity_fl.models.base import Weights

__all__ = ["OnePass"]

_THREADS: Final = 2  # NumPy lets others run meanwhile; each has a block of its own
_MANY_BLOCKS: Final = 4  # of fewer, threads would cost more than they bring


class OnePass:
    """Sums the updates while it measures them.

    Args:
        layout: The model's.
        base: The round's model.
        updates: Of the round.
        optimizer: Its round is begun here, and ended by the caller.

    Attributes:
        parts: Whose updates are summed, in order; None before ``measure``.
        weights: The next model, float32.
        square: Squared length of the step to it.
    """

    def __init__(
        self, layout: Layout, base: Weights, updates: Updates, optimizer: ServerOptimizer, *, is_uniform: bool
    ) -> None:
        self._layout = layout
        self._base = base
        self._updates = updates
        self._optimizer = optimizer
        self._is_uniform = is_uniform
        self.parts: tuple[int, ...] | None = None
        self.weights: Weights = {}
        self.square = 0.0

    def measure(self, weights: Mapping[int, float]) -> dict[int, float]:
        """Return the squared lengths of the updates; see ``Measure``."""
        totals = dict.fromkeys(weights, 0.0)
        if not totals:
            return totals
        shares = _shares_of(weights, is_uniform=self._is_uniform)
        self._share_of = dict(zip(weights, shares.tolist(), strict=True))
        self.weights = {name: np.empty(shape, dtype=np.float32) for name, shape in self._layout.shapes.items()}
        self.square = 0.0
        self._optimizer.begin(self._layout)
        blocks = list(self._layout.blocks(2 * _THREADS))  # threads hold one each
        if len(blocks) < _MANY_BLOCKS:
            found = list(map(self._block, blocks))
        else:
            with ThreadPoolExecutor(_THREADS) as threads:
                found = list(threads.map(self._block, blocks))
        for squares, step in found:  # in order of the blocks, whoever was first
            for part, square in squares.items():
                totals[part] += square
            self.square += step
        self.parts = tuple(weights)
        return totals

    def _block(self, block: Block) -> tuple[dict[int, float], float]:
        """Write one block of the next model; return each update's squared length in it, and the step's."""
        total = np.zeros(block.size)
        room = np.empty(max(piece.stop - piece.start for piece in pieces(block.size)))
        squares: dict[int, float] = {}
        step_square = 0.0
        with np.errstate(over="ignore", invalid="ignore"):  # an update may hold anything
            for update in self._updates():
                share = self._share_of.get(update.part)
                if share is None:
                    continue
                values, found = take_block(update, block), 0.0
                for piece in pieces(block.size):
                    wide = values[piece].astype(np.float64)
                    found += square_of(wide, room)
                    wide *= share
                    total[piece] += wide
                squares[update.part] = found
            out = self.weights[block.name].reshape(-1)
            base = self._base[block.name].reshape(-1)
            for piece in pieces(block.size):
                step = self._optimizer.step(block, piece, total[piece])
                place = slice(block.begin + piece.start, block.begin + piece.stop)
                step_square += float(np.square(step).sum())
                out[place] = base[place] + step
        return squares, step_square


def _shares_of(weights: Mapping[int, float], *, is_uniform: bool) -> NDArray[np.float64]:
    """Return what share of the sum each part has, in order of the mapping; all together 1."""
    shares: NDArray[np.float64] = (
        np.ones(len(weights)) if is_uniform else np.array(list(weights.values()), dtype=np.float64)
    )
    shares /= shares.sum()
    return shares
