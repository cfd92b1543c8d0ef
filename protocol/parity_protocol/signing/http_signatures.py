"""Request signatures (RFC 9421) in the one profile that is spoken here.

Every request covers method, path, query, authority and the digest of its body (RFC 9530), an empty body too, and says
when it was made and once. One label, one order of components and parameters, one algorithm: a verifier that reads
more than that has more ways to be told two things at once.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from parity_protocol.errors import BadField, BadSignature, ClockSkew, DigestMismatch, Unauthenticated
from parity_protocol.signing.keys import Ed25519PrivateKey, Ed25519PublicKey
from parity_protocol.signing.nonces import SKEW, NonceCache

__all__ = [
    "SKEW",
    "NonceCache",
    "RequestSignature",
    "check_body",
    "parse_signature",
    "sign_request",
    "verify_head",
    "verify_request",
]

_COMPONENTS = '("@method" "@path" "@query" "@authority" "content-digest")'
_KEYID = r"[A-Za-z0-9_.:-]{1,128}"
_NONCE = r"[A-Za-z0-9_-]{16,64}"
_INPUT = re.compile(
    rf'sig1=({re.escape(_COMPONENTS)};created=([1-9][0-9]{{0,10}});keyid="({_KEYID})";nonce="({_NONCE})"'
    r';alg="ed25519";tag="parity")'
)
_SIGNATURE = re.compile(r"sig1=:([A-Za-z0-9+/]{86}==):")
_DIGEST = re.compile(r"sha-256=:[A-Za-z0-9+/]{43}=:")
_HEADERS = ("content-digest", "signature", "signature-input")
_MAX_HEADER = 1_024  # characters of one of them
_MAX_TARGET = 8_192  # characters of path or query
_VISIBLE = re.compile(r"[!-~]*")  # a space or a line end would let a value pass for another line of the base


@dataclass(frozen=True, slots=True)
class RequestSignature:
    """What a request says about its signature; nothing of it is checked against a key yet."""

    keyid: str
    created: datetime  # UTC, whole seconds
    nonce: str
    params: str  # as received: the last line of the signature base
    signature: bytes  # 64
    content_digest: str


def sign_request(
    method: str,
    path: str,
    query: str,
    authority: str,
    body: bytes,
    *,
    key: Ed25519PrivateKey,
    keyid: str,
    now: datetime,
    nonce: str,
    body_sha256: bytes | None = None,
) -> dict[str, str]:
    """Return the three headers that a request needs.

    Args:
        method: In upper case.
        path: As it is sent, percent-encoded, from its first ``/``.
        query: As it is sent, without ``?``; empty when there is none.
        authority: The market's public host, with its port unless that is the scheme's own.
        body: Exactly the bytes that are sent.
        key: The device's or the session's key.
        keyid: Its name at the market.
        now: Current time, UTC.
        nonce: 16 to 64 characters of base64url, never used before with this key.
        body_sha256: The body's digest, 32 bytes, when it is streamed; ``body`` is then not looked at.

    Raises:
        BadField: A value cannot be signed, such as a path with a space in it.
    """
    created = f"{int(now.timestamp())}"
    params = f'{_COMPONENTS};created={created};keyid="{keyid}";nonce="{nonce}";alg="ed25519";tag="parity"'
    if not _INPUT.fullmatch(f"sig1={params}"):
        raise BadField("keyid or nonce has characters or a length that a signature cannot carry", field="signature")
    digest = _content_digest(body_sha256 or sha256(body).digest())
    signature = key.sign(_base(method, path, query, authority, digest, params))
    return {
        "Content-Digest": digest,
        "Signature-Input": f"sig1={params}",
        "Signature": f"sig1=:{b64encode(signature).decode()}:",
    }


def parse_signature(headers: Mapping[str, str]) -> RequestSignature:
    """Read a request's signature headers; cheap, for finding the key.

    Args:
        headers: All of the request's, in any case. ``items()`` must give a repeated header each time it came.

    Raises:
        Unauthenticated: A header is missing: the request is not signed.
        BadSignature: A header is repeated, too long, or not in the profile's only form.
    """
    found: dict[str, str] = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower in _HEADERS:
            if lower in found or len(value) > _MAX_HEADER:
                raise BadSignature(f"the {lower} header is repeated or over {_MAX_HEADER} characters", field=lower)
            found[lower] = value
    for lower in _HEADERS:
        if lower not in found:
            raise Unauthenticated(f"the request is not signed: it has no {lower} header", field=lower)
    params = _INPUT.fullmatch(found["signature-input"])
    if params is None:
        raise BadSignature("the signature-input header is not in the expected form", field="signature-input")
    signature = _SIGNATURE.fullmatch(found["signature"])
    raw = b64decode(signature[1]) if signature else b""
    if signature is None or b64encode(raw).decode() != signature[1]:  # stray bits in the last character
        raise BadSignature("the signature header is not in the expected form", field="signature")
    if not _DIGEST.fullmatch(found["content-digest"]):
        raise BadSignature("the content-digest header must be one sha-256", field="content-digest")
    created = datetime.fromtimestamp(int(params[2]), UTC)
    return RequestSignature(params[3], created, params[4], params[1], raw, found["content-digest"])


def verify_request(
    method: str,
    path: str,
    query: str,
    authority: str,
    body: bytes,
    signature: RequestSignature,
    *,
    key: Ed25519PublicKey,
    now: datetime,
    skew: timedelta = SKEW,
) -> None:
    """Return if ``signature`` is by ``key``, fresh, and over exactly this request; its nonce is for ``NonceCache``.

    Args:
        method: As received.
        path: As received, before any decoding.
        query: As received, without ``?``.
        authority: The market's configured public authority, never the request's Host header.
        body: The bytes as received, before any parsing.
        signature: What ``parse_signature`` read.
        key: The key that ``signature.keyid`` names.
        now: Current time, UTC.
        skew: By which ``created`` may lie before or after ``now``.

    Raises:
        ClockSkew: ``created`` is too far away; the message gives our time.
        DigestMismatch: The body is not the one that was signed.
        BadSignature: Method, path, query or authority is not what was signed, or the key is another.
    """
    check_body(signature, sha256(body).digest())
    verify_head(method, path, query, authority, signature, key=key, now=now, skew=skew)


def verify_head(
    method: str,
    path: str,
    query: str,
    authority: str,
    signature: RequestSignature,
    *,
    key: Ed25519PublicKey,
    now: datetime,
    skew: timedelta = SKEW,
) -> None:
    """Do everything of ``verify_request`` but compare the body: for one that is streamed, ``check_body`` ends it.

    Raises:
        ClockSkew: As of ``verify_request``.
        BadSignature: As of ``verify_request``.
    """
    apart = (now - signature.created).total_seconds()
    if abs(apart) > skew.total_seconds():
        raise ClockSkew(
            f"the request was signed at {_clock(signature.created)}, the market's time is {_clock(now)}: "
            f"{abs(apart):.0f} s apart, {skew.total_seconds():g} s are allowed",
            field="created",
        )
    try:
        base = _base(method, path, query, authority, signature.content_digest, signature.params)
    except BadField as exc:
        raise BadSignature(exc.message, field=exc.field) from exc
    key.verify(signature.signature, base)


def check_body(signature: RequestSignature, body_sha256: bytes) -> None:
    """Compare a body's digest with the signed one.

    Raises:
        DigestMismatch: The body is not the one that was signed.
    """
    if not hmac.compare_digest(_content_digest(body_sha256), signature.content_digest):
        raise DigestMismatch("the body does not match its content-digest", field="content-digest")


def _base(method: str, path: str, query: str, authority: str, digest: str, params: str) -> bytes:
    """Return the signature base (RFC 9421 §2.5)."""
    for name, value in (("method", method), ("path", path), ("query", query), ("authority", authority)):
        if len(value) > _MAX_TARGET or not _VISIBLE.fullmatch(value):
            raise BadField(f"the request's {name} is too long or holds characters that a URL may not", field=name)
    return (
        f'"@method": {method}\n"@path": {path or "/"}\n"@query": ?{query}\n"@authority": {authority.lower()}\n'
        f'"content-digest": {digest}\n"@signature-params": {params}'
    ).encode()


def _content_digest(body_sha256: bytes) -> str:
    return f"sha-256=:{b64encode(body_sha256).decode()}:"


def _clock(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
