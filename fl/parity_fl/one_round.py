"""Sessions of one round that need no steps: linear regression from the sums of all parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from parity_fl.linear import FeatureScale, feature_scale
from parity_fl.models.linear_exact import (
    ExactSolution,
    LinearStatistics,
    linear_statistics,
    solve_linear,
    statistics_from_tensors,
    statistics_tensors,
    sum_statistics,
)
from parity_fl.plan import PartitionPlan
from parity_fl.scoring import scores
from parity_fl.spec import LinearConfig
from parity_fl.table import Table
from parity_fl.tensors import Tensor
from parity_protocol.errors import BadDocument

__all__ = ["audit_sums", "exact_part", "finish_exact", "statistics_of"]

_TOLERANCE: Final = 1e-9  # of a sum, relative to what its rows could add up to: two machines add in other orders


def exact_part(config: LinearConfig, table: Table, part: int) -> tuple[dict[str, Tensor], dict[str, float | None]]:
    """Return a part's sums as tensors, and how their own solution scores on the part's own rows.

    Raises:
        ExecutionFailed: ``numerical_instability``: a sum or the solution is not finite.
    """
    sums = _sums(config, table, part)
    rows = table.assignment.parts[part]
    features, truth = table.dataset.features[rows], table.truth[rows]
    own = solve_linear(sums, _scale(config, table)).model.predict(features)
    return statistics_tensors(sums), scores(truth, own, classification=False)


def statistics_of(tensors: Mapping[str, Tensor], plan: PartitionPlan, part: int) -> LinearStatistics:
    """Check a part's sums against the plan.

    Raises:
        BadDocument: They are not those of that part.
    """
    return statistics_from_tensors(tensors, n_features=plan.n_features, rows=plan.part_size(part))


def audit_sums(config: LinearConfig, table: Table, part: int, claimed: LinearStatistics) -> None:
    """Add up the part's rows again and compare.

    Raises:
        BadDocument: The claimed sums are not those of these rows.
    """
    own = _sums(config, table, part)
    spread = np.sqrt(np.diag(own.gram))
    reach = float(np.sqrt(own.square))
    pairs = (
        (claimed.gram, own.gram, np.outer(spread, spread)),
        (claimed.total, own.total, spread * np.sqrt(own.n)),
        (claimed.moment, own.moment, spread * reach),
        (np.array(claimed.target), np.array(own.target), np.array(reach * np.sqrt(own.n))),
        (np.array(claimed.square), np.array(own.square), np.array(own.square)),
    )
    if any((np.abs(said - true) > _TOLERANCE * size).any() for said, true, size in pairs):
        raise BadDocument("not trained on this part: the sums are not those of its rows")


def finish_exact(config: LinearConfig, table: Table, parts: Sequence[LinearStatistics]) -> ExactSolution:
    """Solve the sums of all parts, added in part order.

    A row that two parts hold (``overlap_ratio``) counts twice, as it does in every average over parts.

    Raises:
        ExecutionFailed: ``numerical_instability``: the solution is not finite.
    """
    return solve_linear(sum_statistics(parts), _scale(config, table))


def _sums(config: LinearConfig, table: Table, part: int) -> LinearStatistics:
    rows = table.assignment.parts[part]
    return linear_statistics(table.dataset.features[rows], table.truth[rows], _scale(config, table))


def _scale(config: LinearConfig, table: Table) -> FeatureScale:
    return feature_scale(table.dataset.features[table.training_rows()], standardize=config.standardize)
