"""Sessions in the old network's form: described first, started later, and shown as its server shows them.

What is described waits here until it is started; then it is a submission like every other, with the same id. A session
that was made any other way is shown in that form too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import fmean, variance
from typing import Any, Final

from parity_market.domain.rounds import LEGACY, UpdateState
from parity_market.operations import groups
from parity_market.operations.groups import Group
from parity_market.operations.round_views import SESSION_KIND
from parity_market.operations.tasks import NO_ORDER
from parity_market.store import sql, sql_legacy, sql_rounds
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import FlSessionRow, OldSessionRow, from_us, to_us
from parity_protocol.errors import Conflict, NotFound, Overloaded
from parity_protocol.parity_session import OldSession, read_old_session
from parity_protocol.task import FederatedLearningSpec, GroupState

__all__ = [
    "PENDING",
    "STARTED",
    "Shown",
    "check_room",
    "create",
    "find",
    "listed",
    "mark_started",
    "model_reply",
    "session_reply",
]

PENDING: Final = "pending"
STARTED: Final = "started"
MAX_LISTED: Final = 200
MAX_WAITING: Final = 100  # sessions of one account that were described and not started
MAX_WAITING_UNPROVEN: Final = 1_000  # of all who did not sign, together
MAX_RUNNING: Final = 20  # sessions of one account without an order
MAX_RUNNING_UNPROVEN: Final = 100
_MOST_LOSS: Final = 1e100  # what nodes say is any number, and its square must be one
WAITS: Final = timedelta(days=7)  # then it is forgotten
_STATUS: Final = {
    GroupState.RUNNING: "active",
    GroupState.COMPLETED: "completed",
    GroupState.FAILED: "failed",
    GroupState.CANCELLED: "failed",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """A session to show: described, started, or both."""

    id: str
    creator: str
    described: OldSessionRow | None
    group: Group | None
    session: FlSessionRow | None  # when it trains in rounds and has begun


def create(tx: Tx, row: OldSessionRow, now: datetime) -> None:
    """Keep a session that was described.

    Raises:
        Overloaded: Too many wait to be started.
    """
    tx.run(sql_legacy.OLD_SESSIONS_FORGOTTEN, state=PENDING, before_us=to_us(now - WAITS))
    creators = _counted_with(row.creator)
    most = MAX_WAITING_UNPROVEN if row.creator.startswith(LEGACY) else MAX_WAITING
    if (tx.one(sql_legacy.OLD_SESSIONS_WAITING, state=PENDING, creators=creators) or 0) >= most:
        raise Overloaded(f"{most} sessions wait to be started already", retry_after_s=60.0)
    tx.insert(sql_legacy.OLD_SESSION_INSERT, row)


def mark_started(tx: Tx, session_id: str, now: datetime) -> None:
    """Note that a session has become a submission.

    Raises:
        Conflict: It had before.
    """
    row = tx.one(sql_legacy.OLD_SESSION, id=session_id)
    if row is None or row.state != PENDING:
        raise Conflict("session must be in pending status to start")
    tx.run(sql_legacy.OLD_SESSION_MOVED, key_id=session_id, state=STARTED, updated_us=to_us(now))


def check_room(tx: ReadTx, creator: str) -> None:
    """Let nobody run sessions without end that nobody pays for.

    Raises:
        Overloaded: So many run already.
    """
    running = tx.one(
        sql_legacy.UNORDERED_RUNNING, state=GroupState.RUNNING, creators=_counted_with(creator), order_doc=NO_ORDER
    )
    most = MAX_RUNNING_UNPROVEN if creator.startswith(LEGACY) else MAX_RUNNING
    if (running or 0) >= most:
        raise Overloaded(f"{most} sessions without an order run already", retry_after_s=60.0)


def _counted_with(creator: str) -> str:
    """Return the creators, as LIKE reads it, that share a limit: addresses that nobody has proved cost nothing."""
    return LEGACY + "%" if creator.startswith(LEGACY) else creator


def find(tx: ReadTx, session_id: str) -> Shown:
    """Return a session.

    Raises:
        NotFound: There is none.
    """
    described = tx.one(sql_legacy.OLD_SESSION, id=session_id)
    try:
        group = groups.load(tx, session_id)
    except NotFound:
        if described is None:
            raise NotFound("Session not found") from None
        return Shown(session_id, described.creator, described, None, None)
    if not isinstance(group.value.spec, FederatedLearningSpec):
        raise NotFound("Session not found")
    session = tx.one(sql_rounds.FL_SESSION, group_id=session_id)
    return Shown(session_id, group.row.creator, described, group, session)


def listed(tx: ReadTx, creator: str) -> list[Shown]:
    """Return a creator's newest sessions: those that were described in this form, and all others."""
    ids = {row.id for row in tx.all(sql_legacy.OLD_SESSIONS_OF_CREATOR, creator=creator, limit=MAX_LISTED)}
    trained = tx.all(sql.GROUPS_OF_CREATOR, creator=creator, kind=SESSION_KIND, before="~", limit=MAX_LISTED)
    ids |= {row.id for row in trained}
    return [find(tx, one) for one in sorted(ids, reverse=True)[:MAX_LISTED]]


