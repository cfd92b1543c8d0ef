"""Child processes: each in a process group of its own, with its output in a file, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parity_protocol.errors import Unavailable

__all__ = ["STOP_WITHIN_S", "Child", "ProcessEnded", "Processes", "child_environment"]

OURS = ("RUNNER_", "MARKET_", "SERVER_", "BLOCKCHAIN_", "PARITY_", "FL_", "OLLAMA_")  # settings of a user's own market
STOP_WITHIN_S = 5.0
_POLL_S = 0.02
_SHOWN_LINES = 12


class ProcessEnded(Unavailable):
    """A process ended that should have gone on."""

    code = "process_ended"
    retryable = False


@dataclass(slots=True)
class Child:
    """A process that was started here."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]
    may_end: bool = False  # it was told to

    @property
    def pid(self) -> int:
        """Its process id, which is its group's too."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def last_lines(self) -> str:
        """Return the end of what it printed."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-_SHOWN_LINES:])


class Processes:
    """Starts and ends children.

    Args:
        logs: Folder of their output, a file each; a child that is started again appends to its file.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[Child] = []

    @property
    def children(self) -> tuple[Child, ...]:
        """All that were started, in that order."""
        return tuple(self._children)

    def start(self, name: str, command: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> Child:
        """Start a process.

        Args:
            env: Its whole environment.
            cwd: Where it runs: not the caller's folder, whose ``.env`` it would read.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,  # Ctrl-C reaches us alone: we end the others in order
            )
        child = Child(name, log, process)
        self._children.append(child)
        return child

    def kill(self, child: Child) -> None:
        """End a process and its whole group with SIGKILL, now."""
        child.may_end = True
        _signal(child, signal.SIGKILL)
        child.process.wait()

    def check(self) -> None:
        """See that everything still runs.

        Raises:
            ProcessEnded: Something ended by itself; the message has the end of its log.
        """
        for child in self._children:
            if not child.may_end and not child.is_running:
                raise ProcessEnded(
                    f"{child.name} ended with status {child.process.returncode}:\n{child.last_lines()}",
                    hint=f"Its whole log: {child.log}",
                )

    def stop(self, children: Iterable[Child], *, within_s: float = STOP_WITHIN_S) -> None:
        """Ask children to end, all at once, and kill those that have not within the time."""
        asked = [child for child in children if child.is_running]
        try:
            for child in asked:
                child.may_end = True
                _signal(child, signal.SIGTERM)
            deadline = time.monotonic() + within_s
            while any(child.is_running for child in asked) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        finally:  # a second Ctrl-C ends the waiting, not the killing
            for child in asked:
                self.kill(child)

    def stop_all(self, *, within_s: float = STOP_WITHIN_S) -> None:
        """End everything, the last that was started first, so that each can still say goodbye to what it uses."""
        try:
            for child in reversed(self._children):
                self.stop([child], within_s=within_s)
        finally:
            for child in self._children:
                self.kill(child)


def child_environment(**settings: str) -> dict[str, str]:
    """Return this process's environment without any setting of ours, and ``settings``."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**inherited, "PYTHONUNBUFFERED": "1", **settings}


def _signal(child: Child, number: signal.Signals) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        pass  # the whole group has ended
