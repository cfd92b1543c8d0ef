"""Processors, memory, disk and Python of this machine; inside a container, those that the container may use."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import psutil

from parity_protocol.capability import Capability, ExecutorState
from parity_protocol.task import TaskKind

__all__ = ["boot_id", "measure", "measure_processors_and_memory"]

_CGROUP_MEMORY = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1_CPU = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def measure(
    *,
    node_version: str,
    slots: int,
    folder: Path,
    executors: Mapping[TaskKind, ExecutorState],
    model_types: tuple[str, ...] = (),
    now: datetime,
) -> Capability:
    """Return what this node can do now; reads a few files and runs nothing.

    Args:
        folder: Where executions lie; its file system's free space counts.
        executors: As each executor's own trial run found.
    """
    return Capability(
        node_version=node_version,
        executors=dict(executors),
        slots=slots,
        cpus=_cpus(),
        memory_bytes=_memory_bytes(),
        disk_free_bytes=shutil.disk_usage(folder).free,
        model_types=model_types,
        platform=f"{platform.system().lower()}-{platform.machine()}",
        python=platform.python_version(),
        measured_at=now.timestamp(),
    )


def measure_processors_and_memory() -> tuple[float, int]:
    """Return how many processors and bytes of memory this process may use."""
    return _cpus(), _memory_bytes()


def boot_id() -> str:
    """Return what tells this boot of the machine from every other; a persisted deadline counts in one boot only."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"boot-{int(psutil.boot_time())}"


def _cpus() -> float:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    return float(allowed) if quota is None else min(float(allowed), quota)


def _cpu_quota() -> float | None:
    try:
        text = _CGROUP_CPU.read_text().split()
        return None if text[0] == "max" else int(text[0]) / int(text[1])
    except (OSError, ValueError, IndexError):
        pass  # not cgroup v2
    try:
        quota, period = (int(path.read_text()) for path in _CGROUP_V1_CPU)
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _memory_bytes() -> int:
    total = int(psutil.virtual_memory().total)
    for path in _CGROUP_MEMORY:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):
            continue
    return total
