"""Structured logs on standard error: events with fields, one per change of state."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

__all__ = ["configure_logging"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_MAX_VALUE_CHARS = 2_000


def configure_logging(level: str, log_format: str, stream: TextIO | None = None) -> None:
    """Send events of ``level`` and above to ``stream`` (default: standard error).

    Args:
        level: debug, info, warning or error.
        log_format: ``text`` for people, ``json`` for programs.
    """
    renderer: Any = structlog.processors.JSONRenderer() if log_format == "json" else _render_text
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=stream or sys.stderr),
        cache_logger_on_first_use=True,
    )


def _render_text(_logger: object, _name: str, event: MutableMapping[str, Any]) -> str:
    """Write one event as a line; control characters of foreign text are escaped, a traceback comes below."""
    time, level, name = event.pop("timestamp"), event.pop("level"), event.pop("event")
    trace = event.pop("exception", "")
    fields = " ".join(f"{key}={_shown(value)}" for key, value in event.items())
    line = f"{time} {level:<7} {name} {fields}".rstrip()
    below = "".join(f"\n{_escaped(text)}" for text in trace.splitlines())
    return line + below


def _shown(value: object) -> str:
    text = _escaped(str(value))[:_MAX_VALUE_CHARS]
    return f'"{text}"' if " " in text or not text else text


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
