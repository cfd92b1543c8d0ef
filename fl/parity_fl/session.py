"""A session as submitter, market and node share it: the signed settings, and the plan that the market publishes.

The submitter's order signs the settings; the market adds names and the partition plan. Market and node call
``resolve_session`` on the same signed text, so a node trains with what was signed and not with what the market says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parity_fl.defaults import Resolved, filled, read_resolved
from parity_fl.engines.flower.fleet import Fleet
from parity_fl.limits import MAX_PARTS
from parity_fl.plan import PartitionPlan
from parity_fl.spec import FlSpec, resolve_fl_spec
from parity_protocol.errors import BadField

__all__ = ["SessionPlan", "ShardTerms", "resolve_session"]

_SETTINGS = (
    "data_mode",
    "model_type",
    "dataset_cid",
    "eval_cid",
    "data_format",
    "model_config",
    "train_config",
    "privacy",
)
_PLAN = {"session_id", "round_id", "partition"}
_SHARDED_PLAN = {"session_id", "round_id", "shards"}
_HEX_CHARS = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class ShardTerms:
    """What the market decides for a sharded session before any node has said what its shard is.

    Attributes:
        total_parts: Number of shards.
        seed: 64 lower-case hex characters; keys every draw.
    """

    total_parts: int
    seed: str

    def to_dict(self) -> dict[str, object]:
        """Return JSON-ready members; ``from_dict`` reads them back to equal terms."""
        return {"total_parts": self.total_parts, "seed": self.seed}

    @classmethod
    def from_dict(cls, raw: object) -> ShardTerms:
        """Read terms that somebody else made.

        Raises:
            BadField: A member is missing, unknown or wrong.
        """
        if not isinstance(raw, dict) or set(raw) != {"total_parts", "seed"}:
            raise BadField("the terms of shards must have exactly total_parts and seed", field="plan.shards")
        parts, seed = raw["total_parts"], raw["seed"]
        if type(parts) is not int or not 1 <= parts <= MAX_PARTS:
            raise BadField(f"total_parts must be a whole number from 1 to {MAX_PARTS}", field="plan.shards.total_parts")
        if not isinstance(seed, str) or len(seed) != 64 or not set(seed) <= _HEX_CHARS:
            raise BadField("seed must be 64 lower-case hex characters", field="plan.shards.seed")
        return cls(parts, seed)


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """What the market publishes with every task of a session, as the ``plan`` of its manifest.

    Attributes:
        settings: What holds of the ``FL_*`` names, and who said it; see ``defaults``.
    """

    session_id: str
    round_id: str
    partition: PartitionPlan | ShardTerms
    flower: Fleet | None = None  # of a session with ``engine: flower``
    settings: Resolved = field(default_factory=dict)

    @property
    def cut(self) -> PartitionPlan:
        """The cut of a partitioned session; ``BadField`` when every part has rows of its own."""
        if isinstance(self.partition, ShardTerms):
            raise BadField("the session is sharded: nobody has all of its data", field="plan.partition")
        return self.partition

    def to_dict(self) -> dict[str, object]:
        """Return JSON-ready members; ``from_dict`` reads them back to an equal plan."""
        plan: dict[str, object] = {
            "session_id": self.session_id,
            "round_id": self.round_id,
            "shards" if isinstance(self.partition, ShardTerms) else "partition": self.partition.to_dict(),
        }
        if self.settings:
            plan["settings"] = {name: list(entry) for name, entry in self.settings.items()}
        return plan if self.flower is None else {**plan, "flower": self.flower.to_dict()}

    @classmethod
    def from_dict(cls, raw: object) -> SessionPlan:
        """Read a plan that somebody else made.

        Raises:
            BadField: A member is missing, unknown or wrong.
        """
        if not isinstance(raw, dict) or set(raw) - {"flower", "settings"} not in (_PLAN, _SHARDED_PLAN):
            raise BadField(
                f"a session's plan must have exactly {', '.join(sorted(_PLAN))}, or shards for partition", field="plan"
            )
        session_id, round_id = raw["session_id"], raw["round_id"]
        if not isinstance(session_id, str) or not isinstance(round_id, str):
            raise BadField("session_id and round_id must be strings", field="plan.session_id")
        fleet = Fleet.from_dict(raw["flower"]) if "flower" in raw else None
        partition = (
            ShardTerms.from_dict(raw["shards"]) if "shards" in raw else PartitionPlan.from_dict(raw["partition"])
        )
        return cls(session_id, round_id, partition, fleet, read_resolved(raw.get("settings", {})))


def resolve_session(
    session: Mapping[str, object], *, session_id: str, round_id: str, settings: Resolved | None = None
) -> FlSpec:
    """Check a submitted session and fill in what has a documented default.

    Args:
        session: ``FederatedLearningSpec.session()``. Its ``holdout_fraction`` holds unless ``partition_config`` has one.
        session_id: Given by the market.
        round_id: Given by the market.
        settings: Of the plan.

    Raises:
        BadField: The first thing that is wrong; ``field`` is its dotted name.
    """
    if settings:
        session = filled(session, settings)
    members = {name: session[name] for name in _SETTINGS if name in session}
    partition = session.get("partition_config")
    if session.get("data_mode") == "sharded":
        shards = session.get("shards")
        parts = {"total_parts": len(shards)} if isinstance(shards, list | tuple) and shards else {}
        given = partition if isinstance(partition, Mapping) else {}
        members["partition_config"] = {"holdout_fraction": session.get("holdout_fraction"), **given, **parts}
    elif isinstance(partition, Mapping):
        members["partition_config"] = {"holdout_fraction": session.get("holdout_fraction"), **partition}
    elif partition is not None:
        members["partition_config"] = partition
    return resolve_fl_spec({**members, "session_id": session_id, "round_id": round_id})
