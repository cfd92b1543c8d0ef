"""What the demo ends with: its numbers, the statements that they make, and whether each holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["ForestScores", "LinearScores", "NodeLine", "Statement", "Summary", "TaskLine"]


@dataclass(frozen=True, slots=True)
class TaskLine:
    """One task. Amounts are base units; ``paid`` is what the chain has confirmed."""

    name: str
    id: str
    type: str
    state: str
    node: str | None  # id of the node whose result counts
    attempts: int
    reward: int
    paid: int
    receipt_valid: bool
    wall_ms: int


@dataclass(frozen=True, slots=True)
class NodeLine:
    """One node. ``earned`` is the market's word, ``stake`` and ``earned_on_chain`` are the vault's."""

    name: str
    id: str
    address: str  # of the wallet that owns the bond and the earnings
    stake: int
    earned: int
    earned_on_chain: int
    killed: bool
    did: tuple[str, ...]  # names of the tasks whose results count


@dataclass(frozen=True, slots=True)
class ForestScores:
    """Accuracies on the same hold-out rows, and out of bag."""

    accuracy: float
    central_accuracy: float
    oob_local_mean: float
    oob_federated: float


@dataclass(frozen=True, slots=True)
class LinearScores:
    """R² on the same hold-out rows."""

    r2: float
    central_r2: float


@dataclass(frozen=True, slots=True)
class Statement:
    """Something that the summary says, and whether it is so."""

    text: str
    holds: bool
    detail: str = ""  # what was found when it does not hold


@dataclass(frozen=True, slots=True)
class Summary:
    """All of it."""

    seconds: float
    tasks: tuple[TaskLine, ...]
    nodes: tuple[NodeLine, ...]
    forest: ForestScores
    linear: LinearScores
    statements: tuple[Statement, ...]
    left_out: tuple[str, ...] = ()  # what could not be shown here, and why

    @property
    def ok(self) -> bool:
        """Whether every statement holds."""
        return all(statement.holds for statement in self.statements)

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``parity demo --json``; amounts are base units as decimal strings."""
        return {
            "ok": self.ok,
            "seconds": round(self.seconds, 1),
            "tasks": [
                {
                    "id": task.id,
                    "type": task.type,
                    "state": task.state,
                    "node": task.node,
                    "attempts": task.attempts,
                    "reward": str(task.reward),
                    "paid": str(task.paid),
                    "receipt_valid": task.receipt_valid,
                }
                for task in self.tasks
            ],
            "nodes": [
                {
                    "id": node.id,
                    "address": node.address,
                    "stake": str(node.stake),
                    "earned": str(node.earned),
                    "earned_on_chain": str(node.earned_on_chain),
                    "killed": node.killed,
                }
                for node in self.nodes
            ],
            "forest": {
                "accuracy": self.forest.accuracy,
                "central_accuracy": self.forest.central_accuracy,
                "oob_local_mean": self.forest.oob_local_mean,
                "oob_federated": self.forest.oob_federated,
            },
            "linear": {"r2": self.linear.r2, "central_r2": self.linear.central_r2},
        }
