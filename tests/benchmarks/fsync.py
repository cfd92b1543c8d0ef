"""What the machine itself does now: the cost of one durable write, and how fast it computes beside its other work."""

from __future__ import annotations

import os
import tempfile
import time
from statistics import median

from benchmarks.figures import Figure, percentile
from parity_protocol.signing.keys import Ed25519PrivateKey

__all__ = ["measure"]

WRITES = 300
CHECKS = 500
QUIET_US = 60  # of one check on a machine of this project's kind with nothing else to do


async def measure(*, quick: bool) -> list[Figure]:
    """Return the cost of one fsync and of one signature check."""
    del quick
    fsync_ms, check_us = _fsync_ms(), _check_us()
    return [
        Figure(
            "one fsync", median(fsync_ms), "ms", note=f"append of 100 bytes; p99 {percentile(fsync_ms, 0.99):.2f} ms"
        ),
        Figure(
            "one Ed25519 check",
            median(check_us),
            "µs",
            note=f"on a quiet machine about {QUIET_US}: what is slower here was measured beside other work",
        ),
    ]


def _fsync_ms() -> list[float]:
    """Return how long each of many appends of 100 bytes with fdatasync took."""
    took = []
    with tempfile.NamedTemporaryFile(prefix="parity-bench-") as file:
        for _ in range(WRITES):
            started = time.perf_counter()
            os.write(file.fileno(), b"x" * 100)
            os.fdatasync(file.fileno())
            took.append(1000 * (time.perf_counter() - started))
    return took


def _check_us() -> list[float]:
    key = Ed25519PrivateKey.generate()
    message = b"x" * 300
    public, signature = key.public_key, key.sign(message)
    took = []
    for _ in range(CHECKS):
        started = time.perf_counter()
        public.verify(signature, message)
        took.append(1e6 * (time.perf_counter() - started))
    return took
