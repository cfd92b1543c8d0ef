"""Agreeing on a scaling without sharing rows: every part sends counts, means and spreads, and all take the merged ones.

For data whose parts nobody holds together. Merging is exact up to rounding (Chan, Golub and LeVeque, 1983, eq. 1.5), and
in part order, so the result does not depend on who answered first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.linear import scale_from
from parity_fl.models.base import Scaling
from parity_fl.spec import FlSpec, ForestConfig
from parity_fl.tensors import Tensor, take
from parity_protocol.errors import BadDocument, ExecutionFailed, FailureReason

__all__ = ["Moments", "merged_scaling", "moments_from_tensors", "moments_of", "moments_tensors"]

_MOST_MEAN = 1e140


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
    bad = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(spread)))
    if len(bad):
        raise ExecutionFailed(
            FailureReason.NUMERICAL_INSTABILITY,
            f"column {int(bad[0])} is too large to standardize: its mean or deviation is not finite",
        )
    return Moments(len(features), mean, spread)


def merged_scaling(spec: FlSpec, parts: Sequence[Moments]) -> Scaling:
    """Return what ``scaling_of`` returns for all parts' rows together, up to rounding.

    Args:
        spec: Resolved settings; without ``standardize`` nothing is scaled.
        parts: One or more, in part order, all of one width.

    Raises:
        ExecutionFailed: ``numerical_instability``: parts together are too large for their statistics.
    """
    width = len(parts[0].mean) - 1
    if isinstance(spec.model, ForestConfig) or not spec.model.standardize:
        return Scaling(np.zeros(width), np.ones(width))
    n, mean, spread = parts[0].n, parts[0].mean, parts[0].spread
    with np.errstate(over="ignore", invalid="ignore"):
        for part in parts[1:]:
            total = n + part.n
            step = part.mean - mean
            mean = mean + step * (part.n / total)
            spread = spread + part.spread + step**2 * (n * part.n / total)
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
    # Merged, the squares of such numbers would be none, and one part would end the session of all.
    if (np.abs(mean) > _MOST_MEAN).any() or (spread > _MOST_MEAN**2).any():
        _refuse(f"a column whose mean or deviation is above {_MOST_MEAN:g} cannot be standardized")
    return Moments(rows, mean, spread)


def _refuse(message: str) -> NoReturn:
    raise BadDocument(f"not the moments of a part: {message}")
