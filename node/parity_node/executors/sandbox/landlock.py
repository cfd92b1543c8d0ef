"""Landlock, a second layer behind the sandbox's mounts: what a task may do to files is listed, the rest is refused.

Nothing inside a sandbox can be trusted to make the rules, and rules made before bubblewrap mounts would forbid it to
mount. So the node makes an empty ruleset, bubblewrap's child inherits its descriptor, the node fills it with the places
that exist by then (seen through ``/proc/PID/root``), and a stage inside takes it on: two system calls, in Perl, which
starts in a millisecond and is on every Debian and Ubuntu. Without Landlock or Perl there is no second layer, and the
node says so; the first one holds alone.

Task and node cannot signal each other across it either, nor meet at abstract sockets (ABI 6). TCP is not in it: a task
may talk to itself on its own loopback, which is all the network that it has.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from parity_node.executors.sandbox.seccomp import Architecture
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["STAGE", "Ruleset", "landlock_abi", "landlock_words", "missing_layer"]

STAGE: Final = "/usr/bin/perl"
_CREATE, _ADD, _RESTRICT = 444, 445, 446  # on every architecture
_CLOSE = {"x86_64": 3, "aarch64": 57}
_VERSION_FLAG = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_ALL_OF_ABI: Final = {1: (1 << 13) - 1, 2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEV}
_SCOPES: Final = 0b11  # abstract sockets, signals
_SCOPES_SINCE, _NET_SINCE = 6, 4

_PROGRAMS = _READ_FILE | _READ_DIR | _EXECUTE
_LOOK = _READ_FILE | _READ_DIR
_DEVICES = _LOOK | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV
_OWN = ((1 << 16) - 1) & ~(_MAKE_CHAR | _MAKE_BLOCK)

# Takes the ruleset on, closes it, and becomes the command. PERL_BADLANG keeps it quiet about the task's locale.
_SCRIPT = (
    "delete $ENV{PERL_BADLANG}; my ($fd, $close) = (shift() + 0, shift() + 0); "
    f'syscall({_RESTRICT}, $fd, 0) == 0 && syscall($close, $fd) == 0 or die "landlock: $!\\n"; '
    f'exec {{ $ARGV[0] }} @ARGV; my $no = $! + 0; print STDERR "$ARGV[0]: $!\\n"; exit($no == {errno.ENOENT} ? 127 : 126)'
)


class Ruleset:
    """An open ruleset; ``fd`` is what a process inside takes on. Close it when that process has a copy.

    Args:
        abi: As ``landlock_abi`` says; at least 1.

    Raises:
        ExecutionFailed: The kernel makes none (``sandbox_failed``).
    """

    def __init__(self, abi: int) -> None:
        self._handled = _handled(abi)
        members = [self._handled]
        if abi >= _NET_SINCE:
            members.append(0)
        if abi >= _SCOPES_SINCE:
            members.append(_SCOPES)
        data = struct.pack(f"={len(members)}Q", *members)
        self.fd = _call(_CREATE, ctypes.c_char_p(data), ctypes.c_size_t(len(data)), ctypes.c_uint32(0))
        os.set_inheritable(self.fd, False)  # noqa: FBT003 - the only way to say it

    def fill(self, root: int, *, writable: tuple[str, ...]) -> None:
        """List what is allowed, in a sandbox whose mounts all stand.

        Args:
            root: A descriptor of the sandbox's ``/``.
            writable: Absolute paths inside, of the task's own folders.
        """
        self._allow(root, ".", _READ_DIR)
        for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            self._allow(root, name, _PROGRAMS)
        for name, rights in (("etc", _LOOK), ("proc", _LOOK), ("dev", _DEVICES)):
            self._allow(root, name, rights)
        for path in writable:
            self._allow(root, path.lstrip("/"), _OWN)

    def close(self) -> None:
        """Close this process's copy; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _allow(self, root: int, name: str, rights: int) -> None:
        """Allow ``rights`` to all beneath a folder; a link to one (``/bin``) is allowed by where it leads."""
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
        except FileNotFoundError:
            return
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                rule = struct.pack("=Qi", rights & self._handled, fd)
                _call(
                    _ADD,
                    ctypes.c_int(self.fd),
                    ctypes.c_int(_PATH_BENEATH),
                    ctypes.c_char_p(rule),
                    ctypes.c_uint32(0),
                )
        finally:
            os.close(fd)


@cache
def landlock_abi() -> int:
    """Return the version of Landlock that this kernel has; 0 for none, or when it is off."""
    try:
        return _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    except ExecutionFailed:
        return 0


def missing_layer() -> str:
    """Return why tasks here have no Landlock layer; empty when they have."""
    if landlock_abi() < 1:
        return "this kernel has no Landlock, or it is off"
    if not Path(STAGE).is_file():
        return f"no Landlock layer: {STAGE} is missing"
    return ""


def landlock_words(fd: int, architecture: Architecture) -> list[str]:
    """Return the words to put in front of a command, so that it starts under the ruleset at ``fd``."""
    return [STAGE, "-e", _SCRIPT, "--", str(fd), str(_CLOSE[architecture.name])]


def quiet_env() -> Mapping[str, str]:
    """Return what the stage needs in its environment; it takes that out again."""
    return {"PERL_BADLANG": "0"}


def _handled(abi: int) -> int:
    handled = 0
    for since, rights in _ALL_OF_ABI.items():
        if abi >= since:
            handled |= rights
    return handled


def _call(number: int, *arguments: object) -> int:
    """Make a system call.

    Raises:
        ExecutionFailed: It failed (``sandbox_failed``).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    found = int(libc.syscall(ctypes.c_long(number), *arguments))
    if found < 0:
        code = ctypes.get_errno()
        raise ExecutionFailed(FailureReason.SANDBOX_FAILED, f"Landlock: {errno.errorcode.get(code, code)}")
    return found
