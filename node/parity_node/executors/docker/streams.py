"""What the engine answers while a container runs: its output, and its end. On the event loop, without a thread for each.

The ``docker`` package reads such answers in a thread that cannot be cancelled, and may have read ahead of its caller. So
these three calls are made here, in HTTP/1.0, where an answer ends with its connection and has no framing to undo.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import anyio

from parity_protocol.disk import failure_of
from parity_protocol.errors import ExecutionFailed, FailureReason, NotFound, Unreachable

__all__ = ["LogFile", "OutputStream", "wait_ended"]

_MAX_HEAD_BYTES = 65_536
_MAX_ANSWER_BYTES = 65_536
_FRAME_HEAD_BYTES = 8
_PIECE_BYTES = 65_536


class LogFile:
    """Takes what a container prints into a file, at most ``max_bytes`` of it; the rest is dropped.

    Args:
        path: Replaced if it is there, never followed if it is a link; mode 0600.

    Raises:
        ExecutionFailed: It cannot be written (``disk_full``, ``node_fault``).
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.size = 0
        self.is_truncated = False
        self.is_disk_full = False
        self._least = 0  # bytes of an earlier reading that this one must reach before it replaces it
        self._on_full: Callable[[], None] | None = None
        self._replaces: Path | None = None
        self._file = _create(path)

    @classmethod
    def reread(cls, path: Path, max_bytes: int) -> LogFile:
        """Read everything again, from a container's beginning, beside what was read before.

        The two outputs of a program come in an order of their own each time. The new reading replaces the old one when
        it is as long, so that whoever reads on from an offset finds what belongs there.
        """
        found = cls(path.with_name(f"{path.name}.again"), max_bytes)
        found._replaces = path
        found._least = path.stat().st_size if path.exists() else 0
        found._settle()
        return found

    @property
    def is_behind(self) -> bool:
        """Whether an earlier reading had more: the engine has dropped the beginning since."""
        return self._replaces is not None

    @property
    def is_full(self) -> bool:
        """Whether more has come than is kept, or could be."""
        return self.is_truncated or self.is_disk_full

    def when_full(self, call: Callable[[], None]) -> None:
        """Call ``call`` once, as soon as it is full, at once if that is so already."""
        self._on_full = call
        self._tell()

    def write(self, data: bytes | memoryview) -> None:
        """Append, up to the cap."""
        if self.is_full or self._file < 0:
            return
        room = self.max_bytes - self.size
        kept = data[:room]
        try:
            while kept:
                written = os.write(self._file, kept)
                self.size += written
                kept = kept[written:]
        except OSError:  # the result would be short, which must not pass for success
            self.is_disk_full = True
        self.is_truncated = len(data) > room
        self._settle()
        self._tell()

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._replaces is not None:
            self.path.unlink(missing_ok=True)

    def _tell(self) -> None:
        if self.is_full and self._on_full is not None:
            self._on_full()

    def _settle(self) -> None:
        if self._replaces is not None and self.size >= self._least:
            self.path.rename(self._replaces)
            self.path, self._replaces = self._replaces, None


class OutputStream:
    """What a container prints, standard output and error together, as it comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._rest = b""  # the beginning of a frame's head
        self._left = 0  # of the payload of the frame that is being read

    @classmethod
    async def attach(cls, socket: Path, container: str, *, timeout_s: float) -> OutputStream:
        """Read from now on; open it before the container starts, and nothing is missed."""
        target = f"/containers/{container}/attach?stream=1&stdout=1&stderr=1"
        return cls(*await _open(socket, "POST", target, timeout_s=timeout_s))

    @classmethod
    async def replay(cls, socket: Path, container: str, *, timeout_s: float) -> OutputStream:
        """Read from the container's beginning, as far as the engine has kept it, and on."""
        target = f"/containers/{container}/logs?follow=1&stdout=1&stderr=1&timestamps=0"
        return cls(*await _open(socket, "GET", target, timeout_s=timeout_s))

    async def copy(self, log: LogFile) -> None:
        """Append to ``log`` until the output ends or the engine goes away. Cancelling loses nothing: call it again."""
        while True:
            try:
                data = await self._reader.read(_PIECE_BYTES)
            except OSError:
                return
            if not data:
                return
            self._take(data, log)

    def close(self) -> None:
        """Close the connection; idempotent."""
        self._writer.close()

    def _take(self, data: bytes, log: LogFile) -> None:
        view, at = memoryview(self._rest + data), 0
        self._rest = b""
        while at < len(view):
            if self._left:
                piece = view[at : at + self._left]
                log.write(piece)
                self._left -= len(piece)
                at += len(piece)
            elif len(view) - at < _FRAME_HEAD_BYTES:
                self._rest = bytes(view[at:])
                return
            else:
                self._left = int.from_bytes(view[at + 4 : at + _FRAME_HEAD_BYTES], "big")
                at += _FRAME_HEAD_BYTES


async def wait_ended(socket: Path, container: str, *, timeout_s: float) -> int:
    """Return a container's exit status as soon as it does not run.

    Args:
        timeout_s: Longest time until the engine takes the question; its answer is waited for without limit.

    Raises:
        NotFound: There is no such container (any more).
        Unreachable: The engine does not answer, or went away meanwhile.
    """
    target = f"/containers/{container}/wait?condition=not-running"
    reader, writer = await _open(socket, "POST", target, timeout_s=timeout_s)
    try:
        answer = json.loads(await reader.read(_MAX_ANSWER_BYTES))
        return int(answer["StatusCode"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise Unreachable("the Docker engine went away while a task ran") from exc
    finally:
        writer.close()


async def _open(
    socket: Path, method: str, target: str, *, timeout_s: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        with anyio.fail_after(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=_MAX_HEAD_BYTES)
            try:
                writer.write(f"{method} {target} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
                await _check_head(await reader.readuntil(b"\r\n\r\n"), reader)
            except BaseException:
                writer.close()
                raise
    except TimeoutError as exc:
        raise Unreachable(f"the Docker engine did not answer within {timeout_s:g} s") from exc
    except (OSError, EOFError, asyncio.LimitOverrunError) as exc:
        raise Unreachable(f"the Docker engine at {socket} does not answer") from exc
    return reader, writer


async def _check_head(head: bytes, reader: asyncio.StreamReader) -> None:
    words = head.split(b"\r\n", 1)[0].split(b" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    if status in {101, 200}:
        return
    text = (await reader.read(_MAX_ANSWER_BYTES)).decode(errors="replace")[:500]
    if status == 404:
        raise NotFound(text)
    raise ExecutionFailed(FailureReason.SANDBOX_FAILED, f"the Docker engine: {status} {text}")


def _create(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise ExecutionFailed(failure_of(exc), f"{path}: {exc.strerror}") from exc