def session_reply(shown: Shown) -> dict[str, Any]:
    """Return a session as the old server shows it."""
    group, session, described = shown.group, shown.session, shown.described
    said = _described(described) if described is not None else _of_spec(shown)
    created = described.created_us if described is not None else group.row.created_us if group is not None else 0
    times = [created, described.updated_us if described is not None else 0, session.updated_us if session else 0]
    reply: dict[str, Any] = {
        "id": shown.id,
        "name": said["name"],
        "description": said["description"],
        "model_type": said["model_type"],
        "status": PENDING if group is None else _STATUS[group.value.state],
        "current_round": _round(shown),
        "total_rounds": said["total_rounds"],
        "min_participants": said["min_participants"],
        "participant_count": 0 if group is None else sum(task.last_node is not None for task in group.tasks),
        "config": said["config"],
        "creator_address": said["creator_address"],
        "created_at": _seconds(created),
        "updated_at": _seconds(max(times)),
    }
    if group is not None and group.row.completed_us is not None:
        reply["completed_at"] = _seconds(group.row.completed_us)
    if group is not None and group.row.message:
        reply["message"] = group.row.message
    return reply


def model_reply(tx: ReadTx, shown: Shown, layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return a finished session's model as the old server shows it: the same lists under three names.

    Args:
        layers: ``parity_fl.old_model.write_old_layers_of``.
    """
    assert shown.group is not None
    said = _described(shown.described) if shown.described is not None else _of_spec(shown)
    number = _round(shown)
    metrics, count = _metrics(tx, shown, number)
    return {
        "completed_at": from_us(shown.group.row.completed_us or 0).isoformat().replace("+00:00", "Z"),
        "model_data": {
            "aggregated_model": layers,
            "global_metrics": metrics,
            "gradients": layers,
            "method": said["config"]["aggregation_method"],
            "participant_count": count,
            "round_summary": f"Round {number} completed with {count} participants",
            "weights": layers,
        },
        "model_type": said["model_type"],
        "session_id": shown.id,
        "session_name": said["name"],
        "status": _STATUS[shown.group.value.state],
        "total_rounds": said["total_rounds"],
    }


def _metrics(tx: ReadTx, shown: Shown, number: int) -> tuple[dict[str, float], int]:
    """Return what the last round's participants said on average, with what the market measured, and how many there were.

    variance is that of the losses; convergence is 1 without any, else 1 - variance / mean, at least 0.
    """
    assert shown.group is not None
    measured = {
        name: float(value) for name, value in json.loads(shown.group.row.metrics_doc).items() if _is_number(value)
    }
    rows = tx.all(sql_rounds.FL_UPDATES_OF_ROUND, group_id=shown.id, round=number, phase=0)
    said = [json.loads(row.metrics_doc) for row in rows if row.state == UpdateState.ACCEPTED]
    losses = [max(-_MOST_LOSS, min(_MOST_LOSS, float(one["loss"]))) for one in said if "loss" in one]
    scores = [float(one["accuracy"]) for one in said if "accuracy" in one]
    spread = variance(losses) if len(losses) > 1 else 0.0
    loss = fmean(losses) if losses else measured.get("loss", 0.0)
    return {
        "average_accuracy": fmean(scores) if scores else measured.get("accuracy", measured.get("r2", 0.0)),
        "average_loss": loss,
        "convergence": 1.0 if spread == 0 else max(0.0, 1 - spread / loss) if loss > 0 else 0.0,
        "variance": spread,
        **{f"holdout_{name}": value for name, value in measured.items() if name in ("accuracy", "loss", "r2")},
    }, len(said) or len(shown.group.tasks)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _round(shown: Shown) -> int:
    """Return the round that a session is in, or ended with; 0 before it is started."""
    if shown.group is None:
        return 0
    if shown.session is None:
        return 1
    # A session that is done holds its final model as the round after the last.
    is_over = shown.session.state == "done"
    return max(1, shown.session.round - is_over)


def _described(row: OldSessionRow) -> dict[str, Any]:
    found: OldSession = read_old_session(json.loads(row.doc))
    return {
        "name": found.name,
        "description": found.description,
        "model_type": found.model_type,
        "total_rounds": found.total_rounds,
        "min_participants": found.min_participants,
        "creator_address": found.creator_address,
        "config": found.config,
    }


def _of_spec(shown: Shown) -> dict[str, Any]:
    """Return what a session of ours would have been described as."""
    assert shown.group is not None
    spec = shown.group.value.spec
    assert isinstance(spec, FederatedLearningSpec)
    training = spec.train_config
    return {
        "name": spec.title or shown.id,
        "description": spec.description,
        "model_type": spec.model_type,
        "total_rounds": spec.total_rounds if shown.session is None else shown.session.total_rounds,
        "min_participants": len(shown.group.tasks),
        "creator_address": shown.creator,
        "config": {
            "aggregation_method": str(spec.strategy_config.get("strategy") or "fedavg").lower(),
            "learning_rate": training.get("learning_rate", 0),
            "batch_size": training.get("batch_size", 0),
            "local_epochs": training.get("epochs", 0),
            "client_selection": "all" if spec.rounds_config.get("fraction", 1) == 1 else "random",
            "model_config": spec.model_settings,
            "privacy_config": {"differential_privacy": False, "secure_aggregation": False, **spec.privacy},
        },
    }


def _seconds(micros: int) -> str:
    return from_us(micros).strftime("%Y-%m-%dT%H:%M:%SZ")
