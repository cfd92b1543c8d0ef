"""A control group per task: the only limit on the sum of a task's memory and processes. Needs root, or a delegated tree.

Version 2 where it has the controllers, else version 1. Where neither can be written a task has rlimits only, per process.

In version 2 a group either has processes or passes controllers on. So a node in a tree that was delegated to it (systemd's
``Delegate=yes``, also for an ordinary user) moves itself into a leaf, and its tasks' groups are that leaf's neighbours.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from parity_node.executors.base import Limits
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["CONTROL_GROUPS", "Cgroup", "remove_left_over"]

CONTROL_GROUPS = Path("/sys/fs/cgroup")
_OURS = "parity-node"
_LEAF = "parity-agent"  # where the node itself is, in a tree that was delegated to it
_OWN = Path("/proc/self/cgroup")
_YOUNG_S = 60.0
_ROUNDS = 5  # of moving processes
_MAX_DEPTH = 64  # of the tree of this node's processes
_CONTROLLERS = ("memory", "pids", "cpu")
_COUNTER = "cpuacct"  # of version 1
_PERIOD_US = 100_000
_LEAST_QUOTA_US = 1_000
_SANDBOX_PIDS = 2
_SANDBOX_MEMORY = 8 << 20  # bubblewrap's own two processes, and the kernel's part


class Cgroup:
    """One task's control group; ``make`` creates it.

    Args:
        name: Unique on the machine, such as an execution's id.
        root: Where control groups are mounted.
        own: The file that says which group this process is in.
    """

    def __init__(self, name: str, *, root: Path = CONTROL_GROUPS, own: Path = _OWN) -> None:
        if "/" in name or name in {"", ".", ".."}:
            raise ExecutionFailed(FailureReason.SANDBOX_FAILED, f"not a name for a control group: {name[:40]!r}")
        self.is_unified = _has_controllers(root)
        self._root = root
        bases = (
            [_delegated(root, own) or root] if self.is_unified else [root / controller for controller in _CONTROLLERS]
        )
        if not self.is_unified and (root / _COUNTER).is_dir() and not (root / "cpu" / f"{_COUNTER}.usage").exists():
            bases.append(root / _COUNTER)  # counts by itself here; elsewhere it is mounted with cpu
        self.bases = bases
        self._folders = [base / _OURS / name for base in bases]

    @classmethod
    def make(cls, name: str, limits: Limits, *, root: Path = CONTROL_GROUPS, own: Path = _OWN) -> Cgroup | None:
        """Create a group with limits, or return None where this user may not: then only rlimits hold."""
        group = cls(name, root=root, own=own)
        try:
            group._create(limits)
        except OSError:
            group.remove()
            return None
        return group

    def join(self, pid: int) -> None:
        """Move a process in; what it starts from then on is in too.

        Raises:
            ExecutionFailed: It cannot be moved (``sandbox_failed``).
        """
        try:
            for folder in self._folders:
                (folder / "cgroup.procs").write_text(str(pid))
        except ProcessLookupError:  # it has ended already; whoever waits for it finds out why
            return
        except OSError as exc:
            raise ExecutionFailed(FailureReason.SANDBOX_FAILED, f"cannot join a control group: {exc.strerror}") from exc

    def oom_kills(self) -> int:
        """Return how many of its processes the kernel has ended for want of memory."""
        file = "memory.events" if self.is_unified else "memory.oom_control"
        return _member(self._folders[0] / file, "oom_kill")

    def peak_memory_bytes(self) -> int:
        """Return the most memory that all its processes used together, scratch space included; 0 when unknown."""
        try:
            file = "memory.peak" if self.is_unified else "memory.max_usage_in_bytes"
            return int((self._folders[0] / file).read_text())
        except (OSError, ValueError):
            return 0

    def cpu_ms(self) -> int:
        """Return the processor time that all its processes used together; 0 when unknown."""
        if self.is_unified:
            return _member(self._folders[0] / "cpu.stat", "usage_usec") // 1_000
        try:
            return int((self._folders[-1] / f"{_COUNTER}.usage").read_text()) // 1_000_000
        except (OSError, ValueError):
            return 0

    def remove(self) -> None:
        """Remove the group; idempotent. Nothing happens while a process is in it."""
        for folder in self._folders:
            try:
                folder.rmdir()
            except OSError:
                continue

    def _create(self, limits: Limits) -> None:
        if self.is_unified:
            if self.bases[0] != self._root:
                _move_to_leaf(self.bases[0])
            for parent in (self.bases[0], self.bases[0] / _OURS):
                parent.mkdir(exist_ok=True)
                (parent / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in _CONTROLLERS))
        for folder in self._folders:
            folder.mkdir(parents=True)
        for folder, files in zip(self._folders, self._settings(limits), strict=True):
            for name, value in files:
                if not name.startswith(("memory.memsw.", "memory.swap.")) or (folder / name).exists():
                    (folder / name).write_text(value)

    def _settings(self, limits: Limits) -> Iterable[tuple[tuple[str, str], ...]]:
        memory = str(limits.memory_bytes + _SANDBOX_MEMORY)
        pids = str(limits.pids + _SANDBOX_PIDS)
        quota = str(max(_LEAST_QUOTA_US, round(limits.cpus * _PERIOD_US)))
        if self.is_unified:
            return [
                (
                    ("memory.max", memory),
                    ("memory.swap.max", "0"),
                    ("memory.oom.group", "1"),
                    ("pids.max", pids),
                    ("cpu.max", f"{quota} {_PERIOD_US}"),
                )
            ]
        return [
            # Without the second one a task may swap as much again.
            (("memory.limit_in_bytes", memory), ("memory.memsw.limit_in_bytes", memory)),
            (("pids.max", pids),),
            (("cpu.cfs_period_us", str(_PERIOD_US)), ("cpu.cfs_quota_us", quota)),
            (),
        ][: len(self._folders)]


def remove_left_over(now: float, *, root: Path = CONTROL_GROUPS, own: Path = _OWN) -> int:
    """Remove groups of tasks whose node was killed, and return how many; those that have a process stay.

    Args:
        now: Seconds since 1970; what is younger than a minute may be another node's, made and not joined yet.
    """
    removed = 0
    for base in Cgroup("any", root=root, own=own).bases:
        try:
            groups = [path for path in (base / _OURS).iterdir() if path.is_dir()]
        except OSError:
            continue
        for group in groups:
            try:
                if now - group.stat().st_mtime > _YOUNG_S:
                    group.rmdir()
                    removed += 1
            except OSError:  # in use, or another user's
                continue
    return removed


def _has_controllers(root: Path) -> bool:
    try:
        return set(_CONTROLLERS) <= set((root / "cgroup.controllers").read_text().split())
    except OSError:
        return False


def _delegated(root: Path, own: Path) -> Path | None:
    """Return the group below which this process may make others, or None when there is none of its own."""
    try:
        line = next(line for line in own.read_text().splitlines() if line.startswith("0::/"))
        base = root / line[len("0::/") :].removesuffix(_LEAF).rstrip("/")
        procs = {int(each) for each in (base / "cgroup.procs").read_text().split()}
    except (OSError, StopIteration, ValueError):
        return None
    if base == root or not os.access(base / "cgroup.procs", os.W_OK) or not os.access(base, os.W_OK):
        return None
    # Others in it would keep it from passing controllers on; to root every group looks like its own.
    return base if all(_is_of_this_node(pid) for pid in procs) else None


def _move_to_leaf(base: Path) -> None:
    """Move this process and its children out of the way; one that is started meanwhile is moved by the next round."""
    leaf = base / _LEAF
    leaf.mkdir(exist_ok=True)
    for _ in range(_ROUNDS):
        left = (base / "cgroup.procs").read_text().split()
        if not left:
            return
        for pid in left:
            try:
                (leaf / "cgroup.procs").write_text(pid)
            except ProcessLookupError:
                continue


def _is_of_this_node(pid: int) -> bool:
    """Whether a process is this one or a descendant of it; one that has ended is nobody's."""
    own = os.getpid()
    for _ in range(_MAX_DEPTH):
        if pid == own:
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return True
        pid = int(stat.rpartition(b")")[2].split()[1])
        if pid < 1:
            return False
    return False


def _member(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        return 0
    return 0
