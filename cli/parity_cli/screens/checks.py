"""The screen of ``parity config check``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from parity_cli.checks import Check
from parity_cli.screens.cells import cell

__all__ = ["checks_screen"]


def checks_screen(checks: Sequence[Check]) -> Table:
    """Return one row a check, and the next step under each that failed."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row("[green]PASS[/green]" if check.ok else "[red]FAIL[/red]", check.name, cell(check.result))
        if check.fix:
            table.add_row("", "", f"[dim]→ {cell(check.fix)}[/dim]")
    failed = sum(not check.ok for check in checks)
    table.add_row("", "", f"{len(checks) - failed} passed, {failed} failed")
    return table
