"""Agreeing on a scaling without sharing rows: every part sends counts, means and spreads, and all take the merged ones.

For data whose parts nobody holds together. Merging is exact up to rounding (Chan, Golub and LeVeque, 1983, eq. 1.5), and
in part order, so the result does not depend on who answered first. What a part says nobody can check: bounds, and from three
parts on the others, keep one that lies from flattening everybody's features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.linear import scale_from
from parity_fl.models.base import Scaling
from parity_fl.spec import FlSpec, ForestConfig
from parity_fl.tensors import Tensor, take
from parity_protocol.errors import BadDocument, ExecutionFailed, FailureReason

__all__ = ["Moments", "fair_scaling", "merged_scaling", "moments_from_tensors", "moments_of", "moments_tensors"]

_MOST = 1e18  # of a mean or a deviation: its square is a float32 still
_FAR = 1e4  # times what is usual among the parts; honest shards whose ranges lie a thousand deviations apart stay below
_FEWEST_JUDGES = 3  # of two parts nobody can say which one is far
_MOST_ROWS = 10  # times the median part's: as an update weighs


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """A part's rows, summed up; the last column is the target of a regression, or zeros.

    Attributes:
        n: Rows, at least 1.
        mean: Shape ``(d + 1,)``, float64.
        spread: ``Σ (x - mean)²``, shape ``(d + 1,)``, float64, at least 0.
    """

    n: int
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]


def moments_of(spec: FlSpec, features: NDArray[np.float64], truth: NDArray[np.float64]) -> Moments:
    """Return a part's moments.

    Args:
        spec: Resolved settings; the target of a classification has none.
        features: The part's training rows, shape ``(n, d)``.
        truth: Their class indices or targets, shape ``(n,)``.

    Raises:
        ExecutionFailed: ``data_invalid`` without rows; ``numerical_instability``: a column is too large.
    """
    if len(features) == 0:
        raise ExecutionFailed(FailureReason.DATA_INVALID, "empty training data")
    target = np.zeros(len(truth)) if spec.is_classification else truth
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.append(features.mean(axis=0), target.mean())
        spread = np.append(features.var(axis=0), target.var()) * len(features)
        bad = np.flatnonzero(~_is_usable(mean, spread, len(features)))
    if len(bad):
        raise ExecutionFailed(
            FailureReason.NUMERICAL_INSTABILITY,
            f"column {int(bad[0])} is too large to standardize: its mean or deviation is above {_MOST:g}",
        )
    return Moments(len(features), mean, spread)


def fair_scaling(spec: FlSpec, parts: Mapping[int, Moments]) -> tuple[Scaling, dict[int, int]]:
    """Return the common scaling that no single part can bend, and in how many columns a part was left out of it.

    From three parts on a part's rows count ten times the median part's at most, and a column counts only where its mean
    and deviation lie within ``_FAR`` times what is usual: the median over the parts of the larger one of deviation and
    distance from the median mean. Shards that differ in what they hold are usual by this measure. A column that more than
    half of the parts do not vary in has no measure; nobody is left out of it, and no honest part loses anything by it.

    Args:
        spec: Resolved settings.
        parts: By part; at least one, all of one width.

    Raises:
        ExecutionFailed: As ``merged_scaling``.
    """
    order = sorted(parts)
    said = [parts[part] for part in order]
    if len(order) < _FEWEST_JUDGES:
        return merged_scaling(spec, said), {}
    rows = np.array([each.n for each in said], dtype=np.float64)
    mean = np.array([each.mean for each in said])
    reach = np.sqrt(np.array([each.spread for each in said]) / rows[:, None])
    centre = np.median(mean, axis=0)
    reach = np.maximum(reach, np.abs(mean - centre))
    usual = np.median(reach, axis=0)
    usual[usual <= 1e-12 * np.abs(centre)] = np.inf  # rounding errors of columns that do not vary
    usual[usual == 0] = np.inf
    is_far = reach > _FAR * usual
    counts = np.where(is_far, 0.0, np.minimum(rows, _MOST_ROWS * median_low(rows.tolist()))[:, None])
    columns = np.count_nonzero(is_far, axis=1)
    left_out = {part: int(found) for part, found in zip(order, columns, strict=True) if found}
    return merged_scaling(spec, said, counts), left_out


def merged_scaling(spec: FlSpec, parts: Sequence[Moments], counts: NDArray[np.float64] | None = None) -> Scaling:
    """Return what ``scaling_of`` returns for all parts' rows together, up to rounding.

    Args:
        spec: Resolved settings; without ``standardize`` nothing is scaled.
        parts: One or more, in part order, all of one width.
        counts: How many rows a part stands for in each column, shape ``(parts, d + 1)``, at least 0 and above 0 for some
            part of each column; None is all of its own.

    Raises:
        ExecutionFailed: ``numerical_instability``: parts together are too large for their statistics.
    """
    width = len(parts[0].mean) - 1
    if isinstance(spec.model, ForestConfig) or not spec.model.standardize:
        return Scaling(np.zeros(width), np.ones(width))
    if counts is None:
        counts = np.repeat(np.array([[part.n] for part in parts], dtype=np.float64), width + 1, axis=1)
    n, mean, spread = np.zeros(width + 1), np.zeros(width + 1), np.zeros(width + 1)
    with np.errstate(over="ignore", invalid="ignore"):
        for part, own in zip(parts, counts, strict=True):
            total = n + own
            some = np.maximum(total, 1)
            step = part.mean - mean
            mean = mean + step * (own / some)
            spread = spread + part.spread * (own / part.n) + step**2 * (n * own / some)
            n = total
        scale = scale_from(mean, np.sqrt(spread / n))
    if spec.is_classification:
        return Scaling(scale.mean[:-1], scale.deviation[:-1])
    return Scaling(scale.mean[:-1], scale.deviation[:-1], float(scale.mean[-1]), float(scale.deviation[-1]))


def moments_tensors(moments: Moments) -> dict[str, Tensor]:
    """Return the wire tensors, F64: ``n`` ``(1,)``, ``mean`` and ``spread`` ``(d + 1,)``."""
    return {"n": np.array([moments.n], dtype=np.float64), "mean": moments.mean, "spread": moments.spread}


def moments_from_tensors(tensors: Mapping[str, Tensor], *, n_features: int, rows: int) -> Moments:
    """Check moments that somebody else made.

    Raises:
        BadDocument: Names, shapes or types differ, or no ``rows`` rows have these moments.
    """
    if set(tensors) != {"n", "mean", "spread"}:
        _refuse("expected the tensors n, mean, spread")
    n, mean, spread = (take(tensors, name, "F64", 1) for name in ("n", "mean", "spread"))
    if len(n) != 1 or len(mean) != n_features + 1 or len(spread) != n_features + 1:
        _refuse(f"mean and spread must have {n_features + 1} entries, n must have 1")
    if n[0] != rows:
        _refuse(f"the part has {rows} rows, the moments say {n[0]:g}")
    if (spread < 0).any() or (rows == 1 and spread.any()):
        _refuse("no rows have this spread")
    # Such features are no float32 any more, and one part would flatten those of all.
    if not _is_usable(mean, spread, rows).all():
        _refuse(f"a column whose mean or deviation is above {_MOST:g} cannot be standardized")
    return Moments(rows, mean, spread)


def _is_usable(mean: NDArray[np.float64], spread: NDArray[np.float64], rows: int) -> NDArray[np.bool_]:
    """Return of each column whether it can be standardized; NaN cannot."""
    usable: NDArray[np.bool_] = (np.abs(mean) <= _MOST) & (spread <= rows * _MOST**2)
    return usable


def _refuse(message: str) -> NoReturn:
    raise BadDocument(f"not the moments of a part: {message}")
