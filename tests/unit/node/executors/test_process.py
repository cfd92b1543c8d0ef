from __future__ import annotations

import os
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from parity_node.executors.process import OutputLog, boot_id, same_process, start_time
from parity_protocol.errors import ExecutionFailed


async def fed(log: OutputLog, *pieces: bytes) -> None:
    """Write as a child would, then close its end."""
    end = os.dup(log.write_end)
    log.watch()
    for piece in pieces:
        await anyio.to_thread.run_sync(_write_all, end, piece)
    os.close(end)
    await log.finish()


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


async def test_what_is_printed_is_kept(tmp_path):
    log = OutputLog(tmp_path / "log", 100)

    await fed(log, b"one\n", b"two\n")

    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    assert (log.file.size, log.file.is_truncated) == (8, False)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


async def test_exactly_the_cap_is_not_too_much(tmp_path):
    log = OutputLog(tmp_path / "log", 8)

    await fed(log, b"12345678")

    assert (log.file.size, log.file.is_truncated) == (8, False)


async def test_more_than_the_cap_is_dropped_and_said_once(tmp_path):
    said: list[str] = []
    log = OutputLog(tmp_path / "log", 5)
    log.file.when_full(lambda: said.append("full"))

    await fed(log, b"1234567", b"x" * 200_000)

    assert (tmp_path / "log").read_bytes() == b"12345"
    assert said == ["full"]


async def test_who_asks_late_is_told_at_once(tmp_path):
    said: list[str] = []
    log = OutputLog(tmp_path / "log", 1)
    await fed(log, b"12")

    log.file.when_full(lambda: said.append("full"))

    assert said == ["full"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
async def test_a_full_disk_is_not_taken_for_a_short_output():
    log = OutputLog(Path("/dev/full"), 100)

    await fed(log, b"hello")

    assert log.file.is_disk_full
    assert log.file.is_full


async def test_a_pipe_that_somebody_holds_open_is_not_waited_for(tmp_path):
    log = OutputLog(tmp_path / "log", 100)
    held = os.dup(log.write_end)
    log.watch()
    os.write(held, b"hello")

    with anyio.fail_after(5):
        await log.finish()

    assert (tmp_path / "log").read_bytes() == b"hello"
    os.close(held)


async def test_a_log_is_not_written_through_a_link(tmp_path):
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ExecutionFailed, match="symbolic links"):
        OutputLog(tmp_path / "log", 100)

    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(not boot_id(), reason="needs /proc")
def test_a_process_is_known_by_pid_start_and_boot_together():
    me, started, boot = os.getpid(), start_time(os.getpid()), boot_id()

    assert same_process(me, started, boot) == me
    assert same_process(me, started, "another boot") is None
    assert same_process(me, (started or 0) + 1, boot) is None


@pytest.mark.parametrize("pid", [None, "1", 0, 1, -1, 2**30])
def test_what_is_no_process_of_ours_is_never_named(pid):
    assert same_process(pid, 0, boot_id()) is None
