"""The screens of tasks and groups."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from parity_cli.output import printable
from parity_cli.screens.cells import cell, measure
from parity_protocol.api.tasks import EventReply, GroupReply, TaskReply, WhyPendingReply
from parity_protocol.quantities import format_tokens

__all__ = ["event_line", "group_screen", "task_screen", "tasks_screen", "waiting_line", "why_screen"]

_COLOUR = {
    "completed": "green",
    "failed": "red",
    "not_verified": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "verifying": "cyan",
}
_SHORT = 8  # characters of an id where a line has to hold several; a task's begins with the time, so its last ones


def _state(state: str) -> str:
    colour = _COLOUR.get(state, "default")
    return f"[{colour}]{cell(state)}[/{colour}]"


def event_line(task_id: str, event: EventReply) -> Text:
    """Return one step of a task for a running display."""
    node = f"  node {event.node_id[:_SHORT]}" if event.node_id else ""
    detail = f"  {_first_line(event.detail)}" if event.detail else ""
    colour = _COLOUR.get(event.state, "default")
    line = Text(f"{event.at:%H:%M:%S}  {task_id[-_SHORT:]}  ")
    line.append(printable(f"{event.event:<18} "), style=colour)
    line.append(printable(f"{event.state}{node}{detail}"), style="dim")
    return line


def waiting_line(task_id: str, reason: str, *, now: datetime) -> Text:
    """Return why a task waits, for the same display."""
    line = Text(f"{now:%H:%M:%S}  {task_id[-_SHORT:]}  ")
    line.append(f"{'waits':<18} ", style="yellow")
    line.append(printable(_first_line(reason)))
    return line


def tasks_screen(tasks: Sequence[TaskReply], *, symbol: str, decimals: int, now: datetime) -> RenderableType:
    """Return the list of tasks, one line each at 80 columns."""
    if not tasks:
        return Text("no tasks yet: parity task submit --help")
    rows = [
        (
            each.id,
            each.state,
            f"{format_tokens(each.reward, decimals=decimals)} {symbol}".strip(),
            f"{each.attempts}/{each.max_attempts}",
            _age(now - each.created_at),
        )
        for each in tasks
    ]
    names = ("id", "state", "reward", "tries", "age")
    widths = [max(len(line[at]) for line in (names, *rows)) for at in range(len(names))]
    lines = [_list_line(names, widths, "what", style="dim")]
    lines += [
        _list_line(row, widths, _what(each), style=_COLOUR.get(each.state, "default"))
        for row, each in zip(rows, tasks, strict=True)
    ]
    return Group(*lines)


def _list_line(values: Sequence[str], widths: Sequence[int], what: str, *, style: str) -> Text:
    """Return one line, cut at the terminal's edge; ``style`` is that of the state."""
    line = Text(no_wrap=True, overflow="ellipsis")
    for at, (value, width) in enumerate(zip(values, widths, strict=True)):
        padded = value.ljust(width) if at < 2 else value.rjust(width)
        line.append(printable(padded), style=style if at == 1 else "")
        line.append("  ")
    line.append(printable(_first_line(what)))
    return line


def _what(task: TaskReply) -> str:
    if task.title:
        return task.title
    if isinstance(task.spec.get("command"), list):
        return " ".join(str(part) for part in task.spec["command"])
    part = f" {task.part + 1}/{task.parts}" if task.group_id else ""
    return f"{task.spec.get('model_type') or task.type}{part}"


def _age(span: timedelta) -> str:
    seconds = max(0, round(span.total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _first_line(text: str) -> str:
    first, _, rest = text.strip().partition("\n")
    return f"{first} …" if rest else first


def task_screen(
    task: TaskReply, events: Sequence[EventReply], receipt: dict[str, Any] | None, *, symbol: str, decimals: int
) -> RenderableType:
    """Return everything about one task."""
    head = Text.from_markup(f"{task.id}  {cell(task.type)}  {_state(task.state)}")
    facts = _facts()
    if task.title:
        facts.add_row("title", cell(task.title))
    facts.add_row("reward", f"{format_tokens(task.reward, decimals=decimals)} {cell(symbol)}{_payout(task)}")
    facts.add_row("attempts", f"{task.attempts} of {task.max_attempts}")
    if task.group_id:
        facts.add_row("group", f"{task.group_id}, part {task.part + 1} of {task.parts}")
    if task.runner_id:
        facts.add_row("node", cell(task.runner_id))
    if task.result_cid:
        facts.add_row("result", cell(task.result_cid))
    if task.failure:
        facts.add_row("failure", f"[red]{cell(task.failure)}[/red] {cell(task.message)}")
    if receipt is not None:
        where = " (as the chain names it)" if receipt.get("on_chain") else ""
        good = f"[green]valid[/green], signed by operator {cell(receipt.get('operator'))}{where}"
        facts.add_row("receipt", good if receipt["valid"] else f"[red]not valid[/red]: {cell(receipt['problem'])}")
    steps = _facts()
    for event in events:
        node = f"node {event.node_id[:_SHORT]}  " if event.node_id else ""
        steps.add_row(f"{event.at:%H:%M:%S.%f}"[:-3], f"{cell(event.event):<18} {node}{cell(event.detail)}")
    return Group(head, facts, Text(), steps)


def group_screen(group: GroupReply, *, symbol: str, decimals: int, now: datetime) -> RenderableType:
    """Return a group with its tasks."""
    head = Text.from_markup(f"{group.id}  {cell(group.kind)}  {_state(group.state)}")
    facts = _facts()
    facts.add_row("reward", f"{format_tokens(group.reward, decimals=decimals)} {cell(symbol)}")
    for name, value in sorted(group.metrics.items()):
        facts.add_row(cell(name), measure(value))
    if group.result_cid:
        facts.add_row("result", cell(group.result_cid))
    if group.message:
        facts.add_row("message", cell(group.message))
    return Group(head, facts, Text(), tasks_screen(group.tasks, symbol=symbol, decimals=decimals, now=now))


def why_screen(replies: Sequence[WhyPendingReply]) -> RenderableType:
    """Return why tasks wait."""
    parts: list[RenderableType] = []
    for reply in replies:
        parts.append(Text.from_markup(f"{reply.task_id}  {_state(reply.state)}  {cell(reply.summary)}"))
        table = _facts()
        for each in reply.refusals:
            table.add_row(f"{each.count:>4}", f"[bold]{cell(each.rule)}[/bold]  {cell(each.message)}")
        parts.append(table)
        parts.append(Text(f"nodes seen: {reply.nodes_seen}, that fit: {reply.nodes_fit}", style="dim"))
    return Group(*parts)


def _payout(task: TaskReply) -> str:
    if task.payout is None:
        return ""
    payout = task.payout
    more = f" in {payout.tx_hash}" if payout.tx_hash else f": {payout.reason}" if payout.reason else ""
    return f"  ({cell(payout.state + more)})"


def _facts() -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table
