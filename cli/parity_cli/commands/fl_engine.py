"""``parity fl engine install | list | remove``: what other engines than our own need on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from parity_cli.lazy import Command, Group
from parity_cli.output import Output, pass_output

if TYPE_CHECKING:
    from parity_cli.engines import Engine

__all__ = ["engine"]


@click.group(cls=Group, short_help="Engines beside our own: install, list, remove.")
def engine() -> None:
    """Engines beside our own. Flower lives in an environment of its own, made from a list of hashed packages.

    A market needs it to run sessions with `engine: flower`, a node to take part in them. PARITY_ENGINES says where
    environments are kept (default: $PARITY_HOME/engines, or ~/.local/share/parity-node/engines).
    """


@engine.command(
    cls=Command,
    short_help="Make an engine's environment.",
    example="""
    parity fl engine install flower
    parity fl engine install flower --again --json
    """,
)
@click.argument("name")
@click.option("--again", is_flag=True, help="Make it anew even if it is whole.")
@pass_output
def install(out: Output, name: str, again: bool) -> None:
    """Make an engine's environment with uv, or with pip where there is no uv; about 300 MB for Flower."""
    from parity_cli import engines

    done = engines.install(name, say=out.say, again=again)
    out.emit(_document(done), f"{done.name} {done.version} is installed in {done.folder}")


@engine.command("list", cls=Command, short_help="Show which engines are there.", example="parity fl engine list --json")
@pass_output
def list_(out: Output) -> None:
    """Show every engine that this program can work with, and whether it is installed here."""
    from parity_cli import engines

    found = [engines.look(name) for name in engines.ENGINES]
    lines = [f"{one.name:<8} {one.version:<10} {_state(one):<14} {one.folder}" for one in found]
    out.emit({"engines": [_document(one) for one in found]}, "\n".join(lines))


@engine.command(cls=Command, short_help="Remove an engine's environment.", example="parity fl engine remove flower")
@click.argument("name")
@pass_output
def remove(out: Output, name: str) -> None:
    """Remove an engine's environment. Sessions that run with it end here."""
    from parity_cli import engines

    was_there = engines.remove(name)
    out.emit({"engine": name, "removed": was_there}, f"{name} is removed" if was_there else f"{name} was not installed")


def _state(engine: Engine) -> str:
    if not engine.is_installed:
        return "not installed"
    return "installed" if engine.is_current else "outdated"


def _document(engine: Engine) -> dict[str, object]:
    return {
        "engine": engine.name,
        "version": engine.version,
        "folder": str(engine.folder),
        "state": _state(engine),
        "lock_sha256": engine.lock_sha256,
    }
