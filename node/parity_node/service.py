"""The node as a systemd service: the unit's text, and putting it in, taking it out and looking at it.

The unit confines the node as far as its tasks' sandboxes still work in it. Measured with bubblewrap under an ordinary user:
a unit that covers part of ``/proc`` (``ProtectKernelTunables``, ``ProtectKernelLogs``, ``ProtectProc``) keeps every sandbox
from mounting its own, since the kernel lets a user namespace mount only as much of ``/proc`` as it can see.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from parity_contracts.files import write_file
from parity_protocol.errors import BadField, Conflict, Unavailable

__all__ = [
    "MARK",
    "SERVICE_USER",
    "SYSTEM_HOME",
    "UNIT_NAME",
    "Scope",
    "ServiceUnit",
    "Systemd",
    "stop_s",
    "unit_path",
]

UNIT_NAME = "parity-node.service"
SERVICE_USER = "parity-node"
MARK = "# Written by `parity node service install`; `remove` takes it away. Change it with `systemctl edit`."
SYSTEM_UNITS = Path("/etc/systemd/system")
SYSTEM_HOME = Path("/var/lib/parity-node")

STOP_EXTRA_S = 60  # beyond the grace: for handing back and reporting
WRONG_SETTINGS = 10  # exit status of a wrong configuration, which no restart mends
STEPS_VERSION = 254  # of systemd: the first with RestartSteps
COMMAND_TIMEOUT_S = 120.0  # of one call that stops nothing
KILL_EXTRA_S = 30  # for systemd to kill what did not end in time
DEFAULT_STOP_S = 90  # systemd's own, of a unit that does not say

_SHOWN = ("LoadState", "ActiveState", "SubState", "UnitFileState", "MainPID", "NRestarts", "Result", "ExecMainStatus")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")

_STOP_S = re.compile(r"^TimeoutStopSec=(\d+)s$", re.MULTILINE)

Runner = Callable[[Sequence[str], float], "subprocess.CompletedProcess[str]"]
Scope = Literal["system", "user"]


@dataclass(frozen=True, slots=True)
class ServiceUnit:
    """What the unit's text depends on.

    Attributes:
        program: The command line that runs the node, without its settings file.
        home: ``PARITY_HOME`` of the service.
        writable: Folders that the node writes beside ``home``.
        config: Settings file, or None for the one that ``parity node init`` writes.
        user: Whom a system service runs as; None for a user's own service.
        grace_s: How long running tasks may go on when the service stops.
        groups: Groups to be in beside the user's own, such as ``docker``.
        reads: Folders that the program and its Python lie in.
        systemd_version: Decides which keys are written.
    """

    program: tuple[str, ...]
    home: Path
    writable: tuple[Path, ...] = ()
    config: Path | None = None
    user: str | None = None
    grace_s: float = 30.0
    groups: tuple[str, ...] = ()
    reads: tuple[Path, ...] = ()
    systemd_version: int = 0

    def text(self) -> str:
        """Return the unit.

        Raises:
            BadField: A path or a name cannot be written into a unit.
        """
        command = [*self.program, "node", "run", *(("--config-path", str(self.config)) if self.config else ())]
        sections = {
            "Unit": [
                "Description=Parity node: runs signed work of strangers in a sandbox",
                "# Never given up: what the node waits for may be away for a day.",
                "StartLimitIntervalSec=0",
            ],
            "Service": [
                "Type=exec",
                f"ExecStart={' '.join(_word(word, is_command=True) for word in command)}",
                f"Environment={_word(f'PARITY_HOME={_checked(self.home)}')}",
                f"WorkingDirectory={str(self.home).replace('%', '%%')}",
                *self._life(),
                *self._walls(),
            ],
            "Install": [f"WantedBy={'multi-user.target' if self.user else 'default.target'}"],
        }
        if self.user:
            sections["Unit"] += [
                "Wants=network-online.target",
                "After=network-online.target docker.service",
                f"RequiresMountsFor={self._folders()}",
            ]
        body = "\n\n".join("\n".join((f"[{name}]", *lines)) for name, lines in sections.items())
        return f"{MARK}\n\n{body}\n"

    def _life(self) -> list[str]:
        lines = []
        if self.user:
            lines.append(f"User={_name(self.user)}")
        if self.groups:
            lines.append(f"SupplementaryGroups={' '.join(_name(group) for group in self.groups)}")
        lines += [
            "Restart=on-failure",
            "# A wrong setting needs a person.",
            f"RestartPreventExitStatus={WRONG_SETTINGS}",
        ]
        if self.systemd_version >= STEPS_VERSION:
            lines += ["RestartSec=2s", "RestartSteps=8", "RestartMaxDelaySec=5min"]
        else:
            lines.append("RestartSec=30s")
        return [
            *lines,
            "# SIGTERM to the node alone: it lets tasks end, hands the others back and reports; then whatever is left is killed.",
            "KillMode=mixed",
            f"TimeoutStopSec={int(self.grace_s) + STOP_EXTRA_S}s",
            "# The node gives each task a control group of its own below this one: the limit on a task's memory and processes.",
            "Delegate=cpu memory pids",
            "# The kernel ending a task for its memory is that task's end, not the node's.",
            "OOMPolicy=continue",
            "LimitNOFILE=65536",
            "UMask=0077",
        ]

    def _walls(self) -> list[str]:
        """Return the hardening; only what needs no mount namespace for a user's own service."""
        lines = [
            "# Not here: ProtectKernelTunables, ProtectKernelLogs, ProtectProc and ProcSubset cover parts of /proc, and then no",
            "# sandbox can mount its own; ProtectHostname and RestrictNamespaces forbid what makes a sandbox;",
            "# MemoryDenyWriteExecute would break tasks that compile as they run.",
            "# A bubblewrap that is setuid does without it: with privileges of its own it cannot map the node's user.",
            "NoNewPrivileges=yes",
            "LockPersonality=yes",
            "RestrictRealtime=yes",
            "RestrictSUIDSGID=yes",
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
            "SystemCallArchitectures=native",
            "# What services need, what makes a sandbox, and what a sandbox lets its task do. ENOSYS lets programs fall back.",
            "SystemCallFilter=@system-service @mount @pkey seccomp sethostname mincore futex_wait futex_wake futex_requeue",
            "SystemCallFilter=landlock_create_ruleset landlock_add_rule landlock_restrict_self",
            "SystemCallErrorNumber=ENOSYS",
        ]
        if self.user is None:
            return lines
        programs = (*(Path(word) for word in self.program if word.startswith("/")), *self.reads)
        in_home = any(_is_below_home(path) for path in (self.home, *programs))
        return [
            *lines,
            "CapabilityBoundingSet=",
            "AmbientCapabilities=",
            "ProtectSystem=strict",
            f"ReadWritePaths={self._folders()}",
            f"ProtectHome={'read-only' if in_home else 'yes'}",
            "PrivateTmp=yes",
            "PrivateDevices=yes",
            "ProtectClock=yes",
            "ProtectKernelModules=yes",
            "RemoveIPC=yes",
            "KeyringMode=private",
        ]

    def _folders(self) -> str:
        return " ".join(_word(str(_checked(folder))) for folder in dict.fromkeys((self.home, *self.writable)))


