"""``parity version``."""

from __future__ import annotations

import platform
from importlib.metadata import version as version_of

import click

from parity_cli.lazy import Command
from parity_cli.output import Output, pass_output


@click.command(cls=Command, short_help="Show the version.", example="parity version --json")
@pass_output
def version(out: Output) -> None:
    """Show this program's version, and what it runs on."""
    document = {
        "version": version_of("parity-node"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    out.emit(document, f"parity {document['version']}  Python {document['python']}  {document['platform']}")
