"""What the engine answers while a container runs: its output, and its end. On the event loop, without a thread for each.

The ``docker`` package reads such answers in a thread that cannot be cancelled, and may have read ahead of its caller. So
these three calls are made here, in HTTP/1.0, where an answer ends with its connection and has no framing to undo.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import anyio

from parity_node.executors.log_file import LogFile
from parity_protocol.errors import ExecutionFailed, FailureReason, NotFound, Unreachable

__all__ = ["OutputStream", "wait_ended"]

_MAX_HEAD_BYTES = 65_536
_MAX_ANSWER_BYTES = 65_536
_FRAME_HEAD_BYTES = 8
_PIECE_BYTES = 65_536


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
