"""Compact JWS (RFC 7515) as this project uses it: Ed25519 only (RFC 9864), one exact ``typ`` per use (RFC 8725 §3.11).

A header has exactly ``alg``, ``typ`` and ``kid``. Nothing in it chooses an algorithm or brings a key: ``none``,
``HS256`` with the public key as secret, ``jwk``, ``jku``, ``x5u``, ``x5c``, ``crit``, ``b64`` and ``zip`` are refused
alike. A payload is a JSON object with ``iss sub jti iat nbf exp``, and ``aud`` where somebody is meant.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from parity_protocol import strict_json
from parity_protocol.errors import (
    BadDocument,
    BadField,
    BadSignature,
    Expired,
    NotYetValid,
    UnknownKey,
    Untrusted,
    WrongAudience,
    WrongType,
)
from parity_protocol.signing.keys import Ed25519PrivateKey, Ed25519PublicKey
from parity_protocol.strict_json import JsonValue

__all__ = [
    "ALGORITHM",
    "LEEWAY",
    "MAX_TOKEN_CHARS",
    "MAX_WINDOW",
    "Verified",
    "b64url_decode",
    "b64url_encode",
    "claims",
    "sign",
    "thumbprint_bytes",
    "verify",
]

ALGORITHM = "Ed25519"
LEEWAY = timedelta(seconds=60)  # by which two honest clocks may differ
MAX_WINDOW = timedelta(hours=24)  # longest life of a token
MAX_TOKEN_CHARS = 360_000  # a payload of 256 KiB in base64url, its header and its signature

_MAX_HEADER_CHARS = 1_024  # base64url
_MAX_TEXT = 256  # characters of iss, sub, aud, jti
_MAX_TIME = 253_402_300_799  # unix seconds, end of the year 9999
_HEADER = frozenset({"alg", "typ", "kid"})


@dataclass(frozen=True, slots=True)
class Verified:
    """A token whose signature, type, issuer, audience and window are right."""

    payload: dict[str, JsonValue]
    header: dict[str, JsonValue]
    raw_payload: bytes  # as received: what models parse, never a re-serialisation
    token_sha256: str  # lower-case hex SHA-256 of the compact token


def claims(
    issuer: str, subject: str, audience: str | None, *, jti: str, now: datetime, ttl: timedelta
) -> dict[str, JsonValue]:
    """Return the claims that every token needs, valid from ``now`` (UTC) for ``ttl``."""
    start = int(now.timestamp())
    found: dict[str, JsonValue] = {
        "iss": issuer,
        "sub": subject,
        "jti": jti,
        "iat": start,
        "nbf": start,
        "exp": start + int(ttl.total_seconds()),
    }
    if audience is not None:
        found["aud"] = audience
    return found


def sign(payload: Mapping[str, object] | bytes, key: Ed25519PrivateKey, typ: str) -> str:
    """Return a compact JWS of ``payload``, with the key's thumbprint as ``kid``.

    Args:
        payload: A JSON object, written canonically; or bytes, signed as they are.
        key: The issuer's key for this use and no other.
        typ: What this token is for, such as ``manifest+jws``.

    Raises:
        BadField: A claim that ``verify`` demands is missing or of another type (objects only).
        BadDocument: The object cannot be written as JSON.
    """
    if isinstance(payload, bytes):
        body = payload
    else:
        _required_claims(payload)
        body = strict_json.dumps(dict(payload))
    header = strict_json.dumps({"alg": ALGORITHM, "kid": key.public_key.thumbprint(), "typ": typ})
    signed = f"{b64url_encode(header)}.{b64url_encode(body)}"
    return f"{signed}.{b64url_encode(key.sign(signed.encode()))}"


def verify(
    token: str,
    keys: Mapping[str, Ed25519PublicKey],
    typ: str,
    *,
    issuer: str,
    audience: str | None,
    now: datetime,
    leeway: timedelta = LEEWAY,
    max_window: timedelta = MAX_WINDOW,
) -> Verified:
    """Check a received token completely, or raise.

    That a ``jti`` is used once is for the caller to store, in the transaction of the token's effect.

    Args:
        token: The compact serialisation, as received.
        keys: Public keys by key id, those of this issuer for this use only.
        typ: The one type that is accepted here.
        issuer: Who must have issued it.
        audience: Who must be meant; None accepts only tokens that name nobody.
        now: Current time, UTC.
        leeway: By which clocks may differ, for ``nbf``, ``iat`` and ``exp``.
        max_window: Longest time from ``iat`` or ``nbf`` to ``exp``.

    Raises:
        BadDocument: Not a token in its only form, or a claim is missing, of another type, or its window too long.
        BadSignature: Another algorithm than the key's, or the signature does not match.
        WrongType: ``typ`` is another.
        UnknownKey: ``kid`` is none of ``keys``; a key set may be fetched again, once a minute.
        Untrusted: Another issuer.
        WrongAudience: Somebody else is meant, or nobody, or somebody where nobody should be.
        NotYetValid: ``nbf`` or ``iat`` lies ahead.
        Expired: ``exp`` has passed.
    """
    signed, header, raw_payload, signature = _split(token)
    if header.get("alg") != ALGORITHM:
        raise BadSignature(f"the token's algorithm must be {ALGORITHM}", field="alg")
    if header.get("typ") != typ:
        raise WrongType(f"expected a token of type {typ}", field="typ")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        raise BadDocument("the token's kid must be text", field="kid")
    key = keys.get(kid)
    if key is None:
        raise UnknownKey(f"no {typ} key is known by the id {kid[:64]!a}", field="kid", kid=kid)
    key.verify(signature, signed)
    payload = strict_json.loads(raw_payload)
    if not isinstance(payload, dict):
        raise BadDocument("the token's payload must be a JSON object")
    _check_parties(payload, issuer, audience)
    _check_times(payload, now, leeway, max_window)
    return Verified(payload, header, raw_payload, sha256(token.encode()).hexdigest())


def thumbprint_bytes(thumbprint: str) -> bytes:
    """Return a base64url thumbprint (RFC 7638) as its 32 bytes.

    Raises:
        BadField: It is not one.
    """
    try:
        found = b64url_decode(thumbprint)
    except BadDocument as exc:
        raise BadField("a thumbprint is 43 characters of base64url", field="thumbprint") from exc
    if len(found) != 32:
        raise BadField("a thumbprint is 43 characters of base64url", field="thumbprint")
    return found


def b64url_encode(data: bytes) -> str:
    """Write base64url without padding (RFC 7515 §2)."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def b64url_decode(text: str) -> bytes:
    """Read base64url without padding, in its only form: no other alphabet, no padding, no stray bits.

    Raises:
        BadDocument: Any other form; two texts must not name the same bytes.
    """
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, binascii.Error) as exc:
        raise BadDocument("not base64url") from exc
    if b64url_encode(data) != text:  # the decoder skips what it does not know
        raise BadDocument("not base64url in its canonical form")
    return data


