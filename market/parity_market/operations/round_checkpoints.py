"""Checkpoints of sessions in the writer: which round has one, and who may read it."""

from __future__ import annotations

import json
from datetime import datetime

from parity_market.operations.blobs import add_ref
from parity_market.operations.round_rows import closed_rounds
from parity_market.operations.rounds import Published
from parity_market.store import sql, sql_rounds
from parity_market.store.base import ReadTx, Tx
from parity_protocol.api.rounds import FlCheckpointReply
from parity_protocol.errors import NotFound

__all__ = ["CHECKPOINT", "newest", "note"]

CHECKPOINT = "checkpoint_cid"  # among a round's metrics


def note(tx: Tx, group_id: str, number: int, saved: Published, now: datetime) -> None:
    """Note a checkpoint after a round that has closed; its submitter may read it.

    Raises:
        NotFound: There is no such round.
    """
    group, rows = tx.one(sql.GROUP, id=group_id), [one for one in closed_rounds(tx, group_id) if one.round == number]
    if group is None or not rows:
        raise NotFound(f"session {group_id} has no round {number}")
    add_ref(tx, saved.sha256, group.creator, visibility="private", size=saved.size, now=now)
    last = rows[-1]
    tx.run(
        sql_rounds.FL_ROUND_MOVED,
        key_group_id=group_id,
        key_round=last.round,
        key_phase=last.phase,
        state=last.state,
        metrics_doc=json.dumps({**json.loads(last.metrics_doc), CHECKPOINT: saved.sha256}, separators=(",", ":")),
        closed_us=last.closed_us,
    )


def newest(tx: ReadTx, group_id: str, account: str, number: int | None) -> FlCheckpointReply | None:
    """Return a session's newest checkpoint, or the one after round ``number``; None when the rows know none.

    Raises:
        NotFound: The session is somebody else's.
    """
    group, session = tx.one(sql.GROUP, id=group_id), tx.one(sql_rounds.FL_SESSION, group_id=group_id)
    if group is None or session is None:
        return None
    if group.creator != account:
        raise NotFound(f"there is no session {group_id} of yours here")
    origin = json.loads(session.settings_doc).get("resumed_from")
    found = None
    if origin is not None and number in (None, origin["round"]):  # what it went on from, until it has one of its own
        found = FlCheckpointReply(
            session_id=group_id, cid=origin["cid"], round=origin["round"], total_rounds=session.total_rounds
        )
    for row in closed_rounds(tx, group_id):
        cid = json.loads(row.metrics_doc).get(CHECKPOINT)
        if cid is not None and number in (None, row.round):
            found = FlCheckpointReply(session_id=group_id, cid=cid, round=row.round, total_rounds=session.total_rounds)
    return found
