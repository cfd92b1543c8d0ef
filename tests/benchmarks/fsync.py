"""What one durable write costs where the processes keep their data: the floor of every acknowledgement."""

from __future__ import annotations

import os
import tempfile
import time
from statistics import median

from benchmarks.figures import Figure, percentile

__all__ = ["fsync_ms", "measure"]

WRITES = 300


def fsync_ms() -> list[float]:
    """Return how long each of many appends of 100 bytes with fdatasync took."""
    took = []
    with tempfile.NamedTemporaryFile(prefix="parity-bench-") as file:
        for _ in range(WRITES):
            started = time.perf_counter()
            os.write(file.fileno(), b"x" * 100)
            os.fdatasync(file.fileno())
            took.append(1000 * (time.perf_counter() - started))
    return took


async def measure(*, quick: bool) -> list[Figure]:
    """Return the cost of one fsync."""
    del quick
    took = fsync_ms()
    return [Figure("one fsync", median(took), "ms", note=f"append of 100 bytes; p99 {percentile(took, 0.99):.2f} ms")]
