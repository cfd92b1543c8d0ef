"""What a submitter may do to a session that trains: pause it, go on with it, stop it.

To stop is to end with the open round's model. One that nobody works on is not waited for, since its money would stay bound
until somebody remembers it: the session ends with the round before, and is cancelled when there is none.
"""

from __future__ import annotations

from datetime import datetime

from parity_fl.rounds_config import is_in_rounds
from parity_market.domain.rounds import HELD, RoundState, SessionState
from parity_market.operations import tasks
from parity_market.operations.context import Market
from parity_market.operations.groups import Group
from parity_market.operations.groups import load as load_group
from parity_market.operations.round_rows import first_round
from parity_market.operations.rounds import OpenRound, config_of, load, move, session_of, tell
from parity_market.store import sql, sql_rounds
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import FlSessionRow, to_us
from parity_protocol.errors import InvalidTransition, NotFound
from parity_protocol.task import FederatedLearningSpec, GroupState

__all__ = ["give_up", "pause", "resume", "stop"]

_TOO_EARLY = "stopped by its submitter before its first round had begun"


def pause(tx: Tx, market: Market, group_id: str, now: datetime) -> FlSessionRow:
    """Let the open round wait, without a deadline; repeating it changes nothing.

    Raises:
        InvalidTransition: The session is stopping, done, or has failed.
    """
    session = _running(tx, group_id)
    if session.state == SessionState.PAUSED:
        return session
    if session.state != SessionState.RUNNING:
        raise InvalidTransition(f"session {group_id} is {session.state}: it cannot be paused")
    moved = move(tx, session, now, state=SessionState.PAUSED, deadline_us=None, message="paused")
    tell(tx, market, group_id)
    return moved


def resume(tx: Tx, market: Market, group_id: str, now: datetime) -> FlSessionRow:
    """Go on where ``pause`` stopped; repeating it changes nothing.

    Raises:
        InvalidTransition: The session is stopping, done, or has failed.
    """
    session = _running(tx, group_id)
    if session.state == SessionState.RUNNING:
        return session
    if session.state != SessionState.PAUSED:
        raise InvalidTransition(f"session {group_id} is {session.state}: there is nothing to resume")
    moved = move(tx, session, now, state=SessionState.RUNNING, deadline_us=None, message="")
    tell(tx, market, group_id)
    return moved


def stop(tx: Tx, market: Market, group_id: str, now: datetime) -> FlSessionRow | None:
    """Make the open round the last one. Repeating it changes nothing.

    A round that waits for nodes is given up: the one before is the last. A session without one is cancelled: it has no
    model yet, its shards still agree, or its first round waits.

    Returns:
        None for a session that had not begun.

    Raises:
        NotFound: There is no such session, or it does not train in rounds.
        InvalidTransition: The session has failed.
    """
    group, found = load_group(tx, group_id), load(tx, group_id)
    if found is None:
        spec = group.value.spec
        if not isinstance(spec, FederatedLearningSpec) or not is_in_rounds(spec.session()):
            raise NotFound(f"there is no session {group_id} that trains in rounds")
    elif found.session.state in (SessionState.STOPPING, SessionState.DONE):
        return found.session
    if group.value.state == GroupState.CANCELLED:
        return None if found is None else found.session
    if group.value.state != GroupState.RUNNING:
        raise InvalidTransition(f"session {group_id} has ended: it is {group.value.state}")
    waits = found is None or _waits(group, found)
    if found is None or (waits and found.session.round <= first_round(found.session)):
        tasks.cancel(tx, market, group_id, group.row.creator, now, why=_TOO_EARLY)
        tell(tx, market, group_id)
        return None if found is None else found.session
    if waits and found.session.phase == 0:  # the model that later phases build on is not kept
        return _end(tx, market, found, now)
    moved = move(tx, found.session, now, state=SessionState.STOPPING, deadline_us=None, message="stopping")
    tell(tx, market, group_id)
    return moved


def give_up(tx: Tx, market: Market, group_id: str, now: datetime) -> bool:
    """End a session that was stopped with the round before the open one, which cannot close; False if that is none."""
    found = load(tx, group_id)
    if found is None or (found.session.state, found.row.state) != (SessionState.STOPPING, RoundState.OPEN):
        return False
    if found.session.phase > 0 or found.session.round <= first_round(found.session):
        return False
    _end(tx, market, found, now)
    return True


def _waits(group: Group, found: OpenRound) -> bool:
    """Return whether nobody works on the open round: too few nodes are there, or shards agree and nothing is trained."""
    session = found.session
    if session.round == 0:
        return True
    if session.deadline_us is not None or found.row.state != RoundState.OPEN:
        return False
    sent = {update.part for update in found.updates}
    held = sum(task.state in HELD or task.part in sent for task in group.tasks)
    return held < config_of(session, parts=len(group.tasks)).min_available_clients


def _end(tx: Tx, market: Market, found: OpenRound, now: datetime) -> FlSessionRow:
    """End the training with the model that the open round would have started from."""
    tx.run(
        sql_rounds.FL_ROUND_GIVEN_UP,
        key_group_id=found.row.group_id,
        key_round=found.row.round,
        key_phase=found.row.phase,
        state=RoundState.CLOSED,
        cohort_doc="[]",  # as of the final model's row
        closed_us=to_us(now),
    )
    moved = move(tx, found.session, now, state=SessionState.DONE, deadline_us=None, message="stopped by its submitter")
    tell(tx, market, found.row.group_id)
    return moved


def _running(tx: ReadTx, group_id: str) -> FlSessionRow:
    """Return a session whose group has not ended."""
    session, group = session_of(tx, group_id), tx.one(sql.GROUP, id=group_id)
    if group is None or group.state != GroupState.RUNNING:
        raise InvalidTransition(f"session {group_id} has ended: it is {group.state if group else 'gone'}")
    return session
