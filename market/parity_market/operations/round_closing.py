"""Closing a round, in the writer: its updates are chosen, judged, and the next round is opened with the new model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from secrets import token_bytes

from parity_fl.rounds_config import RoundsConfig, cohort_of
from parity_market.domain.rounds import HELD, RoundState, SessionState, UpdateState, newest_of_parts
from parity_market.operations import round_small
from parity_market.operations.blobs import add_ref
from parity_market.operations.context import Market
from parity_market.operations.round_rows import PHASES_LEFT
from parity_market.operations.rounds import Published, load, move, move_round, open_round, tell
from parity_market.operations.steps import end_lease, free, newest_lease
from parity_market.store import sql_rounds
from parity_market.store.base import Tx
from parity_market.store.rows import FlSessionRow, FlUpdateRow, GroupRow, to_us
from parity_protocol.errors import FailureReason, InvalidTransition, NotFound
from parity_protocol.task import TaskEvent

__all__ = ["close", "freeze", "reopen"]


def freeze(tx: Tx, group_id: str, now: datetime) -> list[FlUpdateRow]:
    """Choose the open round's updates: from here on it can only close with these, also after a restart."""
    found = load(tx, group_id)
    if found is None:
        raise NotFound(f"session {group_id} has not begun")
    if found.row.state == RoundState.CLOSING:
        return [update for update in found.updates if update.state == UpdateState.CHOSEN]
    chosen = newest_of_parts(found.updates)
    for update in chosen:
        _judge(tx, update, UpdateState.CHOSEN, "", json.loads(update.metrics_doc))
    move_round(tx, found.row, RoundState.CLOSING, {}, None)
    move(tx, found.session, now, deadline_us=None, message="")
    return chosen


def reopen(
    tx: Tx,
    market: Market,
    group_id: str,
    rejected: Mapping[int, str],
    deadline: datetime | None,
    now: datetime,
    *,
    takes_back: bool = True,
) -> None:
    """Go on with a round whose usable updates were too few: what was rejected is out, others may still come.

    Args:
        takes_back: Whoever sent what was rejected loses the part to somebody else. Else it could sit on the part until the
            round's deadline ends the session for all.
    """
    found = load(tx, group_id)
    if found is None or found.row.state != RoundState.CLOSING:
        return
    for update in found.updates:
        if update.state == UpdateState.CHOSEN:
            reason = rejected.get(update.part, "")
            state = UpdateState.REJECTED if reason else UpdateState.RECEIVED
            _judge(tx, update, state, reason, json.loads(update.metrics_doc))
            if reason and takes_back:
                _take_back(tx, market, update, reason, to_us(now))
    move_round(tx, found.row, RoundState.OPEN, {}, None)
    move(tx, found.session, now, deadline_us=None if deadline is None else to_us(deadline), message="")
    tell(tx, market, group_id)


def _take_back(tx: Tx, market: Market, update: FlUpdateRow, reason: str, now_us: int) -> None:
    """Give a part to another node, if whoever sent a rejected update still holds it."""
    task = tx.one(sql_rounds.TASK_OF_PART, group_id=update.group_id, part=update.part)
    lease = None if task is None else newest_lease(tx, task)
    if task is None or lease is None or not lease.live or lease.fence != update.fence or task.state not in HELD:
        return
    detail = f"its answer in round {update.round} was rejected: {reason}"[:500]
    end_lease(tx, market, lease, detail, now_us=now_us)
    free(
        tx,
        market,
        task,
        TaskEvent.NODE_FAULT,
        now_us=now_us,
        node_id=update.node_id,
        detail=detail,
        failure=str(FailureReason.NODE_FAULT),
        exclude=True,
    )


