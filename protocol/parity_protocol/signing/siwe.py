"""Sign-in with Ethereum (EIP-4361), read strictly, with the session key that a sign-in registers.

The text is what a wallet shows and signs, so it is checked as text: ``parse`` accepts exactly the standard's grammar,
and writing what was parsed gives the same bytes again.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from parity_protocol.errors import (
    BadDocument,
    BadField,
    BadSignature,
    Expired,
    NotYetValid,
    Replayed,
    WrongAudience,
)
from parity_protocol.ids import Address
from parity_protocol.signing.eip191 import recover_personal
from parity_protocol.signing.jws import b64url_decode, b64url_encode
from parity_protocol.signing.keys import Ed25519PublicKey, checksum_address

__all__ = ["LEEWAY", "MAX_WINDOW", "SiweMessage", "session_key_resource", "verify_siwe"]

LEEWAY = timedelta(seconds=60)  # by which two honest clocks may differ
MAX_WINDOW = timedelta(hours=1)  # from issue to expiry: what a session may last
MAX_TEXT = 4_096  # characters of a message

_SESSION_KEY = "urn:parity:session-key:ed25519:"
_MAX_RESOURCES = 16

# RFC 3986's characters. A statement has no line end, so nothing in it can pass for one of the lines below it.
_URI = r"[A-Za-z][A-Za-z0-9+.-]*:(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*"
_DOMAIN = r"(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
_STATEMENT = r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;= -]{1,1024}"
_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2})"
_REQUEST_ID = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*"
_NONCE = r"[A-Za-z0-9]{8,128}"
_CHAIN_ID = r"0|[1-9][0-9]{0,77}"
_MESSAGE = re.compile(
    rf"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{{0,31}})://)?(?P<domain>{_DOMAIN})"
    r" wants you to sign in with your Ethereum account:\n"
    r"(?P<address>0x[0-9A-Fa-f]{40})\n\n"
    rf"(?:(?P<statement>{_STATEMENT})\n)?\n"
    rf"URI: (?P<uri>{_URI})\n"
    r"Version: 1\n"
    rf"Chain ID: (?P<chain_id>{_CHAIN_ID})\n"
    rf"Nonce: (?P<nonce>{_NONCE})\n"
    rf"Issued At: (?P<issued_at>{_TIME})\n"
    rf"Expiration Time: (?P<expiration_time>{_TIME})"
    rf"(?:\nNot Before: (?P<not_before>{_TIME}))?"
    rf"(?:\nRequest ID: (?P<request_id>{_REQUEST_ID}))?"
    rf"(?:\nResources:(?P<resources>(?:\n- {_URI})*))?"
)


@dataclass(frozen=True, slots=True)
class SiweMessage:
    """A sign-in text. Times are the text's own, so that nothing changes between reading and writing."""

    domain: str  # host, with a port where one is needed
    address: Address  # lower case; the text shows it with its checksum
    uri: str
    chain_id: int
    nonce: str
    issued_at: str  # RFC 3339
    expiration_time: str  # RFC 3339; the standard leaves it out at will, we do not
    statement: str | None = None
    not_before: str | None = None
    request_id: str | None = None
    resources: tuple[str, ...] | None = None
    scheme: str | None = None

    @classmethod
    def build(
        cls,
        *,
        domain: str,
        address: Address,
        uri: str,
        chain_id: int,
        nonce: str,
        now: datetime,
        ttl: timedelta,
        statement: str | None = None,
        session_key: Ed25519PublicKey | None = None,
    ) -> SiweMessage:
        """Make a message that is valid from ``now`` (UTC) for ``ttl`` and registers ``session_key``.

        Raises:
            BadField: A value that the grammar does not allow.
        """
        message = cls(
            domain=domain,
            address=address,
            uri=uri,
            chain_id=chain_id,
            nonce=nonce,
            issued_at=_write_time(now),
            expiration_time=_write_time(now + ttl),
            statement=statement,
            resources=None if session_key is None else (session_key_resource(session_key),),
        )
        try:
            parsed = cls.parse(message.text())
        except BadDocument as exc:
            raise BadField(f"a sign-in cannot be written with these values: {exc.message}", field="siwe") from exc
        if parsed != message:
            raise BadField("a sign-in with these values would be read as another one", field="siwe")
        return message

    @classmethod
    def parse(cls, text: str) -> SiweMessage:
        """Read a message by the standard's grammar.

        Raises:
            BadDocument: Another grammar, no expiry, an address without its EIP-55 checksum, or a time that is none.
        """
        if len(text) > MAX_TEXT:
            raise BadDocument(f"a sign-in has at most {MAX_TEXT} characters, got {len(text)}")
        match = _MESSAGE.fullmatch(text)
        if match is None:
            raise BadDocument("not a sign-in message as EIP-4361 defines it, with an expiration time")
        shown = match["address"]
        if shown != checksum_address(shown):
            raise BadDocument("the sign-in's address does not have its EIP-55 checksum", field="address")
        for name in ("issued_at", "expiration_time", "not_before"):
            if match[name] is not None:
                _read_time(match[name], name)
        resources = match["resources"]
        found = None if resources is None else tuple(resources.split("\n- ")[1:])
        if found is not None and len(found) > _MAX_RESOURCES:
            raise BadDocument(f"a sign-in names at most {_MAX_RESOURCES} resources", field="resources")
        return cls(
            domain=match["domain"],
            address=Address(shown.lower()),
            uri=match["uri"],
            chain_id=int(match["chain_id"]),
            nonce=match["nonce"],
            issued_at=match["issued_at"],
            expiration_time=match["expiration_time"],
            statement=match["statement"],
            not_before=match["not_before"],
            request_id=match["request_id"],
            resources=found,
            scheme=match["scheme"],
        )

    def text(self) -> str:
        """Return the text that the wallet shows and signs."""
        scheme = "" if self.scheme is None else f"{self.scheme}://"
        lines = [
            f"{scheme}{self.domain} wants you to sign in with your Ethereum account:",
            checksum_address(self.address),
            "",
            *([] if self.statement is None else [self.statement]),
            "",
            f"URI: {self.uri}",
            "Version: 1",
            f"Chain ID: {self.chain_id}",
            f"Nonce: {self.nonce}",
            f"Issued At: {self.issued_at}",
            f"Expiration Time: {self.expiration_time}",
        ]
        if self.not_before is not None:
            lines.append(f"Not Before: {self.not_before}")
        if self.request_id is not None:
            lines.append(f"Request ID: {self.request_id}")
        if self.resources is not None:
            lines += ["Resources:", *(f"- {resource}" for resource in self.resources)]
        return "\n".join(lines)

    def expires(self) -> datetime:
        """Return the time, UTC, from which the sign-in and the session it opens are over."""
        return _read_time(self.expiration_time, "expiration_time")

    def session_key(self) -> Ed25519PublicKey:
        """Return the one session key that this sign-in registers.

        Raises:
            BadDocument: It names none, several, or a weak one.
        """
        named = [resource for resource in self.resources or () if resource.startswith(_SESSION_KEY)]
        if len(named) != 1:
            raise BadDocument(f"a sign-in names exactly one session key, got {len(named)}", field="resources")
        try:
            return Ed25519PublicKey(b64url_decode(named[0].removeprefix(_SESSION_KEY)))
        except BadField as exc:
            raise BadDocument(f"the sign-in's session key is refused: {exc.message}", field="resources") from exc


