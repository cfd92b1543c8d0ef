"""The summary as a person reads it, at 80 columns and more."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from parity_cli.demo.plan import DELAYED
from parity_cli.demo.summary import Summary
from parity_protocol.quantities import format_tokens

__all__ = ["next_steps", "render"]


def render(summary: Summary, *, symbol: str) -> RenderableType:
    """Return the summary's screen.

    Args:
        symbol: The token's.
    """
    parts: list[RenderableType] = [
        Text(),
        _scores(summary),
        Text(),
        _tasks(summary, symbol),
        Text(),
        _nodes(summary, symbol),
        Text(),
        _statements(summary),
    ]
    parts += [Text(f" – not shown here: {reason}", style="yellow") for reason in summary.left_out]
    held = sum(statement.holds for statement in summary.statements)
    verdict = "everything above holds" if summary.ok else "NOT everything above holds"
    line = f"{verdict}: {held} of {len(summary.statements)} statements, {summary.seconds:.0f} s"
    return Group(*parts, Text(), Text(f" {line}", style="bold green" if summary.ok else "bold red"))


def next_steps(kept: str | None, url: str, rpc_url: str) -> RenderableType:
    """Return where to look next.

    Args:
        kept: The folder, when everything goes on running; else None.
    """
    lines = []
    if kept is not None:
        lines += [
            ("the market", f"{url}/api/status  {url}/api/v1/nodes  {url}/metrics"),
            ("the chain", f"{rpc_url} (JSON-RPC)"),
            ("logs", f"{kept}/logs"),
            ("in a shell", f". {kept}/env"),
            ("your tasks", "parity task list"),
            ("more work", "parity task submit --reward 0.1 --wait -- uname -a"),
            ("the end", "Ctrl-C ends all of it; the folder stays"),
        ]
    else:
        lines += [
            ("poke at it", "scripts/demo --keep"),
            ("a real market", "README.md, “A first real job on two machines”"),
            ("how it works", "docs/architecture.md"),
        ]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines:
        table.add_row(f" {name}", text)
    return Group(Text(), table, Text())


def _scores(summary: Summary) -> RenderableType:
    forest, linear = summary.forest, summary.linear
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row(
        " forest",
        f"accuracy {forest.accuracy:.1%} over three nodes, {forest.central_accuracy:.1%} trained in one place\n"
        f"out of bag {forest.oob_local_mean:.1%} within the parts, {forest.oob_federated:.1%} over all",
    )
    table.add_row(" linear", f"R² {linear.r2:.3f}, least squares {linear.central_r2:.3f}; all on rows nobody saw")
    return table


def _tasks(summary: Summary, symbol: str) -> RenderableType:
    names = {node.id: node.name for node in summary.nodes}
    table = _table("task", "done by", "attempts", "seconds", f"paid {symbol}", "receipt")
    for task in summary.tasks:
        style = "yellow" if task.name == DELAYED else ""
        table.add_row(
            f" {task.name}",
            names.get(task.node or "", "–") if task.state == "completed" else task.state,
            str(task.attempts),
            f"{task.wall_ms / 1000:.1f}",
            format_tokens(task.paid),
            "valid" if task.receipt_valid else "NOT VALID",
            style=style,
        )
    return table


def _nodes(summary: Summary, symbol: str) -> RenderableType:
    table = _table("node", "id", "at stake", "earned", "on chain", "")
    for node in summary.nodes:
        table.add_row(
            f" {node.name}",
            f"{node.id[:8]}…",
            format_tokens(node.stake),
            format_tokens(node.earned),
            f"{format_tokens(node.earned_on_chain)} {symbol}",
            "killed" if node.killed else "",
            style="yellow" if node.killed else "",
        )
    return table


def _statements(summary: Summary) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=2, justify="right")
    table.add_column(overflow="fold")
    for statement in summary.statements:
        if statement.holds:
            table.add_row(Text("✓", style="green"), statement.text)
        else:
            table.add_row(Text("✗", style="red"), Text(f"{statement.text}: {statement.detail}", style="red"))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    for index, name in enumerate(columns):
        table.add_column(f" {name}" if index == 0 else name, justify="left" if index < 2 else "right", no_wrap=True)
    return table
