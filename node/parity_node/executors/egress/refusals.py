"""What the proxy says when it refuses, and how often it says it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import structlog

from parity_protocol.clock import Clock

__all__ = ["Refusal", "Refusals"]

log = structlog.get_logger(__name__)

_REPEAT_S = 60.0  # the same refusal again is a line again after this long
_MAX_LINES = 100  # of one task; the rest are counted
_MAX_HOST_CHARS = 253
_MAX_TEXT_BYTES = 262_144
_UNPRINTABLE = re.compile(r"[^!-~]")


class Refusal(Exception):
    """A connection that is not made.

    Args:
        rule: Stable name of what refuses: ``egress.domains``, ``egress.address``, ``egress.private``,
            ``egress.server_name``, ``egress.max_bytes``, ``egress.request``, ``egress.unreachable``.
        host: As the task's program wrote it.
        status: Of the HTTP answer.
    """

    def __init__(self, rule: str, host: str, why: str, status: int = 403) -> None:
        super().__init__(rule, host, why)
        self.rule = rule
        self.host = host
        self.why = why
        self.status = status

    def line(self) -> str:
        """Return the log line."""
        host = _UNPRINTABLE.sub("?", self.host)[:_MAX_HOST_CHARS] or "-"
        return f"E-EGRESS {host}: {self.why} ({self.rule})"

    def answer(self) -> bytes:
        """Return the HTTP response that tells the task's program why."""
        body = f"{self.line()}\n".encode("ascii", errors="replace")
        head = (
            f"HTTP/1.1 {self.status} {_PHRASES.get(self.status, 'Refused')}\r\n"
            "Content-Type: text/plain; charset=us-ascii\r\n"
            f"Content-Length: {len(body)}\r\nX-Parity-Rule: {self.rule}\r\nConnection: close\r\n\r\n"
        )
        return head.encode("ascii") + body


_PHRASES = {400: "Bad Request", 403: "Forbidden", 411: "Length Required", 431: "Header Too Large", 502: "Bad Gateway"}


class Refusals:
    """Writes each refusal to the node's log and to the task's, at a bounded rate.

    Args:
        tell: Gets the line for the task's own log.
        path: Keeps the lines, for an execution that outlives the node.
        on_refused: Told the rule of each refusal, said or not.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        *,
        path: Path,
        execution_id: str,
        clock: Clock,
        on_refused: Callable[[str], None] | None = None,
    ) -> None:
        self._on_refused = on_refused
        self._tell = tell
        self._path = path
        self._execution_id = execution_id
        self._clock = clock
        self._said: dict[tuple[str, str], float] = {}
        self._lines = self.text().count(b"\n")

    def text(self) -> bytes:
        """Return the lines so far, those of an earlier process of the node too."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return b""
        with os.fdopen(fd, "rb") as file:
            return file.read(_MAX_TEXT_BYTES)

    def note(self, refusal: Refusal) -> None:
        """Count one refusal, and write a line unless the same was written a moment ago."""
        if self._on_refused is not None:
            self._on_refused(refusal.rule)
        key, now = (refusal.rule, refusal.host), self._clock.monotonic()
        said_at = self._said.get(key)
        if self._lines >= _MAX_LINES or (said_at is not None and now - said_at < _REPEAT_S):
            return
        self._said[key] = now  # at most _MAX_LINES of them
        self._lines += 1
        log.warning(
            "egress_refused",
            code="E-EGRESS",
            host=refusal.host[:_MAX_HOST_CHARS],
            rule=refusal.rule,
            why=refusal.why,
            execution_id=self._execution_id,
        )
        self._write(refusal.line())
        if self._lines == _MAX_LINES:
            self._write(f"E-EGRESS -: after {_MAX_LINES} lines further refusals are only counted")

    def _write(self, line: str) -> None:
        self._tell(line)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self._path, flags, 0o600)
        except OSError:  # a full disk: the node's own log has it
            return
        try:
            os.write(fd, line.encode() + b"\n")
        except OSError:
            return
        finally:
            os.close(fd)
