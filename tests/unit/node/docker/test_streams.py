"""What a container prints, and its end, from an engine that a test plays."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from parity_node.executors.docker.streams import OutputStream, wait_ended
from parity_node.executors.log_file import LogFile
from parity_protocol.errors import ExecutionFailed, FailureReason, NotFound, Unreachable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.0 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"


@asynccontextmanager
async def engine(serve: Serve) -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pde-", dir="/tmp") as folder:
        path = Path(folder) / "s"

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                await serve(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_unix_server(answer, str(path))
        async with server:
            yield path


def says(*pieces: bytes) -> Serve:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    return serve


def frame(data: bytes, stream: int = 1) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


async def copied(path: Path, log: LogFile) -> None:
    stream = await OutputStream.attach(path, "c", timeout_s=5)
    with anyio.fail_after(5):
        await stream.copy(log)
    stream.close()
    log.close()


@pytest.mark.parametrize("size", [1, 3, 7, 8, 9, 1_000])
async def test_frames_are_put_together_however_they_are_cut(tmp_path, size):
    data = frame(b"one\n") + frame(b"") + frame(b"two", 2) + frame(b"x" * 300)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    log = LogFile(tmp_path / "log", 1_000)

    async with engine(says(OK, *pieces)) as path:
        await copied(path, log)

    assert (tmp_path / "log").read_bytes() == b"one\ntwo" + b"x" * 300
    assert not log.is_truncated


async def test_what_is_over_the_cap_is_dropped_and_said(tmp_path):
    log, calls = LogFile(tmp_path / "log", 10), list[str]()
    log.when_full(lambda: calls.append("full"))

    async with engine(says(OK, frame(b"12345678"), frame(b"abc"), frame(b"more"))) as path:
        await copied(path, log)

    assert (tmp_path / "log").read_bytes() == b"12345678ab"
    assert log.is_truncated
    assert calls == ["full"]


async def test_exactly_the_cap_is_not_over_it(tmp_path):
    log = LogFile(tmp_path / "log", 4)

    async with engine(says(OK, frame(b"1234"))) as path:
        await copied(path, log)

    assert (log.size, log.is_truncated) == (4, False)


async def test_a_cancelled_reader_goes_on_where_it_was(tmp_path):
    go = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + frame(b"whole")[:10])
        await writer.drain()
        await go.wait()
        writer.write(frame(b"whole")[10:] + frame(b" and more"))

    log = LogFile(tmp_path / "log", 100)
    async with engine(serve) as path:
        stream = await OutputStream.attach(path, "c", timeout_s=5)
        with anyio.move_on_after(0.02):
            await stream.copy(log)
        go.set()
        with anyio.fail_after(5):
            await stream.copy(log)
        stream.close()

    assert (tmp_path / "log").read_bytes() == b"whole and more"


async def test_the_status_comes_as_soon_as_the_engine_knows(tmp_path):
    async with engine(says(OK, b'{"StatusCode":7,"Error":null}')) as path:
        assert await wait_ended(path, "c", timeout_s=5) == 7


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.0 404 Not Found\r\n\r\n{}", NotFound),
        (b"HTTP/1.0 500 Oh\r\n\r\n{}", ExecutionFailed),
        (b"", Unreachable),
        (b"nonsense\r\n\r\n", ExecutionFailed),
        (OK, Unreachable),
        (OK + b'{"Status', Unreachable),
    ],
)
async def test_other_answers_are_our_own_errors(answer, error):
    async with engine(says(answer)) as path:
        with pytest.raises(error):
            await wait_ended(path, "c", timeout_s=5)


async def test_an_engine_that_is_not_there_is_unreachable(tmp_path):
    with pytest.raises(Unreachable):
        await wait_ended(tmp_path / "none", "c", timeout_s=5)


async def test_an_engine_that_says_nothing_is_given_up(tmp_path):
    async def silent(_: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)

    async with engine(silent) as path:
        with pytest.raises(Unreachable, match="did not answer"):
            await wait_ended(path, "c", timeout_s=0.05)


def test_a_second_reading_replaces_the_first_when_it_is_as_long(tmp_path):
    first = LogFile(tmp_path / "log", 100)
    first.write(b"out err")
    first.close()

    again = LogFile.reread(tmp_path / "log", 100)
    again.write(b"err")
    assert (tmp_path / "log").read_bytes() == b"out err"
    assert again.is_behind
    again.write(b" out")
    assert (tmp_path / "log").read_bytes() == b"err out"
    again.write(b" more")
    again.close()

    assert (tmp_path / "log").read_bytes() == b"err out more"
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_second_reading_that_lacks_the_beginning_leaves_the_first(tmp_path):
    (tmp_path / "log").write_bytes(b"all that was printed")

    again = LogFile.reread(tmp_path / "log", 100)
    again.write(b"printed")
    again.close()

    assert again.is_behind
    assert (tmp_path / "log").read_bytes() == b"all that was printed"
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "log").symlink_to(tmp_path / "secret")

    with pytest.raises(ExecutionFailed) as caught:
        LogFile(tmp_path / "log", 10)

    assert caught.value.reason is FailureReason.NODE_FAULT
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_full_disk_is_told_apart_from_a_full_log():
    log = LogFile(Path("/dev/full"), 10)

    log.write(b"x")
    log.close()

    assert (log.is_disk_full, log.is_truncated) == (True, False)
