"""bubblewrap's command line for one sandbox."""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parity_node.executors.process import Identity
from parity_node.executors.sandbox.landlock import landlock_words, quiet_env
from parity_node.executors.sandbox.limits import limit_command
from parity_node.executors.sandbox.seccomp import Architecture
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = [
    "GATE",
    "OUTPUT",
    "TASK_HOME",
    "Sandbox",
    "bwrap_options",
    "find_bwrap",
    "inner_command",
]

TASK_HOME = "/task"
OUTPUT = "/output"
_ENV = "/usr/bin/env"  # of coreutils
_GATE = 'read -r go || exit 1; cd -- "$1" || exit 126; shift; unset SHLVL OLDPWD; exec "$@" < /dev/null'
GATE: Final = ("/bin/sh", "-c", _GATE, "gate")  # then the working folder, then the command
_LOADS_CODE = re.compile(
    r"(?:LD_|GLIBC_|MALLOC_|GCONV_PATH|LOCPATH|NLSPATH|PERL|BASH|SHELLOPTS|CDPATH$|PS4$|ENV$|IFS$)"
)
_SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # links into /usr on most systems
_ETC = ("ld.so.cache", "alternatives")
_CERTIFICATES = ("ssl/certs", "ssl/cert.pem", "ssl/openssl.cnf", "pki/tls/certs", "pki/ca-trust/extracted")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One sandbox. Closed: nothing of a task becomes an option of bwrap."""

    command: tuple[str, ...]
    env: Mapping[str, str]  # the whole of it
    inputs: tuple[tuple[Path, str], ...]  # path on this machine, name below /task/inputs; read-only
    scratch_bytes: int  # of each of /task, /tmp and /dev/shm
    rlimits: Mapping[int, int]
    identity: Identity | None  # None: the node's own, ordinary user
    workdir: str = TASK_HOME  # absolute; made where the task may write
    output_bytes: int | None = None  # of /output; None: there is none
    has_hosts: bool = False  # that it may reach: then the machine's certificates are there

    @property
    def writable(self) -> tuple[str, ...]:
        """The folders that the task may write to, each a tmpfs of its own."""
        return (TASK_HOME, "/tmp", "/dev/shm", *((OUTPUT,) if self.output_bytes is not None else ()))  # noqa: S108 - inside


def find_bwrap() -> Path | None:
    """Return the program, or None when it is not installed."""
    found = shutil.which("bwrap")
    return Path(found) if found else None


def bwrap_options(sandbox: Sandbox, *, fds: Mapping[str, int], has_stage: bool = False) -> list[str]:
    """Return bwrap's options.

    Args:
        fds: Of ``status``, ``block``, ``seccomp``, ``passwd`` and ``group``.
        has_stage: Whether ``inner_command`` takes on a Landlock ruleset.
    """
    size = str(sandbox.scratch_bytes)
    options = [
        *("--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session"),
        *("--cap-drop", "ALL", "--hostname", "task", "--clearenv"),
        *("--json-status-fd", str(fds["status"]), "--block-fd", str(fds["block"])),
        *("--ro-bind", "/usr", "/usr"),
    ]
    for name in _SYSTEM_FOLDERS:
        path = Path("/", name)
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            options += ["--ro-bind", str(path), str(path)]
    for name in (*_ETC, *(_CERTIFICATES if sandbox.has_hosts else ())):
        options += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for name in ("passwd", "group"):
        options += ["--ro-bind-data", str(fds[name]), f"/etc/{name}"]
    options += [
        *("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"),
        # bwrap's /dev is a tmpfs without a size: shm gets one, and the rest is made read-only.
        *("--dev", "/dev", "--perms", "1777", "--size", size, "--tmpfs", "/dev/shm"),  # noqa: S108
        *("--remount-ro", "/dev"),
        *("--perms", "1777", "--size", size, "--tmpfs", "/tmp"),  # noqa: S108 - inside the sandbox
        *("--perms", "0700", "--size", size, "--tmpfs", TASK_HOME),
    ]
    if sandbox.output_bytes is not None:
        options += ["--perms", "0700", "--size", str(sandbox.output_bytes), "--tmpfs", OUTPUT]
    for path, name in sandbox.inputs:
        options += ["--ro-bind", str(path), f"{TASK_HOME}/inputs/{name}"]
    workdir = posixpath.normpath(sandbox.workdir)
    if workdir.startswith(tuple(f"{each}/" for each in sandbox.writable)) and not _is_input(workdir):
        options += ["--dir", workdir]
    for name, value in {**_early_env(sandbox.env), **(quiet_env() if has_stage else {})}.items():
        options += ["--setenv", name, value]
    return [*options, "--chdir", TASK_HOME, "--remount-ro", "/", "--seccomp", str(fds["seccomp"])]


def inner_command(sandbox: Sandbox, *, landlock: tuple[int, Architecture] | None = None) -> list[str]:
    """Return what bwrap starts: the gate, the limits, the second layer, then the task's command.

    Variables that make a program load code are set after the limits: in the environment of the shell or ``prlimit`` they
    would run the task's code before them.

    Args:
        landlock: The descriptor of the ruleset to take on; None for no second layer.

    Raises:
        ExecutionFailed: Such a variable comes with a program whose name ``env`` would read as one (``spec_invalid``).
    """
    late = {name: value for name, value in sandbox.env.items() if _LOADS_CODE.match(name)}
    words = [*GATE, sandbox.workdir, *limit_command(sandbox.rlimits)]
    if landlock is not None:
        words += landlock_words(*landlock)
    if late:
        if "=" in sandbox.command[0]:
            raise ExecutionFailed(FailureReason.SPEC_INVALID, "a program's name must not contain '='")
        words += [_ENV, *(f"{name}={value}" for name, value in late.items())]
    return [*words, *sandbox.command]


def _is_input(path: str) -> bool:
    return f"{path}/".startswith(f"{TASK_HOME}/inputs/")


def _early_env(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not _LOADS_CODE.match(name)}
