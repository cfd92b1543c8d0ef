"""Training in rounds, in the writer: beginning, updates, closing, and what its submitter may do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from secrets import token_bytes

from parity_fl.rounds_config import RoundsConfig, cohort_of
from parity_market.domain.rounds import RoundState, SessionState, UpdateState
from parity_market.operations import reports, round_small
from parity_market.operations.context import Market
from parity_market.operations.settling import shares_of_part
from parity_market.operations.steps import load_task, newest_lease
from parity_market.store import sql, sql_rounds
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import FlRoundRow, FlSessionRow, FlUpdateRow, GroupRow, TaskRow, to_us
from parity_protocol.errors import Conflict, NotFound, StaleFence, TaskCancelled
from parity_protocol.task import GroupState, TaskState

__all__ = [
    "NewUpdate",
    "OpenRound",
    "Published",
    "accept",
    "begin",
    "check_part",
    "config_of",
    "examine",
    "forget_deadlines",
    "has_session",
    "holds_part",
    "load",
    "move",
    "move_round",
    "open_round",
    "open_row",
    "pairs_of",
    "session_of",
    "set_clock",
    "take",
    "tell",
]


@dataclass(frozen=True, slots=True)
class Published:
    """A file that others may fetch."""

    sha256: str  # hex; of a checkpoint its CID
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class OpenRound:
    """A session with its open round."""

    session: FlSessionRow
    row: FlRoundRow
    updates: tuple[FlUpdateRow, ...]
    cohort: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NewUpdate:
    """An update whose bytes are on disk, from whoever holds the part's lease."""

    number: int
    phase: int
    part: int
    lease_id: str
    fence: int
    base: str
    sha256: str
    size: int
    metrics: Mapping[str, float]


def config_of(session: FlSessionRow, *, parts: int) -> RoundsConfig:
    """Return a session's rounds."""
    return RoundsConfig.from_dict(json.loads(session.settings_doc)["rounds"], parts=parts)


def open_row(tx: ReadTx, group_id: str) -> tuple[FlSessionRow, FlRoundRow] | None:
    """Return a session and its open round, without its updates, which may be many; None before it began."""
    session = tx.one(sql_rounds.FL_SESSION, group_id=group_id)
    if session is None:
        return None
    row = tx.one(sql_rounds.FL_ROUND, group_id=group_id, round=session.round, phase=session.phase)
    if row is None:
        raise NotFound(f"session {group_id} has no round {session.round}")
    return session, row


def load(tx: ReadTx, group_id: str) -> OpenRound | None:
    """Return a session and its open round with all updates; None before it began."""
    found = open_row(tx, group_id)
    if found is None:
        return None
    session, row = found
    updates = tx.all(sql_rounds.FL_UPDATES_OF_ROUND, group_id=group_id, round=session.round, phase=session.phase)
    return OpenRound(session, row, tuple(updates), tuple(json.loads(row.cohort_doc)))


def begin(
    tx: Tx,
    market: Market,
    group: GroupRow,
    config: RoundsConfig,
    settings: Mapping[str, object],
    first: Published,
    *,
    seed: str,
    now: datetime,
    number: int = 1,
    asks: str = "train",
) -> bool:
    """Open the first round with its model; returns False when the session had begun, or its group has ended.

    Args:
        number: Of that round: above 1 the session goes on from a checkpoint.
        asks: What the parts do first. When that is not training it is round 0, in which all parts agree on something.
    """
    row = tx.one(sql.GROUP, id=group.id)
    if row is None or row.state != GroupState.RUNNING:
        return False
    now_us, number = to_us(now), number if asks == "train" else 0
    session = FlSessionRow(
        group.id,
        SessionState.RUNNING,
        number,
        0,
        config.total_rounds,
        None,
        json.dumps(settings, separators=(",", ":")),
        "",
        now_us,
        now_us,
    )
    if not tx.insert(sql_rounds.FL_SESSION_INSERT, session):
        return False
    cohort: Sequence[int] = range(group.parts)
    if number:
        cohort = cohort_of(config, parts=group.parts, seed=seed, number=number, coins=token_bytes)
    open_round(tx, group.id, number, 0, first, cohort, now_us, asks)
    tell(tx, market, group.id)
    return True


