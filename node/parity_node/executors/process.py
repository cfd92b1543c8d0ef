"""A child process of the event loop's own thread: spawned, watched, its output captured up to a cap, ended.

Not asyncio's subprocess: that cannot drop to another user, waits in one thread per child on Python 3.11, and waits for
the end of the pipe, which a grandchild can hold open for ever.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from parity_node.executors.log_file import LogFile
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = [
    "Child",
    "Exit",
    "Identity",
    "OutputLog",
    "adopt_orphans",
    "boot_id",
    "kill_tree_of",
    "reap",
    "same_process",
    "start_time",
]

_PIPE_READ_BYTES = 65_536
_READS_A_TURN = 16  # of one child, so that a loud one does not hold up the event loop
_DRAIN_S = 0.5  # for output still in the pipe after the end: who holds it open then is not waited for
_POLL_S = 0.02
_END_S = 2.0  # for a killed tree to be gone
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a child runs as, when not as the node itself."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. ``status`` is its exit code, or minus the signal that ended it."""

    status: int
    cpu_ms: int = 0  # with all descendants that were waited for
    peak_memory_bytes: int = 0  # of the largest single process among them


class OutputLog:
    """Reads what a child prints from a pipe, to the end; ``file`` keeps what fits. Made as ``LogFile`` is."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.file = LogFile(path, max_bytes)
        self._pipe, self.write_end = os.pipe()  # neither end is inherited unless it is passed on
        os.set_blocking(self._pipe, False)
        self._ended = anyio.Event()
        self._loop = asyncio.get_running_loop()

    def note(self, text: str) -> None:
        """Add a line of the node's own; nothing once it is closed, or where it would make the output too long."""
        line = text.encode() + b"\n"
        if len(line) <= self.file.max_bytes - self.file.size:
            self.file.write(line)

    def watch(self) -> None:
        """Begin to read; the child has its end of the pipe."""
        os.close(self.write_end)
        self.write_end = -1
        self._loop.add_reader(self._pipe, self._take)

    def _take(self) -> None:
        for _ in range(_READS_A_TURN):
            try:
                data = os.read(self._pipe, _PIPE_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(self._pipe)
                self._ended.set()
                return
            self.file.write(data)

    async def finish(self) -> None:
        """Take what is still in the pipe, for a bounded time, and close; idempotent."""
        if self._pipe < 0:
            return
        with anyio.move_on_after(_DRAIN_S, shield=True):
            await self._ended.wait()
        self.close()

    def close(self) -> None:
        """Stop reading and close everything; idempotent."""
        if self._pipe < 0:
            return
        self._loop.remove_reader(self._pipe)
        for fd in (self._pipe, self.write_end):
            if fd >= 0:
                os.close(fd)
        self._pipe = self.write_end = -1
        self.file.close()


class Child:
    """A running child process.

    Make it on the event loop's thread: a parent-death signal follows the thread that spawned, not the process.

    Args:
        argv: Program and arguments.
        env: Its whole environment.
        output: Gets standard output and error, together.
        stdin: A descriptor to read from; nothing by default.
        pass_fds: Kept open in the child under the same numbers.
        identity: Drops to this user, with no supplementary groups, before the program starts.
        new_group: Lead a process group (and session) of its own.

    Raises:
        ExecutionFailed: The program cannot be started (``executor_unavailable``).
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | str,
        output: OutputLog,
        stdin: int = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        identity: Identity | None = None,
        new_group: bool = False,
    ) -> None:
        user = {} if identity is None else {"user": identity.uid, "group": identity.gid, "extra_groups": ()}
        if identity is not None:
            os.fchown(output.write_end, identity.uid, identity.gid)  # or it could not open /dev/stdout
        try:
            self._process = subprocess.Popen(
                argv,
                env=dict(env),
                cwd=cwd,
                stdin=stdin,
                stdout=output.write_end,
                stderr=output.write_end,
                pass_fds=tuple(pass_fds),
                close_fds=True,
                start_new_session=new_group,
                **user,  # type: ignore[call-overload]  # the stubs want each keyword spelled out
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, f"cannot start {argv[0]}: {exc}") from exc
        output.watch()
        self.output = output
        self.pid = self._process.pid
        self.new_group = new_group
        self._exit: Exit | None = None
        self._waiting = anyio.Lock()

    async def wait(self) -> Exit:
        """Return how the process ended, as soon as it has; may be called again."""
        async with self._waiting:
            if self._exit is None:
                found = await reap(self.pid)
                self._exit = found or Exit(-signal.SIGKILL)
                self._process.returncode = self._exit.status  # Popen must not wait for a pid that is gone
        return self._exit

    def kill(self) -> None:
        """Send SIGKILL to the process, or to its whole group if it leads one; nothing if it has ended."""
        if self._exit is not None:
            return
        try:
            if self.new_group:
                os.killpg(self.pid, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
            return


async def reap(pid: int) -> Exit | None:
    """Wait for a child of this process and return how it ended; None if it is none of ours, or was waited for."""
    if hasattr(os, "pidfd_open"):
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return _collect(pid)
        try:
            await anyio.wait_readable(fd)
        finally:
            os.close(fd)
        return _collect(pid)
    while _is_running(pid):  # noqa: ASYNC110 - macOS: a thread in waitpid could not be cancelled without losing the status
        await anyio.sleep(_POLL_S)
    return _collect(pid)


def _is_running(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def _collect(pid: int) -> Exit | None:
    try:
        found, status, usage = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    if found == 0:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return Exit(os.waitstatus_to_exitcode(status), _cpu_ms(usage), usage.ru_maxrss * unit)


def _cpu_ms(usage: resource.struct_rusage) -> int:
    return round((usage.ru_utime + usage.ru_stime) * 1000)


def adopt_orphans() -> bool:
    """Become the parent of descendants whose own parent ended, and return whether that works here.

    So the init process of a sandbox stays ours after bwrap, and waiting for it proves that its whole tree is gone.
    """
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


async def kill_tree_of(init_pid: int) -> None:
    """End a sandbox that an earlier process of this node started, by its first process; wait a bounded time for it."""
    try:
        fd = os.pidfd_open(init_pid)
    except OSError:
        return
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        with anyio.move_on_after(_END_S):
            await anyio.wait_readable(fd)
    except ProcessLookupError:
        return
    finally:
        os.close(fd)


def boot_id() -> str:
    """Return what changes with each boot; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot, or None when it is gone or the system does not say.

    Together with the pid it names a process for certain: pids are used again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[19])


def same_process(pid: object, started: object, boot: object) -> int | None:
    """Return ``pid`` if that very process, noted in a handle, still exists; else None."""
    if not isinstance(pid, int) or not isinstance(started, int) or pid <= 1 or boot != boot_id():
        return None
    return pid if start_time(pid) == started else None
