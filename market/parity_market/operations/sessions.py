"""Submitters' sign-in: single-use nonces and one-hour session keys."""

from __future__ import annotations

from datetime import datetime, timedelta

from parity_market.store import sql
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import SessionRow, to_us
from parity_protocol.errors import Overloaded, Replayed, Unauthenticated

__all__ = ["MAX_NONCES", "NONCE_TTL", "SESSION_TTL", "close", "forget_expired", "get", "open_session", "put_nonce"]

NONCE_TTL = timedelta(minutes=5)
SESSION_TTL = timedelta(hours=1)
MAX_NONCES = 10_000  # unused at once: anybody may ask for one


def put_nonce(tx: Tx, nonce: str, now: datetime) -> datetime:
    """Store a fresh nonce; returns when it expires.

    Raises:
        Overloaded: Too many wait for use.
    """
    tx.run(sql.NONCES_EXPIRED_DELETE, now_us=to_us(now))
    if (tx.one(sql.NONCE_COUNT) or 0) >= MAX_NONCES:
        raise Overloaded("too many sign-ins have been started", retry_after_s=60.0)
    expires = now + NONCE_TTL
    tx.insert(sql.NONCE_INSERT, (nonce, to_us(expires)))
    return expires


def open_session(tx: Tx, *, nonce: str, session_id: str, account: str, key: str, now: datetime) -> SessionRow:
    """Use up a nonce and register the session's key; of two at once one wins.

    Raises:
        Replayed: The nonce is unknown, expired or used.
    """
    if not tx.run(sql.NONCE_USE, nonce=nonce, now_us=to_us(now)):
        raise Replayed("the sign-in's nonce is unknown, expired or used; ask for a fresh one")
    row = SessionRow(session_id, account, key, to_us(now), to_us(now + SESSION_TTL))
    tx.insert(sql.SESSION_INSERT, row)
    return row


def get(tx: ReadTx, session_id: str, now: datetime) -> SessionRow:
    """Return a live session.

    Raises:
        Unauthenticated: There is none with this id, or it has expired.
    """
    row = tx.one(sql.SESSION, id=session_id)
    if row is None or row.expires_us <= to_us(now):
        raise Unauthenticated("the session is unknown or has expired; sign in again")
    return row


def close(tx: Tx, session_id: str) -> None:
    """End a session."""
    tx.run(sql.SESSION_DELETE, id=session_id)


def forget_expired(tx: Tx, now: datetime) -> int:
    """Delete expired sessions and nonces; returns how many sessions."""
    tx.run(sql.NONCES_EXPIRED_DELETE, now_us=to_us(now))
    return tx.run(sql.SESSIONS_EXPIRED_DELETE, now_us=to_us(now))
