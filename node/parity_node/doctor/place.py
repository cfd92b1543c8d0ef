"""Where the node keeps things, and what its settings ask for. Nothing is made: it works before ``parity node init``."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from parity_contracts.files import read_private
from parity_node.doctor.finding import Finding, failed, fine, unused, warned
from parity_node.fingerprint.machine import measure_processors_and_memory
from parity_node.folders import ROOT_EXEC_DIR
from parity_node.keys import DEVICE_KEY_FILE, OPERATOR_KEY_FILE
from parity_node.operator_policy import OperatorPolicy
from parity_node.settings import NodeSettings
from parity_protocol.clock import SystemClock
from parity_protocol.errors import ConfigInvalid

__all__ = ["check_place", "executions_folder", "hidden_files"]

_MAX_KEY_FILE = 256  # bytes
_SLOT_MEMORY = 256 << 20  # bytes; that one task should find
_INIT = "parity node init"


def check_place(settings: NodeSettings) -> list[Finding]:
    """Return the findings about folders, keys, disk, slots and policy."""
    return [
        *_state(settings.state_dir()),
        _executions(settings),
        *_disk(settings),
        _slots(settings),
        *_policy(settings),
    ]


def executions_folder(settings: NodeSettings) -> Path:
    """Return the folder in which executions get theirs; it may not exist yet."""
    if settings.runner_exec_dir is not None:
        return settings.runner_exec_dir.expanduser().absolute()
    return ROOT_EXEC_DIR if _is_root() else settings.state_dir() / "exec"


def hidden_files(settings: NodeSettings) -> tuple[Path, ...]:
    """Return files that no task may ever reach."""
    state = settings.state_dir()
    return tuple(path for path in (state / DEVICE_KEY_FILE, state / OPERATOR_KEY_FILE) if _exists(path))


def _state(folder: Path) -> Iterator[Finding]:
    try:
        found = folder.lstat()
    except FileNotFoundError:
        yield failed("state.folder", f"{folder} is not there yet", _INIT)
        yield unused("state.keys", "no state folder")
        return
    except OSError as exc:
        yield failed("state.folder", f"{folder}: {exc.strerror}", "set RUNNER_STATE_DIR to a folder of this user's")
        return
    if not stat.S_ISDIR(found.st_mode):
        yield failed("state.folder", f"{folder} is no folder", "set RUNNER_STATE_DIR to another place")
    elif found.st_uid != os.geteuid():
        yield failed("state.folder", f"{folder} belongs to uid {found.st_uid}", f"chown -R {os.geteuid()} {folder}")
    elif found.st_mode & 0o077:
        yield failed("state.folder", f"{folder} can be entered by others", f"chmod 700 {folder}")
    else:
        yield fine("state.folder", f"{folder}, mode 0700")
    yield _keys(folder)


def _keys(folder: Path) -> Finding:
    try:
        keys = [read_private(folder / name, max_bytes=_MAX_KEY_FILE) for name in (DEVICE_KEY_FILE, OPERATOR_KEY_FILE)]
    except ConfigInvalid as exc:
        return failed("state.keys", exc.problems[0], "chmod 600 on the file that is named, or restore it")
    if any(key is None for key in keys):
        return failed("state.keys", f"{folder} has no keys yet", _INIT)
    return fine("state.keys", "device and operator key, mode 0600")


def _executions(settings: NodeSettings) -> Finding:
    folder = executions_folder(settings)
    there = _nearest(folder)
    if not os.access(there, os.W_OK | os.X_OK):
        return failed(
            "executions.folder", f"{there} cannot be written", "set RUNNER_EXEC_DIR to a folder of this user's"
        )
    closed = next(
        (each for each in (folder, *folder.parents) if _exists(each) and not each.stat().st_mode & 0o001), None
    )
    if _is_root() and closed is not None:
        fix = "set RUNNER_EXEC_DIR to a folder that other users can pass through, such as /var/lib/parity-node/exec"
        return failed("executions.folder", f"tasks run as other users, who cannot pass through {closed}", fix)
    return fine("executions.folder", str(folder))


def _disk(settings: NodeSettings) -> Iterator[Finding]:
    for name, folder in (("state", settings.state_dir()), ("executions", executions_folder(settings))):
        free, floor = shutil.disk_usage(_nearest(folder)).free, settings.runner_disk_floor
        found = f"{free / (1 << 30):.1f} GiB free, the floor is {floor / (1 << 30):.2f} GiB"
        if free < floor:
            yield failed(f"disk.{name}", f"{found}: no task is taken", "parity node cache gc, or free space")
        elif free < 2 * floor:
            yield warned(f"disk.{name}", f"{found}: near it", "parity node cache gc, or free space")
        else:
            yield fine(f"disk.{name}", found)


def _slots(settings: NodeSettings) -> Finding:
    cpus, memory = measure_processors_and_memory()
    found = f"{settings.runner_slots} at a time on {cpus:g} processors"
    if memory < settings.runner_slots * _SLOT_MEMORY:
        most = max(1, memory // _SLOT_MEMORY)
        return warned("slots", f"{found}: less than 256 MiB of memory each", f"RUNNER_SLOTS={most}")
    return fine("slots", found)


def _policy(settings: NodeSettings) -> Iterator[Finding]:
    try:
        policy = OperatorPolicy(settings, SystemClock())
    except ConfigInvalid as exc:
        yield failed("policy", "; ".join(exc.problems), "correct the line that is named; parity node policy show")
        return
    kinds = ", ".join(sorted(policy.current.kinds)) or "no kind"
    where = str(policy.path) if _exists(policy.path) else "settings only"
    yield fine("policy", f"{where}: {kinds}")
    if _grants_hosts(policy):
        yield fine("egress", "tasks may reach hosts that the policy names")
    else:
        yield unused("egress", "tasks reach no host", "RUNNER_POLICY_DOMAINS=pypi.org,… lets them")


def _grants_hosts(policy: OperatorPolicy) -> bool:
    clauses = policy.current.domains
    return all(clauses) if clauses else True


def _is_root() -> bool:
    return os.geteuid() == 0


def _nearest(path: Path) -> Path:
    """Return the path, or its nearest ancestor that exists."""
    return next(each for each in (path, *path.parents) if _exists(each))


def _exists(path: Path) -> bool:
    """Return whether this user can see it; ``Path.exists`` raises where a folder above it is closed."""
    try:
        path.stat()
    except OSError:
        return False
    return True
