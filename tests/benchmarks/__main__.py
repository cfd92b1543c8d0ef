"""``scripts/bench``: run the figures and print them."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence

import anyio

from benchmarks.figures import Figure, NotAvailable

FIGURES = {
    "fsync": "fsync",
    "latency": "latency",
    "throughput": "throughput",
    "claims": "claims",
    "blobs": "blobs",
    "gas": "gas",
    "idle": "idle",
    "help": "startup",
    "docker": "containers",
    "celery": "celery_peer",
    "shell": "shell",
    "fl": "fl",
}
"""Name on the command line → module of this folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what was asked for; the status is 1 if something broke, whatever the numbers are."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure this machine's market, node and client."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which figures: {', '.join(FIGURES)}. Default: all")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; about a third of the time")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    asked = parser.parse_args(argv)
    unknown = sorted(set(asked.names) - set(FIGURES))
    if unknown:
        parser.error(f"no figure is called {', '.join(unknown)} (there are {', '.join(FIGURES)})")
    wanted = asked.names or list(FIGURES)
    if "fsync" not in wanted:  # beside whatever is durable, in the same run
        wanted = ["fsync", *wanted]
    found: list[Figure] = []
    broken: list[str] = []
    for name in wanted:
        began = time.monotonic()
        print(f"{name} …", end=" ", flush=True, file=sys.stderr)
        try:
            found += anyio.run(_measure, FIGURES[name], asked.quick)
        except NotAvailable as exc:
            found.append(Figure(name, None, "", note=str(exc)))
            print(f"NOT AVAILABLE: {exc}", end=" ", file=sys.stderr)
        except BaseException as exc:
            if isinstance(exc, KeyboardInterrupt):
                raise
            broken.append(name)
            traceback.print_exc()
            found.append(Figure(name, None, "", note=f"broke: {type(exc).__name__}: {exc}"))
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    if asked.json:
        document = {"machine": _machine(), "figures": [figure.document() for figure in found], "broken": broken}
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        _print(found)
    return 1 if broken else 0


async def _measure(module: str, quick: bool) -> list[Figure]:
    made: list[Figure] = await importlib.import_module(f"benchmarks.{module}").measure(quick=quick)
    return made


def _machine() -> dict[str, object]:
    return {
        "processors": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _print(figures: Sequence[Figure]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="parity-node on this machine", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("aim", justify="right")
    table.add_column("")
    table.add_column("load", justify="right")
    table.add_column("how", overflow="fold")
    marks = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}
    for figure in figures:
        style = "yellow" if figure.value is None else ""
        aim = "" if figure.aim is None else f"{figure.aim} {figure.unit}"
        table.add_row(
            figure.name, figure.shown(), aim, marks[figure.is_met], f"{figure.load:.1f}", figure.note, style=style
        )
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    machine = _machine()
    console.print(
        f"{machine['processors']} processors, load {machine['load_1min']}, Python {machine['python']}, "
        f"{machine['system']}. Market, chain and nodes ran as processes on loopback; every acknowledged write is synced.",
        style="dim",
    )


if __name__ == "__main__":
    sys.exit(main())
