"""The simulated market over HTTP, as an ASGI application: for the HTTP adapter and for nodes in processes of their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import BaseModel

from parity_blobs.car_files import CAR_TYPE
from parity_node.testing.market import MarketSimulator
from parity_protocol import strict_json
from parity_protocol.api import leases as wire
from parity_protocol.api import paths
from parity_protocol.api.nodes import EnrolRequest, Heartbeat
from parity_protocol.api.problem import PROBLEM_CONTENT_TYPE, problem_of
from parity_protocol.errors import Forbidden, NotFound, ParityError, TooLarge, Unauthenticated, Unavailable
from parity_protocol.ids import NodeId
from parity_protocol.signing.http_signatures import parse_signature, verify_request
from parity_protocol.signing.jws import b64url_decode
from parity_protocol.signing.keys import Ed25519PublicKey, node_id_of
from parity_protocol.signing.nonces import NonceCache
from parity_protocol.wire import parse_as

__all__ = ["simulator_app"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 64 << 20
_MAX_JSON_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who sent a request; its signature was checked."""

    node_id: NodeId
    body: bytes


def simulator_app(market: MarketSimulator) -> App:
    """Return an application that answers for ``market``; every request but the key set's must be signed."""
    nonces = NonceCache()

    async def answer(scope: Scope, body: bytes) -> bytes:
        if scope["path"] == paths.JWKS:
            market._check("trust")  # noqa: SLF001 - the simulator's own front
            return market.jwks()
        caller = _authenticate(market, nonces, scope, body)
        if scope["path"] == paths.STORAGE_UPLOAD and (b"content-type", CAR_TYPE.encode()) in scope["headers"]:
            return (await market.store_packed(body)).model_dump_json().encode()
        return (await _route(market, scope["path"], caller)).model_dump_json().encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            data = await answer(scope, await _read(receive))
            status, kind, extra = 200, "application/json", []
        except ParityError as exc:
            problem = problem_of(exc)
            status, kind, data = exc.status, PROBLEM_CONTENT_TYPE, problem.model_dump_json().encode()
            wait_s = exc.retry_after_s if isinstance(exc, Unavailable) else None
            extra = [(b"retry-after", str(int(wait_s)).encode())] if wait_s is not None else []
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(data)).encode()), *extra]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    return app


def _authenticate(market: MarketSimulator, nonces: NonceCache, scope: Scope, body: bytes) -> _Caller:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    signature = parse_signature(headers)
    if scope["path"] == paths.ENROL:
        key = Ed25519PublicKey(b64url_decode(_parse(EnrolRequest, body).device_key))
    else:
        known = market.nodes.get(signature.keyid)
        if known is None:
            raise Unauthenticated("this node is not enrolled here")
        key = Ed25519PublicKey(b64url_decode(known.device_key))
    if node_id_of(key) != signature.keyid:
        raise Forbidden("the key is not that of the node it names")
    now = market.clock.now()
    raw_path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
    query = scope["query_string"].decode("latin-1")
    verify_request(scope["method"], raw_path, query, market.authority, body, signature, key=key, now=now)
    nonces.use(signature.keyid, signature.nonce, created=signature.created, now=now)
    return _Caller(NodeId(signature.keyid), body)


async def _route(market: MarketSimulator, path: str, caller: _Caller) -> BaseModel:
    body = caller.body
    match path:
        case paths.ENROL:
            return await market.enrol(_parse(EnrolRequest, body))
        case paths.HEARTBEAT:
            return await market.heartbeat(_parse(Heartbeat, body))
        case paths.LEASE_POLL:
            return await market.poll(_parse(wire.PollRequest, body), node_id=caller.node_id)
        case paths.LEASE_CLAIMS:
            return await market.claim(_parse(wire.ClaimsRequest, body), node_id=caller.node_id)
        case paths.LEASE_RENEW:
            return await market.renew(_parse(wire.RenewRequest, body))
        case paths.LEASE_START:
            return await market.start(_parse(wire.StartRequest, body))
        case paths.LEASE_RELEASE:
            return await market.release(_parse(wire.ReleaseRequest, body))
        case paths.LEASE_LOGS:
            return await market.logs(_parse(wire.LogsRequest, body))
        case paths.REPORTS:
            return await market.report(_parse(wire.ReportsRequest, body))
        case paths.STORAGE_UPLOAD:
            return market.store_blob(body)
        case _:
            raise NotFound(f"there is nothing at {path[:80]}")


def _parse(model: type[Any], body: bytes) -> Any:
    strict_json.loads(body, max_bytes=_MAX_JSON_BYTES)
    return parse_as(model, body)


async def _read(receive: Receive) -> bytes:
    data = bytearray()
    while True:
        message = await receive()
        data += message.get("body", b"")
        if len(data) > MAX_BODY_BYTES:
            raise TooLarge
        if not message.get("more_body"):
            return bytes(data)
