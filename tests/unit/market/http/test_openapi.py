"""The OpenAPI document says what the market does: every route, body, answer and parameter, and nothing that fails."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import schemathesis
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity_market.app import ENDPOINTS
from parity_market.auth import Access
from parity_market.routing import Endpoint
from parity_market.testing.served import Served, Signer, serve_in_process
from parity_protocol.testing.keys import deterministic_evm_key

Call = Any


@contextmanager
def served_in_a_thread(folder: Path) -> Iterator[tuple[Call, dict[Access, Signer | None], dict[str, Any]]]:
    """Serve a market beside this thread, for tests that are not async; yields (call, who to call as, document)."""
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(serve_in_process(folder)) as served,
    ):
        assert isinstance(served, Served)
        node, submitter = (
            portal.call(served.enrol, "node"),
            portal.call(served.sign_in, deterministic_evm_key("submitter")),
        )
        who = {
            Access.NODE: node,
            Access.SUBMITTER: submitter,
            Access.SIGNED: submitter,
            Access.ENROLLING: node,
            Access.LEGACY: submitter,
        }

        def call(method: str, path: str, raw: bytes, by: Signer | None) -> Any:
            return portal.call(lambda: served.call(method, path, raw=raw, by=by))

        yield call, {access: who.get(access) for access in Access}, call("GET", "/openapi.json", b"", None).json()


@pytest.fixture(scope="module")
def market(unit_folder: Path) -> Iterator[Any]:
    with served_in_a_thread(Path(mkdtemp(dir=unit_folder))) as parts:
        yield parts


@pytest.fixture(scope="module")
def operations(market: Any) -> list[tuple[Endpoint, Any]]:
    """Return what schemathesis makes of each route that takes no stream and ends nothing."""
    schema = schemathesis.openapi.from_dict(market[2])
    asked = [one for one in ENDPOINTS if not one.streams_body and one.method != "DELETE"]
    return [(one, schema[one.path][one.method]) for one in asked]


def test_every_route_is_documented_with_its_body_answer_and_parameters(market: Any) -> None:
    _, _, document = market

    for endpoint in ENDPOINTS:
        operation = document["paths"][endpoint.path][endpoint.method.lower()]
        named = {(one["in"], one["name"]) for one in operation.get("parameters", ())}
        in_path = {("path", name) for name in re.findall(r"{(\w+)}", endpoint.path)}
        assert in_path | {("query", one.name) for one in endpoint.query} == named, endpoint.path
        assert ("requestBody" in operation) == (endpoint.body is not None or endpoint.streams_body), endpoint.path
        answer = operation["responses"][str(endpoint.status)]
        assert (endpoint.reply is None) or endpoint.reply.__name__ in json.dumps(answer), endpoint.path
        refused = json.dumps(operation["responses"]["4XX"])
        assert ('"error"' if endpoint.access is Access.LEGACY else "Problem") in refused, endpoint.path


def test_every_reference_leads_somewhere(market: Any) -> None:
    _, _, document = market

    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert name in document["components"]["schemas"]


def test_an_undocumented_parameter_of_a_handler_would_be_noticed() -> None:
    routes = Path(__file__).parents[4] / "market/parity_market/routes"
    read = {
        name
        for file in routes.glob("*.py")
        for name in re.findall(r'call\.(?:text|number|whole)\(\s*"(\w+)"', file.read_text(encoding="utf-8"))
    }

    assert read <= {one.name for endpoint in ENDPOINTS for one in endpoint.query}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_the_document_allows_or_forbids_is_answered_without_a_5xx(
    market: Any, operations: list[tuple[Endpoint, Any]], data: st.DataObject
) -> None:
    call, who, _ = market
    endpoint, operation = data.draw(st.sampled_from(operations))
    mode = data.draw(st.sampled_from(list(schemathesis.GenerationMode)))
    case = data.draw(operation.as_strategy(generation_mode=mode))
    sent = case.as_transport_kwargs(base_url="http://127.0.0.1:8080")
    raw = b"" if endpoint.body is None else json.dumps(sent.get("json"), default=str).encode(errors="replace")
    path = "/" + sent["url"].partition("://")[2].partition("/")[2]

    reply = call(endpoint.method, path, raw, who[endpoint.access])

    assert reply.status_code < 500, (endpoint.method, path, raw, reply.text)
    is_old = endpoint.access is Access.LEGACY or "form=parity" in path
    kind = "application/json" if is_old else "application/problem+json"
    assert reply.status_code < 400 or reply.headers["content-type"].startswith(kind)
