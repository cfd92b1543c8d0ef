"""A federated session's names, seed and end: everything that follows from its order and its tasks' states."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from uuid import UUID, uuid5

from parity_fl.defaults import Resolved, filled, resolve_defaults
from parity_fl.plan import PartitionPlan
from parity_fl.privacy.combinations import session_privacy
from parity_fl.privacy.config import read_privacy
from parity_fl.rounds_config import is_in_rounds, read_session_rounds, refuse_resume, session_strategy
from parity_fl.session import SessionPlan, ShardTerms, resolve_session
from parity_fl.settings import FlSettings
from parity_fl.spec import FlSpec
from parity_market.store.rows import TaskRow
from parity_protocol.errors import BadField
from parity_protocol.task import (
    FINAL_STATES,
    CommandSpec,
    DockerSpec,
    FederatedLearningSpec,
    LlmSpec,
    TaskState,
    parts_of,
)

__all__ = [
    "NewSession",
    "Resumption",
    "Session",
    "new_session",
    "open_session",
    "seed_of",
    "session_ids",
    "why_lost",
]

_NAMESPACE = UUID("0c6ff4f7-55ad-5d3c-8d53-9a3a7a6f2f65")  # of this project's derived ids; any fixed UUID would do


def session_ids(order_hash: str) -> tuple[str, str]:
    """Return the ids of a session and its only round: a repeated submission of an order gets the same ones."""
    return str(uuid5(_NAMESPACE, f"session {order_hash}")), str(uuid5(_NAMESPACE, f"round 1 {order_hash}"))


def seed_of(session_id: str, seed: int) -> str:
    """Return the key of every shuffle of a session, 64 lower-case hex characters."""
    return sha256(f"{session_id} {seed}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Resumption:
    """What a session goes on from, and what it must fit."""

    cid: str
    job: dict[str, object]  # rule and number of rounds


@dataclass(frozen=True, slots=True)
class NewSession:
    """A submitted session that was checked.

    Attributes:
        spec: Resolved and named.
        settings: What holds of the ``FL_*`` names, and who said it; published in the plan.
        resumption: None begins with round 1.
    """

    spec: FlSpec
    settings: Resolved
    resumption: Resumption | None = None


def new_session(spec: FederatedLearningSpec, order_hash: str, settings: FlSettings) -> NewSession:
    """Check a submitted session, fill in what it leaves to the market, and name it.

    Args:
        settings: The market's.

    Raises:
        BadField: The first setting that is wrong.
    """
    session_id, round_id = session_ids(order_hash)
    try:
        parts = parts_of(spec)
    except BadField:
        parts = 1  # said below, after what comes before it in the network's order
    found = resolve_defaults(spec.session(), settings, parts=parts)
    session = filled(spec.session(), found)
    resolved = resolve_session(session, session_id=session_id, round_id=round_id)
    if spec.engine != "parity":
        _check_engine(spec.engine, session)
    if not is_in_rounds(session):
        if spec.rounds_config.get("resume_from"):
            refuse_resume("this session's model")
        if spec.total_rounds != 1:
            raise BadField(
                f"total_rounds must be 1: every part trains once and the results are merged, got {spec.total_rounds}",
                field="spec.total_rounds",
            )
        session_privacy(session, parts=resolved.partition.total_parts, rounds=None, strategy=None)
        return NewSession(resolved, found)
    rounds = read_session_rounds(session, parts=resolved.partition.total_parts)
    try:
        strategy, _ = session_strategy(session, rounds, partition_strategy=resolved.partition.strategy)
    except BadField as exc:
        by_market = [f"{name} {value}" for name, (value, source) in found.items() if source == "market"]
        if not by_market:
            raise
        raise BadField(
            f"{exc.message} (this market sets {', '.join(by_market)} where a session says nothing)", field=exc.field
        ) from exc
    session_privacy(session, parts=resolved.partition.total_parts, rounds=rounds, strategy=strategy)
    if not rounds.resume_from:
        return NewSession(resolved, found)
    job: dict[str, object] = {"strategy": strategy.to_dict(), "total_rounds": rounds.total_rounds}
    return NewSession(resolved, found, Resumption(rounds.resume_from, job))


def _check_engine(engine: str, session: Mapping[str, object]) -> None:
    """Refuse what another engine than our own cannot carry."""
    problem = ""
    if not is_in_rounds(session):
        problem = "carries rounds, and this session has none: every part trains once"
    elif read_privacy(session.get("privacy") or None).secure_aggregation:
        problem = "carries updates that the market can read: secure_aggregation needs the engine parity"
    if problem:
        raise BadField(f"engine {engine} {problem}", field="spec.engine")


@dataclass(frozen=True, slots=True)
class Session:
    """A stored session, read back.

    Attributes:
        partition: How its data set is cut, or what was decided about shards that nobody has together.
        members: As submitted, with what the plan fills in.
        settings: Of the plan: what holds of the ``FL_*`` names, and who said it.
    """

    spec: FlSpec
    partition: PartitionPlan | ShardTerms
    members: Mapping[str, object] = field(default_factory=dict)
    settings: Resolved = field(default_factory=dict)

    @property
    def plan(self) -> PartitionPlan:
        """The cut of a partitioned session; ``BadField`` when every part has rows of its own."""
        if isinstance(self.partition, ShardTerms):
            raise BadField("the session is sharded: nobody has all of its data", field="plan.partition")
        return self.partition

    @property
    def strategy(self) -> str:
        """How the rows are shared out, as ``check_strategy`` takes it."""
        return self.spec.partition.strategy

    @property
    def assignment(self) -> str:
        """The hash that names the cut; empty while the shards are the nodes' own."""
        return "" if isinstance(self.partition, ShardTerms) else self.partition.assignment_hash

    def told(self) -> dict[str, object]:
        """Return what people are shown of its settings, every documented default filled in."""
        members = self.spec.to_dict()
        return {
            "sources": {name: list(entry) for name, entry in self.settings.items()},
            "assignment_hash": self.assignment,
            **{name: members[name] for name in ("model_config", "train_config", "partition_config") if name in members},
        }


def open_session(
    submitted: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec, plan_doc: str | None
) -> Session:
    """Read a session from its group's submission and plan.

    Raises:
        InvalidInput: They are not what this market stores.
    """
    if not isinstance(submitted, FederatedLearningSpec) or plan_doc is None:
        raise BadField("not a federated session with a plan", field="plan")
    plan = SessionPlan.from_dict(json.loads(plan_doc))
    members = filled(submitted.session(), plan.settings)
    spec = resolve_session(members, session_id=plan.session_id, round_id=plan.round_id)
    return Session(spec, plan.partition, members, plan.settings)


def why_lost(tasks: Sequence[TaskRow]) -> str:
    """Return what to say of a group that failed: its first part that cannot complete, and why."""
    for task in tasks:
        if task.state in FINAL_STATES and task.state is not TaskState.COMPLETED:
            why = task.message or task.failure or "no reason was given"
            return f"part {task.part} is {task.state}: {why}"
    return "no reason was given"
