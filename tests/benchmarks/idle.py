"""A node that waits for work: what it takes from the machine it lives on."""

from __future__ import annotations

import time
from statistics import median

import anyio

from benchmarks.figures import Aim, Figure
from benchmarks.proc import cpu_seconds, pss_bytes, tree_of
from benchmarks.stage import open_stage
from parity_cli.demo.stack import PARITY

__all__ = ["measure"]

SETTLE_S = 5.0
WATCH_S = 60.0
QUICK_WATCH_S = 15.0
SAMPLE_S = 1.0
MIB = 1 << 20


async def measure(*, quick: bool) -> list[Figure]:
    """Return the memory and processor time of ``parity node run`` with the executors that it ships with."""
    watch_s = QUICK_WATCH_S if quick else WATCH_S
    async with open_stage(nodes=1, slots=2, command=(*PARITY, "node", "run")) as stage:
        await anyio.sleep(SETTLE_S)
        pid = stage.pids()["nodes"][0]
        sizes = []
        started, cpu = time.monotonic(), cpu_seconds(pid)
        while time.monotonic() - started < watch_s:
            sizes.append(sum(pss_bytes(each) for each in tree_of(pid)))
            await anyio.sleep(SAMPLE_S)
        share = (cpu_seconds(pid) - cpu) / (time.monotonic() - started)
    return [
        Figure(
            "idle node, memory (PSS)", median(sizes) / MIB, "MB", Aim(80, "at most"), f"most {max(sizes) / MIB:.1f}"
        ),
        Figure("idle node, processor", 100 * share, "%", note=f"of one core, over {watch_s:g} s"),
    ]
