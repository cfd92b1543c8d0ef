"""The wallet's screen."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from parity_cli.screens.cells import cell
from parity_protocol.quantities import format_tokens
from parity_protocol.signing.keys import checksum_address

__all__ = ["wallet_screen"]

_CHAIN = (
    ("tokens", "tokens", "in your own hands"),
    ("credit", "credit", "in the vault, free"),
    ("escrow", "escrow", "set aside for this market"),
    ("releasing", "releasing", "on its way back to credit"),
)
_ACCOUNT = (
    ("available", "available", "for new tasks"),
    ("reserved", "reserved", "for tasks that run"),
    ("owed", "owed", "earned by nodes, not yet drawn"),
    ("spent", "spent", "paid to nodes so far"),
)


def wallet_screen(document: dict[str, Any]) -> Table:
    """Return the screen of ``parity wallet show``."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim", overflow="fold")
    table.add_row("wallet", "", f"{cell(document['name'])}  {checksum_address(document['address'])}")
    if "error" in document:
        table.add_row("market", "", f"[red]{cell(document['error'])}[/red]")
        return table
    market = document["market"]
    table.add_row("market", "", f"{cell(market['name'])}  {cell(market['url'])}")
    decimals, symbol = document["decimals"], document["symbol"]

    def amount(value: str) -> str:
        return f"{format_tokens(int(value), decimals=decimals)} {cell(symbol)}".strip()

    for part, rows in (("chain", _CHAIN), ("account", _ACCOUNT)):
        found = document[part]
        table.add_row("")
        if "error" in found:
            table.add_row(part, "", f"[red]{cell(found['error'])}[/red]")
            continue
        if part == "chain":
            table.add_row("ether", format_tokens(int(found["wei"])), "for fees")
        for key, label, meaning in rows:
            ready = f", ready {found['release_ready_at']}" if key == "releasing" and found["release_ready_at"] else ""
            table.add_row(label, amount(found[key]), meaning + ready)
    return table
