"""The peer's side, run by an interpreter that has Celery: a worker's module, and the client that measures it.

Give ``measure COUNT LATENCIES`` to measure; one JSON document comes out. The environment names the broker.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from typing import Any

from celery import Celery  # type: ignore[import-not-found,unused-ignore]  # in the peer's environment only

BROKER = os.environ["BENCH_BROKER"]
UNDER_WAY = 48
TIMEOUT_S = 60

app = Celery("celery_noop", broker=BROKER, backend=BROKER)
app.conf.update(worker_prefetch_multiplier=4, task_acks_late=os.environ.get("BENCH_DURABLE") == "1")


@app.task  # type: ignore[misc,untyped-decorator,unused-ignore]  # Celery has no types
def noop() -> str:
    return "ok"


def main() -> None:
    count, latencies = int(sys.argv[2]), int(sys.argv[3])
    for _ in range(50):
        noop.delay().get(timeout=TIMEOUT_S)
    took = []
    for _ in range(latencies):
        started = time.perf_counter()
        noop.delay().get(timeout=TIMEOUT_S)
        took.append(1000 * (time.perf_counter() - started))
    started = time.perf_counter()
    waiting: deque[Any] = deque()
    for _ in range(count):
        waiting.append(noop.delay())
        if len(waiting) >= UNDER_WAY:
            waiting.popleft().get(timeout=TIMEOUT_S)
    for result in waiting:
        result.get(timeout=TIMEOUT_S)
    print(json.dumps({"latencies_ms": took, "tasks_per_s": count / (time.perf_counter() - started)}))


if __name__ == "__main__":
    main()
