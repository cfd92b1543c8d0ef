"""Text from elsewhere made safe to show: no markup, no control characters that a terminal would obey."""

from __future__ import annotations

import json

from rich.markup import escape

from parity_cli.output import printable

__all__ = ["cell", "measure"]


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
