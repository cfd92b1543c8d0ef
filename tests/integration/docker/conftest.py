"""One private engine for the tests of a module, with a small image."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest

from parity_node.executors.base import ExecutionResult, Handle, Job, Limits
from parity_node.executors.docker.executor import DockerExecutor, DockerOptions
from parity_node.testing.dockerd import PrivateDockerd
from parity_node.testing.inputs import StaticInputs
from parity_protocol.clock import SystemClock
from parity_protocol.report import Outcome
from parity_protocol.task import DockerSpec

BUSYBOX = "parity-test/busybox:1"
LIMITS = Limits(wall_time_s=30, cpus=1, memory_bytes=128 << 20, disk_bytes=16 << 20, pids=32)


@pytest.fixture(scope="module")
def engine(service_path: Callable[[str], Path]) -> Iterator[PrivateDockerd]:
    if os.geteuid() != 0:
        pytest.skip("needs uid 0")
    for name in ("docker", "busybox"):
        service_path(name)
    with PrivateDockerd.start() as found:
        found.import_busybox(BUSYBOX)
        yield found


@pytest.fixture(scope="module")
def exec_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="pdx-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@dataclass
class Runner:
    """An executor and what tests ask of it."""

    executor: DockerExecutor
    exec_dir: Path
    inputs: StaticInputs
    engine: PrivateDockerd
    node_id: str

    def job(self, spec: DockerSpec, *, slot: int = 0, **limits: float) -> Job:
        name = str(uuid.uuid4())
        folder = self.exec_dir / name
        folder.mkdir(mode=0o700)
        return Job(name, name, name, 1, spec, 0, 1, None, folder, replace(LIMITS, **limits), slot)  # type: ignore[arg-type]

    async def start(self, spec: DockerSpec, *, slot: int = 0, **limits: float) -> Handle:
        return await self.executor.start(await self.executor.prepare(self.job(spec, slot=slot, **limits)))

    async def run(
        self, script: str, *, slot: int = 0, limits: dict[str, float] | None = None, **members: object
    ) -> ExecutionResult:
        handle = await self.start(shell(script, **members), slot=slot, **(limits or {}))
        try:
            return await self.executor.wait(handle)
        finally:
            with anyio.CancelScope(shield=True):
                await self.executor.cleanup(handle)

    async def printed(self, script: str, **members: object) -> str:
        """Run a script and return what it printed; it must end well."""
        return self.output(await self.run(script, **members))

    @staticmethod
    def output(result: ExecutionResult) -> str:
        assert result.outcome is Outcome.SUCCEEDED, f"{result.reason}: {result.message}"
        assert result.result_bytes is not None
        return result.result_bytes.decode()

    @staticmethod
    def shell(script: str, **members: object) -> DockerSpec:
        return shell(script, **members)

    def again(self) -> DockerExecutor:
        """Return the executor of a node that was started again."""
        return make_executor(self.engine, self.exec_dir, self.inputs, self.node_id)


def make_executor(
    engine: PrivateDockerd, exec_dir: Path, inputs: StaticInputs, node_id: str, **options: object
) -> DockerExecutor:
    return DockerExecutor(
        exec_dir=exec_dir,
        inputs=inputs,
        clock=SystemClock(),
        node_id=node_id,
        options=DockerOptions(timeout_s=20.0, floor_bytes=0, local_images=("parity-test/*",), **options),  # type: ignore[arg-type]
        environ={"DOCKER_HOST": engine.url},
    )


def shell(script: str, **members: object) -> DockerSpec:
    return DockerSpec(image=BUSYBOX, command=("sh", "-c", script), **members)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
async def module_runner(engine: PrivateDockerd, exec_dir: Path) -> AsyncIterator[Runner]:
    """One executor for a module: its trial takes a second."""
    node_id, inputs = f"0x{uuid.uuid4().hex}", StaticInputs()
    found = Runner(make_executor(engine, exec_dir, inputs, node_id), exec_dir, inputs, engine, node_id)
    yield found
    await found.executor.aclose()


@pytest.fixture
def runner(module_runner: Runner) -> Iterator[Runner]:
    yield module_runner
    engine = module_runner.engine
    left = engine.containers(label=f"network.parity.node={module_runner.node_id}")
    for container in left:
        engine.call("DELETE", f"/containers/{container}?force=1&v=1")
    folders = [each for each in module_runner.exec_dir.iterdir() if "egress-python" not in each.name]
    for folder in folders:
        shutil.rmtree(folder)
    assert left == [], "a test left containers"
    assert folders == [], "a test left folders"
