"""What a submitter may do to a session that trains: pause it, go on with it, stop it."""

from __future__ import annotations

from datetime import datetime

from parity_market.domain.rounds import SessionState
from parity_market.operations.context import Market
from parity_market.operations.rounds import move, session_of, tell
from parity_market.store import sql
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import FlSessionRow
from parity_protocol.errors import InvalidTransition
from parity_protocol.task import GroupState

__all__ = ["pause", "resume", "stop"]


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


def stop(tx: Tx, market: Market, group_id: str, now: datetime) -> FlSessionRow:
    """Make the open round the last one; repeating it changes nothing.

    Raises:
        InvalidTransition: The session has failed.
    """
    session = session_of(tx, group_id)
    if session.state in (SessionState.STOPPING, SessionState.DONE):
        return session
    session = _running(tx, group_id)
    moved = move(tx, session, now, state=SessionState.STOPPING, deadline_us=None, message="stopping")
    tell(tx, market, group_id)
    return moved


def _running(tx: ReadTx, group_id: str) -> FlSessionRow:
    """Return a session whose group has not ended."""
    session, group = session_of(tx, group_id), tx.one(sql.GROUP, id=group_id)
    if group is None or group.state != GroupState.RUNNING:
        raise InvalidTransition(f"session {group_id} has ended: it is {group.state if group else 'gone'}")
    return session
