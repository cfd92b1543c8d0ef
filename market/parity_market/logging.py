"""Structured logs: one event a line, for people or as JSON."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

__all__ = ["configure_logging"]


_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)  # the renderers do line ends


def configure_logging(level: str, form: str) -> None:
    """Send log events to standard error.

    Args:
        level: debug, info, warning or error.
        form: ``text`` for people, ``json`` for programs. Control characters are escaped in both.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.types.Processor
    renderer = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.processors.LogfmtRenderer(key_order=["at", "level", "event"], drop_missing=True)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            _escape,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(threshold, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(message)s")


def _escape(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take the control characters out of foreign text: a log is read on a terminal, which obeys them."""
    for key, value in event.items():
        if isinstance(value, str | list | tuple):
            text = value if isinstance(value, str) else str(value)
            if _CONTROL.search(text):
                event[key] = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
    return event
