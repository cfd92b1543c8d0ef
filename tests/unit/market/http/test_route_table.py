"""Routes found by segments."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.responses import Response

from parity_market.route_table import RouteTable


async def _task(_: Request) -> Response:
    return Response()


async def _heartbeat(_: Request) -> Response:
    return Response()


@pytest.fixture
def table() -> RouteTable:
    made = RouteTable()
    made.add("GET", "/api/v1/tasks/{task_id}/status", _task)
    made.add("POST", "/api/v1/nodes/{node_id}", _task)
    made.add("POST", "/api/v1/nodes/heartbeat", _heartbeat)
    made.add("GET", "/ipfs/{cid}", _task)
    made.add("GET", "/ipfs/{cid}/{path:path}", _heartbeat)
    return made


def test_a_parameter_is_one_whole_segment(table: RouteTable) -> None:
    assert table.find("GET", "/api/v1/tasks/a b/status") == (_task, {"task_id": "a b"})


def test_a_path_without_parameters_goes_first(table: RouteTable) -> None:
    assert table.find("POST", "/api/v1/nodes/heartbeat") == (_heartbeat, {})
    assert table.find("POST", "/api/v1/nodes/other") == (_task, {"node_id": "other"})


def test_a_path_parameter_takes_all_that_is_left(table: RouteTable) -> None:
    assert table.find("GET", "/ipfs/bafy") == (_task, {"cid": "bafy"})
    assert table.find("GET", "/ipfs/bafy/a/b c") == (_heartbeat, {"cid": "bafy", "path": "a/b c"})


@pytest.mark.parametrize("path", ["/ipfs/bafy/", "/ipfs//a", "/ipns/bafy/a"])
def test_a_path_parameter_is_never_empty(table: RouteTable, path: str) -> None:
    assert table.find("GET", path) is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/tasks/a/status"),
        ("GET", "/api/v1/tasks//status"),
        ("GET", "/api/v1/tasks/a/status/"),
        ("GET", "/api/v1/tasks/a/b/status"),
        ("GET", "/api/v1/tasks/a"),
        ("GET", ""),
    ],
)
def test_anything_else_is_not_found(table: RouteTable, method: str, path: str) -> None:
    assert table.find(method, path) is None
