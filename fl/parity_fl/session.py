"""A session as submitter, market and node share it: the signed settings, and the plan that the market publishes.

The submitter's order signs the settings; the market adds names and the partition plan. Market and node call
``resolve_session`` on the same signed text, so a node trains with what was signed and not with what the market says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parity_fl.defaults import Resolved, filled, read_resolved
from parity_fl.engines.flower.fleet import Fleet
from parity_fl.plan import PartitionPlan
from parity_fl.spec import FlSpec, resolve_fl_spec
from parity_protocol.errors import BadField

__all__ = ["SessionPlan", "resolve_session"]

_SETTINGS = ("model_type", "dataset_cid", "data_format", "model_config", "train_config")
_PLAN = ("session_id", "round_id", "partition")


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """What the market publishes with every task of a session, as the ``plan`` of its manifest.

    Attributes:
        settings: What holds of the ``FL_*`` names, and who said it; see ``defaults``.
    """

    session_id: str
    round_id: str
    partition: PartitionPlan
    flower: Fleet | None = None  # of a session with ``engine: flower``
    settings: Resolved = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return JSON-ready members; ``from_dict`` reads them back to an equal plan."""
        plan: dict[str, object] = {
            "session_id": self.session_id,
            "round_id": self.round_id,
            "partition": self.partition.to_dict(),
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
        if not isinstance(raw, dict) or set(raw) - {"flower", "settings"} != set(_PLAN):
            raise BadField(f"a session's plan must have exactly {', '.join(_PLAN)}", field="plan")
        session_id, round_id = raw["session_id"], raw["round_id"]
        if not isinstance(session_id, str) or not isinstance(round_id, str):
            raise BadField("session_id and round_id must be strings", field="plan.session_id")
        fleet = Fleet.from_dict(raw["flower"]) if "flower" in raw else None
        return cls(
            session_id,
            round_id,
            PartitionPlan.from_dict(raw["partition"]),
            fleet,
            read_resolved(raw.get("settings", {})),
        )


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
    if isinstance(partition, Mapping):
        members["partition_config"] = {"holdout_fraction": session.get("holdout_fraction"), **partition}
    elif partition is not None:
        members["partition_config"] = partition
    return resolve_fl_spec({**members, "session_id": session_id, "round_id": round_id})
