"""``parity node data add | list | remove``: data sets of the operator's own that tasks may name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_cli.commands.node_setup import config_option
from parity_cli.lazy import Command, Group
from parity_cli.node_place import node_file, node_settings
from parity_cli.output import Output, pass_output
from parity_protocol.errors import BadField, Conflict, NotFound, ParityError, Unreachable

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["data"]

KEY = "RUNNER_SHARDS"


@click.group(cls=Group, short_help="Data of your own that tasks may name.")
def data() -> None:
    """Data of your own that tasks may name, such as your part of a sharded training session.

    A task never learns where they lie, and the market never gets them: it offers work that names them to nodes that have
    the name. They are kept in RUNNER_SHARDS of the node's settings, and a running node is told at once.
    """


@data.command(
    cls=Command,
    short_help="Lend a file or folder by name.",
    example="""
    parity node data add hospital-a /srv/data/patients.csv
    parity node data add hospital-a /srv/data/patients-2.csv --replace
    """,
)
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Lend another file or folder under a name that is taken.")
@config_option
@pass_output
def add(out: Output, name: str, path: Path, replace: bool, config_path: Path | None) -> None:
    """Lend a file or folder to tasks by NAME: letters, digits, dots, dashes and underscores."""
    from parity_node.shards import parse_shards, usable_shards

    place = path.expanduser().absolute()
    try:
        read = parse_shards(f"{name}={place}")
    except ValueError as exc:
        raise BadField(f"{name[:40]!r} at {place}: {exc}", field="name") from exc
    if read != {name: place}:
        raise BadField(f"{place}: a path with a comma or a space at its end cannot be lent", field="path")
    _, problems = usable_shards({name: place})
    if problems:
        raise BadField(f"a task could not read it: {problems[name]}", field="path")
    known = _known(config_path)
    if known.get(name, place) != place and not replace:
        raise Conflict(f"{name} is {known[name]} already", hint="Give --replace, or another name.", field="name")
    file = _write({**known, name: place}, config_path)
    is_told, told = _tell_node(config_path, name, place)
    document = {"name": name, "path": str(place), "config": str(file), "told": is_told}
    out.emit(document, f"{name}  {place}\n{told or 'the running node lends it from now on'}")


@data.command(
    "list",
    cls=Command,
    short_help="Show what is lent, and whether a task could read it now.",
    example="""
    parity node data list
    parity node data list --json
    """,
)
@config_option
@pass_output
def list_(out: Output, config_path: Path | None) -> None:
    """Show name, path, size and, if a task could not read it now, why not."""
    from parity_node.shards import usable_shards

    known = _known(config_path)
    usable, problems = usable_shards(known)
    items = [
        {
            "name": name,
            "path": str(path),
            "bytes": usable[name].stat().st_size if name in usable and usable[name].is_file() else None,
            "problem": problems.get(name, ""),
        }
        for name, path in sorted(known.items())
    ]
    out.emit({"items": items}, lambda: _screen(items))


@data.command(cls=Command, short_help="Lend it no longer.", example="parity node data remove hospital-a")
@click.argument("name")
@config_option
@pass_output
def remove(out: Output, name: str, config_path: Path | None) -> None:
    """Take a name back; the data stay where they are. A task that reads them now goes on."""
    known = _known(config_path)
    if name not in known:
        raise NotFound(f"there is no data set {name[:40]!r}", hint="See parity node data list.")
    path = known.pop(name)
    file = _write(known, config_path)
    is_told, told = _tell_node(config_path, name, None)
    document = {"name": name, "path": str(path), "config": str(file), "told": is_told}
    out.emit(document, f"{name} is lent no longer{f'; {told}' if told else ''}")


def _tell_node(config_path: Path | None, name: str, path: Path | None) -> tuple[bool, str]:
    """Tell the running node; return whether one was told, and what there is to say if not."""
    from parity_node.control import ask_agent

    request = {"command": "data", "name": name, "path": None if path is None else str(path)}
    try:
        ask_agent(node_settings(config_path).state_dir(), request)
    except Unreachable:
        return False, "no node runs here now; it reads this when it starts"
    except ParityError as exc:
        return False, f"the running node did not take it ({exc.message}); it reads this when it starts again"
    return True, ""


def _known(config_path: Path | None) -> dict[str, Path]:
    return node_settings(config_path).shards()


def _write(shards: Mapping[str, Path], given: Path | None) -> Path:
    """Write the names into the settings file that the node reads, and return it.

    Raises:
        Conflict: The environment says something else, which would win.
    """
    from parity_cli.market_place import write_settings
    from parity_client import Home
    from parity_protocol.settings import config_path

    if KEY in os.environ:
        raise Conflict(f"{KEY} is set in the environment, which wins over the settings file", hint=f"unset {KEY}")
    home = Home()
    file = config_path(given) or node_file(home)
    text = ",".join(f"{name}={path}" for name, path in shards.items())
    title = "Settings of `parity node`, written by init; see .env.sample for all keys"
    write_settings(home, file, {KEY: text or None}, title=title)
    return file


def _screen(items: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from parity_cli.screens.cells import cell
    from parity_protocol.quantities import format_bytes

    if not items:
        return Text("nothing is lent: parity node data add NAME PATH")
    table = Table(box=None, pad_edge=False)
    for name in ("NAME", "SIZE", "PATH", "STATE"):
        table.add_column(name, justify="right" if name == "SIZE" else "left")
    for item in items:
        size = "folder" if item["bytes"] is None and not item["problem"] else ""
        table.add_row(
            cell(item["name"]),
            size if item["bytes"] is None else format_bytes(item["bytes"]),
            cell(item["path"]),
            cell(item["problem"] or "ready"),
        )
    return table
