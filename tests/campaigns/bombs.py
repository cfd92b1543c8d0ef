"""A9 for commands: each bomb fails its task with the right reason; the node keeps its memory and its disk."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from benchmarks.figures import Aim, Figure
from campaigns.commands import CommandLab, open_lab, pid_namespace, processes_in
from parity_node.executors.base import Limits
from parity_node.executors.sandbox.cgroup import Cgroup
from parity_protocol.errors import FailureReason
from parity_protocol.needs import OutputFolder
from parity_protocol.task import CommandSpec

MOST_MB = 192  # above what the process had when it began, about 60: together the 256 MB of A9
BACK_S = 5.0
NOISE_BYTES = 1 << 20

R = FailureReason
_LIMITS = Limits(wall_time_s=1, cpus=1, memory_bytes=64 << 20, disk_bytes=0, pids=8)


@dataclass(frozen=True)
class Bomb:
    """A script, and how its task must end."""

    script: str
    reasons: frozenset[FailureReason]
    bounds: dict[str, float] = field(default_factory=dict)
    has_output: bool = False
    needs_group: bool = False  # without one it may just go on to its wall time


_SLOW = {"wall_time_s": 4.0}
_GROW = "x=x; while :; do x=$x$x; done"
BOMBS = {
    "fork": Bomb("f() { f | f & }; while :; do f; done", frozenset({R.EXIT_STATUS, R.TIMEOUT, R.OUT_OF_MEMORY}), _SLOW),
    "memory": Bomb(_GROW, frozenset({R.OUT_OF_MEMORY, R.EXIT_STATUS})),
    "memory of many": Bomb(
        f"for i in 1 2 3 4 5 6; do ({_GROW}) & done; wait; exit 1", frozenset({R.OUT_OF_MEMORY}), needs_group=True
    ),
    "log of 1 GB": Bomb("head -c 1000000000 /dev/zero", frozenset({R.OUTPUT_TOO_LARGE})),
    "disk": Bomb("cat /dev/zero > /task/a || exit 1", frozenset({R.EXIT_STATUS, R.OUT_OF_MEMORY})),
    "all of scratch": Bomb(
        "for d in /task /tmp /dev/shm; do for i in 1 2 3 4; do head -c 30M /dev/zero > $d/$i; done; done; exit 1",
        frozenset({R.EXIT_STATUS, R.OUT_OF_MEMORY}),
    ),
    "output": Bomb("cat /dev/zero > /output/a", frozenset({R.OUTPUT_TOO_LARGE}), has_output=True),
    "sparse output": Bomb("truncate -s 30M /output/a", frozenset({R.OUTPUT_TOO_LARGE}), has_output=True),
    "sparse": Bomb("truncate -s 1T /task/a", frozenset({R.EXIT_STATUS})),
    "inodes": Bomb(
        "i=0; while :; do : > /tmp/$i; i=$((i+1)); done", frozenset({R.OUT_OF_MEMORY}), {"memory_bytes": 48 << 20}
    ),
    "processor": Bomb("while :; do :; done & while :; do :; done", frozenset({R.TIMEOUT}), {"wall_time_s": 2.0}),
}
QUICK = ("fork", "memory of many", "log of 1 GB", "output", "inodes")


async def run(*, quick: bool) -> list[Figure]:
    """Run the campaign."""
    wrong, slowest_back, survivors = list[str](), 0.0, 0
    has_group = Cgroup.make("parity-lab", _LIMITS) is not None
    Cgroup("parity-lab").remove()
    _forget_peak()
    began_mb = _peak_mb()
    names = [name for name in (QUICK if quick else BOMBS) if has_group or not BOMBS[name].needs_group]
    with open_lab() as lab:
        for name in names:
            said, back_s, alive = await _explode(lab, BOMBS[name])
            if said:
                wrong.append(f"{name}: {said}")
            slowest_back = max(slowest_back, back_s)
            survivors += alive
        left = len(lab.left())
    note = (
        f"{len(names)} bombs"
        + ("" if has_group else ", without control groups")
        + "".join(f"; {each}" for each in wrong)
    )
    return [
        Figure("A9 commands: wrong reasons", len(wrong), "bombs", Aim(0, "at most"), note),
        Figure("A9 commands: memory that the node took more", _peak_mb() - began_mb, "MB", Aim(MOST_MB, "at most")),
        Figure("A9 commands: free disk back after", slowest_back, "s", Aim(BACK_S, "at most")),
        Figure("A9 commands: survivors", survivors, "processes", Aim(0, "at most")),
        Figure("A9 commands: folders left", left, "folders", Aim(0, "at most")),
    ]


async def _explode(lab: CommandLab, bomb: Bomb) -> tuple[str, float, int]:
    """Return what was wrong, how long the disk took to have its space back, and how many processes survived."""
    before = _used(lab)
    output = OutputFolder(max_bytes=4 << 20) if bomb.has_output else None
    spec = CommandSpec(command=(bomb.script,), shell=True, output=output)
    handle = await lab.start(spec, **bomb.bounds)
    namespace = pid_namespace(handle.state["init_pid"])
    result = await lab.executor.wait(handle)
    await lab.executor.cleanup(handle)
    ended = time.monotonic()
    while _used(lab) > before + NOISE_BYTES and time.monotonic() - ended < 2 * BACK_S:  # noqa: ASYNC110 - the kernel tells nobody
        await anyio.sleep(0.05)
    back_s = time.monotonic() - ended
    said = "" if result.reason in bomb.reasons else f"{result.reason} ({result.message[:80]})"
    return said, back_s, len(processes_in({namespace}))


def _used(lab: CommandLab) -> int:
    """Return the bytes in use where executions are: of their own file system, else of the folder that shares one."""
    if lab.has_own_disk:
        found = os.statvfs(lab.exec_dir)
        return (found.f_blocks - found.f_bfree) * found.f_frsize
    return sum(path.lstat().st_blocks * 512 for path in lab.exec_dir.rglob("*"))


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) / 1024 if found else 0.0
