"""What people are shown of sessions that train in rounds."""

from __future__ import annotations

import json

from parity_market.store import sql, sql_rounds
from parity_market.store.base import ReadTx
from parity_market.store.rows import FlRoundRow, FlSessionRow, GroupRow, from_us, maybe_time
from parity_protocol.api.rounds import FlRoundReply, FlSessionReply, FlSessionsReply, FlUpdateReply
from parity_protocol.errors import NotFound
from parity_protocol.task import GroupState

__all__ = ["MAX_ROUNDS", "session", "sessions"]

MAX_ROUNDS = 200  # and phases, of one answer; the rest by ``from_round`` and ``from_phase``
_LAST_ID = "~"  # after every id


def session(tx: ReadTx, group_id: str, *, first: int, first_phase: int = 0) -> FlSessionReply:
    """Return a session with at most ``MAX_ROUNDS`` rounds and phases, from a phase of round ``first`` on.

    Raises:
        NotFound: There is none with this id.
    """
    group = tx.one(sql.GROUP, id=group_id)
    if group is None:
        raise NotFound(f"there is no session {group_id}")
    row = tx.one(sql_rounds.FL_SESSION, group_id=group_id)
    if row is None:
        raise NotFound(f"session {group_id} does not train in rounds, or has not begun")
    found = tx.all(sql_rounds.FL_ROUNDS, group_id=group_id, first=first, first_phase=first_phase, limit=MAX_ROUNDS)
    rounds = tuple(_round(tx, one) for one in found if json.loads(one.cohort_doc))  # the last one is the final model
    return _session(row, group, rounds)


def sessions(tx: ReadTx, creator: str, *, before: str, limit: int) -> FlSessionsReply:
    """Return a submitter's sessions, newest first, from before the id ``before``."""
    rows = tx.all(sql_rounds.FL_SESSIONS_OF_CREATOR, creator=creator, before=before or _LAST_ID, limit=limit + 1)
    shown = []
    for row in rows[:limit]:
        group = tx.one(sql.GROUP, id=row.group_id)
        if group is not None:
            shown.append(_session(row, group))
    return FlSessionsReply(sessions=tuple(shown), next_cursor=rows[limit - 1].group_id if len(rows) > limit else None)


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


def _round(tx: ReadTx, row: FlRoundRow) -> FlRoundReply:
    updates = tx.all(sql_rounds.FL_UPDATES_OF_ROUND, group_id=row.group_id, round=row.round, phase=row.phase)
    return FlRoundReply(
        round=row.round,
        phase=row.phase,
        asks=row.asks,
        state=row.state,
        base=row.base_hash,
        base_size=row.base_size,
        cohort=tuple(json.loads(row.cohort_doc)),
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
