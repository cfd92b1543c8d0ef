"""``parity node cache list | gc | pin | unpin``: what the node keeps to be faster."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_cli.bridge import run_async
from parity_cli.commands.node_setup import config_option
from parity_cli.lazy import Command, Group
from parity_cli.node_place import node_settings
from parity_cli.output import Output, pass_output
from parity_protocol.errors import Unreachable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from parity_node.settings import NodeSettings

__all__ = ["cache"]

ASK_TIMEOUT_S = 120.0  # an engine may take its time to remove images
_SHOWN_NAME = 24  # characters of a CID; --json shows all
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{12})[0-9a-f]{52}")  # twelve digits are enough for `pin`
_FROM_ARCHIVE = "parity/"  # names that the node itself gives
_CAPS = {"data": "RUNNER_CACHE_MAX_BYTES", "image": "RUNNER_IMAGE_CACHE_MAX_BYTES", "result": "RUNNER_RESULT_MAX_BYTES"}


@click.group(cls=Group, short_help="What the node keeps: list it, free it, pin it.")
def cache() -> None:
    """What the node keeps: data sets and images that tasks used, results on their way. With or without the agent.

    Each part has a cap. What was not used for longest goes first; what is pinned or in use stays.
    """


@cache.command(
    "list",
    cls=Command,
    short_help="Show what is kept.",
    example="""
    parity node cache list
    parity node cache list --json
    """,
)
@config_option
@pass_output
def list_(out: Output, config_path: Path | None) -> None:
    """Show kind, name, size, last use, pin and use of everything, and each part's total against its cap."""
    document = _ask(node_settings(config_path), {"action": "list"})
    now = time.time()
    for item in document["items"]:
        item["used_at"] = _rfc3339(item["used_at"])
    out.emit(document, lambda: _list_screen(document, now))


@cache.command(
    cls=Command,
    short_help="Free what may go.",
    example="""
    parity node cache gc --dry-run
    parity node cache gc --older-than 7d
    parity node cache gc --all
    """,
)
@click.option("--all", "everything", is_flag=True, help="Everything that is neither pinned nor in use.")
@click.option("--older-than", metavar="DURATION", help="Also what was not used for so long, such as 12h or 7d.")
@click.option("--dry-run", is_flag=True, help="Remove nothing; print what would go.")
@config_option
@pass_output
def gc(out: Output, everything: bool, older_than: str | None, dry_run: bool, config_path: Path | None) -> None:
    """Remove leftovers and what is over a cap, and print what went. Nothing pinned, in use or not uploaded ever goes."""
    from parity_protocol.quantities import parse_duration

    request: dict[str, Any] = {"action": "gc", "all": everything, "dry_run": dry_run}
    if older_than is not None:
        request["older_than_s"] = parse_duration(older_than).total_seconds()
    document = _ask(node_settings(config_path), request)
    for item in document["items"]:
        item["used_at"] = _rfc3339(item["used_at"])
    out.emit(document, lambda: _gc_screen(document))


@cache.command(
    cls=Command,
    short_help="Keep a data set or an image.",
    example="""
    parity node cache pin bafy…
    parity node cache pin debian:12
    """,
)
@click.argument("name")
@config_option
@pass_output
def pin(out: Output, name: str, config_path: Path | None) -> None:
    """Keep a data set (by CID) or an image (by id or reference), however full the cache becomes."""
    document = _ask(node_settings(config_path), {"action": "pin", "name": name})
    out.emit(document, f"{name} is kept")


@cache.command(cls=Command, short_help="Keep it no longer.", example="parity node cache unpin bafy…")
@click.argument("name")
@config_option
@pass_output
def unpin(out: Output, name: str, config_path: Path | None) -> None:
    """Let a data set or an image go when room is needed."""
    document = _ask(node_settings(config_path), {"action": "unpin", "name": name})
    out.emit(document, f"{name} may go when room is needed")


def _ask(settings: NodeSettings, request: Mapping[str, Any]) -> dict[str, Any]:
    """Have the running agent do it, or do it here under the agent's lock when none runs."""
    from parity_node.control import ask_agent

    try:
        answer = ask_agent(settings.state_dir(), {"command": "cache", **request}, timeout_s=ASK_TIMEOUT_S)
    except Unreachable:
        return run_async(lambda: _ask_idle(settings, request))
    del answer["ok"]
    return answer


async def _ask_idle(settings: NodeSettings, request: Mapping[str, Any]) -> dict[str, Any]:
    import structlog

    from parity_node.cache import answer_cache
    from parity_node.cache.opening import idle_cache

    # What the node would log is not the answer.
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    async with idle_cache(settings) as found:
        return await answer_cache(found, request)


def _list_screen(document: dict[str, Any], now: float) -> RenderableType:
    from rich.console import Group as Parts
    from rich.table import Table
    from rich.text import Text

    from parity_cli.screens.cells import cell
    from parity_protocol.quantities import format_bytes, format_duration

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("kind", "name", "size", "last used", ""):
        is_name = heading == "name"  # the only one that gives way on a narrow terminal
        table.add_column(
            heading, justify="right" if heading == "size" else "left", no_wrap=not is_name, overflow="fold"
        )
    for item in document["items"]:
        age = timedelta(seconds=max(0, round(now - datetime.fromisoformat(item["used_at"]).timestamp())))
        marks = ", ".join(word for word in ("pinned", "in_use") if item[word]).replace("_", " ")
        table.add_row(
            item["kind"], cell(_short(item)), format_bytes(item["size"]), f"{format_duration(age)} ago", marks
        )
    lines = [
        f"{kind:<7} {format_bytes(total['used'])} of {format_bytes(total['limit'])}, "
        f"{format_bytes(total['kept'])} cannot go now  ({_CAPS[kind]})"
        for kind, total in document["totals"].items()
    ]
    if document["not_listed"]:
        lines.append(f"{document['not_listed']} more are not listed")
    head: list[RenderableType] = [table, Text()] if document["items"] else [Text("nothing is kept"), Text()]
    return Parts(*head, *map(Text, lines))


def _gc_screen(document: dict[str, Any]) -> RenderableType:
    from rich.console import Group as Parts
    from rich.text import Text

    from parity_cli.output import printable
    from parity_protocol.quantities import format_bytes

    verb, total = ("would free", "would be freed") if document["dry_run"] else ("freed", "freed")
    lines = [
        f"{verb} {item['kind']} {printable(_short(item))}  {format_bytes(item['size'])}" for item in document["items"]
    ]
    return Parts(*map(Text, [*lines, f"{format_bytes(document['freed_bytes'])} {total}"]))


def _short(item: Mapping[str, Any]) -> str:
    name = str(item["name"])
    if item["kind"] != "image":
        return name if len(name) <= _SHOWN_NAME else name[: _SHOWN_NAME - 1] + "…"
    image, label = (_DIGEST.sub(r"\1", text) for text in (name, str(item["label"])))
    return f"{'an archive' if label.startswith(_FROM_ARCHIVE) else label}  {image}".lstrip()


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
