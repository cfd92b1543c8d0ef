"""Federated learning: what the mathematics costs and how good it is, beside scikit-learn in the same run.

Accuracies are means over seeds, each paired with central training on the same seed: the same hold-out, architecture,
learning rate and number of passes over the data. Everything can be recomputed with ``parity fl simulate``.
"""

from __future__ import annotations

import sys

from benchmarks.figures import Figure
from benchmarks.fl_accuracy import accuracies, attacks, bounds
from benchmarks.fl_forests import forests
from benchmarks.fl_kernels import kernels
from benchmarks.fl_rounds import rounds

__all__ = ["measure"]

SEEDS, QUICK_SEEDS = 10, 3


async def measure(*, quick: bool) -> list[Figure]:
    """Return kernels, rounds, accuracies, attacks and forests, in this order; each is told on stderr when it is there."""
    seeds = QUICK_SEEDS if quick else SEEDS
    found = _told(kernels())
    found += _told(await rounds(quick=quick))
    for section in (lambda: accuracies(seeds), lambda: attacks(QUICK_SEEDS), bounds, lambda: forests(seeds)):
        found += _told(section())
    return found


def _told(figures: list[Figure]) -> list[Figure]:
    for figure in figures:
        aim = "" if figure.aim is None else f" ({figure.aim}: {'met' if figure.is_met else 'not met'})"
        print(f"\n{figure.name}: {figure.shown()}{aim}, load {figure.load}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return figures
