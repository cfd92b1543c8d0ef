"""What the kernel says of a process: processor time and memory."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.figures import NotAvailable

__all__ = ["cpu_seconds", "forget_peak", "peak_bytes", "program_of", "pss_bytes", "tree_of"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process and the children it has waited for have used so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError as exc:
        raise NotAvailable(f"processor time needs Linux's /proc ({exc.strerror})") from exc
    return sum(int(field) for field in fields[11:15]) / _TICKS_PER_S


def pss_bytes(pid: int) -> int:
    """Return a process's proportional set size: its own memory and its share of what it shares."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError as exc:
        raise NotAvailable(f"PSS needs Linux's /proc/PID/smaps_rollup ({exc.strerror})") from exc
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has had in its own pages and mapped files since ``forget_peak``."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError as exc:
        raise NotAvailable(f"a process's peak needs Linux's /proc/PID/status ({exc.strerror})") from exc
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def forget_peak(pid: int) -> None:
    """Let a process's peak begin anew at what it has now."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError as exc:
        raise NotAvailable(f"a peak begins anew through Linux's /proc/PID/clear_refs ({exc.strerror})") from exc


def program_of(pid: int) -> str:
    """Return a process's command line, empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def tree_of(pid: int) -> list[int]:
    """Return a process and all that it started."""
    found = [pid]
    for process in found:
        children = Path(f"/proc/{process}/task/{process}/children")
        found += [int(child) for child in children.read_text().split()] if children.exists() else []
    return found
