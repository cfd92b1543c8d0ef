"""Statements about the old network's devices and sessions."""

from __future__ import annotations

import sqlalchemy as sa

from parity_market.store import rows
from parity_market.store import tables as t
from parity_market.store.builders import bind, find, insert, scalar, select_rows, update, whole
from parity_market.store.statements import Command, upsert

LEGACY_DEVICE = find(rows.LegacyDeviceRow, t.legacy_device, "id")
LEGACY_DEVICE_INSERT = upsert(t.legacy_device, keys=["id"], update=[])
LEGACY_DEVICE_SEEN = update(t.legacy_device, ["id"], "last_seen_us")
LEGACY_DEVICES_COUNTED = scalar(sa.select(sa.func.count()).select_from(t.legacy_device))
LEGACY_DEVICES_FORGOTTEN = Command(
    sa.delete(t.legacy_device).where(t.legacy_device.c.last_seen_us < whole("before_us"))
)

OLD_SESSION = find(rows.OldSessionRow, t.old_session, "id")
OLD_SESSION_INSERT = insert(t.old_session)
OLD_SESSION_MOVED = update(t.old_session, ["id"], "state", "updated_us")
OLD_SESSIONS_OF_CREATOR = select_rows(
    rows.OldSessionRow,
    t.old_session,
    lambda s: (
        s.where(t.old_session.c.creator == bind("creator")).order_by(t.old_session.c.id.desc()).limit(whole("limit"))
    ),
)
OLD_SESSIONS_WAITING = scalar(
    sa.select(sa.func.count())
    .select_from(t.old_session)
    .where(t.old_session.c.state == bind("state"), t.old_session.c.creator.like(bind("creators")))
)
OLD_SESSIONS_FORGOTTEN = Command(
    sa.delete(t.old_session).where(
        t.old_session.c.state == bind("state"), t.old_session.c.created_us < whole("before_us")
    )
)

# Ids of a part's tasks, one a round, differ from the part's own in the last 32 bits alone: see ``operations.legacy``.
TASKS_BETWEEN = select_rows(
    rows.TaskRow,
    t.task,
    lambda s: s.where(t.task.c.id >= bind("first"), t.task.c.id <= bind("last")).limit(2),
)
UNORDERED_RUNNING = scalar(
    sa.select(sa.func.count())
    .select_from(t.task_group.join(t.submission, t.submission.c.id == t.task_group.c.id))
    .where(
        t.task_group.c.state == bind("state"),
        t.task_group.c.creator.like(bind("creators")),
        t.submission.c.order_doc == bind("order_doc"),
    )
)
