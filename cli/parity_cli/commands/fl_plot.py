"""``parity fl plot``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from parity_cli.lazy import Command
from parity_cli.output import Output, pass_output

if TYPE_CHECKING:
    from parity_cli.charts import Panel

__all__ = ["plot"]

MAX_BYTES = 256 << 20
MAX_VALUES = 5_000_000


@click.command(
    cls=Command,
    short_help="Draw accuracy and loss by round.",
    example="""
    parity fl simulate --data digits.csv --json > run.json && parity fl plot run.json
    parity fl plot run.json -o run.html -o run.png
    parity fl show SESSION --json | parity fl plot -
    """,
)
@click.argument("source", type=click.File("rb"))
@click.option(
    "-o",
    "--output",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write .html (a page with inline SVG) or .png; repeat for both. Default: a chart on the terminal.",
)
@click.option("--height", type=click.IntRange(3, 60), default=10, show_default=True, help="Lines of a terminal chart.")
@pass_output
def plot(out: Output, source: BinaryIO, files: tuple[Path, ...], height: int) -> None:
    """Draw accuracy and loss by round, and each node's contribution where it was scored.

    SOURCE is what `parity fl simulate --json` or `parity fl show --json` printed; `-` reads it from standard input.
    """
    from parity_cli.charts import html_page, panels_of, png_image, terminal_chart
    from parity_protocol import strict_json
    from parity_protocol.errors import BadDocument

    raw = source.read(MAX_BYTES + 1)
    document = strict_json.loads(raw, max_bytes=MAX_BYTES, max_values=MAX_VALUES)
    if not isinstance(document, dict):
        raise BadDocument("expected one JSON object with rounds")
    panels = panels_of(document)
    for file in files:
        match file.suffix.lower():
            case ".html":
                title = str(document.get("strategy") or document.get("id") or "rounds")
                file.write_text(html_page(title[:200], panels, _facts(document)), encoding="utf-8")
            case ".png":
                file.write_bytes(png_image(panels))
            case _:
                raise click.BadParameter(f"{file} must end in .html or .png", param_hint="--output")
    shown = (
        None if files else "\n\n".join(terminal_chart(each, width=out.console.width, height=height) for each in panels)
    )
    for file in files:
        out.say(f"wrote {file}")
    out.emit({"panels": [_told(panel) for panel in panels], "files": [str(file) for file in files]}, shown)


def _told(panel: Panel) -> dict[str, object]:
    return {
        "title": panel.title,
        "curves": {curve.name: [list(point) for point in curve.points] for curve in panel.curves},
    }


def _facts(document: Mapping[str, object]) -> dict[str, str]:
    names = ("id", "state", "model_type", "strategy", "assignment_hash", "model_hash", "seed")
    found = {name: document[name] for name in names if name in document}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}
