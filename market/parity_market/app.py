"""The ASGI application: routes, OpenAPI from the models, and nothing that parses a body by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from parity_market.route_table import RouteTable
from parity_market.routes import about, auth, leases, legacy_runners, legacy_training, nodes, storage, tasks, training
from parity_market.routing import Endpoint, mount, problem_response
from parity_market.state import MarketState
from parity_protocol.api.problem import PROBLEM_CONTENT_TYPE, Problem
from parity_protocol.errors import InvalidInput, NotFound

__all__ = ["ENDPOINTS", "Lifespan", "create_app"]

ENDPOINTS: tuple[Endpoint, ...] = (
    *about.ENDPOINTS,
    *auth.ENDPOINTS,
    *nodes.ENDPOINTS,
    *leases.ENDPOINTS,
    *tasks.ENDPOINTS,
    *storage.ENDPOINTS,
    *training.ENDPOINTS,
    *legacy_training.ENDPOINTS,
    *legacy_runners.ENDPOINTS,
)

_OLD: dict[str, Any] = {
    "application/json": {
        "schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    }
}

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class MarketApp(FastAPI):
    """Answers its own routes straight from their table; everything else, such as the OpenAPI document, as FastAPI does.

    FastAPI tries one pattern after another and enters a stack of middlewares that nothing here needs: handlers read
    their own bodies and turn every exception into a problem document themselves.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.table = RouteTable()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        found = self.table.find(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if found is None:
            await super().__call__(scope, receive, send)
            return
        run, scope["path_params"] = found
        response = await run(Request(scope, receive, send))
        await response(scope, receive, send)


def create_app(state: MarketState, lifespan: Lifespan | None = None) -> FastAPI:
    """Return the application over a market's parts."""
    app = MarketApp(
        title="parity-node market",
        version=state.version,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    mount(app, app.table, state, ENDPOINTS)
    app.add_exception_handler(HTTPException, _unrouted)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # how FastAPI documents replacing it
    return app


async def _unrouted(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    if exc.status_code == NotFound.status:
        return problem_response(NotFound("there is no such path here"), None)
    if exc.status_code == 405:
        problem = Problem(
            title="The path does not take this method.", status=405, code="method_not_allowed", detail=request.method
        )
        return Response(problem.model_dump_json(), status_code=405, media_type=PROBLEM_CONTENT_TYPE)
    error = InvalidInput("the request is not valid")
    return problem_response(error, None)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document with bodies and replies declared from the models."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    schema = FastAPI.openapi(app)
    models: set[type[BaseModel]] = {Problem}
    for endpoint in ENDPOINTS:
        models.update(model for model in (endpoint.body, endpoint.reply) if model is not None)
    pairs = [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)]
    _, definitions = models_json_schema(pairs, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]  # Literal
    schema.setdefault("components", {})["schemas"] = definitions.get("$defs", {})
    problem = {PROBLEM_CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for operations in schema["paths"].values():
        for operation in operations.values():
            reply = operation.pop("x-reply", None)
            operation.pop("x-body", None)
            done = next(iter(operation["responses"]))
            answer: dict[str, Any] = {"description": operation["responses"][done].get("description", "OK")}
            if reply is not None:
                answer["content"] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{reply}"}}}
            refused = {"description": "Refused", "content": _OLD if operation["x-access"] == "legacy" else problem}
            operation["responses"] = {done: answer, "4XX": refused, "5XX": refused}
    app.openapi_schema = schema
    return schema