def close(
    tx: Tx,
    market: Market,
    group: GroupRow,
    config: RoundsConfig,
    *,
    next_model: Published,
    accepted: Sequence[int],
    rejected: Mapping[int, str],
    metrics: Mapping[str, float],
    contributions: Mapping[int, float],
    seed: str,
    now: datetime,
    checkpoint: Published | None = None,
    more_phases: bool = False,
    asks: str = "train",
    restarts: bool = False,
    left: int = 0,
    present: Sequence[int] | None = None,
    small: Mapping[str, bytes] | None = None,
    keeps_state: bool = False,
    next_round: int | None = None,
    whole: Sequence[FlUpdateRow] | None = None,
) -> FlSessionRow:
    """Close the round that was frozen, and open the next one, or end the training.

    Args:
        checkpoint: CID and size of the checkpoint after this round; its submitter may read it.
        more_phases: The round goes on with its next phase.
        small: The next round's files, if they are small: they are durable with its row.
        whole: Of a round that everybody had answered: the updates that were reduced. Nothing else could come, so it was
            not frozen, and is closed only if nothing else came.
        next_round: Number of the next round of a session that goes on from a checkpoint; None is the one after this.
        keeps_state: Later phases of the round need the states that were kept before.
        asks: What the next phase, or the next round's first, asks of the parts.
        restarts: The next phase asks every part again.
        left: Phases to come, as of ``Reduced.left``: what is paid if they never do is measured by it.
        present: Parts that the session goes on with; None is all.

    Raises:
        InvalidTransition: It is not closing (any more), or is not what was reduced.
    """
    found = load(tx, group.id)
    if found is None or found.row.state != (RoundState.CLOSING if whole is None else RoundState.OPEN):
        raise InvalidTransition(f"no round of session {group.id} is closing")
    chosen = [update for update in found.updates if update.state == UpdateState.CHOSEN]
    if whole is not None:
        chosen = newest_of_parts(found.updates)
        if chosen != list(whole):
            raise InvalidTransition(f"another update came to round {found.row.round} of session {group.id}")
    session, now_us, took = found.session, to_us(now), set(accepted)
    for update in chosen:
        numbers = json.loads(update.metrics_doc)
        if update.part in contributions:
            numbers["contribution"] = contributions[update.part]
        is_in = update.part in took
        reason = "" if is_in else rejected.get(update.part, "not used by the rule")
        _judge(tx, update, UpdateState.ACCEPTED if is_in else UpdateState.REJECTED, reason, numbers)
    round_small.forget(tx, group.id, keeps_states=keeps_state)
    round_small.keep(tx, group.id, small or {})
    shown: dict[str, object] = dict(metrics)
    if left:
        shown[PHASES_LEFT] = left
    if checkpoint is not None:
        shown["checkpoint_cid"] = checkpoint.sha256
        add_ref(tx, checkpoint.sha256, group.creator, visibility="private", size=checkpoint.size, now=now)
    move_round(tx, found.row, RoundState.CLOSED, shown, now_us)
    if more_phases:
        phase = session.phase + 1
        # Another phase of one training builds on the answers to this one: who has none is out of it.
        cohort = tuple(accepted) if asks == "train" else found.cohort
        if restarts:
            cohort = tuple(range(group.parts))
        if present is not None:
            cohort = tuple(sorted(set(cohort).intersection(present)))
        open_round(tx, group.id, session.round, phase, next_model, cohort, now_us, asks)
        tell(tx, market, group.id)
        return move(tx, session, now, phase=phase, deadline_us=None, message="")
    number = next_round or session.round + 1
    is_last = session.round >= session.total_rounds or session.state == SessionState.STOPPING
    there = range(group.parts) if present is None else present
    drawn = () if is_last else cohort_of(config, parts=len(there), seed=seed, number=number, coins=token_bytes)
    cohort = tuple(there[at] for at in drawn)
    # A round without a cohort holds the final model: what `base` is to a round, it is to the session's end.
    open_round(tx, group.id, number, 0, next_model, cohort, now_us, asks)
    if is_last:
        state = SessionState.DONE
        closing = tx.one(sql_rounds.FL_ROUND, group_id=group.id, round=number, phase=0)
        assert closing is not None
        move_round(tx, closing, RoundState.CLOSED, {}, now_us)
    else:
        state = SessionState(session.state)
    moved = move(tx, session, now, state=state, round=number, phase=0, deadline_us=None, message="")
    tell(tx, market, group.id)
    return moved


def _judge(tx: Tx, update: FlUpdateRow, state: UpdateState, reason: str, metrics: Mapping[str, object]) -> None:
    tx.run(
        sql_rounds.FL_UPDATE_JUDGED,
        key_group_id=update.group_id,
        key_round=update.round,
        key_phase=update.phase,
        key_part=update.part,
        key_fence=update.fence,
        state=state,
        reason=reason[:500],
        metrics_doc=json.dumps(dict(metrics), separators=(",", ":")),
    )
