"""A container while it runs, at an engine that a test plays: what is lost, what is late, and what is neither."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from parity_node.executors.base import Limits
from parity_node.executors.docker import probe
from parity_node.executors.docker.engine import Container, Engine, _unix_seconds
from parity_node.executors.docker.job import DockerJob
from parity_node.executors.docker.run import ContainerRun
from parity_node.executors.docker.streams import OutputStream
from parity_node.executors.folder import JobFolder
from parity_node.executors.log_file import LogFile
from parity_protocol.clock import SystemClock
from parity_protocol.errors import ExecutionFailed, FailureReason, Unreachable
from parity_protocol.report import Outcome

Serve = Callable[[str, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.0 200 OK\r\n\r\n"
ENDED_WELL = OK + b'{"StatusCode":0}'


class PlayedEngine(Engine):
    """An engine that says itself that a container has ended; the rest is ``serve``'s."""

    async def inspect(self, name: str) -> Container:
        return Container(name, "exited", 0, 0, False, "", {})

    async def stats(self, container: str) -> Mapping[str, Any]:
        return {}

    async def stop(self, container: str, *, grace_s: int) -> None: ...


@asynccontextmanager
async def engine_that(serve: Serve) -> AsyncIterator[PlayedEngine]:
    with tempfile.TemporaryDirectory(prefix="pdr-", dir="/tmp") as folder:
        path = Path(folder) / "s"

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                await serve(head.split()[1].decode().partition("?")[0].rpartition("/")[2], writer)
                await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError):  # nobody waits for the answer any more
                return
            finally:
                writer.close()

        server = await asyncio.start_unix_server(answer, str(path))
        async with server:
            yield PlayedEngine(path, timeout_s=5)


def run_of(
    engine: Engine, folder: Path, *, stream: OutputStream | None = None, started_s_ago: float = 0.0
) -> ContainerRun:
    job = DockerJob(
        execution_id="e", task_id="t", lease_id="l", fence=1, image="sha256:1", environment="sha256:2", entrypoint=None,
        command=(), env={}, workdir="/", volumes=(), inputs=(), max_output_bytes=100, output=None, egress=None, slot=0,
        uid=61_000, gid=61_000, runtime="runc", gpus=(), limits=Limits(10.0, 1.0, 64 << 20, 16 << 20, 16),
    )  # fmt: skip
    work = JobFolder(folder)
    started_at = time.time() - started_s_ago
    log = LogFile(work.log, 100)
    return ContainerRun(engine, SystemClock(), job, work, "c", "", log, stream, started_at, on_lost=lambda: None)


class OldReading:
    """An output stream that notices its end only when it is closed."""

    def __init__(self) -> None:
        self._closed = anyio.Event()

    async def copy(self, _log: LogFile) -> None:
        await self._closed.wait()

    def close(self) -> None:
        self._closed.set()


async def test_output_of_a_second_reading_is_waited_for_though_the_first_ends_late(tmp_path: Path) -> None:
    waits = 0
    answered = asyncio.Event()

    async def serve(what: str, writer: asyncio.StreamWriter) -> None:
        nonlocal waits
        if what == "logs":
            writer.write(OK)
            await writer.drain()
            await answered.wait()
            await asyncio.sleep(0.05)  # still on its way when the end is known
            writer.write(bytes([1, 0, 0, 0, 0, 0, 0, 4]) + b"said")
        elif what == "wait":
            waits += 1
            if waits == 1:
                return  # the engine goes away
            await asyncio.sleep(0.05)
            writer.write(ENDED_WELL)
            answered.set()

    async with engine_that(serve) as engine:
        run = run_of(engine, tmp_path, stream=OldReading())  # type: ignore[arg-type]  # plays one
        with anyio.fail_after(5):
            result = await run.wait()

    assert (result.outcome, result.result_bytes) == (Outcome.SUCCEEDED, b"said")


async def test_an_engine_that_answers_nonsense_is_an_error_of_ours_and_no_group(tmp_path: Path) -> None:
    async def serve(_what: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 500 Oh\r\n\r\nno")

    async with engine_that(serve) as engine:
        run = run_of(engine, tmp_path)
        with anyio.fail_after(5), pytest.raises(ExecutionFailed, match="500") as caught:
            await run.wait()
        run.close()

    assert caught.value.reason is FailureReason.SANDBOX_FAILED


async def test_an_engine_that_goes_away_in_a_trial_is_an_error_of_ours_and_no_group(tmp_path: Path) -> None:
    async def serve(what: str, writer: asyncio.StreamWriter) -> None:
        if what == "attach":
            writer.write(OK)

    log = LogFile(tmp_path / "log", 100)
    async with engine_that(serve) as engine:
        stream = await OutputStream.attach(engine.socket, "c", timeout_s=5)
        with anyio.fail_after(5), pytest.raises(Unreachable):
            await probe._follow(engine, "c", stream, log)
        stream.close()
    log.close()


@pytest.mark.parametrize(("ran_s", "reason", "wall_ms"), [(3.0, None, 3_000), (11.0, FailureReason.TIMEOUT, 11_000)])
async def test_a_container_is_late_by_its_own_end_and_not_by_the_nodes_return(
    tmp_path: Path, ran_s: float, reason: FailureReason | None, wall_ms: int
) -> None:
    async def serve(what: str, writer: asyncio.StreamWriter) -> None:
        writer.write(ENDED_WELL if what == "wait" else OK)

    async with engine_that(serve) as engine:
        run = run_of(engine, tmp_path, started_s_ago=60.0)
        run.ended_at = run.started_at + ran_s
        with anyio.fail_after(8):
            result = await run.wait()

    assert result.reason is reason
    assert result.usage.wall_ms == wall_ms


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-23T13:44:50.123456789Z", 1_795_441_490.123456),
        ("2026-11-23T14:44:50+01:00", 1_795_441_490.0),
        ("0001-01-01T00:00:00Z", None),
        ("2026-11-23T13:44:50", None),
        ("", None),
        ("soon", None),
    ],
)
def test_times_of_an_engine_are_read(text: str, seconds: float | None) -> None:
    assert _unix_seconds(text) == seconds
