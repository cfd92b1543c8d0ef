"""The node's screens: one line a fact, one section a source; a section that failed says so in its place."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from parity_cli.screens.cells import cell
from parity_protocol.quantities import format_bytes, format_duration, format_tokens

__all__ = ["balance_screen", "status_screen"]

_SHORT = 16  # characters of the node's id; `node balance` shows all of it
_STATE = {"online": "[green]ONLINE[/green]", "waiting": "[yellow]WAITING[/yellow]", "draining": "[cyan]DRAINING[/cyan]"}


def status_screen(document: dict[str, Any]) -> RenderableType:
    """Return the screen of ``parity node status``."""
    agent = document["agent"]
    table = _table()
    notices: list[str] = []
    if "error" in agent:
        name = f"node {document['node_id'][:_SHORT]}…" if "node_id" in document else "this node"
        head = f"[bold]{cell(name)}[/bold]  [red]STOPPED[/red]"
        notices += [agent["error"], agent.get("hint", "")]
    else:
        up = format_duration(timedelta(seconds=round(agent["uptime_s"])))
        head = f"[bold]node {cell(agent['node_id'][:_SHORT])}…[/bold]  {_STATE.get(agent['state'], cell(agent['state']))}  up {up}  v{cell(agent['version'])}"
        _agent_rows(table, agent, notices)
    if "identity_error" in document:
        notices.append(document["identity_error"])
    else:
        _money_rows(table, document, notices)
    parts: list[RenderableType] = [Text.from_markup(head), table]
    parts += [Text.from_markup(f"[yellow]![/yellow] {cell(notice)}") for notice in dict.fromkeys(notices) if notice]
    return Group(*parts)


def _agent_rows(table: Table, agent: dict[str, Any], notices: list[str]) -> None:
    market = agent["market"]
    heard = "never heard" if market["heard_s_ago"] is None else f"heard {market['heard_s_ago']:g} s ago"
    offset = f"clock {market['clock_offset_s']:+.1f} s"
    table.add_row("market", f"{cell(market['name'] or market['url'])}  {heard}  {offset}")
    notices += market["problems"]
    slots = agent["slots"]
    table.add_row("now", f"{len(agent['running'])} running, {slots['free']} of {slots['total']} slots free")
    for each in agent["running"]:
        seconds = format_duration(timedelta(seconds=round(each["seconds"])))
        table.add_row("", f"{each['task_id']}  {cell(each['kind'])}  {cell(each['phase'])}  {seconds}")
    for kind, state in agent["executors"].items():
        told = (
            f"[green]ready[/green] ({cell(state['isolation'])})"
            if state["available"]
            else f"off: {cell(state['reason'])}"
        )
        table.add_row("runs" if kind == next(iter(agent["executors"])) else "", f"{cell(kind)} {told}")
    outbox = agent["outbox"]
    waiting = f"{outbox['reports']} reports, {format_bytes(outbox['bytes'])}"
    table.add_row("outbox", waiting + (f"  [red]{cell(outbox['error'])}[/red]" if outbox["error"] else ""))
    table.add_row("disk", f"{format_bytes(agent['disk_free_bytes'])} free")
    if agent.get("obstacle"):
        notices.append(f"takes no new work: {agent['obstacle']}")
    if agent.get("policy", {}).get("problem"):
        table.add_row("policy", f"[red]{cell(agent['policy']['problem'])}[/red]")
    for each in sorted(agent["refusals"], key=lambda item: -int(item["count"]))[:5]:
        table.add_row("refused", f"{each['count']} × {cell(each['rule'])}: {cell(each['message'])}")


def balance_screen(document: dict[str, Any]) -> RenderableType:
    """Return the screen of ``parity node balance``."""
    table = _table()
    notices: list[str] = []
    for name in ("node_id", "owner", "operator", "payout"):
        table.add_row(name.replace("_id", ""), cell(document[name]))
    _money_rows(table, document, notices)
    return Group(table, *(Text.from_markup(f"[yellow]![/yellow] {cell(each)}") for each in notices))


def _money_rows(table: Table, document: dict[str, Any], notices: list[str]) -> None:
    terms, chain, market = document["terms"], document["chain"], document["market"]
    if "error" in terms:
        table.add_row("money", f"[red]{cell(terms['error'])}[/red]")
        return

    def amount(value: str) -> str:
        return f"{format_tokens(int(value), decimals=terms['decimals'])} {cell(terms['symbol'])}".strip()

    if "error" in chain:
        table.add_row("chain", f"[red]{cell(chain['error'])}[/red]")
    else:
        unbonding = ""
        if int(chain["unbonding"]):
            when = "ready to withdraw" if chain["unbonding_ready"] else f"ready {chain['unbonding_ready_at']}"
            unbonding = f"  unbonding {amount(chain['unbonding'])} ({when})"
        table.add_row("stake", f"{amount(chain['bond'])} bonded, {amount(terms['min_bond'])} needed{unbonding}")
        table.add_row("credit", f"{amount(chain['credit'])} to withdraw")
        table.add_row("owner has", f"{amount(chain['owner_tokens'])}, {format_tokens(int(chain['owner_wei']))} ether")
        if int(chain["bond"]) < int(terms["min_bond"]):
            missing = format_tokens(int(terms["min_bond"]) - int(chain["bond"]), decimals=terms["decimals"])
            notices.append(f"the bond is too low to get work → parity node stake --amount {missing}")
        if chain["operator"] is not None and chain["operator"] != document["operator"]:
            notices.append(f"the chain names another operator ({chain['operator']}) → parity node stake replaces it")
    if "error" in market:
        table.add_row("earned", f"[dim]{cell(market['error'])}[/dim]")
    else:
        table.add_row("earned", f"{amount(market['earned'])}, {amount(market['confirmed'])} confirmed on chain")
        table.add_row("tasks", f"{market['completed']} completed, {market['failed']} failed")


def _table() -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table
