"""The screen of ``parity node doctor``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from parity_cli.screens.cells import cell

__all__ = ["doctor_screen"]

_MARKS = {
    "ok": "[green]ok[/green]",
    "warn": "[yellow]warn[/yellow]",
    "fail": "[red]FAIL[/red]",
    "not_applicable": "[dim]–[/dim]",
    "denied": "[green]denied[/green]",
    "escaped": "[red]ESCAPED[/red]",
}
_KINDS = {
    "federated_learning": "federated learning",
    "command": "commands",
    "docker": "containers",
    "llm": "prompts",
}


def doctor_screen(document: Mapping[str, Any], *, with_probes: bool = False) -> RenderableType:
    """Return one row a check with its next step under it, then the attempts to escape, then what it all means.

    Args:
        document: As ``--json`` prints it.
        with_probes: Show every attempt; else only what escaped.
    """
    probes = [each for each in document["probes"] if with_probes or each["result"] == "escaped"]
    parts: list[RenderableType] = [_checks(document["checks"])]
    if probes:
        parts += [Text(), _probes(probes)]
    return Group(*parts, Text(), *_summary(document))


def _checks(checks: Sequence[Mapping[str, str]]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(min_width=4)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(_MARKS[check["result"]], cell(check["id"]), cell(check["cause"]))
        if check["fix"]:
            table.add_row("", "", f"[dim]→ {cell(check['fix'])}[/dim]")
    return table


def _probes(probes: Sequence[Mapping[str, str]]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(min_width=7)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for probe in probes:
        words = f"{probe['what']}: {probe['cause']}"
        table.add_row(_MARKS[probe["result"]], cell(probe["sandbox"]), cell(probe["id"]), cell(words))
    return table


def _summary(document: Mapping[str, Any]) -> list[Text]:
    counts = Counter(check["result"] for check in document["checks"])
    told = f"{counts['ok']} ok, {counts['warn']} to improve, {counts['fail']} failed"
    kinds = ", ".join(_KINDS[kind] for kind in document["kinds"]) or "none"
    tiers = ", ".join(document["proven"]) or "none"
    lines = [Text(f"{told}. {len(document['probes'])} attempts to escape were made.")]
    style = "green" if document["ok"] else "red"
    first = (
        "This machine is fit to run a node." if document["ok"] else "Something keeps the node from working: see FAIL."
    )
    return [*lines, Text(f"{first} Isolation proven: {tiers}. Tasks it can take: {kinds}.", style=style)]
