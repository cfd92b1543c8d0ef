"""``parity fl plot``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_cli.bridge import run_async
from parity_cli.lazy import Command
from parity_cli.output import Output, pass_output
from parity_cli.place import client_of, market_option, wallet_option
from parity_cli.secrets_input import passphrase_option

if TYPE_CHECKING:
    from parity_cli.charts import Panel

__all__ = ["plot"]

MAX_BYTES = 256 << 20
MAX_VALUES = 5_000_000


@click.command(
    cls=Command,
    short_help="Draw accuracy and loss by round.",
    example="""
    parity fl plot 3f0c…
    parity fl simulate --data digits.csv --json > run.json && parity fl plot run.json
    parity fl plot run.json -o run.html -o run.png
    parity fl show SESSION --json | parity fl plot -
    """,
)
@click.argument("source")
@click.option(
    "-o",
    "--output",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write .html (a page with inline SVG) or .png; repeat for both. Default: a chart on the terminal.",
)
@click.option("--height", type=click.IntRange(3, 60), default=10, show_default=True, help="Lines of a terminal chart.")
@market_option
@wallet_option
@passphrase_option
@pass_output
def plot(
    out: Output,
    source: str,
    files: tuple[Path, ...],
    height: int,
    market: str | None,
    wallet: str | None,
    passphrase_file: Path | None,
) -> None:
    """Draw accuracy and loss by round, and each node's contribution where it was scored.

    SOURCE is a session of yours, or the file that `parity fl simulate --json` or `parity fl show --json` printed; `-`
    reads that from standard input.
    """
    from parity_cli.charts import html_page, panels_of, png_image, terminal_chart

    if source == "-" or Path(source).is_file():
        document = _read(source)
    elif "/" in source or "." in source:  # no session's name: somebody meant a file
        raise click.BadParameter(f"there is no file {source}", param_hint="SOURCE")
    else:
        document = run_async(lambda: _session(source, market, wallet, passphrase_file))
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


def _read(source: str) -> dict[str, Any]:
    """Return the document in a file, or on standard input.

    Raises:
        BadDocument: It is not one JSON object.
    """
    from parity_protocol import strict_json
    from parity_protocol.errors import BadDocument

    if source == "-":
        raw = sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        with Path(source).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    document = strict_json.loads(raw, max_bytes=MAX_BYTES, max_values=MAX_VALUES)
    if not isinstance(document, dict):
        raise BadDocument("expected one JSON object with rounds")
    return document


async def _session(
    session_id: str, market: str | None, wallet: str | None, passphrase_file: Path | None
) -> dict[str, Any]:
    """Return a session with all rounds that have closed.

    Raises:
        NotFound: There is no such session of yours.
    """
    from parity_cli.commands.fl_contributions import all_rounds

    async with client_of(market, wallet, passphrase_file=passphrase_file) as client:
        found, rounds = await all_rounds(client, session_id)
    return found.model_copy(update={"rounds": tuple(rounds)}).model_dump(mode="json")


def _told(panel: Panel) -> dict[str, object]:
    return {
        "title": panel.title,
        "curves": {curve.name: [list(point) for point in curve.points] for curve in panel.curves},
    }


def _facts(document: Mapping[str, object]) -> dict[str, str]:
    names = ("id", "state", "model_type", "strategy", "assignment_hash", "model_hash", "seed")
    found = {name: document[name] for name in names if name in document}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}
