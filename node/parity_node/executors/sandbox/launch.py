"""A running sandbox: set up in steps, watched, and ended with all that is in it.

bwrap stops twice. First at ``--block-fd``, when it has one process inside: that joins the control group, and what it
forks later is in it too. Then the task's command waits behind a gate, a shell that reads one line from the node and ends
if there is none: it opens when the sandbox is sure to die with the node. Without it a node that is killed while bwrap
sets up leaves a task behind that nobody knows of, because bwrap's own parent-death signal is set late, and the end of
``--block-fd`` lets it go on.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from parity_node.executors.folder import printable_tail
from parity_node.executors.process import Child, Exit, OutputLog, reap, start_time
from parity_node.executors.sandbox.bwrap import TASK_HOME, Sandbox, bwrap_options, inner_command
from parity_node.executors.sandbox.landlock import Ruleset, landlock_abi, missing_layer
from parity_node.executors.sandbox.limits import limit_process
from parity_node.executors.sandbox.scratch import Scratch
from parity_node.executors.sandbox.seccomp import machine_architecture, seccomp_filter
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["SandboxExit", "SandboxProcess"]

_SETUP_S = 10.0  # until bwrap's namespaces stand
_END_S = 2.0  # until a killed tree is gone
_LOOK_S = 0.000_5
_MAX_STATUS_BYTES = 16_384
_MAX_WORDS = 300  # of bwrap's own, in a message


@dataclass(frozen=True, slots=True)
class SandboxExit:
    """How it ended. ``code`` is None when the command never started; 128 + n is signal n."""

    code: int | None
    usage: Exit


class SandboxProcess:
    """A running sandbox; ``launch`` makes it."""

    def __init__(self, child: Child, status_fd: int) -> None:
        self.child = child
        self.init_pid = 0  # first process of the sandbox's pid namespace: when it dies the kernel kills the rest
        self.init_started: int | None = None
        self.scratch: Scratch | None = None  # its writable folders, if ``launch`` was asked to keep them
        self._init_fd = -1
        self._status_fd = status_fd
        self._status = bytearray()
        self._exit: SandboxExit | None = None
        self._ending = anyio.Lock()

    @classmethod
    async def launch(
        cls,
        bwrap: Path,
        sandbox: Sandbox,
        output: OutputLog,
        *,
        confine: Callable[[int], None] | None = None,
        before_start: Callable[[int], Awaitable[None]] | None = None,
        keeps_scratch: bool = False,
    ) -> SandboxProcess:
        """Start a sandbox and return once its command is let go; call it on the event loop's thread.

        Args:
            confine: Called with the pid that becomes the task, before the command starts; joins it to a cgroup.
            before_start: Called with the pid (in this process's namespace) of the sandbox's first process, when all its
                namespaces stand and nothing of the task has run. What it raises ends the sandbox and is raised here.
                Nested user namespaces: the network's owner is the *parent* of that pid's own (``NS_GET_USERNS``).
            keeps_scratch: Leave ``scratch`` open, for the caller to close.

        Raises:
            ExecutionFailed: The sandbox could not be set up (``sandbox_failed``, with bwrap's words).
        """
        architecture = machine_architecture()
        if architecture is None:
            raise ExecutionFailed(FailureReason.SANDBOX_FAILED, f"no system-call filter for {os.uname().machine}")
        if sandbox.identity is None and os.geteuid() == 0:
            raise ExecutionFailed(FailureReason.SANDBOX_FAILED, "bubblewrap started by root contains nothing")
        uid, gid = (sandbox.identity.uid, sandbox.identity.gid) if sandbox.identity else (os.geteuid(), os.getegid())
        status_read, status_write = os.pipe()
        block_read, block_write = os.pipe()
        gate_read, gate_write = os.pipe()
        ours, theirs = [block_write, gate_write, gate_read], [status_write, block_read]
        ruleset: Ruleset | None = None
        try:
            texts = {
                "seccomp": seccomp_filter(architecture),
                "passwd": f"task:x:{uid}:{gid}:task:{TASK_HOME}:/bin/sh\n".encode(),
                "group": f"task:x:{gid}:\n".encode(),
            }
            fds = {"status": status_write, "block": block_read}
            if not missing_layer():
                ruleset = Ruleset(landlock_abi())
            for name, text in texts.items():
                fds[name] = _memory_file(name, text)
                theirs.append(fds[name])
            # In a file, not in argv: everybody on this machine can read a process's argv, and the environment is in it.
            words = bwrap_options(sandbox, fds=fds, has_stage=ruleset is not None)
            options = _memory_file("options", b"\0".join(os.fsencode(each) for each in words))
            theirs.append(options)
            landlock = None if ruleset is None else (ruleset.fd, architecture)
            child = Child(
                [str(bwrap), "--args", str(options), "--", *inner_command(sandbox, landlock=landlock)],
                env={},
                cwd="/",
                output=output,
                stdin=gate_read,
                pass_fds=[*theirs, *([] if ruleset is None else [ruleset.fd])],
                identity=sandbox.identity,
                new_group=True,  # Ctrl-C at the node's terminal is for the node, which drains
            )
            os.set_blocking(status_read, False)
            process = cls(child, status_read)
            status_read = -1
            try:
                for fd in theirs:
                    os.close(fd)
                theirs = []
                await process._set_up()
                if confine is not None:
                    confine(process.init_pid)
                limit_process(process.init_pid, sandbox.rlimits)
                _tell(block_write, b"\n")  # from here on it forks
                await process._contained()
                process._look_inside(sandbox, ruleset, keeps_scratch=keeps_scratch)
                if before_start is not None:
                    await before_start(process.init_pid)
                _tell(gate_write, b"go\n")
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await process.end()
                if process.scratch is not None:
                    process.scratch.close()
                raise
        finally:
            if ruleset is not None:
                ruleset.close()
            for fd in (status_read, *ours, *theirs):
                if fd >= 0:
                    os.close(fd)
        return process

    async def wait(self) -> SandboxExit:
        """Return when the command has ended and nothing of its tree is left; may be called again."""
        async with self._ending:
            if self._exit is None:
                outer = await self.child.wait()
                self._kill_init()
                inner = await self._init_gone()
                self._read_status()
                code = self._member("exit-code")
                usage = Exit(
                    outer.status,
                    outer.cpu_ms + (inner.cpu_ms if inner else 0),
                    inner.peak_memory_bytes if inner else 0,  # the outer one's is that of the node it was forked from
                )
                self._exit = SandboxExit(code, usage)
                self._close()
                await self.child.output.finish()
        return self._exit

    def kill(self) -> None:
        """End the whole tree at once; ``wait`` tells when it is gone."""
        self._kill_init()
        self.child.kill()

    async def end(self) -> None:
        """End the whole tree and return when it is gone, or after a bounded time; idempotent."""
        self.kill()
        with anyio.move_on_after(_END_S):
            await self.wait()

    # -- the process inside --------------------------------------------------------------------------------------

    async def _set_up(self) -> None:
        """Wait until bwrap names the process that becomes the task."""
        with anyio.move_on_after(_SETUP_S):
            while self._read_status():
                pid = self._member("child-pid")
                if pid is not None and self._is_watched(pid):
                    return
                await anyio.wait_readable(self._status_fd)
        self.kill()
        await self.wait()
        said = printable_tail(await anyio.to_thread.run_sync(self.child.output.file.path.read_bytes))
        raise ExecutionFailed(
            FailureReason.SANDBOX_FAILED,
            "bubblewrap could not set up its namespaces" + (f": {said[-_MAX_WORDS:]}" if said else ""),
        )

    def _is_watched(self, pid: int) -> bool:
        try:
            self._init_fd = os.pidfd_open(pid)
        except ProcessLookupError:  # it failed, and bwrap has waited for it already
            return False
        self.init_pid, self.init_started = pid, start_time(pid)
        return True

    async def _contained(self) -> None:
        """Wait until the sandbox's first process has its parent-death signal, or is gone.

        It sets that before it takes the system-call filter, which others can see.
        """
        status = Path(f"/proc/{self.init_pid}/status")
        with anyio.move_on_after(_SETUP_S):
            while _is_unfiltered(status):  # noqa: ASYNC110 - the kernel tells nobody
                await anyio.sleep(_LOOK_S)

    def _look_inside(self, sandbox: Sandbox, ruleset: Ruleset | None, *, keeps_scratch: bool) -> None:
        """Open its writable folders, and fill the ruleset that its command takes on."""
        try:
            scratch: Scratch | None = Scratch(self.init_pid, sandbox.writable)
        except ProcessLookupError:  # it failed; ``wait`` finds out what it said
            return
        try:
            if ruleset is not None and scratch is not None:
                ruleset.fill(scratch.root, writable=sandbox.writable)
            if keeps_scratch:
                self.scratch, scratch = scratch, None
        finally:
            if scratch is not None:
                scratch.close()

    def _kill_init(self) -> None:
        if self._init_fd >= 0:
            try:
                signal.pidfd_send_signal(self._init_fd, signal.SIGKILL)
            except ProcessLookupError:
                return

    async def _init_gone(self) -> Exit | None:
        if self._init_fd < 0:
            return None
        await anyio.wait_readable(self._init_fd)
        return await reap(self.init_pid)

    # -- bwrap's status pipe -------------------------------------------------------------------------------------

    def _read_status(self) -> bool:
        """Take what bwrap wrote; return whether more can come."""
        while len(self._status) < _MAX_STATUS_BYTES:
            try:
                data = os.read(self._status_fd, _MAX_STATUS_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._status += data
        return False

    def _member(self, name: str) -> int | None:
        for line in bytes(self._status).split(b"\n"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            value = found.get(name) if isinstance(found, dict) else None
            if isinstance(value, int):
                return value
        return None

    def _close(self) -> None:
        for fd in (self._status_fd, self._init_fd):
            if fd >= 0:
                os.close(fd)
        self._status_fd = self._init_fd = -1


def _tell(fd: int, word: bytes) -> None:
    try:
        os.write(fd, word)
    except BrokenPipeError:  # it failed before it got there; ``wait`` finds out what it said
        return


def _is_unfiltered(status: Path) -> bool:
    """Whether a process exists that has no system-call filter yet."""
    try:
        text = status.read_text()
    except OSError:
        return False
    return "\nSeccomp:\t2\n" not in text and "\nState:\tZ" not in text


def _memory_file(name: str, data: bytes) -> int:
    fd = os.memfd_create(name)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
