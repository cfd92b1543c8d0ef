"""What the worker that closes a round is told beside the updates, and what the log is told of its answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from parity_fl.rounds_config import RoundsConfig
from parity_fl.spec import FlSpec

__all__ = ["credit_of", "quorum_of", "shown_of"]


def credit_of(config: RoundsConfig, seed: str, number: int) -> dict[str, Any] | None:
    """Return how the parts of a round are scored, for the worker; None where they are not."""
    if config.contribution == "none":
        return None
    return {
        "method": config.contribution,
        "seed": f"{seed}{number:08x}",
        "max_permutations": config.shapley_permutations,
        "seconds": config.shapley_seconds,
    }


def quorum_of(spec: FlSpec, config: RoundsConfig, *, asks: str, cohort: Collection[int]) -> int:
    """Return how many updates a round must accept to close; 0 where that is for its kind to say.

    A score may be missing; shards agree and forests grow with all parts or not at all; a secure sum has its threshold.
    """
    if asks != "train" or spec.privacy.secure_aggregation:
        return 0
    return min(config.quorum, len(cohort))


def shown_of(done: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores in a worker's answer."""
    metrics = done["metrics"]
    return {name: metrics[name] for name in ("accuracy", "loss", "r2") if name in metrics}
