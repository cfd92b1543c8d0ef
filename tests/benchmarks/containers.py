"""Docker tasks against ``docker run --rm`` with the same limits, on the same engine in the same run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import anyio
import anyio.to_thread

from benchmarks.figures import Aim, Figure, NotAvailable
from parity_node.executors.base import Job, Limits
from parity_node.executors.docker.executor import DockerExecutor, DockerOptions
from parity_node.executors.docker.profile import seccomp_profile
from parity_node.testing.dockerd import PrivateDockerd
from parity_node.testing.inputs import StaticInputs
from parity_protocol.clock import SystemClock
from parity_protocol.report import Outcome
from parity_protocol.task import DockerSpec

__all__ = ["measure"]

IMAGE = "parity-test/busybox:1"
RUNS, QUICK_RUNS = 20, 8
WARM_UP = 2
AT_ONCE = 8
LOG_BYTES = 16 << 20
LIMITS = Limits(wall_time_s=60, cpus=1, memory_bytes=128 << 20, disk_bytes=16 << 20, pids=32)


async def measure(*, quick: bool) -> list[Figure]:
    """Return what a node adds to a container, eight at once, and how fast its output is taken."""
    client = shutil.which("docker")
    if os.geteuid() != 0 or client is None or shutil.which("dockerd") is None:
        raise NotAvailable("needs root, dockerd and the docker client")
    with _lab() as lab:
        state = await lab.executor.describe()
        if not state.available:
            raise NotAvailable(state.reason)
        plain = _plain(client, lab.engine, lab.folder)
        figures = [
            *await _added(lab, plain, QUICK_RUNS if quick else RUNS),
            *await _at_once(lab, plain),
            *await _log(lab, plain),
        ]
        await lab.executor.aclose()
    return figures


class _Lab:
    def __init__(self, engine: PrivateDockerd, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.executor = DockerExecutor(
            exec_dir=folder,
            inputs=StaticInputs(),
            clock=SystemClock(),
            node_id=f"0x{uuid.uuid4().hex}",
            options=DockerOptions(timeout_s=30, floor_bytes=0, local_images=("parity-test/*",)),
            environ={"DOCKER_HOST": engine.url},
        )

    async def task(self, *command: str, slot: int = 0) -> None:
        """Run a task from its folder to its removal."""
        folder = self.folder / str(uuid.uuid4())
        folder.mkdir(mode=0o700)
        spec = DockerSpec(image=IMAGE, command=command, max_output_bytes=LOG_BYTES)
        job = Job(folder.name, "t", "l", 1, spec, 0, 1, None, folder, LIMITS, slot)
        handle = await self.executor.start(await self.executor.prepare(job))
        result = await self.executor.wait(handle)
        await self.executor.cleanup(handle)
        if result.outcome is not Outcome.SUCCEEDED:
            raise RuntimeError(result.message)


@contextmanager
def _lab() -> Iterator[_Lab]:
    with PrivateDockerd.start(has_gvisor=False) as engine:
        engine.import_busybox(IMAGE)
        with tempfile.TemporaryDirectory(prefix="pdb-", dir="/tmp") as folder:
            Path(folder).chmod(0o711)
            yield _Lab(engine, Path(folder))


def _plain(client: str, engine: PrivateDockerd, folder: Path) -> Callable[..., None]:
    """Return a function that runs a command in a container with the same limits, by the engine's own client."""
    profile = folder / "seccomp.json"
    profile.write_text(seccomp_profile())
    flags = (
        "--rm --init --network none --ipc none --read-only --cap-drop ALL --security-opt no-new-privileges "
        f"--security-opt seccomp={profile} --user 61000:61000 --pids-limit 33 --memory 128m --memory-swap 128m --cpus 1 "
        "--ulimit nofile=1024 --ulimit core=0 --tmpfs /tmp:rw,size=16m,noexec --tmpfs /dev/shm:rw,size=16m,noexec "
        "--log-driver local --log-opt max-size=32m --log-opt max-file=2 --log-opt compress=false --pull never"
    ).split()
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "DOCKER_HOST": engine.url}

    def run(*command: str) -> None:
        subprocess.run(
            [client, "run", *flags, IMAGE, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )

    return run


async def _added(lab: _Lab, plain: Callable[..., None], runs: int) -> list[Figure]:
    ours, theirs = list[float](), list[float]()
    for number in range(WARM_UP + runs):  # in turns, so that both meet the same machine
        started = time.perf_counter()
        await lab.task("true")
        between = time.perf_counter()
        await anyio.to_thread.run_sync(plain, "true")
        if number >= WARM_UP:
            ours.append(1000 * (between - started))
            theirs.append(1000 * (time.perf_counter() - between))
    added = median(ours) - median(theirs)
    note = f"{median(ours):.0f} ms against {median(theirs):.0f} ms, medians of {runs} runs in turns"
    return [Figure("docker task, added to docker run", added, "ms", Aim(40, "at most"), note)]


async def _at_once(lab: _Lab, plain: Callable[..., None]) -> list[Figure]:
    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for slot in range(AT_ONCE):
            group.start_soon(lambda slot=slot: lab.task("true", slot=slot))
    between = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            group.start_soon(anyio.to_thread.run_sync, plain, "true")
    theirs = time.perf_counter() - between
    rate = AT_ONCE / (between - started)
    return [Figure(f"docker tasks, {AT_ONCE} at once", rate, "tasks/s", None, f"docker run: {AT_ONCE / theirs:.1f}")]


async def _log(lab: _Lab, plain: Callable[..., None]) -> list[Figure]:
    command = ("head", "-c", str(LOG_BYTES), "/dev/zero")
    started = time.perf_counter()
    await lab.task(*command)
    between = time.perf_counter()
    await anyio.to_thread.run_sync(lambda: plain(*command))
    theirs = time.perf_counter() - between
    megabytes = LOG_BYTES / 1e6
    note = f"{megabytes:.0f} MB with start and end; docker run: {megabytes / theirs:.0f}"
    return [Figure("docker task, output taken", megabytes / (between - started), "MB/s", None, note)]
