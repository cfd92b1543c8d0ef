"""Resource limits of one process tree: rlimits, which every system has and every process carries."""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping

from parity_node.executors.base import Limits

__all__ = [
    "PRLIMIT",
    "apply_own_limits",
    "limit_command",
    "limit_process",
    "most_files",
    "output_bytes",
    "scratch_bytes",
    "task_rlimits",
]

PRLIMIT = "/usr/bin/prlimit"  # of util-linux
MAX_OPEN_FILES = 1_024
_ADDRESS_SPACE_SLACK = 4 << 30  # bytes; run times reserve far more than they use
_CPU_SLACK_S = 5  # the wall clock ends a task; this ends one whose node cannot
_SANDBOX_PIDS = 2  # bwrap's init, and one to spare
_LEAST_SCRATCH = 4 << 20
_MEMORY_BESIDE_SCRATCH = 32 << 20
_OUTPUT_SLACK = 64 << 10
_LEAST_FILES = 10_000
_MEMORY_OF_FILE = 2 << 10
_OPTIONS = {
    resource.RLIMIT_AS: "as",
    resource.RLIMIT_CORE: "core",
    resource.RLIMIT_CPU: "cpu",
    resource.RLIMIT_DATA: "data",
    resource.RLIMIT_FSIZE: "fsize",
    resource.RLIMIT_MEMLOCK: "memlock",
    resource.RLIMIT_NOFILE: "nofile",
    resource.RLIMIT_NPROC: "nproc",
}


def task_rlimits(limits: Limits, *, output_bytes: int = 0) -> dict[int, int]:
    """Return the rlimits of every process of a task, by resource number.

    ``RLIMIT_DATA`` bounds what a process can really fill; the address space is bounded loosely, against shared
    mappings. Both are per process: only a cgroup bounds the sum.

    Args:
        output_bytes: Of its output folder; no file may be larger than that or its disk space, whichever is more.
    """
    return {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: math.ceil(limits.wall_time_s * max(1.0, limits.cpus)) + _CPU_SLACK_S,
        resource.RLIMIT_DATA: limits.memory_bytes,
        resource.RLIMIT_AS: limits.memory_bytes + _ADDRESS_SPACE_SLACK,
        resource.RLIMIT_FSIZE: max(limits.disk_bytes, output_bytes, 1 << 20),
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_NPROC: limits.pids + _SANDBOX_PIDS,
    }


def scratch_bytes(limits: Limits) -> int:
    """Return the size of each writable tmpfs; it is charged to memory, so it leaves room for the program."""
    return max(_LEAST_SCRATCH, min(limits.disk_bytes, limits.memory_bytes - _MEMORY_BESIDE_SCRATCH))


def output_bytes(limits: Limits, wanted: int) -> int:
    """Return the size of the tmpfs for a task's output folder, a little over what is taken, so that more is noticed."""
    return max(_LEAST_SCRATCH, min(wanted + _OUTPUT_SLACK, limits.memory_bytes - _MEMORY_BESIDE_SCRATCH))


def most_files(limits: Limits) -> int:
    """Return how many files a task may make, in memory; each takes about a kilobyte of the kernel's."""
    return max(_LEAST_FILES, limits.memory_bytes // _MEMORY_OF_FILE)


def limit_command(rlimits: Mapping[int, int]) -> list[str]:
    """Return the words to put in front of a command, so that it starts with these limits, soft and hard.

    They are set inside the sandbox, because ``RLIMIT_NPROC`` outside would count the operator's own processes, and by
    util-linux, because root in a container often may not limit another user's process (no CAP_SYS_RESOURCE).
    """
    return [PRLIMIT, *(f"--{_OPTIONS[kind]}={value}:{value}" for kind, value in sorted(rlimits.items())), "--"]


def limit_process(pid: int, rlimits: Mapping[int, int]) -> bool:
    """Limit a running process, if this user may, and return whether that worked.

    For the first process of a sandbox, which the task can write to (``/proc/1/mem``) though not trace: what it takes over
    there must not be free of limits. Root without CAP_SYS_RESOURCE may not; then the control group holds alone.
    """
    try:
        for kind, value in rlimits.items():
            hard = resource.prlimit(pid, kind)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.prlimit(pid, kind, (bound, bound))
    except (OSError, ValueError):
        return False
    return True


def apply_own_limits(rlimits: Mapping[int, int]) -> None:
    """Set soft and hard limits of this process; a hard limit that is lower already stays."""
    for kind, value in rlimits.items():
        hard = resource.getrlimit(kind)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))
