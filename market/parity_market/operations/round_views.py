"""What people are shown of sessions."""

from __future__ import annotations

import json

from parity_market.domain.federation import open_session
from parity_market.store import sql, sql_rounds
from parity_market.store.base import ReadTx
from parity_market.store.rows import FlRoundRow, FlSessionRow, GroupRow, from_us, maybe_time
from parity_protocol.api.rounds import FlRoundReply, FlSessionReply, FlSessionsReply, FlUpdateReply
from parity_protocol.errors import NotFound
from parity_protocol.task import GroupState, parse_spec

__all__ = ["MAX_ROUNDS", "SESSION_KIND", "session", "sessions"]

MAX_ROUNDS = 200  # and phases, of one answer; the rest by ``from_round`` and ``from_phase``
SESSION_KIND = "federated_learning"  # of a group
_LAST_ID = "~"  # after every id


def session(tx: ReadTx, group_id: str, *, first: int, first_phase: int = 0) -> FlSessionReply:
    """Return a session with at most ``MAX_ROUNDS`` rounds and phases, from a phase of round ``first`` on.

    One that has not begun, or whose parts are merged without rounds, has none to list.

    Raises:
        NotFound: There is none with this id.
    """
    group = tx.one(sql.GROUP, id=group_id)
    if group is None or group.kind != SESSION_KIND:
        raise NotFound(f"there is no session {group_id}")
    row = tx.one(sql_rounds.FL_SESSION, group_id=group_id)
    if row is None:
        return _without_rounds(tx, group)
    found = tx.all(sql_rounds.FL_ROUNDS, group_id=group_id, first=first, first_phase=first_phase, limit=MAX_ROUNDS)
    assignment = json.loads(row.settings_doc).get("assignment_hash", "")
    rounds = tuple(
        _round(tx, one, assignment) for one in found if json.loads(one.cohort_doc)
    )  # the last one is the final model
    return _session(row, group, rounds)


def sessions(tx: ReadTx, creator: str, *, before: str, limit: int) -> FlSessionsReply:
    """Return a submitter's sessions, newest first, from before the id ``before``."""
    rows = tx.all(sql.GROUPS_OF_CREATOR, creator=creator, kind=SESSION_KIND, before=before or _LAST_ID, limit=limit + 1)
    shown = []
    for group in rows[:limit]:
        row = tx.one(sql_rounds.FL_SESSION, group_id=group.id)
        shown.append(_without_rounds(tx, group) if row is None else _session(row, group))
    return FlSessionsReply(sessions=tuple(shown), next_cursor=rows[limit - 1].id if len(rows) > limit else None)


def _session(row: FlSessionRow, group: GroupRow, rounds: tuple[FlRoundReply, ...] = ()) -> FlSessionReply:
    has_ended = group.state != GroupState.RUNNING
    return FlSessionReply(
        id=row.group_id,
        state=group.state if has_ended else row.state,
        round=row.round,
        phase=row.phase,
        total_rounds=row.total_rounds,
        closes_at=maybe_time(row.deadline_us),
        settings=json.loads(row.settings_doc),
        message=group.message or row.message,
        result_cid=group.result_cid,
        metrics=json.loads(group.metrics_doc),
        created_at=from_us(row.created_us),
        updated_at=from_us(row.updated_us),
        rounds=rounds,
    )


def _without_rounds(tx: ReadTx, group: GroupRow) -> FlSessionReply:
    """Return a session that has no row of its own, from what was submitted and planned."""
    submission = tx.one(sql.SUBMISSION, id=group.id)
    assert submission is not None  # written in the same commit
    opened = open_session(parse_spec(submission.spec), group.plan_doc)
    total = opened.members.get("total_rounds")
    total = total if isinstance(total, int) else 1
    return FlSessionReply(
        id=group.id,
        state=group.state,
        round=total + 1 if group.state == GroupState.COMPLETED else 0,
        phase=0,
        total_rounds=total,
        settings=opened.told(),
        message=group.message,
        result_cid=group.result_cid,
        metrics=json.loads(group.metrics_doc),
        created_at=from_us(group.created_us),
        updated_at=from_us(group.completed_us or group.created_us),
    )


def _round(tx: ReadTx, row: FlRoundRow, assignment: str) -> FlRoundReply:
    updates = tx.all(sql_rounds.FL_UPDATES_OF_ROUND, group_id=row.group_id, round=row.round, phase=row.phase)
    return FlRoundReply(
        round=row.round,
        phase=row.phase,
        asks=row.asks,
        state=row.state,
        base=row.base_hash,
        base_size=row.base_size,
        cohort=tuple(json.loads(row.cohort_doc)),
        assignment_hash=assignment,
        metrics=json.loads(row.metrics_doc),
        updates=tuple(
            FlUpdateReply(
                part=one.part,
                node_id=one.node_id,
                fence=one.fence,
                sha256=one.sha256,
                size=one.size,
                state=one.state,
                reason=one.reason,
                metrics=json.loads(one.metrics_doc),
                received_at=from_us(one.received_us),
            )
            for one in updates
        ),
        opened_at=from_us(row.opened_us),
        closed_at=maybe_time(row.closed_us),
    )
