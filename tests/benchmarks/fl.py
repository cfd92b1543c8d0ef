"""Federated learning: what the mathematics costs and how good it is, beside scikit-learn in the same run.

Accuracies are means over seeds, each paired with central training on the same seed: the same hold-out, architecture,
learning rate and number of passes over the data. Everything can be recomputed with ``parity fl simulate``.
"""

from __future__ import annotations

from benchmarks.figures import Figure
from benchmarks.fl_accuracy import accuracies, attacks, bounds
from benchmarks.fl_forests import forests
from benchmarks.fl_kernels import kernels
from benchmarks.fl_rounds import rounds

__all__ = ["measure"]

SEEDS, QUICK_SEEDS = 10, 3


async def measure(*, quick: bool) -> list[Figure]:
    """Return kernels, rounds, accuracies, attacks and forests, in this order."""
    seeds = QUICK_SEEDS if quick else SEEDS
    return [
        *kernels(),
        *await rounds(quick=quick),
        *accuracies(seeds),
        *attacks(QUICK_SEEDS),
        *bounds(),
        *forests(seeds),
    ]