class Systemd:
    """The machine's systemd, or a user's.

    Args:
        run: Runs one command line to its end.
        running: The folder that systemd has while it runs.
    """

    def __init__(self, scope: Scope, *, run: Runner | None = None, running: Path = Path("/run/systemd/system")) -> None:
        self._scope = scope
        self._run = run or _run
        self._running = running

    def require(self, instead: Sequence[str]) -> None:
        """Check that there is a systemd.

        Raises:
            Conflict: There is none; the message holds the command line to use instead.
        """
        if not self._running.is_dir() or shutil.which("systemctl") is None:
            raise Conflict(f"systemd does not run this machine; use instead: {' '.join(instead)}")

    def version(self) -> int:
        """Return systemd's version, 0 when it does not say."""
        try:
            found = re.match(r"systemd (\d+)", self._run(["systemctl", "--version"], COMMAND_TIMEOUT_S).stdout)
        except OSError:
            return 0
        return int(found[1]) if found else 0

    def install(self, path: Path, text: str, *, start: bool) -> bool:
        """Write a unit and enable it; return whether anything changed. A running service goes on with the old text.

        Raises:
            Conflict: A unit of somebody else is there.
            Unavailable: systemctl failed.
        """
        before = _read(path)
        if before is not None and MARK not in before:
            raise Conflict(f"{path} was not written by this command, and is left as it is")
        if before != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, text.encode(), mode=0o644)
            self.call("daemon-reload")
        self.call("enable", *(["--now"] if start else []), path.name)
        return before != text

    def remove(self, path: Path) -> bool:
        """Stop, disable and remove the unit; return whether there was one. What the node wrote stays.

        It returns when the node has ended, which may take its whole grace.

        Raises:
            Conflict: A unit of somebody else is there.
            Unavailable: systemctl failed, or the node did not end; the unit is still there then.
        """
        before = _read(path)
        if before is None:
            return False
        if MARK not in before:
            raise Conflict(f"{path} was not written by this command, and is left as it is")
        self.call("disable", path.name)
        # Before the file goes: systemd would forget how long the node may take to stop, and kill it with what it runs.
        self.call("stop", path.name, timeout_s=stop_s(before) + KILL_EXTRA_S)
        path.unlink()
        self.call("daemon-reload")
        return True

    def show(self, unit: str = UNIT_NAME) -> Mapping[str, str]:
        """Return the unit's state, by systemd's own names.

        Raises:
            Unavailable: systemctl failed.
        """
        shown = self.call("show", unit, *(f"--property={name}" for name in _SHOWN))
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    def call(self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run systemctl and return what it printed.

        Raises:
            Unavailable: It failed or took too long.
        """
        done = self._try(["systemctl", *(["--user"] if self._scope == "user" else []), *arguments], timeout_s)
        if done.returncode:
            raise Unavailable(f"{' '.join(done.args)} failed: {done.stderr.strip()[:500] or done.returncode}")
        return done.stdout

    def require_folders(self, unit: ServiceUnit) -> None:
        """Check that what the unit lets the node write is there; systemd starts no service whose folders are missing.

        They are not made here: their names come from a file of the service's own user, who could have root make any.

        Raises:
            Conflict: One is missing.
        """
        for folder in unit.writable:
            if not folder.is_dir():
                hint = f"install -d -o {unit.user} -m 0700 {folder}" if unit.user else f"mkdir -p -m 0700 {folder}"
                raise Conflict(f"the settings name a folder that is not there: {folder}", hint=hint)

    def require_program(self, program: Sequence[str], user: str) -> None:
        """Check that a user can run the node's program, by doing so.

        Raises:
            Conflict: The user cannot, most often because it lies in somebody's home.
            Unavailable: It did not end.
        """
        drop = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--init-groups", "--reset-env"]
        # A shell between: setpriv itself still has root's capabilities when it looks for the program.
        command = ["/bin/sh", "-c", 'exec "$0" "$@"', *program, "--version"]
        done = self._try([*drop, "--", *command], COMMAND_TIMEOUT_S)
        if done.returncode:
            raise Conflict(
                f"the user {user} cannot run {' '.join(program)}: {done.stderr.strip()[-300:] or done.returncode}",
                hint="Install parity where everybody can read it, such as /opt, or name another user with --run-as.",
            )

    def make_user(self, name: str, home: Path) -> bool:
        """Make the service's own user with its home, mode 0700, unless it is there; return whether it was made.

        Raises:
            BadField: Not a user's name.
            Unavailable: useradd failed.
        """
        _name(name)
        try:
            pwd.getpwnam(name)
            is_new = False
        except KeyError:
            is_new = True
        if is_new:
            command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(home)]
            done = self._try([*command, "--shell", "/usr/sbin/nologin", name], COMMAND_TIMEOUT_S)
            if done.returncode:
                raise Unavailable(f"useradd failed: {done.stderr.strip()[:500]}")
        elif pwd.getpwnam(name).pw_uid == 0:
            raise BadField("the service needs a user other than root", field="user")
        home.mkdir(parents=True, mode=0o700, exist_ok=True)
        found = pwd.getpwnam(name)
        if home.stat().st_uid != found.pw_uid and not any(home.iterdir()):
            os.chown(home, found.pw_uid, found.pw_gid)
        return is_new

    def _try(self, command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        try:
            return self._run(command, timeout_s)
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise Unavailable(f"{' '.join(command)}: {exc}") from exc


def stop_s(text: str) -> int:
    """Return how long a unit lets its service take to stop, in seconds."""
    found = _STOP_S.search(text)
    return int(found[1]) if found else DEFAULT_STOP_S


def unit_path(scope: Scope) -> Path:
    """Return where the unit is kept."""
    if scope == "system":
        return SYSTEM_UNITS / UNIT_NAME
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "systemd" / "user" / UNIT_NAME


def _run(command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(command), capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL, cwd="/"
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _name(text: str) -> str:
    if _USER.fullmatch(text) is None:
        raise BadField(f"expected the name of a user or group, got {text[:40]!r}", field="user")
    return text


def _checked(path: Path) -> Path:
    if not path.is_absolute():
        raise BadField(f"expected an absolute path, got {str(path)[:80]!r}", field="path")
    return path


def _word(text: str, *, is_command: bool = False) -> str:
    """Return a word so that systemd reads this very text: quoted, ``%`` doubled, in commands ``$`` too."""
    if not text or not text.isprintable():
        raise BadField(f"expected printable characters, got {text[:80]!r}", field="path")
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    text = text.replace("$", "$$") if is_command else text
    return f'"{text}"' if re.search(r"[\s\"'\\;#]", text) else text


def _is_below_home(path: Path) -> bool:
    return any(path.is_relative_to(home) for home in ("/home", "/root", "/run/user"))
