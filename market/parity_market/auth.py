"""Who is asking. Identity comes from a signature over the whole request (RFC 9421), never from a header alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from hashlib import sha256

from starlette.requests import Request

from parity_market.operations import nodes, sessions
from parity_market.store.base import MarketStore
from parity_protocol.clock import Clock
from parity_protocol.errors import Forbidden, NotFound, Unauthenticated
from parity_protocol.signing.http_signatures import (
    NonceCache,
    RequestSignature,
    check_body,
    parse_signature,
    verify_head,
)
from parity_protocol.signing.jws import b64url_decode
from parity_protocol.signing.keys import Ed25519PublicKey

__all__ = ["ANYBODY", "Access", "Authenticator", "Caller"]

MAX_CACHED_KEYS = 100_000


class Access(Enum):
    """Who may call a route. Every route names one; there is no default."""

    PUBLIC = "public"  # anybody; a signature is not even looked at
    OPTIONAL = "optional"  # anybody, and whoever signs is known
    NODE = "node"
    SUBMITTER = "submitter"
    SIGNED = "signed"  # a node or a submitter
    LEGACY = "legacy"  # a submitter, or a program of the old network without a signature: see ``legacy``
    ENROLLING = "enrolling"  # signed by the device key that the body names


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated identity: a node's id or a submitter's address; empty is anybody."""

    id: str = ""
    is_node: bool = False

    @property
    def reader(self) -> str | None:
        """The id by which private things are looked up; None is anybody."""
        return self.id or None


ANYBODY = Caller()


@dataclass(frozen=True, slots=True)
class _Known:
    key: Ed25519PublicKey
    caller: Caller
    expires: datetime | None  # None never does


class Authenticator:
    """Finds keys, checks signatures and remembers nonces.

    Args:
        authority: The market's configured public host[:port]; the request's Host header is never asked.
    """

    def __init__(self, store: MarketStore, clock: Clock, authority: str) -> None:
        self._store = store
        self._clock = clock
        self.authority = authority
        self._nonces = NonceCache()
        self._known: dict[str, _Known] = {}

    async def caller(
        self, request: Request, access: Access, body: bytes | None
    ) -> tuple[Caller, RequestSignature | None]:
        """Return who signed the request, if ``access`` admits them.

        Args:
            body: As received; None when it is streamed and the route ends the check with ``check_body``.

        Raises:
            Unauthenticated: Not signed, or by a key that is not known here.
            Untrusted: The signature, the digest or the time does not hold (a subclass says which).
            Forbidden: Signed by another kind of caller than this route is for.
        """
        if access is Access.PUBLIC:
            return ANYBODY, None
        if access is Access.OPTIONAL and "signature" not in request.headers:
            return ANYBODY, None
        signature = parse_signature(request.headers)
        known = await self._find(signature.keyid)
        self._check(request, signature, known.key, body)
        if access is Access.NODE and not known.caller.is_node:
            raise Forbidden("only nodes may do this; the request is signed by a submitter's session")
        if access in (Access.SUBMITTER, Access.LEGACY) and known.caller.is_node:
            raise Forbidden("only submitters may do this; the request is signed by a node")
        return known.caller, signature

    def enrolling(self, request: Request, body: bytes, device_key: Ed25519PublicKey, node_id: str) -> None:
        """Check that ``device_key`` itself signed an enrolment as ``node_id``.

        Raises:
            Unauthenticated: Not signed, or in another name.
            Untrusted: As of ``caller``.
        """
        signature = parse_signature(request.headers)
        if signature.keyid != node_id:
            raise Unauthenticated("the request's keyid is not the node's id", field="keyid")
        self._check(request, signature, device_key, body)

    def remember_node(self, node_id: str, device_key: Ed25519PublicKey) -> None:
        """Know a node from now on without asking the store."""
        self._remember(node_id, _Known(device_key, Caller(node_id, is_node=True), None))

    def forget(self, keyid: str) -> None:
        """Ask the store again at the next request by ``keyid``."""
        self._known.pop(keyid, None)

    async def _find(self, keyid: str) -> _Known:
        known = self._known.get(keyid)
        now = self._clock.now()
        if known is not None and (known.expires is None or known.expires > now):
            return known
        self._known.pop(keyid, None)
        known = await (self._node(keyid) if len(keyid) == 64 else self._session(keyid, now))
        self._remember(keyid, known)
        return known

    async def _node(self, node_id: str) -> _Known:
        try:
            row = await self._store.read(lambda tx: nodes.get(tx, node_id))
        except NotFound as exc:
            raise Unauthenticated(f"node {node_id[:16]}… is not enrolled here", hint="Enrol first.") from exc
        return _Known(Ed25519PublicKey(b64url_decode(row.device_key)), Caller(node_id, is_node=True), None)

    async def _session(self, session_id: str, now: datetime) -> _Known:
        row = await self._store.read(lambda tx: sessions.get(tx, session_id, now))
        expires = datetime.fromtimestamp(row.expires_us / 1e6, now.tzinfo)
        return _Known(Ed25519PublicKey(b64url_decode(row.key)), Caller(row.account), expires)

    def _remember(self, keyid: str, known: _Known) -> None:
        if len(self._known) >= MAX_CACHED_KEYS:
            self._known.pop(next(iter(self._known)))
        self._known[keyid] = known

    def _check(self, request: Request, signature: RequestSignature, key: Ed25519PublicKey, body: bytes | None) -> None:
        scope = request.scope
        raw_path = scope.get("raw_path") or scope["path"].encode()
        now = self._clock.now()
        if body is not None:
            check_body(signature, sha256(body).digest())
        verify_head(
            scope["method"],
            raw_path.decode("latin-1"),
            scope["query_string"].decode("latin-1"),
            self.authority,
            signature,
            key=key,
            now=now,
        )
        self._nonces.use(signature.keyid, signature.nonce, created=signature.created, now=now)
