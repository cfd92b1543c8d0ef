"""The one path of every rule: checks, clipping, mixing, the rule, the server's optimizer.

A rule either gives each update a share (mean, Krum, MultiKrum), or works on the ordered values of each coordinate
(trimmed mean, median, Bulyan). Mixing is a matrix in front of both. Sums run in order of parts in float64, so the same
updates on the same machine give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, assert_never

import numpy as np
from numpy.typing import NDArray

from parity_fl.aggregate.base import Aggregated, Arbiter, Updates, UpdatesOf
from parity_fl.aggregate.distances import bulyan_selection, gram, krum_order, mixing, squared_distances
from parity_fl.aggregate.layout import Block, Layout, load_block, pieces, take_block
from parity_fl.aggregate.left_out import sums_without_each
from parity_fl.aggregate.one_pass import OnePass
from parity_fl.aggregate.optimizers import ServerOptimizer
from parity_fl.aggregate.rules import closest_to_median, median, trimmed_mean
from parity_fl.aggregate.screen import Screening, screen
from parity_fl.models.base import Weights
from parity_fl.strategy import STRATEGIES, StrategyConfig, fewest_updates, trimmed_each_side
from parity_protocol.errors import BadDocument, TooFewUpdates, Unprocessable

__all__ = ["Pipeline"]

Vector = NDArray[np.float64]

_HISTORY: Final = 5  # rounds that the running median of update lengths looks back
_NORMS: Final = "norms"
_OPTIMIZER: Final = "optimizer."
_SUMS: Final = frozenset({"fedavg", "fedprox", "fedadam", "fedyogi", "fedavgm"})
_NEEDS_DISTANCES: Final = frozenset({"krum", "multi_krum", "bulyan"})


@dataclass(frozen=True, slots=True)
class _Round:
    """A round after its checks.

    Attributes:
        f: Byzantine updates that the rule still has to tolerate.
        cut: What a trimmed mean cuts from each side.
        scales: Factor of each accepted update from clipping, shape ``(m,)``.
        matrix: Mixing, shape ``(m, m)``; None without.
        shares: Share of each accepted update, shape ``(m,)``, for the rules that have shares.
        rows: Rows, after mixing, that a rule on coordinates looks at.
    """

    parts: tuple[int, ...]
    f: int
    cut: int
    scales: Vector
    matrix: Vector | None
    shares: Vector | None
    rows: tuple[int, ...]


class Pipeline:
    """Implements ``Strategy`` for every rule."""

    def __init__(self, config: StrategyConfig, arbiter: Arbiter | None = None) -> None:
        self.name = STRATEGIES[config.strategy]
        self._config, self._arbiter = config, arbiter
        self._optimizer = ServerOptimizer(config)
        self._history: list[float] = []

    def aggregate(self, base: Weights, updates: Updates, n: int) -> Aggregated:
        """See ``Strategy``."""
        layout = Layout.of(base)
        config = self._config
        arbiter = None if self._arbiter is None else partial(self._arbiter, base, updates)
        summed: OnePass | None = None
        if self._sums_plainly():
            summed = OnePass(layout, base, updates, self._optimizer, is_uniform=config.is_uniform)
        found = screen(
            layout,
            updates,
            n,
            history=self._history,
            max_ratio=config.max_norm_ratio,
            arbiter=arbiter,
            measure=None if summed is None else summed.measure,
        )
        plan = self._plan(layout, updates, found, n)
        if summed is not None and summed.parts == found.parts:
            out, square = summed.weights, summed.square
        else:
            summed = None  # its model is another's room
            out, square = self._walk(layout, base, updates, plan)
        if not all(np.isfinite(tensor).all() for tensor in out.values()):
            raise Unprocessable("the next model would have NaN or Inf values: the round's model is out of range")
        self._optimizer.commit()
        if found.median > 0:
            self._history = [*self._history, found.median][-_HISTORY:]
        return Aggregated(
            weights=out,
            accepted=found.parts,
            rejected=found.rejected,
            metrics={
                "updates": float(n),
                "accepted": float(len(found.parts)),
                "rejected": float(len(found.rejected)),
                "clipped": float(np.count_nonzero(plan.scales < 1)),
                "tolerated": float(plan.f),
                "norm_median": found.median,
                "norm_max": max(found.norms),
                "step_norm": float(np.sqrt(square)),
            },
            influence=_influence(plan),
        )

    def _sums_plainly(self) -> bool:
        """Return whether the next model is a weighted sum of updates as they came."""
        config = self._config
        return config.strategy in _SUMS and config.clip == "none" and config.pre_aggregation == "none"

    def _walk(self, layout: Layout, base: Weights, updates: Updates, plan: _Round) -> tuple[Weights, float]:
        """Return the next model, and the squared length of the step to it."""
        out = {name: np.empty(shape, dtype=np.float32) for name, shape in layout.shapes.items()}
        square = 0.0
        self._optimizer.begin(layout)
        for block, at, delta in self._combined(layout, updates, plan):
            step = self._optimizer.step(block, at, delta)
            place = slice(block.begin + at.start, block.begin + at.stop)
            square += float(np.square(step).sum())
            with np.errstate(over="ignore"):  # said by the caller, with a reason
                out[block.name].reshape(-1)[place] = base[block.name].reshape(-1)[place] + step
        return out, square

    def without_each(self, base: Weights, updates: UpdatesOf, parts: Sequence[int]) -> Iterator[tuple[int, Weights]]:
        """See ``Strategy``."""
        config = self._config
        if self._sums_plainly() and len(parts) > 1:
            weights = {update.part: 1.0 if config.is_uniform else update.weight for update in updates(parts)}
            yield from sums_without_each(Layout.of(base), self._optimizer, base, updates, weights)
            return
        before = self.state()
        for part in parts:
            others = [other for other in parts if other != part]
            rule = Pipeline(config, self._arbiter)
            rule.restore(before)
            try:
                yield part, rule.aggregate(base, partial(updates, others), len(others)).weights
            except (TooFewUpdates, Unprocessable):
                continue

    def state(self) -> dict[str, Vector]:
        """See ``Strategy``."""
        moments = {f"{_OPTIMIZER}{key}": array for key, array in self._optimizer.state().items()}
        return {_NORMS: np.array(self._history, dtype=np.float64)} | moments

    def restore(self, state: Mapping[str, Vector]) -> None:
        """See ``Strategy``."""
        norms = state.get(_NORMS)
        if norms is None or norms.ndim != 1 or len(norms) > _HISTORY or not (np.isfinite(norms) & (norms > 0)).all():
            raise BadDocument(f"{_NORMS} must be up to {_HISTORY} lengths above 0")
        rest = {key: array for key, array in state.items() if key != _NORMS}
        if not all(key.startswith(_OPTIMIZER) for key in rest):
            raise BadDocument(f"a strategy's state has {_NORMS} and {_OPTIMIZER}* only")
        self._optimizer.restore({key.removeprefix(_OPTIMIZER): array for key, array in rest.items()})
        self._history = norms.tolist()

    def _plan(self, layout: Layout, updates: Updates, found: Screening, n: int) -> _Round:
        config, m = self._config, len(found.parts)
        f, cut = _bounds(config, n, m, found.rejected)
        norms = np.array(found.norms)
        scales = np.ones(m)
        if config.clip == "median":
            is_long = norms > found.running
            scales[is_long] = found.running / norms[is_long]

        matrix = distances = None
        mixes = config.pre_aggregation == "nnm"
        if mixes or config.strategy in _NEEDS_DISTANCES:
            products = gram(layout, updates, found.parts, scales)
            if mixes:
                matrix = mixing(squared_distances(products), f)
                products = matrix @ products @ matrix.T
            distances = squared_distances(products)

        shares: Vector | None = None
        rows = tuple(range(m))
        match config.strategy:
            case "fedavg" | "fedprox" | "fedadam" | "fedyogi" | "fedavgm":
                shares = np.ones(m) if config.is_uniform else np.array(found.weights)
            case "krum" | "multi_krum":
                assert distances is not None
                keep = 1 if config.strategy == "krum" else min(config.keep or m, m - f)
                shares = np.zeros(m)
                shares[krum_order(distances, f)[:keep]] = 1
            case "bulyan":
                assert distances is not None
                rows = tuple(bulyan_selection(distances, f))
            case "fedtrimmedavg" | "fedmedian":
                pass
            case _:
                assert_never(config.strategy)
        if shares is not None:
            shares = shares / shares.sum()
            if matrix is not None:
                shares = shares @ matrix
        return _Round(found.parts, f, cut, scales, matrix, shares, rows)

    def _combined(self, layout: Layout, updates: Updates, plan: _Round) -> Iterator[tuple[Block, slice, Vector]]:
        if plan.shares is not None:
            return _weighted(layout, updates, plan.parts, plan.shares * plan.scales)
        return self._by_coordinate(layout, updates, plan)

    def _by_coordinate(self, layout: Layout, updates: Updates, plan: _Round) -> Iterator[tuple[Block, slice, Vector]]:
        wanted = frozenset(plan.parts)
        is_scaled = bool((plan.scales != 1).any())
        chosen = list(plan.rows)
        matrix = None if plan.matrix is None else plan.matrix[chosen] * plan.scales
        for block in layout.blocks(len(plan.parts)):
            loaded = load_block(updates, wanted, block)
            for piece in pieces(block.size, len(plan.parts)):
                rows = loaded[:, piece].astype(np.float64)
                if matrix is not None:
                    rows = matrix @ rows
                else:
                    if is_scaled:
                        rows *= plan.scales[:, None]
                    if len(chosen) < len(rows):
                        rows = rows[chosen]
                yield block, piece, self._rule(rows, plan)

    def _rule(self, rows: Vector, plan: _Round) -> Vector:
        match self._config.strategy:
            case "fedtrimmedavg":
                return trimmed_mean(rows, plan.cut)
            case "fedmedian":
                return median(rows)
            case _:
                return closest_to_median(rows, len(rows) - 2 * plan.f)


def _weighted(
    layout: Layout, updates: Updates, parts: tuple[int, ...], shares: Vector
) -> Iterator[tuple[Block, slice, Vector]]:
    """Yield the weighted sum of the updates, piece by piece; no more than one block is in memory."""
    share_of = {part: share for part, share in zip(parts, shares.tolist(), strict=True) if share != 0}
    for block in layout.blocks():
        total = np.zeros(block.size)
        for update in updates():
            share = share_of.get(update.part)
            if share is None:
                continue
            values = take_block(update, block)
            for piece in pieces(block.size):
                total[piece] += values[piece] * np.float64(share)
        for piece in pieces(block.size):
            yield block, piece, total[piece]


def _bounds(config: StrategyConfig, n: int, m: int, rejected: Mapping[int, str]) -> tuple[int, int]:
    """Return how many Byzantine updates are left to tolerate among ``m``, and what a trimmed mean cuts.

    A rejected update was one of the f: a node that sends NaN must not be able to stop the session by it. As many of
    the f as the bound has room for are still expected.

    Raises:
        TooFewUpdates: The bound does not hold.
    """
    f, shown = config.malicious, STRATEGIES[config.strategy]
    caught = n - m
    reasons = "; ".join(f"part {part}: {reason}" for part, reason in list(rejected.items())[:3])
    detail = f" ({reasons})" if reasons else ""
    if m == 0:
        raise TooFewUpdates(f"no usable update among {n}{detail}", rejected=rejected)
    if config.strategy in {"fedtrimmedavg", "fedmedian"}:
        # What was rejected would have been cut from one side.
        least = max(fewest_updates(config), 2 * caught + 1)
        if n < least:
            raise TooFewUpdates(
                f"{shown} needs {least} updates, got {n}, {m} of them usable{detail}", rejected=rejected
            )
        planned = trimmed_each_side(config.cut_share, n)
        cut = min(max(trimmed_each_side(config.cut_share, m), planned - caught), (m - 1) // 2)
        return max(0, min(f, (m - 1) // 2)), cut
    left = f
    while left > max(0, f - caught) and m < fewest_updates(config, left):
        left -= 1
    if m < fewest_updates(config, left):
        raise TooFewUpdates(
            f"{shown} needs {fewest_updates(config, left)} updates to tolerate {left} malicious ones,"
            f" got {m} usable of {n}{detail}",
            rejected=rejected,
        )
    return left, 0


def _influence(plan: _Round) -> dict[int, float]:
    if plan.shares is None:
        return {}
    return dict(zip(plan.parts, plan.shares.tolist(), strict=True))
