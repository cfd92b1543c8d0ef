"""Least squares under secure aggregation: the sums of all parts' rows, and no single part's.

Features and targets are in units of their common deviation, so over all rows together the sum of each square is the number
of rows, and by Cauchy and Schwarz no other sum is larger: whole numbers of 64 bits hold every sum, and nothing is cut.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from parity_fl.linear import FeatureScale
from parity_fl.models.base import Scaling
from parity_fl.models.linear_exact import LinearStatistics, linear_statistics
from parity_fl.privacy.config import PrivacyConfig
from parity_fl.privacy.fixed_point import FixedPoint, Words
from parity_fl.privacy.secagg import SumSetup
from parity_fl.privacy.secure_part import SumTerms
from parity_protocol.errors import BadDocument

__all__ = ["line_point", "line_setup", "line_statistics", "line_vector"]

_MARGIN = 2.0  # rounding of the common scale


def line_setup(privacy: PrivacyConfig, terms: SumTerms, scaling: Scaling, *, session_id: str, parts: int) -> SumSetup:
    """Return the sum of all parts' statistics."""
    width = len(scaling.mean)
    digest = hashlib.sha256(f"parity-fl/secure-line/1 {session_id} {terms.to_dict()!r} ".encode())
    for column in (scaling.mean, scaling.deviation, [scaling.target_mean, scaling.target_deviation]):
        digest.update(np.ascontiguousarray(column, dtype="<f8").tobytes())
    size = width * (width + 1) // 2 + 2 * width + 2
    return SumSetup(digest.digest(), parts, privacy.shares(parts), size, 64)


def line_point(terms: SumTerms, *, parts: int) -> FixedPoint:
    """Return how a sum is written as a whole number.

    Raises:
        BadDocument: The terms do not say how many rows there are.
    """
    if terms.full_weight is None:
        raise BadDocument("the terms of a secure line say how many rows there are")
    return FixedPoint(_MARGIN * terms.full_weight, parts, 64)


def line_vector(
    features: NDArray[np.float64], truth: NDArray[np.float64], scaling: Scaling, point: FixedPoint
) -> Words:
    """Return one part's statistics as whole numbers.

    Args:
        features: Shape ``(n, d)``, in the data's own units.
        truth: Targets, shape ``(n,)``.
        scaling: What all parts agreed on.
        point: From ``line_point``.

    Raises:
        ExecutionFailed: As ``linear_statistics``.
    """
    own = (truth - scaling.target_mean) / scaling.target_deviation
    found = linear_statistics(features, own, FeatureScale(scaling.mean, scaling.deviation))
    upper = np.triu_indices(len(found.total))
    return point.encode(np.concatenate([found.gram[upper], found.total, found.moment, [found.target, found.square]]))


def line_statistics(total: Words, scaling: Scaling, point: FixedPoint, *, rows: int) -> LinearStatistics:
    """Return the statistics of all rows, with targets in the data's own units.

    Args:
        total: Sum of all parts' vectors.
        scaling: What all parts agreed on.
        point: From ``line_point``.
        rows: Of all parts together.
    """
    width = len(scaling.mean)
    values = point.decode(total)
    upper = np.triu_indices(width)
    gram = np.zeros((width, width))
    gram[upper] = values[: len(upper[0])]
    gram = gram + np.triu(gram, 1).T
    at = len(upper[0])
    sums, moment = values[at : at + width], values[at + width : at + 2 * width]
    target, square = values[-2], values[-1]
    mean, deviation = scaling.target_mean, scaling.target_deviation
    return LinearStatistics(
        n=rows,
        gram=gram,
        total=sums,
        moment=deviation * moment + mean * sums,
        target=float(deviation * target + rows * mean),
        square=float(deviation**2 * square + 2 * mean * deviation * target + rows * mean**2),
    )
