"""Text from elsewhere made safe to show: no markup, no control characters that a terminal would obey."""

from __future__ import annotations

import json
import re

from rich.markup import escape

__all__ = ["cell", "measure", "printable"]

# C0 without line end and tab, DEL, C1, and the marks that turn the writing direction around.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return ``text`` with every character that steers a terminal shown as ``�``."""
    return _CONTROL.sub("�", text.replace("\r\n", "\n"))


def cell(text: object) -> str:
    """Return text for rich that is shown as it is, whatever it holds."""
    return escape(printable(str(text)))


def measure(value: object, *, width: int = 60) -> str:
    """Return a metric in at most ``width`` characters: a number with six digits, a table by its size."""
    if isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, dict | list):
        text = json.dumps(value, ensure_ascii=False)
        if len(text) > width:
            text = f"({len(value)} values, with --json)"
    else:
        text = str(value)
    return cell(text if len(text) <= width else text[: width - 1] + "…")
