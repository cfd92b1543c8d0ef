"""A10: hostile trees of processes are ended within two seconds of their deadline, and none of them survives.

None is stopped by a tracer: the system-call filter refuses ``ptrace`` to all that runs inside.
"""

from __future__ import annotations

import anyio

from benchmarks.figures import Aim, Figure
from campaigns.commands import CommandLab, open_lab, pid_namespace, processes_in
from parity_node.executors.base import Handle
from parity_protocol.errors import FailureReason
from parity_protocol.task import CommandSpec

WALL_S = 1.0
LATE_S = 2.0
AT_ONCE = 4
FULL, QUICK = 50, 10

HOSTILE = {
    "left its session": "setsid sh -c 'setsid sh -c \"sleep 600 & sleep 600\" & sleep 600' & sleep 600",
    "forked twice": "(sh -c 'sleep 600 &' &) ; (sh -c '(sleep 600 &)' &); sleep 600",
    "ignores signals": "trap '' TERM HUP INT QUIT ALRM PIPE USR1 USR2; while :; do sleep 600; done",
    "forks while it is killed": "f() { while :; do (sleep 0.01; :) & sleep 0.005; done; }; f & f & f",
    "stopped": "sh -c 'sleep 600 & kill -STOP $!; kill -STOP $$' & sleep 0.1; kill -STOP $$; sleep 600",
    "holds standard output": "for i in 1 2 3 4 5; do setsid sleep 600 & done; exec setsid sleep 600",
    "never waits for its children": "for i in $(seq 40); do (exit 0) & done; exec sleep 600",
    "blocks on a pipe": "mkfifo /tmp/p; for i in 1 2 3; do cat /tmp/p & done; cat /tmp/p",
    "starts again by itself": "printf '#!/bin/sh\\nsleep 0.02\\nexec /task/again\\n' > /task/again; chmod +x /task/again; /task/again",
    "a deep tree": "d() { if [ $1 -gt 0 ]; then sh -c \"$(echo 'sleep 600 &') :\"; (d $(($1 - 1))); fi; sleep 600; }; d 12",
}


async def run(*, quick: bool) -> list[Figure]:
    """Run the campaign."""
    count = QUICK if quick else FULL
    names = list(HOSTILE)
    overruns, survivors, wrong, left = list[float](), 0, list[str](), 0
    with open_lab() as lab:
        for first in range(0, count, AT_ONCE):
            batch = [names[at % len(names)] for at in range(first, min(first + AT_ONCE, count))]
            ended = await _batch(lab, batch)
            overruns += ended.overruns
            survivors += ended.survivors
            wrong += ended.wrong
        left = len(lab.left())
    note = f"{count} trees of {len(names)} kinds, {AT_ONCE} at once" + (f"; {', '.join(wrong)}" if wrong else "")
    return [
        Figure("A10 slowest end after the deadline", max(overruns), "s", Aim(LATE_S, "at most"), note),
        Figure("A10 survivors", survivors, "processes", Aim(0, "at most"), "in any of their pid namespaces"),
        Figure("A10 tasks with another reason than timeout", len(wrong), "tasks", Aim(0, "at most")),
        Figure("A10 folders left", left, "folders", Aim(0, "at most")),
    ]


class _Ended:
    def __init__(self) -> None:
        self.overruns: list[float] = []
        self.wrong: list[str] = []
        self.survivors = 0


async def _batch(lab: CommandLab, names: list[str]) -> _Ended:
    found = _Ended()
    namespaces = set[str]()

    async def one(slot: int, name: str) -> None:
        spec = CommandSpec(command=(HOSTILE[name],), shell=True)
        handle: Handle = await lab.start(spec, slot=slot, wall_time_s=WALL_S)
        namespaces.add(pid_namespace(handle.state["init_pid"]))
        result = await lab.executor.wait(handle)
        found.overruns.append(result.usage.wall_ms / 1000 - WALL_S)
        if result.reason is not FailureReason.TIMEOUT:
            found.wrong.append(f"{name}: {result.reason} {result.message[:80]}")
        await lab.executor.cleanup(handle)

    async with anyio.create_task_group() as group:
        for slot, name in enumerate(names):
            group.start_soon(one, slot, name)
    found.survivors = len(processes_in(namespaces))
    return found
