"""Routes as data: each names its method, path, access, body and reply, so that none can forget one of them.

A handler gets a ``Call`` and returns a model (or a Starlette response). Authentication, the body rule, errors as
problem documents and the second prefix of the Parity network happen here, once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import structlog
from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from parity_market.auth import Access, Caller
from parity_market.bodies import parse_body, read_body
from parity_market.legacy import TIER_HEADER, is_unsigned, old_error
from parity_market.metrics import REQUESTS
from parity_market.route_table import RouteTable, Run
from parity_market.state import MarketState
from parity_protocol.api.paths import API
from parity_protocol.api.problem import PROBLEM_CONTENT_TYPE, Problem, problem_of
from parity_protocol.errors import BadField, ClockSkew, Internal, ParityError, Unavailable
from parity_protocol.signing.http_signatures import RequestSignature, check_body
from parity_protocol.wire import explain

__all__ = [
    "CURSOR",
    "FORM",
    "LIMIT",
    "MAX_WAIT_S",
    "SMALL_BODY",
    "WAIT",
    "Call",
    "Endpoint",
    "Query",
    "mount",
    "problem_response",
    "whole_number",
]

log = structlog.get_logger(__name__)

SMALL_BODY = 262_144  # bytes of a JSON body unless a route says otherwise
MAX_WAIT_S = 60.0  # of a request that waits for something
MAX_PAGE = 200


@dataclass(slots=True)
class Call:
    """One request, as a handler sees it."""

    state: MarketState
    request: Request
    caller: Caller
    body: Any  # the endpoint's model, or None
    raw: bytes
    signature: RequestSignature | None

    def path(self, name: str) -> str:
        """Return a path parameter."""
        return str(self.request.path_params[name])

    def text(self, name: str, default: str = "", *, max_chars: int = 128) -> str:
        """Return a query parameter.

        Raises:
            BadField: It is repeated, too long, or holds control characters.
        """
        found = self.request.query_params.getlist(name)
        if not found:
            return default
        if len(found) > 1 or len(found[0]) > max_chars or not found[0].isprintable():
            raise BadField(f"{name}: expected one value of at most {max_chars} printable characters", field=name)
        return found[0]

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """Return a query parameter as a number in ``low`` … ``high``.

        Raises:
            BadField: It is not one.
        """
        text = self.text(name)
        try:
            value = float(text) if text else default
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise BadField(f"{name}: expected a number from {low:g} to {high:g}", field=name)
        return value

    def whole(self, name: str, default: int, *, low: int, high: int) -> int:
        """Return a query parameter as a whole number; raises as ``number`` does."""
        text = self.text(name, max_chars=20)
        if (text and not text.isascii()) or (text and not text.isdigit()):
            raise BadField(f"{name}: expected a whole number from {low} to {high}", field=name)
        value = int(text) if text else default
        if not low <= value <= high:
            raise BadField(f"{name}: expected a whole number from {low} to {high}", field=name)
        return value

    def wait_s(self) -> float:
        """Return how long the caller wants to wait for a change."""
        return self.number("wait_s", 0.0, low=0.0, high=MAX_WAIT_S)

    def limit(self, default: int = 50) -> int:
        """Return the page size."""
        return self.whole("limit", default, low=1, high=MAX_PAGE)


@dataclass(frozen=True, slots=True)
class Query:
    """A query parameter, for the OpenAPI document; the handler reads and checks it by ``Call``."""

    name: str
    schema: Mapping[str, Any]
    summary: str


def whole_number(name: str, summary: str, *, high: int) -> Query:
    """Return a parameter for ``Call.whole``."""
    return Query(name, {"type": "integer", "minimum": 0, "maximum": high}, summary)


WAIT = Query(
    "wait_s", {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S, "default": 0}, "Seconds to wait for a change"
)
LIMIT = Query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 50}, "Items of a page")
CURSOR = Query("cursor", {"type": "string", "maxLength": 128}, "The `next_cursor` of the page before")

FORM = Query("form", {"type": "string", "enum": ["parity"]}, "Answer in the old Parity network's form")

Handler = Callable[[Call], Awaitable[BaseModel | Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route."""

    method: str
    path: str  # below /api/v1 also answers below /api
    handler: Handler
    access: Access
    summary: str
    reply: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    max_body: int = SMALL_BODY
    streams_body: bool = False  # the handler reads it and ends the signature's check
    status: int = 200
    alias: bool = True
    takes_rest: bool = False  # the last parameter matches all that is left of the path
    query: tuple[Query, ...] = ()
    old: Handler | None = None  # answers in the old network's form, when that is asked for; see ``_is_old``


