"""Checkpoints of sessions in the writer: which round has one, and who may read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime

from parity_market.domain.rounds import RoundState
from parity_market.operations.blobs import add_ref, is_held
from parity_market.operations.round_rows import closed_rounds
from parity_market.operations.rounds import Published, move_round
from parity_market.store import sql, sql_blobs, sql_rounds
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import FlRoundRow
from parity_protocol.api.rounds import FlCheckpointReply
from parity_protocol.errors import NotFound

__all__ = ["CHECKPOINT", "newest", "note", "thin_out"]

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
    _tell(tx, last, {**json.loads(last.metrics_doc), CHECKPOINT: saved.sha256})


def thin_out(tx: Tx, group_id: str, keep: int) -> list[str]:
    """Take all but a session's newest checkpoints off its submitter's quota.

    One that the submitter has pinned stays, and so does one that another session goes on from: that names it until it has
    one of its own, also when it has failed.

    Args:
        keep: How many stay, at least 1.

    Returns:
        The CIDs of those that nothing else here needs.
    """
    group = tx.one(sql.GROUP, id=group_id)
    if group is None:
        return []
    free = []
    for row in tx.all(sql_rounds.FL_ROUNDS_SAVED, group_id=group_id)[:-keep]:
        metrics = json.loads(row.metrics_doc)
        cid = metrics.pop(CHECKPOINT)
        ref = tx.one(sql_blobs.BLOB_REF, cid=cid, owner=group.creator, task_id="")
        is_pinned = ref is not None and ref.pinned
        if is_pinned or tx.one(sql_rounds.FL_RESUMED_FROM, creator=group.creator, cid=cid) is not None:
            continue
        tx.run(sql_blobs.BLOB_REF_DELETE, cid=cid, owner=group.creator)
        _tell(tx, row, metrics)
        if not is_held(tx, cid):
            free.append(cid)
    return free


def _tell(tx: Tx, row: FlRoundRow, metrics: Mapping[str, object]) -> None:
    """Write what people are shown of a closed round."""
    move_round(tx, row, RoundState(row.state), metrics, row.closed_us)


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
