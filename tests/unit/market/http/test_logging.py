"""A market's log is read on a terminal: text from strangers must not steer it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from parity_market.logging import configure_logging

STEERING = "\x1b[2J\x1b]0;owned\x07 \x9b31m \u202etxt.exe a\nat=1 event=forged"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("form", ["text", "json"])
def test_foreign_text_is_one_line_without_control_characters(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", form)
    log = structlog.get_logger()

    try:
        raise ValueError(STEERING)
    except ValueError:
        log.exception("request_crashed", reason=STEERING, said=[STEERING])

    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert not any(char in text for char in "\x1b\x07\x9b\u202e")
    assert "owned" in text
