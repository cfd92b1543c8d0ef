"""Linear regression from sufficient statistics: each part sends sums, and the sums of all parts have one solution.

``XᵀX``, ``Xᵀy`` and the row count add up over parts, so the result is the least-squares solution of all rows together,
whatever the partition, in one round. What is sent grows with the square of the features, not with the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.linear import FeatureScale, LinearModel
from parity_fl.tensors import Tensor, take
from parity_protocol.errors import BadDocument, ExecutionFailed, FailureReason

__all__ = [
    "ExactSolution",
    "LinearStatistics",
    "linear_statistics",
    "solve_linear",
    "statistics_bytes",
    "statistics_from_tensors",
    "statistics_tensors",
    "sum_statistics",
]

_SINGULAR: Final = 1e-12  # smallest eigenvalue of the correlation matrix that still counts
_RIDGE: Final = 1e-10  # added to its diagonal when it does not
_SLACK: Final = 1e-9  # rounding that a part's sums may show, relative
_ROWS_AT_ONCE: Final = 1 << 22  # values per block of rows


@dataclass(frozen=True, slots=True, eq=False)
class LinearStatistics:
    """Sums over rows of scaled features ``x`` and targets ``y``, all float64.

    Attributes:
        n: Number of rows, at least 1.
        gram: ``Σ x xᵀ``, shape ``(d, d)``.
        total: ``Σ x``, shape ``(d,)``.
        moment: ``Σ x y``, shape ``(d,)``.
        target: ``Σ y``.
        square: ``Σ y²``.
    """

    n: int
    gram: NDArray[np.float64]
    total: NDArray[np.float64]
    moment: NDArray[np.float64]
    target: float
    square: float


@dataclass(frozen=True, slots=True, eq=False)
class ExactSolution:
    """The model in the data's own units, and the ridge that a singular problem needed: 0 for a regular one."""

    model: LinearModel
    ridge: float


def linear_statistics(
    features: NDArray[np.float64], truth: NDArray[np.float64], scale: FeatureScale
) -> LinearStatistics:
    """Return one part's sums.

    Args:
        features: Shape ``(n, d)``, in the data's own units.
        truth: Targets, shape ``(n,)``.
        scale: Statistics that all parts share; they keep the sums well-conditioned and do not change the solution.

    Raises:
        ExecutionFailed: ``data_invalid`` without rows; ``numerical_instability``: a sum is not finite.
    """
    rows, width = features.shape
    if rows == 0:
        raise ExecutionFailed(FailureReason.DATA_INVALID, "empty training data")
    gram, total, moment = np.zeros((width, width)), np.zeros(width), np.zeros(width)
    step = max(1, _ROWS_AT_ONCE // width)
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, rows, step):
            some = (features[first : first + step] - scale.mean) / scale.deviation
            gram += some.T @ some
            total += some.sum(axis=0)
            moment += truth[first : first + step] @ some
        found = LinearStatistics(rows, gram, total, moment, float(truth.sum()), float(truth @ truth))
    if not (np.isfinite(gram).all() and np.isfinite(moment).all() and np.isfinite(found.square)):
        raise ExecutionFailed(
            FailureReason.NUMERICAL_INSTABILITY,
            "the sums of squares are not finite",
            hint="Scale the data, or set standardize.",
        )
    return found


def sum_statistics(parts: Sequence[LinearStatistics]) -> LinearStatistics:
    """Return the sums over all parts, added in their order; at least one part."""
    return LinearStatistics(
        n=sum(part.n for part in parts),
        gram=np.sum([part.gram for part in parts], axis=0),
        total=np.sum([part.total for part in parts], axis=0),
        moment=np.sum([part.moment for part in parts], axis=0),
        target=float(np.sum([part.target for part in parts])),
        square=float(np.sum([part.square for part in parts])),
    )


