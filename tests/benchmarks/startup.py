"""What somebody waits for who asks for help."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.figures import Aim, Figure, NotAvailable

__all__ = ["measure"]

RUNS = 30
QUICK_RUNS = 10
WARM_UP = 3


async def measure(*, quick: bool) -> list[Figure]:
    """Return the time of ``parity --help``, and what of it is Python's own."""
    program = Path(sys.executable).with_name("parity")
    if not program.exists():
        raise NotAvailable(f"{program} is not there: run scripts/setup")
    runs = QUICK_RUNS if quick else RUNS
    shown = _median_ms([str(program), "--help"], runs)
    bare = _median_ms([sys.executable, "-c", "pass"], runs)
    note = f"median of {runs} runs; Python alone {bare:.0f} ms"
    return [Figure("parity --help", shown, "ms", Aim(120, "at most"), note)]


def _median_ms(command: list[str], runs: int) -> float:
    took = []
    for number in range(WARM_UP + runs):
        started = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=60)
        if number >= WARM_UP:
            took.append(1000 * (time.perf_counter() - started))
    return median(took)