def session_key_resource(key: Ed25519PublicKey) -> str:
    """Return the resource by which a sign-in names the session key that it registers."""
    return _SESSION_KEY + b64url_encode(key.raw)


def verify_siwe(
    text: str,
    signature: bytes,
    *,
    domain: str,
    uri: str,
    chain_id: int,
    nonce: str,
    now: datetime,
    leeway: timedelta = LEEWAY,
    max_window: timedelta = MAX_WINDOW,
) -> Address:
    """Return the address that signed in by ``text``, or raise.

    That ``nonce`` was given out, is fresh and is used once is for the caller's store.

    Args:
        text: The message exactly as it was signed.
        signature: 65 bytes, by ``personal_sign``.
        domain: The market's public authority.
        uri: The market's sign-in URI.
        chain_id: The chain that the market settles on.
        nonce: What the market gave to this sign-in.
        now: Current time, UTC.
        leeway: By which the issue may lie ahead; expiry has none.
        max_window: Longest time from issue to expiry.

    Raises:
        BadDocument: Not a sign-in message, or its window is too long.
        WrongAudience: Another domain, URI or chain.
        Replayed: Another nonce.
        NotYetValid: It is issued or valid only later.
        Expired: It has expired.
        BadSignature: Not signed by the address that it names.
    """
    message = SiweMessage.parse(text)
    if message.domain != domain:
        raise WrongAudience(f"the sign-in is for another domain than {domain}", field="domain")
    if message.uri != uri:
        raise WrongAudience(f"the sign-in is for another URI than {uri}", field="uri")
    if message.chain_id != chain_id:
        raise WrongAudience(f"the sign-in is for chain {message.chain_id}, this is {chain_id}", field="chain_id")
    if not hmac.compare_digest(message.nonce, nonce):
        raise Replayed("the sign-in's nonce is not the one that was given for it", field="nonce")
    issued, expires = _read_time(message.issued_at, "issued_at"), message.expires()
    if not timedelta(0) < expires - issued <= max_window:
        raise BadDocument(
            f"a sign-in lasts above 0 and at most {max_window.total_seconds() / 60:g} min", field="expiration_time"
        )
    start = issued if message.not_before is None else _read_time(message.not_before, "not_before")
    for name, time in (("issued_at", issued), ("not_before", start)):
        if time > now + leeway:
            raise NotYetValid(f"the sign-in's {name} lies {(time - now).total_seconds():.0f} s ahead", field=name)
    if now >= expires:
        raise Expired(f"the sign-in expired {(now - expires).total_seconds():.0f} s ago", field="expiration_time")
    if recover_personal(text, signature) != message.address:
        raise BadSignature("the sign-in is not signed by the address that it names")
    return message.address


def _write_time(time: datetime) -> str:
    return time.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def _read_time(text: str, name: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise BadDocument(f"the sign-in's {name} is not a time", field=name) from exc
