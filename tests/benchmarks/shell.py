"""What a command task costs beside what bubblewrap itself costs, in the same run on the same machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from benchmarks.figures import Aim, Figure, NotAvailable, percentile
from parity_node.executors.base import Job, Limits
from parity_node.executors.command import CommandExecutor
from parity_node.executors.sandbox.bwrap import TASK_HOME, Sandbox, bwrap_options
from parity_node.executors.sandbox.drop import slot_identity
from parity_node.executors.sandbox.env import task_env
from parity_node.executors.sandbox.limits import scratch_bytes, task_rlimits
from parity_node.executors.sandbox.seccomp import machine_architecture, seccomp_filter
from parity_node.testing.inputs import StaticInputs
from parity_protocol.clock import SystemClock
from parity_protocol.task import CommandSpec

ADDED_MS = 25.0
PARALLEL = 8
FULL, QUICK = 60, 20
LIMITS = Limits(wall_time_s=30, cpus=1, memory_bytes=256 << 20, disk_bytes=16 << 20, pids=32)
COMMAND = ("true",)
PRINTED_BYTES = 16 << 20  # the most that a task may print


async def measure(*, quick: bool) -> list[Figure]:
    """Run ``true`` in turn by bubblewrap alone and by the executor, then eight at once by each."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise NotAvailable("bubblewrap is not installed")
    count = QUICK if quick else FULL
    with _folder() as folder:
        executor = CommandExecutor(exec_dir=folder, inputs=StaticInputs(), clock=SystemClock(), enabled=True)
        state = await executor.describe()
        if not state.available:
            raise NotAvailable(state.reason)
        plain, ours = list[float](), list[float]()
        for at in range(count + 2):
            found = (_plain(bwrap, 1), await _ours(executor, folder, 1))
            if at >= 2:  # the first ones warm up
                plain.append(found[0])
                ours.append(found[1])
        rounds = max(3, count // 10)
        plain_8 = [_plain(bwrap, PARALLEL) for _ in range(rounds)]
        ours_8 = [await _ours(executor, folder, PARALLEL) for _ in range(rounds)]
        loud = ("head", "-c", str(PRINTED_BYTES), "/dev/zero")
        printing = [await _ours(executor, folder, 1, loud) for _ in range(rounds)]
    middle, middle_ours = percentile(plain, 0.5), percentile(ours, 0.5)
    note = f"`true` {count} times in turn: bwrap alone {middle:.1f} ms, a task {middle_ours:.1f} ms (p95 {percentile(ours, 0.95):.1f})"
    note_8 = f"median of {rounds}; bwrap alone {percentile(plain_8, 0.5):.0f} ms"
    return [
        Figure("added time of a shell task", middle_ours - middle, "ms", Aim(ADDED_MS, "at most"), note),
        Figure(f"{PARALLEL} shell tasks at once", percentile(ours_8, 0.5), "ms", None, note_8),
        Figure(
            "log of a shell task",
            PRINTED_BYTES / 1000 / percentile(printing, 0.5),
            "MB/s",
            None,
            f"{PRINTED_BYTES >> 20} MiB printed and kept, median of {rounds}, with start and end",
        ),
    ]


def _plain(bwrap: str, count: int) -> float:
    """Return how long bubblewrap alone takes for ``count`` sandboxes with the options of a task, in milliseconds."""
    identity = slot_identity(0)
    sandbox = Sandbox(
        command=COMMAND,
        env=task_env({}, home=TASK_HOME),
        inputs=(),
        scratch_bytes=scratch_bytes(LIMITS),
        rlimits=task_rlimits(LIMITS),
        identity=identity,
    )
    user = {} if identity is None else {"user": identity.uid, "group": identity.gid, "extra_groups": ()}
    prepared = []
    for _ in range(count):
        fds = {name: _file(text) for name, text in _texts().items()}
        words = bwrap_options(sandbox, fds={**fds, "status": -1, "block": -1})
        for flag in ("--json-status-fd", "--block-fd"):  # the node's own
            at = words.index(flag)
            del words[at : at + 2]
        prepared.append(([bwrap, *words, "--", *COMMAND], tuple(fds.values())))
    began = time.perf_counter()
    running = [
        subprocess.Popen(words, pass_fds=fds, env={}, cwd="/", stdin=subprocess.DEVNULL, **user)  # type: ignore[call-overload]
        for words, fds in prepared
    ]
    codes = [process.wait() for process in running]
    took = time.perf_counter() - began
    for _, fds in prepared:
        for fd in fds:
            os.close(fd)
    if any(codes):
        raise NotAvailable(f"bubblewrap alone ended with {codes}")
    return took * 1000


def _texts() -> dict[str, bytes]:
    architecture = machine_architecture()
    if architecture is None:
        raise NotAvailable(f"no system-call filter for {os.uname().machine}")
    return {"seccomp": seccomp_filter(architecture), "passwd": b"task:x:1:1::/:/bin/sh\n", "group": b"task:x:1:\n"}


def _file(data: bytes) -> int:
    fd = os.memfd_create("bench")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


async def _ours(executor: CommandExecutor, folder: Path, count: int, command: tuple[str, ...] = COMMAND) -> float:
    """Return how long the executor takes from ``prepare`` to ``cleanup``, in milliseconds."""
    jobs = []
    for slot in range(count):
        place = folder / str(uuid.uuid4())
        place.mkdir(mode=0o700)
        spec = CommandSpec(command=command, max_output_bytes=PRINTED_BYTES)
        jobs.append(Job(place.name, "t", "l", 1, spec, 0, 1, None, place, LIMITS, slot))

    async def one(job: Job) -> None:
        handle = await executor.start(await executor.prepare(job))
        result = await executor.wait(handle)
        if result.exit_code != 0:
            raise NotAvailable(f"a task ended with {result.exit_code}: {result.message}")
        await executor.cleanup(handle)

    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for job in jobs:
            group.start_soon(one, job)
    return (time.perf_counter() - began) * 1000


@contextmanager
def _folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="parity-bench-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
