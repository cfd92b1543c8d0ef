"""Bad input is a 4xx problem document that names the field, on every route, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from time import perf_counter

import pytest

from parity_market.app import ENDPOINTS, create_app
from parity_market.auth import Access
from parity_market.bodies import BodyBudget
from parity_market.testing.served import Served
from parity_protocol.api import paths
from parity_protocol.errors import Overloaded
from parity_protocol.testing.keys import deterministic_evm_key

HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "not json": b"hello",
    "a list": b"[]",
    "null": b"null",
    "unknown field": b'{"slots":1,"instance":"%s","surprise":1}' % (b"ab" * 32),
    "wrong type": b'{"slots":"1","instance":"%s"}' % (b"ab" * 32),
    "a float for a whole number": b'{"slots":1.5,"instance":"%s"}' % (b"ab" * 32),
    "true for a number": b'{"slots":true,"instance":"%s"}' % (b"ab" * 32),
    "NaN": b'{"slots":NaN}',
    "infinity": b'{"wait_s":1e999}',
    "lone surrogate": b'{"instance":"\\ud800"}',
    "duplicate member": b'{"slots":1,"slots":2}',
    "5000 digits": b'{"slots":' + b"9" * 5000 + b"}",
    "depth 10000": b"[" * 10_000 + b"]" * 10_000,
    "depth 10000 of objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "bad UTF-8": b'{"instance":"\xff\xfe"}',
    "overlong UTF-8": b'{"instance":"\xc0\xaf"}',
    "byte-order mark": b"\xef\xbb\xbf{}",
    "NUL": b'{"instance":"\\u0000"}',
    "raw NUL": b'{"instance":"\x00"}',
    "over-long string": json.dumps({"instance": "a" * 200_000}).encode(),
    "trailing text": b'{"slots":1} x',
    "two documents": b"{}{}",
}

NO_FIELDS = {"empty", "not json", "a list", "null", "byte-order mark", "trailing text", "two documents"}
"""Nothing of these is a field's fault."""


def _assert_problem(reply, low: int = 400, high: int = 499) -> dict:
    assert low <= reply.status_code <= high, reply.text
    assert reply.headers["content-type"].startswith("application/problem+json")
    problem = reply.json()
    assert problem["status"] == reply.status_code
    assert problem["code"]
    assert problem["title"]
    return problem


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_body_is_refused_on_every_route_that_takes_one(served: Served, name: str) -> None:
    node = await served.enrol("node")
    account = await served.sign_in(deterministic_evm_key("submitter"))
    routes = [one for one in ENDPOINTS if one.body is not None and one.access is not Access.ENROLLING]
    assert len(routes) >= 10

    for route in routes:
        by = node if route.access in (Access.NODE, Access.SIGNED) else account
        path = route.path.replace("{task_id}", "00000000-0000-4000-8000-000000000000")
        reply = await served.call(route.method, path, raw=HOSTILE[name], by=by)
        problem = _assert_problem(reply)
        assert problem["field"] or name in NO_FIELDS, (path, problem)


async def test_unknown_field_is_named(served: Served) -> None:
    node = await served.enrol("node")

    reply = await served.call("POST", paths.LEASE_POLL, raw=HOSTILE["unknown field"], by=node)

    assert _assert_problem(reply)["field"] == "surprise"


async def test_body_over_the_cap_is_refused_before_it_is_read(served: Served) -> None:
    node = await served.enrol("node")

    reply = await served.call(
        "POST", paths.LEASE_POLL, raw=b"{}", by=node, change={"Content-Length": str(100 * 1024 * 1024)}
    )

    assert _assert_problem(reply)["code"] == "too_large"


async def test_chunked_body_over_the_cap_is_refused_while_it_arrives(served: Served) -> None:
    node = await served.enrol("node")
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 65_536
            assert sent < 2 << 20, "the market read on after the cap"
            yield b" " * 65_536

    headers = served.sign("POST", paths.LEASE_POLL, b"", node)
    reply = await served.client.post(paths.LEASE_POLL, content=endless(), headers=headers)

    assert _assert_problem(reply)["code"] == "too_large"


async def test_problem_never_echoes_what_came(served: Served) -> None:
    node = await served.enrol("node")

    reply = await served.call("POST", paths.LEASE_POLL, {"slots": "canary-4711", "instance": "canary-4711"}, by=node)

    _assert_problem(reply)
    assert "canary-4711" not in reply.text


async def test_unknown_path_and_method_are_problems(served: Served) -> None:
    assert _assert_problem(await served.call("GET", "/api/v1/nothing"))["code"] == "not_found"
    assert _assert_problem(await served.call("DELETE", paths.TASKS))["code"] == "method_not_allowed"


@pytest.mark.parametrize("query", ["limit=0", "limit=1e9", "limit=-1", "limit=x", "limit=5&limit=6", "limit=٣"])
async def test_page_size_is_bounded(served: Served, query: str) -> None:
    assert _assert_problem(await served.call("GET", f"{paths.ENROL}?{query}"))["field"] == "limit"


async def test_every_route_answers_under_both_prefixes(served: Served) -> None:
    for path in ("/api/v1/health", "/api/health", "/health", "/api/status", "/api/v1/status"):
        assert (await served.call("GET", path)).status_code == 200


async def test_millions_of_tiny_values_in_a_large_body_are_refused_at_once(served: Served) -> None:
    node = await served.enrol("node")
    bomb = b'{"reports":[' + b"[]," * 5_000_000 + b"[]]}"

    started = perf_counter()
    reply = await served.call("POST", paths.REPORTS, raw=bomb, by=node)

    assert reply.status_code == 413
    assert "values" in reply.json()["detail"]
    assert perf_counter() - started < 5  # it took a minute, and 5 GB, to complain of every one


class _Receive:
    """An ASGI ``receive`` of a body in ``count`` pieces that notes how many were asked for."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.read = 0

    async def __call__(self) -> dict[str, object]:
        self.read += 1
        self._left -= 1
        return {"type": "http.request", "body": b" " * 65_536, "more_body": self._left > 0}


async def _status(served: Served, path: str, headers: dict[str, str], receive: _Receive) -> int:
    sent: list[MutableMapping[str, object]] = []

    async def send(message: MutableMapping[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    await create_app(served.state)(scope, receive, send)
    return int(str(sent[0]["status"]))


async def test_a_body_is_not_read_for_a_stranger(served: Served) -> None:
    node = await served.enrol("node")
    headers = served.sign("POST", paths.REPORTS, b"", node)
    headers["Signature-Input"] = headers["Signature-Input"].replace(node.keyid, "ef" * 32)
    unsigned, forged = _Receive(100), _Receive(100)

    for scope_headers, pieces in (({}, unsigned), (headers, forged)):
        assert await _status(served, paths.REPORTS, scope_headers, pieces) == 401
        assert pieces.read == 0


def test_large_bodies_of_many_callers_do_not_fill_the_memory() -> None:
    budget = BodyBudget(max_bytes=100)

    with budget.counting() as take, budget.counting() as other:
        take(60)
        with pytest.raises(Overloaded):
            other(60)
        other(40)
    with budget.counting() as take:
        take(100)
