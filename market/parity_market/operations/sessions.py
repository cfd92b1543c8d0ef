"""Submitters' sign-in: single-use nonces and one-hour session keys.

A nonce carries its own expiry and a MAC, and is stored only when it is used: anybody may ask for one, and a store of
those that are waiting would be filled by whoever wants to keep the others out.
"""

from __future__ import annotations

import hmac
import secrets
from datetime import datetime, timedelta

from parity_market.store import sql
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import SessionRow, from_us, to_us
from parity_protocol.errors import Replayed, Unauthenticated

__all__ = ["NONCE_TTL", "SESSION_TTL", "NonceMaker", "close", "forget_expired", "get", "open_session"]

NONCE_TTL = timedelta(minutes=5)
SESSION_TTL = timedelta(hours=1)

_EXPIRY_CHARS = 16  # hex of microseconds
_RANDOM_BYTES = 16
_MAC_BYTES = 16
_NONCE_CHARS = _EXPIRY_CHARS + 2 * (_RANDOM_BYTES + _MAC_BYTES)


class NonceMaker:
    """Makes nonces and knows its own again.

    Args:
        secret: Known to the market alone; every process of one market has the same.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"parity sign-in nonce", "sha256")

    def make(self, now: datetime) -> tuple[str, datetime]:
        """Return a fresh nonce, alphanumeric, and when it expires."""
        expires_us = to_us(now + NONCE_TTL)
        body = f"{expires_us:0{_EXPIRY_CHARS}x}{secrets.token_hex(_RANDOM_BYTES)}"
        return body + self._mac(body), from_us(expires_us)

    def check(self, nonce: str, now: datetime) -> datetime:
        """Return when a nonce that was made here expires; whether it was used is ``open_session``'s part.

        Raises:
            Replayed: It was not made here, or is over.
        """
        body, mac = nonce[: _NONCE_CHARS - 2 * _MAC_BYTES], nonce[_NONCE_CHARS - 2 * _MAC_BYTES :]
        if len(nonce) != _NONCE_CHARS or not hmac.compare_digest(self._mac(body).encode(), mac.encode()):
            raise Replayed(_NOT_OPEN)
        expires = from_us(int(body[:_EXPIRY_CHARS], 16))
        if expires <= now:
            raise Replayed(_NOT_OPEN)
        return expires

    def _mac(self, body: str) -> str:
        return hmac.digest(self._key, body.encode(), "sha256")[:_MAC_BYTES].hex()


_NOT_OPEN = "the sign-in's nonce is unknown, expired or used; ask for a fresh one"


def open_session(
    tx: Tx, *, nonce: str, nonce_expires: datetime, session_id: str, account: str, key: str, now: datetime
) -> SessionRow:
    """Use up a nonce that was checked and register the session's key; of two at once one wins.

    Raises:
        Replayed: The nonce was used before.
    """
    if not tx.insert(sql.NONCE_USED, (nonce, to_us(nonce_expires))):
        raise Replayed(_NOT_OPEN)
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
    """Delete expired sessions, and used nonces that are expired too; returns how many sessions."""
    tx.run(sql.NONCES_EXPIRED_DELETE, now_us=to_us(now))
    return tx.run(sql.SESSIONS_EXPIRED_DELETE, now_us=to_us(now))
