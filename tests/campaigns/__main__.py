"""``scripts/chaos``: run the campaigns and print their figures; the status is 1 if one of them missed."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Sequence

import anyio

from benchmarks.figures import Figure, NotAvailable

CAMPAIGNS = {
    "A2": "crashes",
    "A8": "probes",
    "A9": "bombs",
    "A10": "trees",
    "A12": "gateways",
    "docker": "containers",
}
"""Name on the command line → module of this folder, which has ``run(*, quick) -> list[Figure]``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="Attack this machine's executors, in numbers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(CAMPAIGNS)}. Default: all")
    parser.add_argument("--quick", action="store_true", help="a sample of each; about a fifth of the time")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    asked = parser.parse_args(argv)
    unknown = sorted(set(asked.names) - set(CAMPAIGNS))
    if unknown:
        parser.error(f"no campaign is called {', '.join(unknown)} (there are {', '.join(CAMPAIGNS)})")
    found: list[Figure] = []
    is_good = True
    for name in asked.names or CAMPAIGNS:
        began = time.monotonic()
        print(f"{name} …", end=" ", flush=True, file=sys.stderr)
        try:
            figures = anyio.run(_run, CAMPAIGNS[name], asked.quick)
        except NotAvailable as exc:
            figures = [Figure(name, None, "", note=str(exc))]
        except Exception as exc:  # the next campaign still runs
            traceback.print_exc()
            figures = [Figure(name, None, "", note=f"broke: {type(exc).__name__}: {exc}")]
        is_good = is_good and all(figure.value is not None and figure.is_met is not False for figure in figures)
        found += figures
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    if asked.json:
        print(json.dumps([figure.document() for figure in found], indent=2, ensure_ascii=False))
    else:
        for figure in found:
            mark = {True: "met", False: "MISSED", None: ""}[figure.is_met]
            aim = "" if figure.aim is None else f"{figure.aim} {figure.unit}"
            print(f"{figure.name:<44} {figure.shown():>18}  {aim:<16} {mark:<7} {figure.note}")
    return 0 if is_good else 1


async def _run(module: str, quick: bool) -> list[Figure]:
    found: list[Figure] = await importlib.import_module(f"campaigns.{module}").run(quick=quick)
    return found


if __name__ == "__main__":
    sys.exit(main())
