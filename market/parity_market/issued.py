"""Manifests that this process signed a moment ago: one that comes back byte for byte needs no second look.

Nothing depends on it: what is not found here is verified by its signature, as after a restart or by another replica.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

__all__ = ["Issued", "IssuedManifests"]

MAX_REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class Issued:
    """What a manifest that we signed says."""

    task_id: str
    node_id: str
    jti: str
    sha256: str  # of the compact token, lower-case hex
    attempt: int  # from 1
    expires_at: datetime


class IssuedManifests:
    """The newest manifests, by the SHA-256 of their whole token, which nobody but the signer can have known before."""

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._max = max_remembered
        self._known: OrderedDict[str, Issued] = OrderedDict()

    def remember(self, token: str, *, task_id: str, node_id: str, jti: str, attempt: int, expires_at: datetime) -> None:
        """Remember a token just signed; the oldest is forgotten for it."""
        digest = sha256(token.encode()).hexdigest()
        self._known[digest] = Issued(task_id, node_id, jti, digest, attempt, expires_at)
        if len(self._known) > self._max:
            self._known.popitem(last=False)

    def find(self, token: str, node_id: str, now: datetime) -> Issued | None:
        """Return what ``token`` says if it was signed here for ``node_id`` and is not over; None decides nothing."""
        found = self._known.get(sha256(token.encode()).hexdigest())
        if found is None or found.node_id != node_id or found.expires_at <= now:
            return None
        return found
