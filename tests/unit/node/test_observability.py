"""What operators see: lines that cannot be forged, metrics that stay bounded, health over a few lines of HTTP."""

from __future__ import annotations

import io
import json

import pytest
import structlog

from parity_node.disk import Volume
from parity_node.observability.logging import configure_logging
from parity_node.observability.metrics import MAX_RULES, NodeMetrics
from parity_node.observability.server import _respond
from parity_protocol.policy import Denial


@pytest.fixture
def _fresh_logging() -> object:
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("_fresh_logging")
def test_foreign_text_cannot_forge_a_line_or_colour_the_terminal() -> None:
    stream = io.StringIO()
    configure_logging("info", "text", stream)

    structlog.get_logger().info("offer_refused", reason="x\n2026 error node_stolen\x1b[31m\u2028")

    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


@pytest.mark.usefixtures("_fresh_logging")
def test_programs_get_json_and_levels_are_kept() -> None:
    stream = io.StringIO()
    configure_logging("warning", "json", stream)

    structlog.get_logger().info("unheard")
    structlog.get_logger().warning("lease_lost", task_id="t", fence=3)

    (line,) = stream.getvalue().splitlines()
    assert json.loads(line) | {"timestamp": ""} == {
        "event": "lease_lost",
        "level": "warning",
        "task_id": "t",
        "fence": 3,
        "timestamp": "",
    }


def test_refusals_are_counted_by_rule() -> None:
    metrics = NodeMetrics()
    for number in range(3):
        metrics.offer_refused(Denial("memory", f"message {number}"), f"task {number}")

    counted = metrics.refusals["memory"]

    assert (counted.count, counted.message, counted.last_task) == (3, "message 2", "task 2")
    assert b'parity_node_offers_refused_total{rule="memory"} 3.0' in metrics.render()


def test_market_that_invents_rules_cannot_fill_the_memory() -> None:
    metrics = NodeMetrics()
    for number in range(10_000):
        metrics.offer_refused(Denial(f"claim.{number}", ""), "")

    assert len(metrics.refusals) == MAX_RULES + 1
    assert metrics.refusals["other"].count == 10_000 - MAX_RULES


def test_connections_that_tasks_were_refused_are_counted_by_rule() -> None:
    metrics = NodeMetrics()
    for rule in ("egress.domains", "egress.private", "egress.domains"):
        metrics.egress_refused(rule)

    assert b'parity_node_egress_refused_total{rule="egress.domains"} 2.0' in metrics.render()
    assert b'parity_node_egress_refused_total{rule="egress.private"} 1.0' in metrics.render()


def answer(request: str, *, ready: bool = True) -> tuple[str, bytes]:
    response = _respond(request, lambda: b"metric 1\n", lambda: (ready, {"status": "ok"}))
    head, _, body = response.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), body


def test_health_and_metrics_answer() -> None:
    assert answer("GET /metrics HTTP/1.1") == ("HTTP/1.1 200 OK", b"metric 1\n")
    assert answer("GET /health?x=1 HTTP/1.1") == ("HTTP/1.1 200 OK", b'{"status": "ok"}\n')
    assert answer("HEAD /health HTTP/1.1") == ("HTTP/1.1 200 OK", b"")


def test_node_that_gets_no_work_is_alive_but_not_ready() -> None:
    assert answer("GET /health HTTP/1.1", ready=False)[0] == "HTTP/1.1 200 OK"
    assert answer("GET /ready HTTP/1.1", ready=False)[0] == "HTTP/1.1 503 Service Unavailable"


@pytest.mark.parametrize(
    ("request_line", "status"), [("POST /health HTTP/1.1", 405), ("GET /x HTTP/1.1", 404), ("", 405)]
)
def test_anything_else_is_refused(request_line: str, status: int) -> None:
    assert f" {status} " in answer(request_line)[0]


def test_a_disk_that_is_watched_later_is_shown_too() -> None:
    metrics = NodeMetrics()
    volumes = [Volume(1, ("state", "results"), 5)]
    metrics.watch_volumes(lambda: volumes)
    before = metrics.render().decode()

    volumes += [Volume(2, ("images",), 7)]
    after = metrics.render().decode()

    assert "parity_node_disk_free_state_bytes 5.0" in before
    assert "Free bytes on the disk of state, results" in before
    assert "images" not in before
    assert "parity_node_disk_free_images_bytes 7.0" in after
