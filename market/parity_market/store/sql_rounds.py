"""Statements about training in rounds: sessions, rounds, updates."""

from __future__ import annotations

import sqlalchemy as sa

from parity_market.store import rows
from parity_market.store import tables as t
from parity_market.store.builders import bind, find, insert, scalar, select_rows, update, whole
from parity_market.store.statements import Command, upsert

TASK_OF_PART = find(rows.TaskRow, t.task, "group_id", "part")

FL_SESSION = find(rows.FlSessionRow, t.fl_session, "group_id")
FL_SESSION_INSERT = upsert(t.fl_session, keys=["group_id"], update=[])
FL_SESSION_MOVED = update(t.fl_session, ["group_id"], "state", "round", "phase", "deadline_us", "message", "updated_us")
FL_DEADLINES_FORGOTTEN = Command(
    sa.update(t.fl_session)
    .where(t.fl_session.c.deadline_us.is_not(None), t.fl_session.c.deadline_us < whole("until_us"))
    .values(deadline_us=whole("new_until_us"))
)

FL_ROUND = find(rows.FlRoundRow, t.fl_round, "group_id", "round", "phase")
FL_ROUND_INSERT = insert(t.fl_round)
FL_ROUND_MOVED = update(t.fl_round, ["group_id", "round", "phase"], "state", "metrics_doc", "closed_us")
FL_ROUND_GIVEN_UP = update(t.fl_round, ["group_id", "round", "phase"], "state", "cohort_doc", "closed_us")
FL_ROUNDS = select_rows(
    rows.FlRoundRow,
    t.fl_round,
    lambda s: (
        s.where(
            t.fl_round.c.group_id == bind("group_id"),
            sa.tuple_(t.fl_round.c.round, t.fl_round.c.phase) >= sa.tuple_(whole("first"), whole("first_phase")),
        )
        .order_by(t.fl_round.c.round, t.fl_round.c.phase)
        .limit(whole("limit"))
    ),
)

FL_ROUNDS_SAVED = select_rows(
    rows.FlRoundRow,
    t.fl_round,
    lambda s: s.where(
        t.fl_round.c.group_id == bind("group_id"),
        t.fl_round.c.state == "closed",
        t.fl_round.c.metrics_doc.contains('"checkpoint_cid"', autoescape=True),
    ).order_by(t.fl_round.c.round, t.fl_round.c.phase),
)
# Its text is searched: few sessions of one submitter run, or failed, and a spec is one page.
FL_RESUMED_FROM = scalar(
    sa.select(t.task_group.c.id)
    .select_from(t.task_group.join(t.submission, t.task_group.c.id == t.submission.c.id))
    .where(
        t.task_group.c.creator == bind("creator"),
        sa.or_(t.task_group.c.state == "running", t.task_group.c.state == "failed"),
        t.submission.c.spec.contains(bind("cid")),
    )
    .limit(1)
)

FL_SHARD = find(rows.FlShardRow, t.fl_shard, "group_id", "part")
FL_SHARD_INSERT = insert(t.fl_shard)

FL_UPDATE = find(rows.FlUpdateRow, t.fl_update, "group_id", "round", "phase", "part", "fence")
FL_UPDATE_INSERT = insert(t.fl_update)
FL_UPDATE_JUDGED = update(
    t.fl_update, ["group_id", "round", "phase", "part", "fence"], "state", "reason", "metrics_doc"
)
FL_UPDATES_OF_ROUND = select_rows(
    rows.FlUpdateRow,
    t.fl_update,
    lambda s: s.where(
        t.fl_update.c.group_id == bind("group_id"),
        t.fl_update.c.round == whole("round"),
        t.fl_update.c.phase == whole("phase"),
    ).order_by(t.fl_update.c.part, t.fl_update.c.fence),
)
FL_UPDATES_OF_PART_IN_ROUND = select_rows(
    rows.FlUpdateRow,
    t.fl_update,
    lambda s: s.where(
        t.fl_update.c.group_id == bind("group_id"),
        t.fl_update.c.round == whole("round"),
        t.fl_update.c.phase == whole("phase"),
        t.fl_update.c.part == whole("part"),
    ),
)
FL_UPDATES_OF_PART = select_rows(
    rows.FlUpdateRow,
    t.fl_update,
    lambda s: s.where(
        t.fl_update.c.group_id == bind("group_id"),
        t.fl_update.c.part == whole("part"),
        t.fl_update.c.state == "accepted",
    ).order_by(t.fl_update.c.round, t.fl_update.c.phase, t.fl_update.c.fence),
)

FL_SMALL_FILES = find(rows.FlSmallFileRow, t.fl_small_file, "group_id")
FL_SMALL_FILE_PUT = upsert(t.fl_small_file, keys=["group_id", "name"], update=["data"])
FL_SMALL_FILES_FORGOTTEN = Command(sa.delete(t.fl_small_file).where(t.fl_small_file.c.group_id == bind("group_id")))
FL_SMALL_FILES_BUT_STATES_FORGOTTEN = Command(
    sa.delete(t.fl_small_file).where(
        t.fl_small_file.c.group_id == bind("group_id"), sa.not_(t.fl_small_file.c.name.like("state-%"))
    )
)
