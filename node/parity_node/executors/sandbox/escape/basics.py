"""What attempts to escape are made of: raw system calls, and judging what came of them. Standard library only."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import signal
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = [
    "ABSENT",
    "ASKED",
    "CONNECT_S",
    "LIBC",
    "REFUSALS",
    "SEEN",
    "Attempt",
    "NotApplicable",
    "Outcome",
    "call",
    "in_child",
    "listed",
    "name_of",
    "note",
    "on_surface",
    "opened",
    "own_status",
    "refused",
    "run",
    "surface",
]

CONNECT_S: Final = 0.3
REFUSALS: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})
ABSENT: Final = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV, errno.ENOTDIR, errno.EROFS}
)
LIBC: Final = ctypes.CDLL(None, use_errno=True)

ASKED: dict[str, Any] = {}
"""What to look for, and the numbers of system calls: read from ``probe.json`` before the first attempt."""

SEEN: set[str] = set()
"""Canaries that were read."""

_TOKEN = re.compile(rb"parity-canary-[0-9a-f]{32}")
_MAX_READ_BYTES = 262_144

Outcome = tuple[str, str]
"""``denied``, ``escaped``, ``not_applicable`` or ``error``, and a detail such as the name of an errno."""


class Attempt(NamedTuple):
    """One way out."""

    what: str  # is tried
    make: Callable[[], Outcome]


class NotApplicable(Exception):
    """The attempt means nothing on this machine or in this sandbox."""


def name_of(number: int) -> str:
    """Return an error number's name."""
    return errno.errorcode.get(number, str(number))


def note(data: bytes) -> bytes:
    """Look for canaries in whatever could be read."""
    SEEN.update(each.decode() for each in _TOKEN.findall(data))
    return data


def call(name: str, *arguments: Any) -> int:
    """Make a raw system call; raises OSError as Python's own would."""
    number = ASKED["numbers"].get(name)
    if number is None:
        raise NotApplicable(f"no {name} on {os.uname().machine}")
    ctypes.set_errno(0)
    words = [each if isinstance(each, bytes) or each is None else ctypes.c_long(each) for each in arguments]
    found = int(LIBC.syscall(ctypes.c_long(number), *words))
    if found == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found


def refused(attempt: Callable[[], object], allowed: Iterable[int] = REFUSALS) -> Outcome:
    """Judge a call that must not be let through at all."""
    try:
        attempt()
    except OSError as exc:
        number = exc.errno or 0
        if number in allowed:
            return "denied", name_of(number)
        return on_surface(f"the kernel took the call and said {name_of(number)}")
    return on_surface("the call succeeded")


def on_surface(text: str) -> Outcome:
    """What reached a kernel is an escape if that kernel is the host's."""
    if ASKED["own_kernel"]:
        raise NotApplicable(f"it ends in the sandbox's own kernel: {text}")
    return "escaped", text


def in_child(attempt: Callable[[], Outcome]) -> Outcome:
    """Make an attempt in a child, which may die of it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            answer = run(attempt)
            os.write(write, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(write)
    data = b""
    while piece := os.read(read, 4096):
        data += piece
    os.close(read)
    _, status = os.waitpid(pid, 0)
    if data:
        result, detail = json.loads(data)
        return str(result), str(detail)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in {signal.SIGSYS, signal.SIGSEGV}:
        return "denied", signal.Signals(os.WTERMSIG(status)).name
    return "error", f"the attempt ended with status {status}"


def opened(paths: Iterable[str], flags: int = os.O_RDONLY) -> Outcome:
    """Try to open files that must not be there, or not for this; what can be read is searched."""
    reasons = set()
    for path in paths:
        try:
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as exc:
            if exc.errno not in ABSENT:
                return "escaped", f"{path} is there: {name_of(exc.errno or 0)}"
            reasons.add(name_of(exc.errno or 0))
            continue
        try:
            if flags & os.O_ACCMODE == os.O_RDONLY and stat.S_ISREG(os.fstat(fd).st_mode):
                note(os.read(fd, _MAX_READ_BYTES))
        except OSError:
            pass
        finally:
            os.close(fd)
        return "escaped", f"{path} can be opened"
    return "denied", ", ".join(sorted(reasons))


def listed(paths: Iterable[str]) -> Outcome:
    """Try to see what is in folders of the host."""
    reasons = set()
    for path in paths:
        try:
            names = [each.name for each in Path(path).iterdir()]
        except OSError as exc:
            reasons.add(name_of(exc.errno or 0))
            continue
        if names:
            return "escaped", f"{path} holds {', '.join(names[:3])}"
        reasons.add("empty")
    return "denied", ", ".join(sorted(reasons))


def own_status() -> dict[str, str]:
    """Return the fields of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def surface(name: str, *arguments: Any, also: Iterable[int] = ()) -> Callable[[], Outcome]:
    """Return an attempt by one call; ``also`` are errors that mean a refusal of this one."""
    return lambda: refused(lambda: call(name, *arguments), REFUSALS | set(also))


def run(attempt: Callable[[], Outcome]) -> Outcome:
    """Make an attempt; one that fails to run is told apart from one that was denied."""
    try:
        return attempt()
    except NotApplicable as exc:
        return "not_applicable", str(exc)
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is no denial
        return "error", f"{type(exc).__name__}: {exc}"
