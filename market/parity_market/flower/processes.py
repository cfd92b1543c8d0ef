"""The processes of one session's SuperLink: started in flwr's environment, ended together, their last words kept."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from parity_fl.engines.flower import engine_env, flower_python, program
from parity_protocol.errors import Conflict, Unavailable

__all__ = ["Control", "Processes", "SuperLinkLost", "Talker"]

KEPT_BYTES = 16 << 10  # of what a process said last
SHOWN_CHARS = 600
ANSWER_S = 90.0  # of the control program, which waits 60 s for a SuperLink to listen
MAX_LINE_BYTES = 1 << 16


class SuperLinkLost(Unavailable):
    """A session's SuperLink, or what belongs to it, has ended."""


class Talker:
    """A process whose output is read, and whose last words are kept."""

    def __init__(self, name: str, process: Process, stream: asyncio.StreamReader) -> None:
        self.name = name
        self.process = process
        self._last = b""
        self._reading = asyncio.create_task(self._read(stream), name=f"output of {name}")

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while piece := await stream.read(KEPT_BYTES):
            self._last = (self._last + piece)[-KEPT_BYTES:]

    @property
    def last_words(self) -> str:
        """The end of what it printed, on one line."""
        return " ".join(self._last.decode(errors="replace").split())[-SHOWN_CHARS:]

    async def ended(self) -> str:
        """Return how the process ended, in words, once it has."""
        status = await self.process.wait()
        await asyncio.wait([self._reading], timeout=1.0)
        return f"{self.name} ended with {status}: {self.last_words}"

    async def kill(self) -> None:
        """End it and its group; idempotent."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


class Processes:
    """Processes of one session; use it in an ``async with`` statement, which ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[Talker] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for talker in reversed(self._running):
            await talker.kill()

    async def start(self, name: str, arguments: Sequence[str], *, talks: bool = False) -> Talker:
        """Start one of the engine's programs.

        Args:
            talks: Its standard input and output are a conversation; what it says besides is on standard error.

        Raises:
            Unavailable: Flower is not installed here, or the program cannot be started.
        """
        python = flower_python()
        try:
            process = await asyncio.create_subprocess_exec(
                *(str(python), "-I", str(program(name)), str(os.getpid()), *arguments),
                cwd=self._folder,
                env=engine_env(self._folder, python=python),
                stdin=PIPE if talks else DEVNULL,
                stdout=PIPE,
                stderr=PIPE if talks else STDOUT,
                start_new_session=True,
                limit=MAX_LINE_BYTES,
            )
        except OSError as exc:
            raise Unavailable(f"{python} cannot be started: {exc.strerror}") from exc
        stream = process.stderr if talks else process.stdout
        assert stream is not None
        talker = Talker(name, process, stream)
        self._running.append(talker)
        return talker


class Control:
    """Asks the control program, one question at a time."""

    def __init__(self, talker: Talker) -> None:
        self._talker = talker
        self._turn = asyncio.Lock()

    async def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer.

        Raises:
            SuperLinkLost: There is none.
            Conflict: The SuperLink refused.
        """
        process = self._talker.process
        assert process.stdin is not None
        assert process.stdout is not None
        async with self._turn:
            try:
                async with asyncio.timeout(ANSWER_S):
                    process.stdin.write(json.dumps(dict(question)).encode() + b"\n")
                    await process.stdin.drain()
                    answer = json.loads(await process.stdout.readline())
            except (OSError, ValueError, TimeoutError) as exc:
                raise SuperLinkLost(f"the SuperLink does not answer: {self._talker.last_words}") from exc
        if not isinstance(answer, dict):
            raise SuperLinkLost(f"the SuperLink answers {str(answer)[:SHOWN_CHARS]!a}")
        if "error" in answer:
            raise Conflict(f"the SuperLink refused: {str(answer['error'])[:SHOWN_CHARS]}")
        return answer
