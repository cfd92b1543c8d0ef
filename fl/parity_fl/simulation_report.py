"""What a simulation found: a record of every round, and the report of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parity_fl.plan import PartitionPlan
from parity_fl.shards import ShardPlan

__all__ = ["RoundRecord", "SimulationReport"]


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What happened in a round.

    Attributes:
        number: From 1; a forest has one round.
        cohort: Parts that were asked, ascending.
        accepted: Parts whose update is in the model.
        rejected: Why others are not, by part.
        scores: Of the new model on the hold-out: ``loss`` with ``accuracy``, or with ``r2`` and ``mse``.
        train_loss: Mean over the cohort, by rows, on the rows that each trained on; None for a forest.
        metrics: What the rule says about the updates.
        contributions: By part, how much higher the hold-out's loss is without it; empty when not asked for.
    """

    number: int
    cohort: tuple[int, ...]
    accepted: tuple[int, ...]
    rejected: dict[int, str]
    scores: dict[str, float]
    train_loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    contributions: dict[int, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready members; the scores are members of their own."""
        members: dict[str, Any] = {"round": self.number, **self.scores}
        if self.train_loss is not None:
            members["train_loss"] = self.train_loss
        members |= {"cohort": list(self.cohort), "accepted": list(self.accepted)}
        members["rejected"] = {str(part): reason for part, reason in self.rejected.items()}
        if self.metrics:
            members["metrics"] = dict(self.metrics)
        if self.contributions:
            members["contributions"] = {str(part): value for part, value in self.contributions.items()}
        return members


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """The outcome of a simulation.

    Attributes:
        plan: How the data were cut.
        strategy: The rule's name; ``union`` and so on for a forest.
        scores: Of the last model on the hold-out; see ``RoundRecord``. A forest's named estimates are here too.
        rounds: One record per round.
        malicious: Parts that attacked, ascending.
        warnings: What people should be told about their choices.
        model_hash: SHA-256, hex, of the last model: of its weights, or of a forest's file.
        model: The last model's file, to predict with; see ``decode_model``.
        feature_importance: Of a forest: each column's share by its number, summing to 1.
    """

    model_type: str
    plan: PartitionPlan | ShardPlan
    strategy: str
    scores: dict[str, float]
    rounds: tuple[RoundRecord, ...]
    malicious: tuple[int, ...]
    warnings: tuple[str, ...]
    model_hash: str
    model: bytes = field(repr=False)
    feature_importance: Mapping[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """Share of the hold-out that is classified right; None for regression and without a hold-out."""
        return self.scores.get("accuracy")

    @property
    def r2(self) -> float | None:
        """Coefficient of determination on the hold-out; None for classification."""
        return self.scores.get("r2")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready members."""
        plan = self.plan
        return {
            "model_type": self.model_type,
            "strategy": self.strategy,
            **self.scores,
            **({"feature_importance": dict(self.feature_importance)} if self.feature_importance else {}),
            "assignment_hash": plan.assignment_hash,
            "model_hash": self.model_hash,
            "seed": plan.seed,
            "partition": {
                "strategy": plan.strategy,
                "total_parts": plan.total_parts,
                "part_sizes": [plan.part_size(part) for part in range(plan.total_parts)],
                "holdout_size": plan.holdout_size,
                "redraws": 0 if isinstance(plan, ShardPlan) else plan.redraws,
                "moved": 0 if isinstance(plan, ShardPlan) else plan.moved,
            },
            "malicious": list(self.malicious),
            "warnings": list(self.warnings),
            "rounds": [record.to_dict() for record in self.rounds],
        }
