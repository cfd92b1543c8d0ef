"""One execution's folder: what is in it, and reading it back.

::

    job.json      what ``start`` needs, written by ``prepare``
    output.log    what the task printed, up to a cap
    inputs/       verified data, read-only for the task
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import anyio.to_thread
from pydantic import JsonValue

from parity_node.executors.base import MAX_LOG_READ_BYTES, Handle, Limits
from parity_protocol.disk import failure_of
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["JobFolder", "folder_of", "printable_tail"]

_MAX_JOB_BYTES = 16 << 20
_MAX_MESSAGE_CHARS = 1_500
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class JobFolder:
    """The folder of one execution; made by the agent, mode 0700."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "output.log"
        self.inputs = path / "inputs"
        self._job = path / "job.json"

    def write_job(self, members: Mapping[str, object], limits: Limits) -> None:
        """Write down what ``start`` needs, for a node that restarts in between.

        Raises:
            ExecutionFailed: The disk does not take it.
        """
        data = json.dumps({**members, "limits": asdict(limits)}).encode()
        try:
            fd = os.open(self._job, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
        except OSError as exc:
            raise ExecutionFailed(failure_of(exc), f"{self._job}: {exc.strerror}") from exc

    def read_job(self) -> tuple[dict[str, JsonValue], Limits]:
        """Return what ``write_job`` wrote.

        Raises:
            ExecutionFailed: It is not there or not whole: the machine lost power in between (``node_restarted``).
        """
        try:
            fd = os.open(self._job, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with os.fdopen(fd, "rb") as file:
                members = json.loads(file.read(_MAX_JOB_BYTES))
            return members, Limits(**members.pop("limits"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise ExecutionFailed(FailureReason.NODE_RESTARTED, "the execution's folder was lost") from exc

    async def read_log(self, offset: int, path: Path | None = None) -> bytes:
        """Return what was printed from byte ``offset`` on, at most ``MAX_LOG_READ_BYTES``; empty if there is nothing.

        Args:
            path: Another log of the same folder.
        """
        return await anyio.to_thread.run_sync(_read, path or self.log, offset, MAX_LOG_READ_BYTES)

    def read_tail(self) -> bytes:
        """Return the end of what was printed, at most ``MAX_LOG_READ_BYTES``."""
        size = self.log.stat().st_size if self.log.exists() else 0
        return _read(self.log, max(0, size - MAX_LOG_READ_BYTES), MAX_LOG_READ_BYTES)

    async def remove(self) -> None:
        """Remove the folder and all in it; idempotent.

        Raises:
            ExecutionFailed: Something cannot be removed (``node_fault``).
        """
        await anyio.to_thread.run_sync(_remove, self.path)


def folder_of(handle: Handle) -> JobFolder:
    """Return the folder that a handle names.

    Raises:
        ExecutionFailed: It names none (``node_fault``).
    """
    path = handle.state.get("folder")
    if not isinstance(path, str) or not Path(path).is_absolute():
        raise ExecutionFailed(FailureReason.NODE_FAULT, "the handle names no folder")
    return JobFolder(Path(path))


def printable_tail(data: bytes) -> str:
    """Return the end of what a task printed, fit for a message: no control characters, a bounded number of others."""
    text = data[-4 * _MAX_MESSAGE_CHARS :].decode("utf-8", errors="replace")
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n")).strip()[-_MAX_MESSAGE_CHARS:]


def _read(path: Path, offset: int, count: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return b""
    try:
        return os.pread(fd, count, max(0, offset))
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path)  # does not follow links
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ExecutionFailed(FailureReason.NODE_FAULT, f"cannot remove {path}: {exc.strerror}") from exc
