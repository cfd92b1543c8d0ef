"""A2, A9 and A10 for containers, on an engine of the campaign's own: kills, bombs, and trees that will not end."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import anyio

from benchmarks.figures import Aim, Figure, NotAvailable
from campaigns.killed_node import NodeProcess, at_market, come_back, kill_at_each, killed_at, left_over
from chaos.test_node_crash_points import until
from parity_node.crashpoints import CRASHPOINTS, DOCKER_CRASHPOINTS
from parity_node.executors.base import ExecutionResult, Handle, Job, Limits
from parity_node.executors.docker.executor import DockerExecutor, DockerOptions
from parity_node.testing.dockerd import PrivateDockerd
from parity_node.testing.inputs import StaticInputs
from parity_node.testing.market import MarketSimulator
from parity_protocol.clock import SystemClock
from parity_protocol.errors import FailureReason
from parity_protocol.needs import OutputFolder
from parity_protocol.task import DockerSpec

IMAGE = "parity-test/busybox:1"
MOST_MB = 192  # above what the process had when it began, about 60: together the 256 MB of A9
BACK_S = 5.0
ENGINE_TRIES, ENGINE_PAUSE_S = 25, 0.2
NOISE_BYTES = 8 << 20
LATE_S = 2.0
WALL_S = 1.0
AT_ONCE = 4
CRASHES_AT_ONCE = 3
TASKS = 2

R = FailureReason


async def run(*, quick: bool) -> list[Figure]:
    """Run all three."""
    with open_engine() as engine:
        return [
            *await bombs(engine, quick=quick),
            *await trees(engine, quick=quick),
            *await crashes(engine, quick=quick),
        ]


@contextmanager
def open_engine() -> Iterator[PrivateDockerd]:
    """Start an engine with a small image.

    Raises:
        NotAvailable: There can be none here.
    """
    if os.geteuid() != 0:
        raise NotAvailable("an engine of one's own needs root")
    try:
        engine = PrivateDockerd.start(has_gvisor=False)
    except (OSError, RuntimeError) as exc:
        raise NotAvailable(f"no Docker engine: {exc}") from exc
    with engine:
        engine.import_busybox(IMAGE)
        yield engine


class Lab:
    """An executor on an engine, and a folder for its executions."""

    def __init__(self, engine: PrivateDockerd) -> None:
        self.exec_dir = _open_folder("pdl-")
        self.node_id = f"0x{uuid.uuid4().hex}"
        self.executor = DockerExecutor(
            exec_dir=self.exec_dir,
            inputs=StaticInputs(),
            clock=SystemClock(),
            node_id=self.node_id,
            options=DockerOptions(timeout_s=30, floor_bytes=0, local_images=("parity-test/*",)),
            environ={"DOCKER_HOST": engine.url},
        )

    async def start(self, spec: DockerSpec, *, slot: int = 0, **bounds: float) -> Handle:
        """Start a task."""
        folder = self.exec_dir / str(uuid.uuid4())
        folder.mkdir(mode=0o700)
        members = {
            "wall_time_s": 20,
            "cpus": 1,
            "memory_bytes": 128 << 20,
            "disk_bytes": 16 << 20,
            "pids": 64,
            **bounds,
        }
        job = Job(folder.name, "t", "l", 1, spec, 0, 1, None, folder, Limits(**members), slot)  # type: ignore[arg-type]
        return await self.executor.start(await self.executor.prepare(job))

    async def close(self) -> None:
        """Remove the folder."""
        await self.executor.aclose()
        shutil.rmtree(self.exec_dir, ignore_errors=True)


def _open_folder(prefix: str) -> Path:
    path = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    path.chmod(0o711)
    return path


# -- A9 ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bomb:
    """A script, and how its task must end."""

    script: str
    reasons: frozenset[FailureReason]
    bounds: dict[str, float] = field(default_factory=dict)
    output: OutputFolder | None = None


_OUTPUT = OutputFolder(max_bytes=16 << 20, max_files=200)
BOMBS = {
    "fork": Bomb(
        "f() { f | f & }; while :; do f; done",
        frozenset({R.EXIT_STATUS, R.TIMEOUT, R.OUT_OF_MEMORY}),
        {"wall_time_s": 3},
    ),
    "memory": Bomb("tail /dev/zero", frozenset({R.OUT_OF_MEMORY}), {"memory_bytes": 48 << 20}),
    "memory of a child": Bomb("(tail /dev/zero); exit 0", frozenset({R.OUT_OF_MEMORY}), {"memory_bytes": 48 << 20}),
    "memory by files": Bomb(
        "head -c 60000000 /dev/zero > /tmp/a; exit 1",
        frozenset({R.EXIT_STATUS, R.OUT_OF_MEMORY}),
        {"memory_bytes": 48 << 20, "disk_bytes": 1 << 30},
    ),
    "log of 1 GB": Bomb("head -c 1000000000 /dev/zero", frozenset({R.OUTPUT_TOO_LARGE})),
    "log of 1 GB in lines": Bomb("yes", frozenset({R.OUTPUT_TOO_LARGE})),
    "disk": Bomb("for d in /tmp /dev/shm; do cat /dev/zero > $d/a; done; exit 1", frozenset({R.EXIT_STATUS})),
    "output of one file": Bomb(
        "cat /dev/zero > /output/a", frozenset({R.OUTPUT_TOO_LARGE, R.EXIT_STATUS}), output=_OUTPUT
    ),
    "output of many": Bomb(
        "i=0; while :; do head -c 4000000 /dev/zero > /output/$i; i=$((i+1)); done",
        frozenset({R.OUTPUT_TOO_LARGE}),
        output=_OUTPUT,
    ),
    "output of empty files": Bomb(
        "i=0; while :; do : > /output/$i; i=$((i+1)); done", frozenset({R.OUTPUT_TOO_LARGE}), output=_OUTPUT
    ),
    "sparse output": Bomb("truncate -s 1T /output/a || exit 1", frozenset({R.EXIT_STATUS}), output=_OUTPUT),
    "processor": Bomb("while :; do :; done & while :; do :; done", frozenset({R.TIMEOUT}), {"wall_time_s": 2}),
}
QUICK_BOMBS = ("fork", "memory of a child", "log of 1 GB", "output of many", "disk")


async def bombs(engine: PrivateDockerd, *, quick: bool) -> list[Figure]:
    """A9: each fails its task with the right reason; the node keeps its memory, the machine its disk."""
    lab, wrong, slowest, largest = Lab(engine), list[str](), 0.0, 0
    state = await lab.executor.describe()
    if not state.available:
        raise RuntimeError(state.reason)
    names = QUICK_BOMBS if quick else tuple(BOMBS)
    _forget_peak()
    began_mb = _peak_mb()
    for name in names:
        bomb = BOMBS[name]
        free = shutil.disk_usage(lab.exec_dir).free
        spec = DockerSpec(image=IMAGE, command=("sh", "-c", bomb.script), output=bomb.output)
        handle = await lab.start(spec, **bomb.bounds)
        async with anyio.create_task_group() as group:
            found: list[ExecutionResult] = []

            async def wait(handle: Handle = handle, found: list[ExecutionResult] = found) -> None:
                found.append(await lab.executor.wait(handle))

            group.start_soon(wait)
            while not found:
                largest = max(largest, free - shutil.disk_usage(lab.exec_dir).free)
                await anyio.sleep(0.05)
        await lab.executor.cleanup(handle)
        if found[0].reason not in bomb.reasons:
            wrong.append(f"{name}: {found[0].reason} {found[0].message[:80]}")
        slowest = max(slowest, await _back(lab.exec_dir, free))
    await lab.close()
    note = f"{len(names)} bombs" + "".join(f"; {said}" for said in wrong)
    return [
        Figure("A9 containers: bombs with another reason", len(wrong), "tasks", Aim(0, "at most"), note),
        Figure("A9 containers: disk free again after", slowest, "s", Aim(BACK_S, "at most")),
        Figure("A9 containers: most disk that one took", largest / 1e6, "MB"),
        Figure("A9 containers: memory that the node took more", _peak_mb() - began_mb, "MB", Aim(MOST_MB, "at most")),
    ]


async def _back(folder: Path, free: int) -> float:
    began = time.monotonic()
    while shutil.disk_usage(folder).free < free - NOISE_BYTES and time.monotonic() - began < 2 * BACK_S:  # noqa: ASYNC110
        await anyio.sleep(0.05)
    return time.monotonic() - began


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


# -- A10 -----------------------------------------------------------------------------------------------------------

HOSTILE = {
    "left its session": "setsid sh -c 'setsid sh -c \"sleep 600 & sleep 600\" & sleep 600' & sleep 600",
    "ignores signals": "trap '' TERM HUP INT QUIT ALRM PIPE USR1 USR2; while :; do sleep 600; done",
    "ignores signals twice removed": "(setsid sh -c 'trap \"\" TERM; while :; do sleep 600; done' &); trap '' TERM; sleep 600; sleep 600",
    "forks while it is killed": "f() { while :; do (sleep 0.01; :) & sleep 0.005; done; }; f & f & f",
    "stopped": "sh -c 'sleep 600 & kill -STOP $!; kill -STOP $$' & sleep 0.1; kill -STOP $$; sleep 600",
    "holds standard output": "for i in 1 2 3 4 5; do setsid sleep 600 & done; sleep 600",
    "a process in each": "i=0; while [ $i -lt 50 ]; do sleep 600 & i=$((i+1)); done; sleep 600",
}


async def trees(engine: PrivateDockerd, *, quick: bool) -> list[Figure]:
    """A10: each is gone two seconds after its deadline."""
    lab = Lab(engine)
    await lab.executor.describe()
    names, overruns, wrong, survivors = list(HOSTILE), list[float](), list[str](), 0
    count = len(names) if quick else 50

    async def one(slot: int, name: str) -> None:
        nonlocal survivors
        spec = DockerSpec(image=IMAGE, command=("sh", "-c", HOSTILE[name]))
        handle = await lab.start(spec, slot=slot, wall_time_s=WALL_S)
        started_at = float(str(handle.state["started_at"]))
        found = await lab.executor.engine.inspect(str(handle.state["container"]))
        namespace = _pid_namespace(found.pid)
        result = await lab.executor.wait(handle)
        overruns.append(time.time() - started_at - WALL_S)
        survivors += len(_processes_in(namespace))
        if result.reason is not FailureReason.TIMEOUT:
            wrong.append(f"{name}: {result.reason} {result.message[:80]}")
        await lab.executor.cleanup(handle)

    for first in range(0, count, AT_ONCE):
        async with anyio.create_task_group() as group:
            for slot, at in enumerate(range(first, min(first + AT_ONCE, count))):
                group.start_soon(one, slot, names[at % len(names)])
    left = len(engine.containers(label=f"network.parity.node={lab.node_id}"))
    await lab.close()
    note = f"{count} trees of {len(names)} kinds, {AT_ONCE} at once" + "".join(f"; {said}" for said in wrong)
    return [
        Figure("A10 containers: slowest end after the deadline", max(overruns), "s", Aim(LATE_S, "at most"), note),
        Figure("A10 containers: survivors", survivors, "processes", Aim(0, "at most")),
        Figure("A10 containers: tasks with another reason", len(wrong), "tasks", Aim(0, "at most")),
        Figure("A10 containers: left", left, "containers", Aim(0, "at most")),
    ]


def _processes_in(namespace: str) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")] if namespace else []
    return [pid for pid in pids if _pid_namespace(pid) == namespace]


def _pid_namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink()) if pid else ""
    except OSError:
        return ""


# -- A2 ------------------------------------------------------------------------------------------------------------

QUICK_POINTS = ("docker.created", "docker.started", "docker.removed")  # the whole is two minutes


async def crashes(engine: PrivateDockerd, *, quick: bool) -> list[Figure]:
    """A2: the node is killed at every named point; each task is run once, paid once, and leaves nothing."""
    points = QUICK_POINTS if quick else (*CRASHPOINTS, *DOCKER_CRASHPOINTS)
    top = _open_folder("pdc-")

    async def survive(point: str, folder: Path) -> str:
        async def attack(market: MarketSimulator, node: NodeProcess) -> None:
            await _crash_and_restart(point, market, node, engine)

        said = await at_market(
            folder,
            attack,
            DOCKER_HOST=engine.url,
            RUNNER_SHELL_ENABLED="false",
            RUNNER_DOCKER_ENABLED="true",
            RUNNER_DOCKER_LOCAL_IMAGES="parity-test/*",
        )
        return said or await left_over(folder, alive=await _left(folder, engine), of="containers")

    what = f"{TASKS} containers"
    try:
        return await kill_at_each(points, top, survive, at_once=CRASHES_AT_ONCE, what=what, of="containers")
    finally:
        shutil.rmtree(top, ignore_errors=True)


async def _crash_and_restart(point: str, market: MarketSimulator, node: NodeProcess, engine: PrivateDockerd) -> None:
    since = int(time.time())
    spec = json.dumps(
        {
            "type": "docker",
            "image": IMAGE,
            "command": ["sh", "-c", "echo run; sleep 0.4; echo x > /output/a"],
            "output": {},
            "resources": {"disk_bytes": 8 << 20, "memory_bytes": 64 << 20},
        }
    )
    tasks = [market.offer(spec) for _ in range(1 if point == "release.sent" else TASKS)]
    if point == "recovery.decided":
        with node.run("start.handle.journalled") as process:
            await until(lambda: process.poll() is not None, "killed at first")
    with node.run(point) as process:
        await killed_at(point, process, is_running=lambda: bool(_ours(engine, node.folder)))
    await come_back(market, node, tasks)
    doubles = [key for key, times in _starts(engine, since).items() if times > 1]
    assert not doubles, f"started twice: {doubles}"


def _starts(engine: PrivateDockerd, since: int) -> dict[str, int]:
    """Return how often each execution's container was started."""
    wanted = quote(json.dumps({"event": ["start"], "type": ["container"]}))
    _, answer = engine.call("GET", f"/events?since={since}&until={int(time.time()) + 1}&filters={wanted}")
    found: dict[str, int] = {}
    for line in answer.splitlines():
        key = json.loads(line)["Actor"]["Attributes"].get("network.parity.execution")
        if key:
            found[key] = found.get(key, 0) + 1
    return found


def _ours(engine: PrivateDockerd, folder: Path) -> list[str]:
    """Return the containers of the node whose executions lie below ``folder``."""
    names = {path.name for path in (folder / "exec").glob("*/*")}
    _, answer = engine.call("GET", "/containers/json?all=1")
    return [each["Id"] for each in json.loads(answer) if each["Labels"].get("network.parity.execution") in names]


async def _left(folder: Path, engine: PrivateDockerd) -> int:
    """Return how many containers stay; an engine under load goes on with what a killed node asked of it."""
    for _ in range(ENGINE_TRIES):
        if not _alive(folder, engine):
            break
        await anyio.sleep(ENGINE_PAUSE_S)
    return _alive(folder, engine)


def _alive(folder: Path, engine: PrivateDockerd) -> int:
    """Return how many containers there are of the nodes whose executions lay below ``folder``."""
    nodes = {path.name for path in (folder / "exec").iterdir()}
    _, answer = engine.call("GET", "/containers/json?all=1")
    return sum(each["Labels"].get("network.parity.node", "")[:16] in nodes for each in json.loads(answer))