def open_round(
    tx: Tx,
    group_id: str,
    number: int,
    phase: int,
    base: Published,
    cohort: Sequence[int],
    now_us: int,
    asks: str = "train",
) -> None:
    """Insert a round, or a phase of one, that starts from the model ``base``."""
    doc = json.dumps(list(cohort), separators=(",", ":"))
    tx.insert(
        sql_rounds.FL_ROUND_INSERT,
        FlRoundRow(group_id, number, phase, RoundState.OPEN, base.sha256, base.size, doc, "{}", now_us, None, asks),
    )


def check_part(tx: ReadTx, group_id: str, part: int, *, node_id: str, lease_id: str, fence: int) -> TaskRow:
    """Return a part's task if the node holds its lease.

    Raises:
        NotFound: There is no such session or part.
        TaskCancelled: The task was cancelled, or the session has failed.
        StaleFence: The lease is not this node's current one.
    """
    task = tx.one(sql_rounds.TASK_OF_PART, group_id=group_id, part=part)
    if task is None:
        raise NotFound(f"there is no part {part} of a session {group_id}")
    if task.state is TaskState.CANCELLED:
        raise TaskCancelled(task.message or f"task {task.id} was cancelled")
    lease = newest_lease(tx, task)
    if lease is None or not lease.live or (lease.id, lease.fence, lease.node_id) != (lease_id, fence, node_id):
        raise StaleFence(f"lease {lease_id} with fence {fence} of part {part} is not current")
    return task


def has_session(tx: ReadTx, group_id: str) -> bool:
    """Return whether a group trains in rounds and has begun."""
    return tx.one(sql_rounds.FL_SESSION, group_id=group_id) is not None


def holds_part(tasks: Sequence[TaskRow], node_id: str) -> bool:
    """Return whether a node was the last to hold one of a session's parts."""
    return any(task.last_node == node_id for task in tasks)


def examine(tx: ReadTx, group_id: str, node_id: str, new: NewUpdate) -> FlUpdateRow | None:
    """Return the update that was taken under the same key before, or None when this one may come.

    Raises:
        StaleFence: The lease has moved on; ``TaskCancelled``, ``NotFound`` as of ``check_part``.
        Conflict: It is late, for another model, or not asked for; the message says which.
    """
    check_part(tx, group_id, new.part, node_id=node_id, lease_id=new.lease_id, fence=new.fence)
    known = tx.one(
        sql_rounds.FL_UPDATE, group_id=group_id, round=new.number, phase=new.phase, part=new.part, fence=new.fence
    )
    if known is not None:
        return known
    found = open_row(tx, group_id)
    if found is None:
        raise Conflict("the session has not begun")
    session, row = found
    if (new.number, new.phase) != (session.round, session.phase) or row.state != RoundState.OPEN:
        raise Conflict(f"late: round {new.number} phase {new.phase} is closed; nothing is paid for this update")
    if new.base != row.base_hash:
        raise Conflict(f"the update starts from the model {new.base[:16]}, round {row.round} from {row.base_hash[:16]}")
    if new.part not in json.loads(row.cohort_doc):
        raise Conflict(f"part {new.part} is not asked in round {new.number}")
    return None