def mount(app: FastAPI, table: RouteTable, state: MarketState, endpoints: Sequence[Endpoint]) -> None:
    """Add the endpoints under both prefixes: to ``table``, which answers, and to ``app``, which documents them."""
    for endpoint in endpoints:
        paths = [endpoint.path]
        if endpoint.alias and endpoint.path.startswith(API):
            paths.append("/api" + endpoint.path.removeprefix(API))
        run = _runner(state, endpoint)
        for index, path in enumerate(paths):
            table.add(endpoint.method, path.removesuffix("}") + ":path}" if endpoint.takes_rest else path, run)
            app.add_api_route(
                path,
                run,
                methods=[endpoint.method],
                status_code=endpoint.status,
                response_model=None,
                summary=endpoint.summary,
                operation_id=_operation_id(endpoint.method, path),
                include_in_schema=index == 0,
                openapi_extra=_schema(endpoint),
            )


def _operation_id(method: str, path: str) -> str:
    words = "".join(char if char.isalnum() else " " for char in path).split()
    return "_".join([method.lower(), *words])


def _schema(endpoint: Endpoint) -> dict[str, Any]:
    extra: dict[str, Any] = {"x-access": endpoint.access.value, "x-body": None, "x-reply": None}
    segments = [part[1:-1] for part in endpoint.path.split("/") if part.startswith("{")]
    extra["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in segments
    ] + [
        {"name": one.name, "in": "query", "required": False, "schema": dict(one.schema), "description": one.summary}
        for one in endpoint.query
    ]
    if endpoint.body is not None:
        extra["x-body"] = endpoint.body.__name__
        ref = {"$ref": f"#/components/schemas/{endpoint.body.__name__}"}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref}}}
    elif endpoint.streams_body:
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        extra["requestBody"] = {"required": True, "content": content}
    if endpoint.reply is not None:
        extra["x-reply"] = endpoint.reply.__name__
    return extra


def _runner(state: MarketState, endpoint: Endpoint) -> Run:
    name = endpoint.path

    async def run(request: Request) -> Response:
        is_old = _is_old(state, endpoint, request)
        try:
            response = await _answer(state, endpoint, request, is_old=is_old)
        except ParityError as exc:
            response = old_error(exc) if is_old else problem_response(exc, state)
            if exc.status >= Internal.status and not isinstance(exc, Unavailable):
                log.exception("request_failed", path=name, code=exc.code, message=exc.message)
            elif exc.status in (401, 403):
                log.warning("request_refused", path=name, code=exc.code, message=exc.message)
        except ClientDisconnect:
            response = Response(status_code=499)
        except ValidationError as exc:
            field, message = explain(exc)[0]
            response = problem_response(BadField(f"{field}: {message}", field=field), state)
        except Exception:
            log.exception("request_crashed", path=name)
            response = old_error(Internal()) if is_old else problem_response(Internal(), state)
        if is_old and is_unsigned(request):
            response.headers[TIER_HEADER] = "legacy"
        REQUESTS.labels(endpoint.method, name, str(response.status_code)).inc()
        return response

    return run


def _is_old(state: MarketState, endpoint: Endpoint, request: Request) -> bool:
    """Return whether a request is answered in the old network's form: on a path of that network's alone, always.

    On a path that both have, ``form=parity`` asks for it, and so does a program of that network by not signing.
    """
    if endpoint.access is Access.LEGACY:
        return True
    if endpoint.old is None:
        return False
    return request.query_params.get("form") == "parity" or (is_unsigned(request) and state.legacy.admits(request))


async def _answer(state: MarketState, endpoint: Endpoint, request: Request, *, is_old: bool) -> Response:
    access = Access.LEGACY if is_old else endpoint.access
    handler = endpoint.old if is_old and endpoint.old is not None else endpoint.handler
    with state.bodies.counting() as take:
        raw = b""
        caller, signature = Caller(), None
        if is_old and is_unsigned(request):
            state.legacy.check(request)
        elif access is not Access.ENROLLING:
            # Before a byte of the body is kept: a stranger must not fill the memory. The signed digest ties the two.
            has_body = endpoint.method != "GET"
            caller, signature = await state.authenticator.caller(request, access, None if has_body else b"")
        if not endpoint.streams_body and endpoint.method != "GET":
            raw = await read_body(request, endpoint.max_body, take)
            if signature is not None:
                check_body(signature, sha256(raw).digest())
        body = None if endpoint.body is None else parse_body(endpoint.body, raw, max_bytes=endpoint.max_body)
        answer = await handler(Call(state, request, caller, body, raw, signature))
    if isinstance(answer, Response):
        return answer
    return Response(answer.model_dump_json(), status_code=endpoint.status, media_type="application/json")


def problem_response(error: ParityError, state: MarketState | None) -> Response:
    """Return the problem document of an error."""
    problem: Problem = problem_of(error)
    headers: dict[str, str] = {}
    if isinstance(error, ClockSkew) and state is not None:
        problem = problem.model_copy(update={"market_time": state.clock.now().isoformat()})
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(max(1, round(error.retry_after_s or 1)))
    return Response(
        problem.model_dump_json(exclude_defaults=False),
        status_code=problem.status,
        media_type=PROBLEM_CONTENT_TYPE,
        headers=headers,
    )
