"""A round's model without each of its updates in turn, where the rule is a weighted sum: taken off, not summed anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from parity_fl.aggregate.base import UpdatesOf
from parity_fl.aggregate.layout import Layout, pieces, take_block
from parity_fl.aggregate.optimizers import ServerOptimizer
from parity_fl.models.base import Weights

__all__ = ["sums_without_each"]


def sums_without_each(
    layout: Layout, optimizer: ServerOptimizer, base: Weights, updates: UpdatesOf, weights: Mapping[int, float]
) -> Iterator[tuple[int, Weights]]:
    """Yield the model without each part: ``(sum - w_i d_i) / (W - w_i)`` is the update of the others.

    Args:
        layout: The model's.
        optimizer: As it was before the round; no round of it ends here.
        base: The model that the updates started from.
        updates: Read once for the sum and once more to take each off.
        weights: Of the accepted parts, above 0; at least two.
    """
    total = {name: np.zeros(layout.size(name)) for name in layout.shapes}
    for update in updates(weights):
        for name, sums in total.items():
            flat = update.delta[name].reshape(-1)
            for piece in pieces(len(sums)):
                sums[piece] += flat[piece] * np.float64(weights[update.part])
    everything = sum(weights.values())
    for update in updates(weights):
        weight = np.float64(weights[update.part])
        rest = everything - weights[update.part]
        out = {name: np.empty(shape, dtype=np.float32) for name, shape in layout.shapes.items()}
        optimizer.begin(layout)
        for block in layout.blocks():
            values = take_block(update, block)
            for piece in pieces(block.size):
                place = slice(block.begin + piece.start, block.begin + piece.stop)
                others = (total[block.name][place] - values[piece] * weight) / rest
                step = optimizer.step(block, piece, others)
                out[block.name].reshape(-1)[place] = base[block.name].reshape(-1)[place] + step
        yield update.part, out
