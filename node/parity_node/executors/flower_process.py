"""A lease's SuperNode: its key, its folder, and the command that starts it, in a sandbox where there is bubblewrap.

Inside the sandbox are flwr's environment and the Python under it, read-only, one folder of its own, and two sockets. It
has no network, no other file of this machine, no capability, and its own process table.
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from parity_contracts.files import write_file
from parity_fl.engines.flower import Fleet, engine_env, flower_python, program
from parity_node.executors.base import Limits
from parity_node.executors.sandbox.bwrap import find_bwrap
from parity_protocol.errors import ExecutionFailed, FailureReason, Unavailable

__all__ = ["REFUSED", "SuperNode", "make_super_node", "usable_bwrap"]

log = structlog.get_logger(__name__)

REFUSED = 77  # exit status of ``programs/supernode.py``: another bundle
LIBRARY_BYTES = 1 << 30  # what Python and flwr take of a process's memory beside the model
TRAINER, LINK = "trainer.sock", "link.sock"
_INSIDE = "/flower"
_SOCKETS = "/sockets"
_TRIAL_S = 10.0
_INNER_PORT = 9094  # of its own network, where nobody else is
_MAX_SOCKET_PATH = 90  # characters of a folder; the system takes about 108 with the name
_SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@dataclass(frozen=True, slots=True)
class SuperNode:
    """What is needed to start one, again and again.

    Attributes:
        folder: Its own: key, root certificate, and what flwr writes.
        sockets: Folder of the two sockets; a short path, since the system's names of sockets are short.
        public_key: Compressed point of P-384, hex.
        fleet: As the manifest says.
        bundle: The only SHA-256 that it runs.
        bwrap: The sandbox's program; None where there is none.
        limits: Of the execution.
    """

    folder: Path
    sockets: Path
    public_key: str
    fleet: Fleet
    bundle: str
    bwrap: Path | None
    limits: Limits

    @property
    def trainer(self) -> Path:
        """Socket at which ClientApps ask the trainer."""
        return self.sockets / TRAINER

    @property
    def link(self) -> Path:
        """Socket that leads to the SuperLink; used where there is a sandbox."""
        return self.sockets / LINK

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Return the command and its whole environment.

        Raises:
            ExecutionFailed: Flower is not installed here (``executor_unavailable``).
        """
        try:
            python = flower_python()
        except Unavailable as exc:
            raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, exc.message) from exc
        if self.bwrap is None:
            words = self._words(os.getpid(), self.folder, self.fleet.superlink, _free_port(), self.trainer)
            return [str(python), "-I", *words], engine_env(self.folder, python=python)
        inside = Path(_INSIDE)
        words = self._words(0, inside, f"unix:{_SOCKETS}/{LINK}", _INNER_PORT, Path(_SOCKETS, TRAINER))
        options = _sandbox(python, self.folder, self.sockets)
        return [str(self.bwrap), *options, "--", str(python), "-I", *words], engine_env(inside, python=python)

    def _words(self, parent: int, folder: Path, superlink: str, port: int, trainer: Path) -> list[str]:
        return [
            str(program("supernode")),
            *(str(parent), self.bundle, str(folder), superlink, str(port), str(trainer)),
            *(str(self.limits.memory_bytes + LIBRARY_BYTES), str(math.ceil(self.limits.wall_time_s))),
        ]

    def remove(self) -> None:
        """Remove what lies outside the execution's folder; idempotent."""
        if self.sockets.parent != self.folder and self.sockets.exists():
            for name in (TRAINER, LINK):
                (self.sockets / name).unlink(missing_ok=True)
            self.sockets.rmdir()


def make_super_node(folder: Path, fleet: Fleet, limits: Limits) -> SuperNode:
    """Make a key of this lease's own and what a SuperNode reads.

    Args:
        folder: The execution's.

    Raises:
        ExecutionFailed: The disk does not take it.
    """
    own = folder / "flower"
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        write_file(own / "node.key", private)
        write_file(own / "root.pem", fleet.root_ca_pem.encode())
        write_file(own / "superexec.secret", secrets.token_hex(32).encode())
        sockets = own / "sockets"
        if len(str(sockets)) > _MAX_SOCKET_PATH:
            sockets = Path(tempfile.mkdtemp(prefix="parity-"))
        sockets.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        reason = FailureReason.DISK_FULL if exc.errno in {28, 122} else FailureReason.NODE_FAULT
        raise ExecutionFailed(reason, f"{own}: {exc.strerror}") from exc
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    return SuperNode(own, sockets, point.hex(), fleet, fleet.bundle_sha256, usable_bwrap(), limits)


@cache
def usable_bwrap() -> Path | None:
    """Return bubblewrap if it works for this user: some systems have it and forbid what it needs. Blocks, once."""
    bwrap = find_bwrap()
    if bwrap is None:
        return None
    trial = [str(bwrap), *_walls(), "--", "/usr/bin/env", "true"]
    try:
        done = subprocess.run(trial, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TRIAL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        problem = str(exc)
    else:
        if done.returncode == 0:
            return bwrap
        problem = done.stderr.decode(errors="replace").strip()[:300]
    log.warning("supernodes_without_sandbox", problem=problem)
    return None


def _sandbox(python: Path, folder: Path, sockets: Path) -> list[str]:
    """Return bwrap's options: nothing of a manifest becomes one."""
    options = _walls()
    for path in _python_folders(python):
        options += ["--ro-bind", str(path), str(path)]
    programs = str(program("supernode").parent)
    options += ["--ro-bind", programs, programs]
    options += ["--bind", str(folder), _INSIDE, "--bind", str(sockets), _SOCKETS, "--chdir", _INSIDE]
    return options


def _walls() -> list[str]:
    """Return what is the same around everything: its own namespaces, no capability, the system's programs read-only."""
    options = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "flower"]
    for name in _SYSTEM_FOLDERS:
        path = Path("/", name)
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            options += ["--ro-bind", str(path), str(path)]
    options += ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    return [*options, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 - inside the sandbox


def _python_folders(python: Path) -> Sequence[Path]:
    """Return the environment's folder and that of the Python under it, unless they are below /usr."""
    found = [python.parent.parent]
    try:
        lines = (found[0] / "pyvenv.cfg").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition("=")
        if name.strip() == "home":
            found.append(Path(value.strip()).parent)
    found.append(python.resolve().parent.parent)
    return [path for path in dict.fromkeys(found) if not path.is_relative_to("/usr")]


def _free_port() -> int:
    """Return a port of loopback that nobody listens on: two SuperNodes of one machine must not share theirs."""
    with socket.socket(socket.AF_INET) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
