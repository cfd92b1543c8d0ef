"""Joining a market: the string that its operator hands out, and the check of what the market says of itself.

A join string is the market's address with two pins in its fragment, which no HTTP client ever sends::

    https://market.example:8443/#market=<thumbprint>&cert=<hex>

``market`` is the identity key's thumbprint (RFC 7638); ``cert`` is the SHA-256 of the TLS certificate (DER) and is
absent where a public authority vouches for the certificate, or where the address is loopback.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

from parity_protocol import strict_json
from parity_protocol.api.market import JWKS_TYPE, JwksReply, MarketDocument, MarketKey
from parity_protocol.errors import BadDocument, BadField, DigestMismatch, Untrusted
from parity_protocol.signing import jws
from parity_protocol.signing.keys import Ed25519PublicKey
from parity_protocol.wire import parse_as

__all__ = ["MAX_DOCUMENT_WINDOW", "JoinString", "TrustedMarket", "is_loopback", "parse_join", "parse_market_url"]
__all__ += ["verify_market"]

MAX_DOCUMENT_WINDOW = timedelta(days=400)  # the identity key may be kept off line, so its document lives long
MAX_JOIN_CHARS = 1_024
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class JoinString:
    """Where a market is and how it is recognised."""

    url: str  # scheme://host[:port], without a path
    market: str  # thumbprint of the identity key, base64url
    certificate: str | None = None  # hex SHA-256 of the TLS certificate, or None

    def __str__(self) -> str:
        pin = f"&cert={self.certificate}" if self.certificate else ""
        return f"{self.url}/#market={self.market}{pin}"


@dataclass(frozen=True, slots=True)
class TrustedMarket:
    """What a market says of itself, vouched for by the pinned identity."""

    document: MarketDocument
    thumbprint: str
    manifest_keys: dict[str, Ed25519PublicKey]  # by key id


def parse_join(text: str) -> JoinString:
    """Read a join string.

    Raises:
        BadField: Not in its form, plain HTTP to another machine, or a pin is missing or malformed.
    """
    text = text.strip()
    if len(text) > MAX_JOIN_CHARS:
        raise BadField(f"a join string has at most {MAX_JOIN_CHARS} characters", field="join")
    address, _, fragment = text.partition("#")
    pins = dict(parse_qsl(fragment, keep_blank_values=True))
    if not pins or not set(pins) <= {"market", "cert"}:
        raise BadField("a join string ends with '#market=…' and perhaps '&cert=…'", field="join")
    if not _THUMBPRINT.fullmatch(pins.get("market", "")):
        raise BadField("the join string's market is a thumbprint of 43 base64url characters", field="join")
    jws.thumbprint_bytes(pins["market"])
    certificate = pins.get("cert")
    if certificate is not None and not _FINGERPRINT.fullmatch(certificate):
        raise BadField("the join string's cert is 64 lower-case hex digits", field="join")
    return JoinString(parse_market_url(address), pins["market"], certificate)


def parse_market_url(text: str) -> str:
    """Return a market's address as ``scheme://host[:port]``.

    A path of ``/`` or ``/api`` is dropped, since operators of the Parity network write both.

    Raises:
        BadField: Not an http(s) address, or plain HTTP to another machine than this one.
    """
    shown = text.strip()[:200]
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as exc:
        raise BadField(f"expected an address such as https://market.example, got {shown!r}", field="url") from exc
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise BadField(f"expected an address such as https://market.example, got {shown!r}", field="url")
    if parts.path.rstrip("/") not in ("", "/api") or parts.query or parts.fragment:
        raise BadField(f"expected an address without a path, got {shown!r}", field="url")
    if parts.scheme == "http" and not is_loopback(host):
        raise BadField(f"http:// is refused off this machine: use https:// for {host}", field="url")
    shown_host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown_host}" + (f":{port}" if port is not None else "")


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is this machine by its spelling: ``localhost`` or a loopback address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def verify_market(reply: bytes, thumbprint: str | None, *, now: datetime) -> TrustedMarket:
    """Check the body of ``/.well-known/jwks.json`` against the pinned identity.

    Args:
        reply: As received; at most 256 KiB.
        thumbprint: The pinned identity. None trusts the one that is named, for the first contact over loopback only.
        now: Current time, UTC.

    Raises:
        Untrusted: The pinned identity did not sign it, or its window is over (a subclass says which).
        InvalidInput: Not such a document.
    """
    strict_json.loads(reply)
    parsed = parse_as(JwksReply, reply)
    identities = {key.kid: key for key in parsed.keys if key.use == "identity"}
    if thumbprint is None:
        if len(identities) != 1:
            raise BadDocument("expected exactly one identity key", field="keys")
        thumbprint = next(iter(identities))
    if thumbprint not in identities:
        raise Untrusted(f"the market's identity is not the pinned one ({thumbprint})", field="keys")
    identity = _public_key(identities[thumbprint])
    verified = jws.verify(
        parsed.signed,
        {thumbprint: identity},
        JWKS_TYPE,
        issuer=thumbprint,
        audience="*",
        now=now,
        max_window=MAX_DOCUMENT_WINDOW,
    )
    document = parse_as(MarketDocument, verified.raw_payload)
    manifest_keys = {key.kid: _public_key(key) for key in document.keys if key.use == "manifest"}
    if not manifest_keys:
        raise BadDocument("the market names no manifest key", field="keys")
    return TrustedMarket(document, thumbprint, manifest_keys)


def _public_key(key: MarketKey) -> Ed25519PublicKey:
    if key.kty != "OKP" or key.crv != "Ed25519":
        raise BadDocument("a market's keys are Ed25519 (kty OKP)", field="keys")
    public = Ed25519PublicKey(jws.b64url_decode(key.x))
    if public.thumbprint() != key.kid:
        raise DigestMismatch("a key's kid is not its thumbprint", field="keys")
    return public