def solve_linear(statistics: LinearStatistics, scale: FeatureScale) -> ExactSolution:
    """Return the least-squares solution with intercept.

    Only where features depend on each other linearly, or there are too few rows, is a ridge added, and said.

    Args:
        statistics: Sums over all rows.
        scale: What the features were scaled with.

    Raises:
        ExecutionFailed: ``numerical_instability``: the solution is not finite.
    """
    n = statistics.n
    mean, target = statistics.total / n, statistics.target / n
    with np.errstate(over="ignore", invalid="ignore"):
        spread = statistics.gram - n * np.outer(mean, mean)
        pull = statistics.moment - n * mean * target
        own = np.diag(spread)
        # Rounding leaves a constant column a tiny spread of either sign; it carries nothing.
        flat = own <= _SINGULAR * np.maximum(np.diag(statistics.gram), np.finfo(np.float64).tiny)
        size = np.sqrt(np.where(flat, 1.0, own))
        related = spread / np.outer(size, size)
        related[flat, :], related[:, flat] = 0.0, 0.0
        pull = np.where(flat, 0.0, pull / size)
        if not (np.isfinite(related).all() and np.isfinite(pull).all()):
            _unsolved()
        ridge = _RIDGE if np.linalg.eigvalsh(related)[0] < _SINGULAR else 0.0
        scaled = np.linalg.solve(related + ridge * np.eye(len(related)), pull) / size
        weights = scaled / scale.deviation
        bias = target - float(scaled @ mean) - float(weights @ scale.mean)
    if not (np.isfinite(weights).all() and np.isfinite(bias)):
        _unsolved()
    return ExactSolution(LinearModel(weights, bias, scale), ridge)


def statistics_bytes(n_features: int) -> int:
    """Return the bytes of a part's tensors; the symmetric half of ``gram`` travels once."""
    return 8 * (n_features * (n_features + 1) // 2 + 2 * n_features + 3)


def statistics_tensors(statistics: LinearStatistics) -> dict[str, Tensor]:
    """Return the wire tensors, F64: ``gram`` (upper triangle by rows), ``total``, ``moment``, ``sums`` = n, Σy, Σy²."""
    upper = np.triu_indices(len(statistics.total))
    return {
        "gram": statistics.gram[upper],
        "total": statistics.total,
        "moment": statistics.moment,
        "sums": np.array([statistics.n, statistics.target, statistics.square], dtype=np.float64),
    }


def statistics_from_tensors(tensors: Mapping[str, Tensor], *, n_features: int, rows: int) -> LinearStatistics:
    """Check sums that somebody else made: they must be those of some ``rows`` rows, by Cauchy and Schwarz.

    Raises:
        BadDocument: Names, shapes or types differ, or no rows have these sums.
    """
    lengths = {"gram": n_features * (n_features + 1) // 2, "total": n_features, "moment": n_features, "sums": 3}
    if set(tensors) != set(lengths):
        _refuse(f"expected the tensors {', '.join(lengths)}")
    found = {name: take(tensors, name, "F64", 1) for name in lengths}
    for name, length in lengths.items():
        if len(found[name]) != length:
            _refuse(f"{name} must have {length} entries, got {len(found[name])}")
    n, target, square = found["sums"].tolist()
    if n != rows:
        _refuse(f"the part has {rows} rows, the sums say {n:g}")
    gram = np.zeros((n_features, n_features))
    gram[np.triu_indices(n_features)] = found["gram"]
    gram = gram + np.triu(gram, 1).T
    own = np.diag(gram)
    with np.errstate(over="ignore", invalid="ignore"):
        room = 1 + _SLACK
        possible = (
            (own >= 0).all()
            and (np.abs(gram) <= room * np.outer(np.sqrt(np.abs(own)), np.sqrt(np.abs(own)))).all()
            and (np.abs(found["total"]) <= room * np.sqrt(np.abs(own) * n)).all()
            and square >= 0
            and (np.abs(found["moment"]) <= room * np.sqrt(np.abs(own)) * np.sqrt(abs(square))).all()
            and abs(target) <= room * np.sqrt(abs(square) * n)
        )
    if not possible:
        _refuse("no rows have these sums")
    return LinearStatistics(rows, gram, found["total"], found["moment"], target, square)


def _unsolved() -> NoReturn:
    raise ExecutionFailed(
        FailureReason.NUMERICAL_INSTABILITY,
        "the exact solution is not finite",
        hint="Scale the data, or set standardize.",
    )


def _refuse(message: str) -> NoReturn:
    raise BadDocument(f"not the statistics of a linear regression: {message}")
