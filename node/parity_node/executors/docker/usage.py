"""What a container used, from its control group; with the group of an execution's own it can be read after the end.

An engine removes a container's group the moment the container ends. So where this node may (root, and an engine that
makes groups itself), each execution gets a parent group, which keeps the sums and is removed by ``cleanup``. Elsewhere
the counters are read while the container runs, and the last reading counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Counters", "group_of_pid", "own_group", "read_counters", "remove_group", "stats_counters"]

ROOT = Path("/sys/fs/cgroup")
PARENT = "/parity-node"
_TOTAL = re.compile(r"^Total (\d+)$", re.MULTILINE)
_IO = re.compile(r"\b[rw]bytes=(\d+)")
_OOM_KILL = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_USAGE_USEC = re.compile(r"^usage_usec (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums since the container's start."""

    cpu_ms: int = 0
    peak_memory_bytes: int = 0
    io_bytes: int = 0  # read from and written to block devices
    oom_kills: int = 0
    network_bytes: int = 0

    def merged(self, later: Counters) -> Counters:
        """Return the larger of each counter: a later reading may have failed in part."""
        return Counters(
            max(self.cpu_ms, later.cpu_ms),
            max(self.peak_memory_bytes, later.peak_memory_bytes),
            max(self.io_bytes, later.io_bytes),
            max(self.oom_kills, later.oom_kills),
            max(self.network_bytes, later.network_bytes),
        )


def own_group(execution_id: str, *, cgroup_driver: str, root: Path = ROOT) -> str:
    """Return the name of an execution's parent group, or an empty text where there can be none."""
    if os.geteuid() != 0 or cgroup_driver != "cgroupfs" or not root.is_dir():
        return ""
    return f"{PARENT}/{execution_id}"


def remove_group(name: str, *, root: Path = ROOT) -> None:
    """Remove an execution's parent group, in every hierarchy; nothing if it is not there or still in use."""
    if not name.startswith(f"{PARENT}/"):
        return
    for folder in (root, *_folders(root)):
        try:
            (folder / name[1:]).rmdir()
        except OSError:
            continue


def group_of_pid(pid: int) -> str:
    """Return the memory group of a process as a path below the hierarchy's root; empty when it cannot be told."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return ""
    found = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    path = next((path for names, path in found.items() if "memory" in names.split(",")), found.get("", ""))
    return "" if path in {"", "/"} else path


def read_counters(group: str, *, root: Path = ROOT) -> Counters | None:
    """Return the counters of a group, of either version of control groups; None when it is not there."""
    name = group.lstrip("/")
    memory = _text(root / "memory" / name / "memory.max_usage_in_bytes")
    if memory:
        cpu = _text(root / "cpuacct" / name / "cpuacct.usage") or _text(root / "cpu,cpuacct" / name / "cpuacct.usage")
        io = _text(root / "blkio" / name / "blkio.throttle.io_service_bytes_recursive")
        kills = _text(root / "memory" / name / "memory.oom_control")
        return Counters(
            cpu_ms=_whole(cpu) // 1_000_000,
            peak_memory_bytes=_whole(memory),
            io_bytes=sum(int(each) for each in _TOTAL.findall(io)),
            oom_kills=_first(_OOM_KILL, kills),
        )
    folder = root / name
    cpu = _text(folder / "cpu.stat")
    if not cpu:
        return None
    return Counters(
        cpu_ms=_first(_USAGE_USEC, cpu) // 1_000,
        peak_memory_bytes=_whole(_text(folder / "memory.peak") or _text(folder / "memory.current")),
        io_bytes=sum(int(each) for each in _IO.findall(_text(folder / "io.stat"))),
        oom_kills=_first(_OOM_KILL, _text(folder / "memory.events")),
    )


def stats_counters(sample: Mapping[str, Any]) -> Counters:
    """Return what a sample of the engine's stats says; a member that is not there counts as 0."""
    cpu = _member(sample, "cpu_stats", "cpu_usage", "total_usage")
    memory = _member(sample, "memory_stats", "max_usage") or _member(sample, "memory_stats", "usage")
    blocks = sample.get("blkio_stats") or {}
    rows = (blocks.get("io_service_bytes_recursive") if isinstance(blocks, dict) else None) or ()
    networks = sample.get("networks") or {}
    return Counters(
        cpu_ms=cpu // 1_000_000,
        peak_memory_bytes=memory,
        io_bytes=sum(int(row.get("value", 0)) for row in rows if str(row.get("op", "")).lower() in {"read", "write"}),
        network_bytes=sum(
            _member(each, "rx_bytes") + _member(each, "tx_bytes")
            for each in networks.values()
            if isinstance(each, dict)
        ),
    )


def _folders(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []


def _member(value: object, *names: str) -> int:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, int) else 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _whole(text: str) -> int:
    return int(text) if text.strip().isdigit() else 0


def _first(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.search(text)
    return int(found[1]) if found else 0