def take(
    tx: Tx, group_id: str, node_id: str, new: NewUpdate, now: datetime, small: Mapping[str, bytes] | None = None
) -> bool:
    """Note an update that is on disk; returns False when it was known.

    Args:
        small: Its file, if it is small: that is durable with the row.

    Raises:
        Conflict: Another one came before under the same lease, or as of ``examine``; so the others.
    """
    known = examine(tx, group_id, node_id, new)
    if known is not None:
        if known.sha256 != new.sha256:
            raise Conflict(f"another update of part {new.part} to round {new.number} was taken before")
        return False
    tx.insert(
        sql_rounds.FL_UPDATE_INSERT,
        FlUpdateRow(
            group_id,
            new.number,
            new.phase,
            new.part,
            new.fence,
            node_id,
            new.base,
            new.sha256,
            new.size,
            UpdateState.RECEIVED,
            "",
            json.dumps(dict(new.metrics), separators=(",", ":")),
            to_us(now),
        ),
    )
    round_small.keep(tx, group_id, small or {})
    return True


def set_clock(tx: Tx, group_id: str, deadline: datetime | None, message: str, now: datetime) -> None:
    """Start or stop the open round's clock."""
    session = session_of(tx, group_id)
    move(tx, session, now, deadline_us=None if deadline is None else to_us(deadline), message=message)


def pairs_of(tx: ReadTx, group_id: str, part: int, fence: int) -> list[tuple[int, int, str]]:
    """Return (round, phase, sha256) of a part's accepted updates under one lease, in order."""
    return [
        (update.round, update.phase, update.sha256)
        for update in tx.all(sql_rounds.FL_UPDATES_OF_PART, group_id=group_id, part=part)
        if update.fence == fence
    ]


def accept(tx: Tx, market: Market, task_id: str, fence: int, now: datetime) -> TaskRow:
    """Complete a part whose list was checked, and pay all who held it for the rounds that they did; see ``settling``.

    Raises:
        InvalidTransition: It is not verifying this fence's result (any more).
    """
    earned, others = shares_of_part(tx, load_task(tx, task_id), accepted=fence)
    return reports.accept(tx, market, task_id, fence, now, earned=earned, others=others)


def session_of(tx: ReadTx, group_id: str) -> FlSessionRow:
    """Return a session that trains in rounds; ``NotFound`` when there is none."""
    session = tx.one(sql_rounds.FL_SESSION, group_id=group_id)
    if session is None:
        raise NotFound(f"there is no session {group_id} that trains in rounds")
    return session


def move(
    tx: Tx,
    session: FlSessionRow,
    now: datetime,
    *,
    deadline_us: int | None,
    message: str,
    state: SessionState | None = None,
    round: int | None = None,  # noqa: A002 - the column's name
    phase: int | None = None,
) -> FlSessionRow:
    """Write a session's new state, round, phase and deadline; return the row as it is now."""
    moved = session._replace(
        state=state or session.state,
        round=session.round if round is None else round,
        phase=session.phase if phase is None else phase,
        deadline_us=deadline_us,
        message=message,
        updated_us=to_us(now),
    )
    tx.run(
        sql_rounds.FL_SESSION_MOVED,
        key_group_id=moved.group_id,
        state=moved.state,
        round=moved.round,
        phase=moved.phase,
        deadline_us=moved.deadline_us,
        message=moved.message,
        updated_us=moved.updated_us,
    )
    return moved


def move_round(
    tx: Tx, row: FlRoundRow, state: RoundState, metrics: Mapping[str, object], closed_us: int | None
) -> None:
    """Write a round's new state and what people are shown of it."""
    tx.run(
        sql_rounds.FL_ROUND_MOVED,
        key_group_id=row.group_id,
        key_round=row.round,
        key_phase=row.phase,
        state=state,
        metrics_doc=json.dumps(dict(metrics), separators=(",", ":")),
        closed_us=closed_us,
    )


def tell(tx: Tx, market: Market, group_id: str) -> None:
    """Wake whoever waits for the session, once this is durable."""
    tx.after_commit(partial(market.signals.task_changed, group_id))


def forget_deadlines(tx: Tx, now: datetime, until: timedelta) -> int:
    """Give every running round at least ``until`` from now: nodes could not send while the market was down."""
    later = to_us(now + until)
    return tx.run(sql_rounds.FL_DEADLINES_FORGOTTEN, until_us=later, new_until_us=later)
