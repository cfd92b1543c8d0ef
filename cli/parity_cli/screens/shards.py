"""The screen of a session that was not submitted yet: ``parity fl run --dry-run``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from parity_cli.output import printable
from parity_cli.screens.cells import cell
from parity_protocol.quantities import format_bytes

__all__ = ["plan_screen"]

_MAX_CLASSES = 8  # shown of a part; --json has all


def plan_screen(spec: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return what would be submitted: the session in a line, then a part a line."""
    head = f"{spec.get('model_type')}, {spec.get('total_rounds', 'the market’s')} rounds; the market would take it, nothing was stored or signed"
    if not shards:
        return Text(printable(head))
    table = Table(box=None, pad_edge=False)
    for name in ("PART", "SOURCE", "BYTES", "ROWS", "COLUMNS", "CLASSES"):
        table.add_column(name, justify="left" if name in ("SOURCE", "CLASSES") else "right")
    for row in shards:
        classes = [f"{name}:{count}" for name, count in row.get("classes", {}).items()]
        more = f" and {len(classes) - _MAX_CLASSES} more" if len(classes) > _MAX_CLASSES else ""
        table.add_row(
            str(row["part"]),
            cell(str(row["source"])),
            format_bytes(row["bytes"]) if "bytes" in row else "",
            str(row.get("rows", "")),
            str(row.get("features", "")),
            cell(", ".join(classes[:_MAX_CLASSES]) + more),
        )
    return Group(Text(printable(head)), Text(""), table)