def _split(token: str) -> tuple[bytes, dict[str, JsonValue], bytes, bytes]:
    """Return what is signed, the header, the payload's bytes and the signature."""
    if len(token) > MAX_TOKEN_CHARS:
        raise BadDocument(f"the token has {len(token)} characters, {MAX_TOKEN_CHARS} are allowed")
    parts = token.split(".", 3)
    if len(parts) != 3 or len(parts[0]) > _MAX_HEADER_CHARS:
        raise BadDocument("not a compact JWS: expected a short header, a payload and a signature")
    header = strict_json.loads(b64url_decode(parts[0]), max_depth=2)
    if not isinstance(header, dict) or header.keys() != _HEADER:
        raise BadDocument("a token's header has exactly alg, kid and typ")
    payload, signature = b64url_decode(parts[1]), b64url_decode(parts[2])
    if len(payload) > strict_json.MAX_BYTES:
        raise BadDocument(f"the token's payload has {len(payload)} bytes, {strict_json.MAX_BYTES} are allowed")
    return f"{parts[0]}.{parts[1]}".encode(), header, payload, signature


def _required_claims(payload: Mapping[str, object]) -> None:
    for name in ("iss", "sub", "jti"):
        _text(payload, name)
    for name in ("iat", "nbf", "exp"):
        _time(payload, name)


def _text(payload: Mapping[str, object], name: str) -> str:
    value = payload.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT:
        raise BadField(f"{name} must be text of 1 to {_MAX_TEXT} characters", field=name)
    return value


def _time(payload: Mapping[str, object], name: str) -> int:
    value = payload.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_TIME:
        raise BadField(f"{name} must be a time in whole unix seconds", field=name)
    return value


def _check_parties(payload: Mapping[str, object], issuer: str, audience: str | None) -> None:
    try:
        found = _text(payload, "iss")
        _text(payload, "sub")
        _text(payload, "jti")
    except BadField as exc:
        raise BadDocument(f"the token's {exc.message}", field=exc.field) from exc
    if found != issuer:
        raise Untrusted("the token is by another issuer than expected", field="iss")
    if audience is None:
        if "aud" in payload:
            raise WrongAudience("the token is meant for somebody, expected one for nobody in particular", field="aud")
    elif payload.get("aud") != audience:
        raise WrongAudience(f"the token is not meant for {audience}", field="aud")


def _check_times(payload: Mapping[str, object], now: datetime, leeway: timedelta, max_window: timedelta) -> None:
    try:
        issued, start, end = _time(payload, "iat"), _time(payload, "nbf"), _time(payload, "exp")
    except BadField as exc:
        raise BadDocument(f"the token's {exc.message}", field=exc.field) from exc
    first = min(issued, start)
    if end <= max(issued, start) or end - first > max_window.total_seconds():
        hours = max_window.total_seconds() / 3600
        raise BadDocument(f"the token's window must be above 0 and at most {hours:g} h", field="exp")
    at, spare = now.timestamp(), leeway.total_seconds()
    for name, time in (("nbf", start), ("iat", issued)):
        if time > at + spare:
            raise NotYetValid(f"the token's {name} lies {time - at:.0f} s ahead, {spare:g} s are allowed", field=name)
    if at >= end + spare:
        raise Expired(f"the token expired {at - end:.0f} s ago", field="exp")
