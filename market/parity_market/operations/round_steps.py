"""What a part of a session does now: asked by every node, again and again, so it reads no more than it must."""

from __future__ import annotations

import json
from datetime import datetime

from parity_fl.rounds_config import RoundsConfig
from parity_market.domain.rounds import RoundState, SessionState, UpdateState
from parity_market.operations.rounds import check_part, open_row, pairs_of
from parity_market.store import sql_rounds
from parity_market.store.base import ReadTx
from parity_market.store.rows import FlRoundRow, to_us
from parity_protocol.api.rounds import AcceptedUpdate, RoundStep

__all__ = ["next_step"]


def next_step(
    tx: ReadTx,
    group_id: str,
    part: int,
    *,
    node_id: str,
    lease_id: str,
    fence: int,
    config: RoundsConfig,
    mu: float,
    now: datetime,
) -> RoundStep:
    """Say what a part does now.

    Args:
        mu: FedProx's coefficient, of the session's strategy.

    Raises:
        StaleFence: The lease is not the node's current one; ``TaskCancelled``, ``NotFound`` as of ``check_part``.
    """
    check_part(tx, group_id, part, node_id=node_id, lease_id=lease_id, fence=fence)
    total = config.total_rounds
    found = open_row(tx, group_id)
    if found is None:
        return RoundStep(state="wait", round=1, phase=0, total_rounds=total, message="the first model is made")
    session, row = found
    place = {"round": row.round, "phase": row.phase, "total_rounds": total, "message": session.message}
    if session.state == SessionState.DONE:
        pairs = pairs_of(tx, group_id, part, fence)
        accepted = tuple(AcceptedUpdate(round=one, phase=two, sha256=three) for one, two, three in pairs)
        told = {**place, "message": session.message or ("" if pairs else _last_refusal(tx, row, part, fence))}
        return RoundStep(state="done", accepted=accepted, **told)
    if session.state == SessionState.PAUSED or row.state != RoundState.OPEN or not _is_asked(tx, row, part, fence):
        return RoundStep(state="wait", **place)
    left = None if session.deadline_us is None else (session.deadline_us - to_us(now)) / 1e6
    return RoundStep(
        state="train",
        asks=row.asks,
        base=row.base_hash,
        base_size=row.base_size,
        update_format=config.update_format,
        proximal_mu=mu,
        closes_in_s=left,
        **place,
    )


def _last_refusal(tx: ReadTx, row: FlRoundRow, part: int, fence: int) -> str:
    """Return why a holder's update is not in the last round's model, for one that has nothing to be paid for."""
    number = row.round - 1
    sent = tx.all(sql_rounds.FL_UPDATES_OF_PART_IN_ROUND, group_id=row.group_id, round=number, phase=0, part=part)
    reasons = [update.reason for update in sent if update.fence == fence and update.state == UpdateState.REJECTED]
    return f"round {number}: {reasons[0]}" if reasons else ""


def _is_asked(tx: ReadTx, row: FlRoundRow, part: int, fence: int) -> bool:
    """Return whether a part's update is wanted of the holder with this fence."""
    if part not in json.loads(row.cohort_doc):
        return False
    sent = tx.all(
        sql_rounds.FL_UPDATES_OF_PART_IN_ROUND, group_id=row.group_id, round=row.round, phase=row.phase, part=part
    )
    # What a holder before sent stays its own; only when it was rejected is the one after asked too.
    return not any(update.fence == fence or update.state != UpdateState.REJECTED for update in sent)
