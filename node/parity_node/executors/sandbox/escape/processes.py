"""Attempts on processes and on who a task is: the node, its memory, root, capabilities."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from parity_node.executors.sandbox.escape.basics import (
    ASKED,
    LIBC,
    REFUSALS,
    SEEN,
    Attempt,
    NotApplicable,
    Outcome,
    call,
    in_child,
    name_of,
    note,
    on_surface,
    opened,
    own_status,
    refused,
)

__all__ = ["ATTEMPTS"]

_MAX_READ_BYTES = 262_144
_MAX_PROCESSES = 16  # that can be of the sandbox itself
_MAX_PID = 64
_CHILD_S = 30
_GET_NO_NEW_PRIVS = 39
_PTRACE_SEIZE = 0x4206
_WRITE = os.O_WRONLY
_SHM = Path("/dev/shm")  # noqa: S108 - looked at, not used


def _host_processes() -> Outcome:
    """Look for canaries in what every visible process shows, and for processes that are not of this sandbox."""
    before = len(SEEN)
    pids = sorted(int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())
    for pid in pids:
        for file in ("cmdline", "environ", "comm", "maps", "mountinfo"):
            try:
                note(Path(f"/proc/{pid}/{file}").read_bytes()[:_MAX_READ_BYTES])
            except OSError:
                continue
    if len(SEEN) > before:
        return "escaped", "a process of the host shows a canary"
    if os.getpid() > _MAX_PID or len(pids) > _MAX_PROCESSES:
        return "escaped", f"this is process {os.getpid()} and {len(pids)} can be seen"
    return "denied", f"{len(pids)} processes can be seen, this is number {os.getpid()}"


def _signal_outside() -> Outcome:
    for pid in ASKED["pids"]:
        if pid < _MAX_PID * 2:
            raise NotApplicable("the node's pid could be one of the sandbox")
        for attempt in (_signal, _watch):
            try:
                attempt(pid)
            except OSError as exc:
                if exc.errno in {errno.ESRCH, errno.ENOSYS}:
                    continue
                return "escaped", f"process {pid} is there: {name_of(exc.errno or 0)}"
            return "escaped", f"process {pid} can be signalled"
    return "denied", "ESRCH"


def _signal(pid: int) -> None:
    os.kill(pid, 0)


def _watch(pid: int) -> None:
    os.close(os.pidfd_open(pid))


def _trace_node() -> Outcome:
    # Seized, not attached to: that stops nothing, and ends with the child that did it.
    node = ASKED["pids"][0]
    return in_child(lambda: refused(lambda: call("ptrace", _PTRACE_SEIZE, node, 0, 0), REFUSALS | {errno.ESRCH}))


def _trace_child() -> Outcome:
    pid = os.fork()
    if pid == 0:
        time.sleep(_CHILD_S)
        os._exit(0)
    try:
        return refused(lambda: call("ptrace", _PTRACE_SEIZE, pid, 0, 0))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _read_memory() -> Outcome:
    buffer = ctypes.create_string_buffer(8)
    span = struct.pack("<QQ", ctypes.addressof(buffer), 8)
    return refused(lambda: call("process_vm_readv", os.getpid(), span, 1, span, 1, 0))


def _shared_memory() -> Outcome:
    try:
        rows = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    except FileNotFoundError:
        rows = []
    if rows:
        return "escaped", f"{len(rows)} segments of the host can be seen"
    try:
        names = [each.name for each in _SHM.iterdir()]
    except OSError:
        names = []
    return ("escaped", f"{_SHM} holds {names[:3]}") if names else ("denied", "none can be seen")


def _capabilities() -> Outcome:
    status = own_status()
    held = [name for name in ("CapInh", "CapPrm", "CapEff", "CapAmb") if int(status.get(name, "0"), 16)]
    if held:
        return "escaped", ", ".join(f"{name} {status[name]}" for name in held)
    header, data = struct.pack("<Ii", 0x2008_0522, 0), struct.pack("<III", 1 << 21, 1 << 21, 0) + bytes(12)
    try:
        call("capset", header, data)
    except OSError as exc:
        return "denied", name_of(exc.errno or 0)
    return "escaped", "CAP_SYS_ADMIN can be taken"


def _become_root() -> Outcome:
    if 0 in {*os.getresuid(), *os.getresgid()}:
        return "escaped", "this is root already"

    def attempt() -> Outcome:
        for change in (os.setuid, os.setgid):
            try:
                change(0)
            except OSError:
                continue
            return "escaped", f"{change.__name__}(0) succeeded"
        try:
            os.setgroups([0])
        except OSError as exc:
            return "denied", name_of(exc.errno or 0)
        return "escaped", "setgroups succeeded"

    return in_child(attempt)


def _locked_in() -> Outcome:
    found = LIBC.prctl(_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
    return ("denied", "no_new_privs") if found == 1 else ("escaped", f"no_new_privs is {found}")


def _filtered() -> Outcome:
    found = own_status().get("Seccomp", "unknown")
    return ("denied", "filter") if found == "2" else on_surface(f"Seccomp is {found}")


def _exact_environment() -> Outcome:
    note(b"\0".join(name + b"=" + value for name, value in os.environb.items()))
    extra = sorted(set(os.environ) - set(ASKED["environment"]))
    return ("escaped", f"{', '.join(extra)[:80]} is set") if extra else ("denied", "as declared")


def _kernel_memory() -> Outcome:
    """Read, not only open: a container may have an empty device in its place."""
    for path in ("/proc/kcore", "/proc/kpagecount", "/proc/kmsg"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            if os.read(fd, 64):
                return "escaped", f"{path} can be read"
        except OSError:
            continue
        finally:
            os.close(fd)
    return "denied", "cannot be read"


def _path(path: str, flags: int = os.O_RDONLY) -> Callable[[], Outcome]:
    return lambda: opened([path], flags)


ATTEMPTS: Final = {
    "proc.core_pattern": Attempt("have the kernel run a program", _path("/proc/sys/kernel/core_pattern", _WRITE)),
    "proc.modprobe": Attempt("have the kernel load a module", _path("/proc/sys/kernel/modprobe", _WRITE)),
    "proc.sysctl": Attempt(
        "change the kernel's settings",
        lambda: opened(["/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/hostname"], _WRITE),
    ),
    "proc.sysrq": Attempt("give the kernel an order by sysrq", _path("/proc/sysrq-trigger", _WRITE)),
    "proc.kernel_memory": Attempt("read the kernel's memory", lambda: in_child(_kernel_memory)),
    "proc.other_processes": Attempt("see processes of the machine, their arguments and environment", _host_processes),
    "proc.signal_node": Attempt("signal the node", _signal_outside),
    "proc.trace_node": Attempt("trace the node", _trace_node),
    "proc.trace_child": Attempt("trace a process", _trace_child),
    "proc.read_memory": Attempt("read another process's memory", _read_memory),
    "proc.shared_memory": Attempt("see shared memory of the machine", _shared_memory),
    "identity.root": Attempt("become root", _become_root),
    "identity.capabilities": Attempt("hold or take a capability", _capabilities),
    "identity.new_privileges": Attempt("gain privileges by starting a program", _locked_in),
    "identity.filter": Attempt("run without a system-call filter", _filtered),
    "identity.environment": Attempt("see a variable that the task did not declare", _exact_environment),
}
