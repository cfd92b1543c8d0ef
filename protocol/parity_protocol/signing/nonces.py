"""Which signed requests were already seen."""

from __future__ import annotations

from datetime import datetime, timedelta

from parity_protocol.errors import Overloaded, Replayed

__all__ = ["SKEW", "NonceCache"]

SKEW = timedelta(seconds=60)  # by which a signer's clock may differ from ours

_SLICE_S = 10  # seconds of ``created`` that are forgotten together


class NonceCache:
    """Remembers which signed requests were seen, for as long as they would still be fresh.

    It lives in memory and forgets at a restart, which is enough because every write is idempotent. Use it after the
    signature was checked, so that only known keys fill it; one key may take half of it, so that it cannot lock out
    the others.
    """

    def __init__(self, *, max_entries: int = 500_000, skew: timedelta = SKEW) -> None:
        self._max_entries = max_entries
        self._skew_s = skew.total_seconds()
        self._slices: dict[int, dict[str, set[str]]] = {}  # slice of ``created`` → key id → nonces
        self._entries = 0

    def __len__(self) -> int:
        return self._entries

    def use(self, keyid: str, nonce: str, *, created: datetime, now: datetime) -> None:
        """Take the nonce of a verified request.

        Args:
            keyid: Whose request it is.
            nonce: What the signer chose.
            created: When the request was signed, UTC; within the skew of ``now``.
            now: Current time, UTC.

        Raises:
            Replayed: The same key used this nonce before.
            Overloaded: Too many requests came in the last minutes, from all or from this key.
        """
        self._forget(now.timestamp())
        if any(nonce in by_key.get(keyid, ()) for by_key in self._slices.values()):
            raise Replayed("this signed request was already received", field="nonce")
        mine = sum(len(by_key.get(keyid, ())) for by_key in self._slices.values())
        if self._entries >= self._max_entries or mine * 2 >= self._max_entries:
            raise Overloaded("too many signed requests at once", retry_after_s=self._skew_s)
        place = int(created.timestamp()) // _SLICE_S
        self._slices.setdefault(place, {}).setdefault(keyid, set()).add(nonce)
        self._entries += 1

    def _forget(self, now: float) -> None:
        for place in [place for place in self._slices if (place + 1) * _SLICE_S + self._skew_s < now]:
            self._entries -= sum(len(nonces) for nonces in self._slices.pop(place).values())
