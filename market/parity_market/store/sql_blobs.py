"""Statements about blobs: who refers to which, and the small ones that lie in the database."""

from __future__ import annotations

import sqlalchemy as sa

from parity_market.store import rows
from parity_market.store import tables as t
from parity_market.store.builders import bind, find, scalar, select_rows, update, whole
from parity_market.store.sql import LEASE_LIVE, LIVE_STATES
from parity_market.store.statements import Command, upsert

BLOB_REF_PUT = upsert(t.blob_ref, keys=["cid", "owner", "task_id"], update=[])
BLOB_REFS = select_rows(
    rows.BlobRefRow,
    t.blob_ref,
    lambda s: s.where(t.blob_ref.c.cid == bind("cid")).order_by(t.blob_ref.c.created_us, t.blob_ref.c.owner),
)
BLOB_REF = find(rows.BlobRefRow, t.blob_ref, "cid", "owner", "task_id")
BLOB_PUBLISH = update(t.blob_ref, ["cid", "owner"], "visibility")
BLOB_PIN = update(t.blob_ref, ["cid", "owner"], "pinned")
BLOB_REF_DELETE = Command(
    sa.delete(t.blob_ref).where(
        t.blob_ref.c.cid == bind("cid"),
        t.blob_ref.c.owner == bind("owner"),
        t.blob_ref.c.task_id == sa.literal_column("''"),
    )
)
BLOB_RESULT_OF_NODE = scalar(
    sa.select(t.task.c.result_size)
    .select_from(t.blob_ref.join(t.task, t.blob_ref.c.task_id == t.task.c.id))
    .where(
        t.blob_ref.c.cid == bind("cid"),
        t.task.c.result_cid == t.blob_ref.c.cid,
        t.task.c.last_node == bind("node_id"),
    )
    .limit(1)
)
BLOBS_OF_OWNER = select_rows(
    rows.BlobRefRow,
    t.blob_ref,
    lambda s: (
        s.where(
            t.blob_ref.c.owner == bind("owner"),
            t.blob_ref.c.task_id == sa.literal_column("''"),
            t.blob_ref.c.cid > bind("after"),
        )
        .order_by(t.blob_ref.c.cid)
        .limit(whole("limit"))
    ),
)
BLOB_NEEDED_BY = scalar(
    sa.select(t.task.c.id)
    .select_from(t.blob_ref.join(t.task, t.blob_ref.c.task_id == t.task.c.id))
    .where(t.blob_ref.c.cid == bind("cid"), t.blob_ref.c.owner == bind("owner"), LIVE_STATES)
    .limit(1)
)
# A reference holds content if somebody stored it, a task brought it, or a task that has not ended reads it.
BLOB_HELD = scalar(
    sa.select(sa.literal_column("1"))
    .select_from(t.blob_ref.outerjoin(t.task, t.blob_ref.c.task_id == t.task.c.id))
    .where(
        t.blob_ref.c.cid == bind("cid"),
        sa.or_(t.task.c.id.is_(None), t.task.c.result_cid == t.blob_ref.c.cid, LIVE_STATES),
    )
    .limit(1)
)
BLOB_BYTES_OF_OWNER = scalar(
    sa.select(sa.func.coalesce(sa.func.sum(t.blob_ref.c.size), 0)).where(
        t.blob_ref.c.owner == bind("owner"), t.blob_ref.c.task_id == sa.literal_column("''")
    )
)
BLOB_INPUT_OF_LIVE_LEASE = scalar(
    sa.select(sa.literal_column("1"))
    .select_from(t.blob_ref.join(t.lease, t.blob_ref.c.task_id == t.lease.c.task_id))
    .where(t.blob_ref.c.cid == bind("cid"), t.lease.c.node_id == bind("node_id"), LEASE_LIVE)
    .limit(1)
)
SMALL_BLOB = scalar(sa.select(t.small_blob.c.data).where(t.small_blob.c.cid == bind("cid")))
SMALL_BLOB_PUT = upsert(t.small_blob, keys=["cid"], update=[])
