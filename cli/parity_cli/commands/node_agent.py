"""``parity node run | status | logs | drain``: the running agent."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_cli.bridge import run_async
from parity_cli.commands.node_money import look_at_money
from parity_cli.commands.node_setup import config_option
from parity_cli.lazy import Command
from parity_cli.node_keys import identity_of
from parity_cli.node_place import node_settings
from parity_cli.output import Output, pass_output
from parity_protocol.errors import ConfigInvalid, NotFinished, NotFound, ParityError, Unreachable

if TYPE_CHECKING:
    from parity_node.settings import NodeSettings

__all__ = ["drain", "logs", "run", "status"]

WATCH_S = 2.0
POLL_S = 0.5
LOG_POLL_S = 0.5
DRAIN_EXTRA_S = 60.0  # beyond the grace, for handing back and reporting


@click.command(
    cls=Command,
    short_help="Run the node.",
    example="""
    parity node run
    parity node run --config-path node.env
    """,
)
@config_option
@pass_output
def run(out: Output, config_path: Path | None) -> None:
    """Run the node until Ctrl-C, SIGTERM or `parity node drain`; it then finishes what runs. A second Ctrl-C ends it now.

    It may be killed at any moment: the next start goes on where it was.
    """
    settings = node_settings(config_path)
    if not {"runner_market_join", "runner_server_url"} & settings.model_fields_set:
        # A node that nobody set up would ask an empty port of this machine for ever.
        raise ConfigInvalid(["no market was joined yet: run `parity node init`"])
    from parity_node.run import run_node

    run_node(settings)
    out.emit({"state_dir": str(settings.state_dir()), "stopped": True})


@click.command(
    cls=Command,
    short_help="Show how the node is doing.",
    example="""
    parity node status
    parity node status -w
    """,
)
@click.option("-w", "--watch", is_flag=True, help="Show it again every two seconds.")
@config_option
@pass_output
def status(out: Output, watch: bool, config_path: Path | None) -> None:
    """Show the agent, its tasks, its market and its money. A part that fails hides no other."""
    settings = node_settings(config_path)
    from parity_cli.screens.node import status_screen

    if not watch:
        document = _status(settings)
        out.emit(document, lambda: status_screen(document))
        return
    if out.json:
        raise click.UsageError("--watch is for people and --json for programs: choose one")
    from rich.live import Live

    with Live("asking the node, its market and its chain …", console=out.console, auto_refresh=False) as live:
        live.refresh()
        while True:
            live.update(status_screen(_status(settings)), refresh=True)
            time.sleep(WATCH_S)


def _status(settings: NodeSettings) -> dict[str, Any]:
    from parity_client import Home
    from parity_node.control import ask_agent

    document: dict[str, Any] = {}
    try:
        document["agent"] = ask_agent(settings.state_dir(), {"command": "status"})
    except ParityError as exc:
        document["agent"] = {"error": exc.message, "hint": exc.hint()}
    try:
        document |= identity_of(settings, Home()).to_json()
    except ParityError as exc:
        document["identity_error"] = exc.message
        return document
    run_async(lambda: look_at_money(settings, document))
    return document


@click.command(
    cls=Command,
    short_help="Print what a running task prints.",
    example="""
    parity node logs -f
    parity node logs -f 3f0c…
    """,
)
@click.argument("task_id", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@config_option
@pass_output
def logs(out: Output, task_id: str | None, follow: bool, config_path: Path | None) -> None:
    """Print what a task on this node prints; without TASK_ID the one that runs."""
    from parity_cli.output import printable
    from parity_node.control import ask_agent

    state_dir = node_settings(config_path).state_dir()
    chosen = task_id or _only_task(state_dir)
    offset = 0
    text: list[str] = []
    while True:
        try:
            found = ask_agent(state_dir, {"command": "logs", "task_id": chosen, "offset": offset})
        except NotFound:
            if offset == 0 and not text and task_id is not None and not follow:
                raise
            break  # it has ended
        piece, offset = str(found["text"]), int(found["next_offset"])
        if out.json:
            text.append(piece)
        else:
            click.echo(printable(piece) if sys.stdout.isatty() else piece, nl=False)
        if not piece:
            if not follow:
                break
            time.sleep(LOG_POLL_S)
    out.emit({"task_id": chosen, "text": "".join(text)})


def _only_task(state_dir: Path) -> str:
    from parity_node.control import ask_agent

    running = ask_agent(state_dir, {"command": "status"})["running"]
    if not running:
        raise NotFound("no task runs on this node now", hint="`parity task logs ID` shows what a task printed.")
    if len(running) > 1:
        names = ", ".join(each["task_id"] for each in running)
        raise click.UsageError(f"{len(running)} tasks run, name one: {names}")
    return str(running[0]["task_id"])


@click.command(
    cls=Command,
    short_help="Finish what runs, take nothing new, stop.",
    example="""
    parity node drain
    parity node drain --grace 10m
    """,
)
@click.option("--grace", metavar="DURATION", help="How long tasks may go on before they are handed back, such as 10m.")
@click.option("--no-wait", is_flag=True, help="Do not wait until the node has stopped.")
@config_option
@pass_output
def drain(out: Output, grace: str | None, no_wait: bool, config_path: Path | None) -> None:
    """Have the node refuse new work, finish or hand back what runs, deliver its reports, and stop."""
    from parity_node.control import ask_agent
    from parity_protocol.quantities import parse_duration

    settings = node_settings(config_path)
    state_dir = settings.state_dir()
    seconds = parse_duration(grace).total_seconds() if grace else None
    answer = ask_agent(state_dir, {"command": "drain"} | ({} if seconds is None else {"grace_s": seconds}))
    out.say(f"draining: {answer['running']} running, new work is refused")
    limit = (settings.runner_grace.total_seconds() if seconds is None else seconds) + DRAIN_EXTRA_S
    has_stopped = False
    deadline = time.monotonic() + limit
    with out.console.status("draining …") as shown:
        while not no_wait and not has_stopped:
            if time.monotonic() > deadline:
                raise NotFinished(f"the node has not stopped after {limit:g} s")
            try:
                now = ask_agent(state_dir, {"command": "status"})
                shown.update(f"draining: {len(now['running'])} running, {now['outbox']['reports']} reports left")
                time.sleep(POLL_S)
            except Unreachable:
                has_stopped = True
    out.emit({"stopped": has_stopped, "was_running": answer["running"]}, "drained" if has_stopped else "draining")
