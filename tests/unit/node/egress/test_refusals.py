from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import structlog.testing

from parity_node.executors.egress.refusals import Refusal, Refusals
from parity_protocol.testing.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def refusals_path(tmp_path: Path) -> Path:
    return tmp_path / "egress.log"


async def test_a_refusal_is_a_line_for_the_task_and_an_event_for_the_operator(
    clock: FakeClock, refusals_path: Path
) -> None:
    lines: list[str] = []
    refusals = Refusals(lines.append, path=refusals_path, execution_id="e1", clock=clock)

    with structlog.testing.capture_logs() as events:
        refusals.note(Refusal("egress.domains", "example.net", "not granted"))

    assert lines == ["E-EGRESS example.net: not granted (egress.domains)"]
    assert events == [
        {
            "event": "egress_refused",
            "log_level": "warning",
            "code": "E-EGRESS",
            "host": "example.net",
            "rule": "egress.domains",
            "why": "not granted",
            "execution_id": "e1",
        }
    ]


async def test_the_same_refusal_is_said_once_a_minute(clock: FakeClock, refusals_path: Path) -> None:
    lines: list[str] = []
    counted: list[str] = []
    refusals = Refusals(lines.append, path=refusals_path, execution_id="e1", clock=clock, on_refused=counted.append)

    for _ in range(5):
        refusals.note(Refusal("egress.domains", "example.net", "not granted"))
    await clock.advance(timedelta(seconds=61))
    refusals.note(Refusal("egress.domains", "example.net", "not granted"))

    assert len(lines) == 2
    assert counted == ["egress.domains"] * 6


async def test_a_flood_of_refusals_ends_with_a_word_about_it(clock: FakeClock, refusals_path: Path) -> None:
    lines: list[str] = []
    counted: list[str] = []
    refusals = Refusals(lines.append, path=refusals_path, execution_id="e1", clock=clock, on_refused=counted.append)

    for each in range(1_000):
        refusals.note(Refusal("egress.domains", f"h{each}.example", "not granted"))

    assert len(lines) == 101
    assert "only counted" in lines[-1]
    assert len(counted) == 1_000


def test_a_host_cannot_write_a_line_of_its_own() -> None:
    refusal = Refusal("egress.request", "a\r\nX-Evil: 1\x1b[2J\u2028", "no")

    assert refusal.line() == "E-EGRESS a??X-Evil:?1?[2J?: no (egress.request)"
    assert b"X-Evil" not in refusal.answer().partition(b"\r\n\r\n")[0]


async def test_the_lines_outlive_the_node(clock: FakeClock, refusals_path: Path) -> None:
    first = Refusals(lambda _line: None, path=refusals_path, execution_id="e1", clock=clock)
    for each in range(99):
        first.note(Refusal("egress.domains", f"h{each}.example", "no"))

    lines: list[str] = []
    second = Refusals(lines.append, path=refusals_path, execution_id="e1", clock=clock)
    for each in range(99):
        second.note(Refusal("egress.domains", f"h{each}.example", "no"))

    assert len(lines) == 2  # the hundredth, and the word about the rest
    assert second.text().startswith(b"E-EGRESS h0.example: no (egress.domains)\n")
    assert second.text().count(b"\n") == 101
