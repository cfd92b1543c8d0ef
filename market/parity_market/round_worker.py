"""A process that stays and closes rounds: one JSON job a line on standard input, one answer a line on standard output.

Starting Python and NumPy takes longer than a small round. What strangers sent is parsed here, where it can neither block
the market's event loop nor take its memory along; a worker that breaks is replaced, and loses nothing: all is in files.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import structlog

from parity_market import round_jobs
from parity_market.federation import WorkerLost
from parity_market.federation_worker import error_of

__all__ = ["RoundWork", "RoundWorkers", "answer_of", "work_here"]

log = structlog.get_logger(__name__)

RoundWork: TypeAlias = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""Does a job of a session, named by its id; raises what the job raised, or ``WorkerLost``."""

WORKERS = 2
MAX_PLACES = 256  # sessions whose process is remembered
JOB_S = 600.0  # that one job may take
MAX_ANSWER_BYTES = 16 << 20


async def work_here(session_id: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job at once, in this process: for tests."""
    del session_id
    return answer_of(round_jobs.execute(job))


def answer_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's answer.

    Raises:
        ParityError: That the job ended with.
    """
    if "error" not in answer:
        return dict(answer["doc"])
    raise error_of(answer["error"])


class RoundWorkers:
    """Processes that are started when needed; a session always goes to the same one, which has its data in memory."""

    def __init__(self, count: int = WORKERS) -> None:
        self._processes: list[Process | None] = [None] * count
        self._turns = [asyncio.Lock() for _ in range(count)]
        self._places: OrderedDict[str, int] = OrderedDict()  # session → index of its process

    async def __call__(self, session_id: str, job: Mapping[str, Any]) -> dict[str, Any]:
        """Do a job; see ``RoundWork``."""
        index = self._place_of(session_id)
        if job["do"] == "final":
            del self._places[session_id]
        async with self._turns[index]:
            try:
                process = await self._process(index)
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps(job).encode() + b"\n")
                async with asyncio.timeout(JOB_S):
                    await process.stdin.drain()
                    line = await process.stdout.readline()
                answer = json.loads(line)
            except (OSError, ValueError, TimeoutError) as exc:
                await self._end(index)
                log.exception("round_worker_lost", session_id=session_id, job=job["do"])
                raise WorkerLost(f"the worker that closes rounds was lost with a job {job['do']}") from exc
            except BaseException:  # a job that is not waited for would answer the next one's question
                await self._end(index)
                raise
        return answer_of(answer)

    def _place_of(self, session_id: str) -> int:
        """Return a session's process: the one with the fewest sessions, and of those one that runs already."""
        if session_id not in self._places:
            used = Counter(self._places.values())
            indexes = range(len(self._processes))
            self._places[session_id] = min(indexes, key=lambda one: (used[one], self._processes[one] is None, one))
        self._places.move_to_end(session_id)
        while (
            len(self._places) > MAX_PLACES
        ):  # of sessions that failed: one that goes on elsewhere reads its data again
            self._places.popitem(last=False)
        return self._places[session_id]

    async def _process(self, index: int) -> Process:
        process = self._processes[index]
        if process is None or process.returncode is not None:
            env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            process = self._processes[index] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "parity_market.round_child",
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                env=env,
                limit=MAX_ANSWER_BYTES,
            )
        return process

    async def _end(self, index: int) -> None:
        process, self._processes[index] = self._processes[index], None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def aclose(self) -> None:
        """End the processes; idempotent."""
        for index in range(len(self._processes)):
            await self._end(index)
