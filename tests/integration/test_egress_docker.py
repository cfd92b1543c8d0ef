"""Egress in real containers: a sidecar with loopback only, a task beside it, the node's proxy behind both."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import socket
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import anyio
import pytest

from parity_node.executors.base import Handle, Job, Limits
from parity_node.executors.docker.engine import Engine
from parity_node.executors.docker.executor import DockerExecutor, DockerOptions
from parity_node.executors.docker.orphans import remove_orphans
from parity_node.executors.docker.profile import seccomp_profile
from parity_node.executors.docker.request import ContainerRequest
from parity_node.executors.docker.streams import OutputStream, wait_ended
from parity_node.executors.egress import EgressProxy
from parity_node.executors.egress.sidecar import ContainerEgress
from parity_node.executors.log_file import LogFile
from parity_node.executors.process import Identity
from parity_node.executors.sandbox.host_python import StagedPython, stage_python
from parity_node.testing.dockerd import PrivateDockerd
from parity_node.testing.inputs import StaticInputs
from parity_protocol.clock import SystemClock
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.needs import Egress, Requirements
from parity_protocol.report import Outcome
from parity_protocol.task import DockerSpec, IsolationTier

pytestmark = [pytest.mark.service("docker"), pytest.mark.root]

WHO = {"node": "n1", "boot": "b1"}
PYTHON = PurePosixPath("/python")

# A static busybox cannot look up names without the C library's files: a task here is this machine's own Python.
PRELUDE = """
import os, socket, time
def open_to(host, port):
    s = socket.socket()
    s.settimeout(20)
    s.connect((host, port))
    return s
def ask(host):
    s = open_to("127.0.0.1", 3128)
    s.sendall(f"GET http://{host}/ HTTP/1.1\\r\\n\\r\\n".encode())
    data = b""
    while more := s.recv(4096):
        data += more
    head, _, body = data.partition(b"\\r\\n\\r\\n")
    print(head.split(b"\\r\\n")[0].decode(), "|", body.decode().strip(), flush=True)
def reach(host, port):
    try:
        open_to(host, port)
    except OSError as exc:
        print(type(exc).__name__, exc.errno, flush=True)
"""


@pytest.fixture(scope="module")
def dockerd() -> Iterator[PrivateDockerd]:
    with PrivateDockerd.start() as started:
        yield started


@pytest.fixture(scope="module")
def busybox(dockerd: PrivateDockerd) -> str:
    return dockerd.import_busybox("parity-test/busybox:1")


@pytest.fixture(scope="module")
def workplace() -> Iterator[Path]:
    # Longer than a Unix socket's name may be, as a state folder below a deep home can be.
    with TemporaryDirectory(prefix="parity-egress-") as folder:
        deep = Path(folder) / ("d" * 60) / ("e" * 60)
        deep.mkdir(parents=True)
        Path(folder).chmod(0o700)
        yield deep


@pytest.fixture(scope="module")
def python(workplace: Path) -> StagedPython:
    folder = workplace / "python"
    folder.mkdir(mode=0o755)
    return stage_python(folder)


@pytest.fixture
async def engine(dockerd: PrivateDockerd) -> AsyncIterator[Engine]:
    made = Engine(dockerd.socket, timeout_s=30)
    yield made
    await made.close()


class Granted:
    """An execution with a grant: its folder, its proxy, its sidecar."""

    def __init__(self, engine: Engine, workplace: Path, image: str, python: StagedPython, *domains: str) -> None:
        self.name = str(uuid.uuid4())
        self.folder = workplace / self.name
        self.folder.mkdir(mode=0o700)
        self.sidecar = ""
        self._engine = engine
        self._image = image
        self._python = python
        self._egress = Egress(domains=domains)
        self.egress = self._new_egress()
        self.proxy = self.resume()

    def _new_egress(self) -> ContainerEgress:
        async def resolver(_host: str, _port: int) -> Sequence[str]:
            return ["127.0.0.1"]

        return ContainerEgress(
            self._engine,
            workplace=self.folder.parent,
            seccomp=seccomp_profile(),
            clock=SystemClock(),
            resolver=resolver,
            allow=lambda address: address == "127.0.0.1",
        )

    def resume(self) -> EgressProxy:
        return self.egress.resume(self._egress, folder=self.folder, execution_id=self.name)

    async def start(self) -> None:
        self.proxy, self.sidecar = await self.egress.begin(
            self._egress, folder=self.folder, execution_id=self.name, labels={**WHO, "execution": self.name}
        )

    async def restart_node(self) -> None:
        await self.egress.aclose()
        self.egress = self._new_egress()
        self.proxy = self.resume()

    async def begin(self, script: str) -> tuple[str, LogFile, asyncio.Task[None]]:
        """Start the task's container; return it, its log and the copying of it."""
        request = ContainerRequest(
            image=self._image,
            user=Identity(65_534, 65_534),
            cpus=1,
            memory_bytes=64 << 20,
            pids=32,
            scratch_bytes=1 << 20,
            file_bytes=1 << 20,
            log_bytes=1 << 20,
            labels=WHO,
            entrypoint=tuple(self._python.argv(PYTHON, ["-c", PRELUDE + script])),
            env=self.proxy.env(),
            readonly=((self._python.folder, str(PYTHON)),),
            network_of=self.sidecar,
        )
        container = await self._engine.create(request, name=f"task-{uuid.uuid4().hex}", seccomp=seccomp_profile())
        stream = await OutputStream.attach(self._engine.socket, container, timeout_s=30)
        log = LogFile(self.folder / f"{container[:12]}.log", 1 << 20)

        async def copy() -> None:
            try:
                await stream.copy(log)
            finally:
                stream.close()

        copying = asyncio.create_task(copy())
        await self._engine.start(container)
        return container, log, copying

    async def end(self, container: str, log: LogFile, copying: asyncio.Task[None]) -> str:
        """Wait for a task's container and return what it printed."""
        with anyio.fail_after(40):
            await wait_ended(self._engine.socket, container, timeout_s=30)
            await copying
        log.close()
        await self._engine.remove(container)
        return (self.folder / f"{container[:12]}.log").read_text()

    async def prints(self, script: str) -> str:
        return await self.end(*await self.begin(script))


@pytest.fixture(scope="module")
def python_image(dockerd: PrivateDockerd, python: StagedPython) -> str:
    """Return the name of an image that holds this machine's Python."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.add(python.folder, arcname=PYTHON.name)
    dockerd.import_tar("parity-test/python:1", data.getvalue())
    return "parity-test/python:1"


class Node:
    """The executor of a node, and of the same node started again."""

    def __init__(self, dockerd: PrivateDockerd, exec_dir: Path, image: str, python: StagedPython) -> None:
        self._dockerd = dockerd
        self._exec_dir = exec_dir
        self._image = image
        self._python = python
        self.refused: list[str] = []  # rules
        self.executor = self._start()

    def _start(self) -> DockerExecutor:
        return DockerExecutor(
            exec_dir=self._exec_dir,
            inputs=StaticInputs(),
            clock=SystemClock(),
            node_id="0xegress",
            options=DockerOptions(timeout_s=20.0, floor_bytes=0, local_images=("parity-test/*",)),
            environ={"DOCKER_HOST": self._dockerd.url},
            on_egress_refused=self.refused.append,
        )

    async def start(self, script: str, *domains: str, tier: IsolationTier = IsolationTier.NONE) -> Handle:
        spec = DockerSpec(
            image=self._image,
            entrypoint=tuple(self._python.argv(PYTHON, ["-c", PRELUDE + script])),
            egress=Egress(domains=domains),
        )
        # As an operator's policy raises the tier of a task that asked for less (``admission.narrowed``).
        spec = spec.model_copy(update={"requires": Requirements(isolation=tier)})
        folder = self._exec_dir / str(uuid.uuid4())
        folder.mkdir(mode=0o700)
        limits = Limits(wall_time_s=60, cpus=1, memory_bytes=128 << 20, disk_bytes=8 << 20, pids=32)
        job = Job(folder.name, "t", "l", 1, spec, 0, 1, None, folder, limits)
        return await self.executor.start(await self.executor.prepare(job))

    async def restart(self, handle: Handle) -> bool:
        await self.executor.aclose()
        self.executor = self._start()
        return await self.executor.recover(handle)


@pytest.fixture
async def node(
    dockerd: PrivateDockerd, workplace: Path, python_image: str, python: StagedPython, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Node]:
    async def resolver(_host: str, _port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    to_loopback = partial(ContainerEgress, resolver=resolver, allow=lambda address: address == "127.0.0.1")
    monkeypatch.setattr("parity_node.executors.docker.executor.ContainerEgress", to_loopback)
    exec_dir = workplace / f"exec-{uuid.uuid4().hex[:8]}"
    exec_dir.mkdir(mode=0o711)
    made = Node(dockerd, exec_dir, python_image, python)
    yield made
    await made.executor.aclose()
    assert dockerd.containers(label="network.parity.node=0xegress") == []


@pytest.fixture
async def granted(
    engine: Engine, workplace: Path, busybox: str, python: StagedPython, web: int
) -> AsyncIterator[Granted]:
    made = Granted(engine, workplace, busybox, python, f"example.org:{web}")
    try:
        await made.start()
        yield made
    finally:
        await made.egress.end(made.name)


@pytest.fixture
async def web() -> AsyncIterator[int]:
    async with _web() as port:
        yield port


@asynccontextmanager
async def _web() -> AsyncIterator[int]:
    """Serve a greeting on the loopback of this machine, where no container's network leads."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_a_container_reaches_the_granted_host_and_no_other(granted: Granted, web: int) -> None:
    hosts = [f"example.org:{web}", f"example.net:{web}", f"10.0.0.1:{web}", "169.254.169.254"]

    said = await granted.prints("".join(f"ask({host!r})\n" for host in hosts) + "print(os.environ['https_proxy'])")

    lines = said.splitlines()
    assert lines[0] == "HTTP/1.1 200 OK | hello"
    assert [line.partition(" | ")[0] for line in lines[1:4]] == ["HTTP/1.1 403 Forbidden"] * 3
    assert lines[4] == "http://127.0.0.1:3128"
    assert [line.partition(": ")[0] for line in granted.proxy.refusals.decode().splitlines()] == [
        *("E-EGRESS example.net", "E-EGRESS 10.0.0.1", "E-EGRESS 169.254.169.254"),
    ]


async def test_past_the_proxy_there_is_nothing_and_it_fails_at_once(granted: Granted, web: int) -> None:
    targets = [("127.0.0.1", web), ("10.0.0.1", 80), ("1.1.1.1", 443), ("169.254.169.254", 80), ("example.org", 443)]

    said = await granted.prints(
        "began = time.monotonic()\n"
        + "".join(f"reach{target}\n" for target in targets)
        + "print(time.monotonic() - began < 3)\n"
        "print([line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line])\n"
        "print(open('/proc/net/route').read().count('\\n'))\n"
    )

    # The first is the container's own loopback, not this machine's.
    assert said.splitlines() == [
        f"ConnectionRefusedError {errno.ECONNREFUSED}",
        *[f"OSError {errno.ENETUNREACH}"] * 3,
        f"gaierror {socket.EAI_AGAIN}",
        "True",
        "['lo']",
        "1",  # the heading
    ]


async def test_a_task_goes_on_with_the_proxy_of_a_restarted_node(granted: Granted, web: int) -> None:
    running = await granted.begin(f"ask('example.org:{web}')\ntime.sleep(1)\nask('example.org:{web}')\n")
    with anyio.fail_after(20):
        while granted.proxy.bytes_used < 100:  # noqa: ASYNC110 - another program's doing
            await anyio.sleep(0.02)
    used = granted.proxy.bytes_used

    await granted.restart_node()
    assert await granted.proxy.attached(10)

    assert await granted.end(*running) == "HTTP/1.1 200 OK | hello\n" * 2
    assert granted.proxy.bytes_used > used


async def test_a_sidecar_is_confined_as_a_task_is(granted: Granted, dockerd: PrivateDockerd) -> None:
    status, answer = dockerd.call("GET", f"/containers/{granted.sidecar}/json")

    found = json.loads(answer)
    host = found["HostConfig"]
    assert status == 200
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"]) == ("none", True, ["ALL"])
    assert found["Config"]["User"] == "65534:65534"
    assert all(not mount["RW"] for mount in found["Mounts"] if mount["Type"] == "bind")
    assert found["Config"]["Labels"]["network.parity.execution"] == granted.name
    assert found["Config"]["Labels"]["network.parity.node"] == "n1"


async def test_a_sidecar_that_an_earlier_try_left_is_replaced(
    granted: Granted, dockerd: PrivateDockerd, web: int
) -> None:
    earlier = granted.sidecar

    await granted.start()
    said = await granted.prints(f"ask('example.org:{web}')")

    assert said == "HTTP/1.1 200 OK | hello\n"
    assert granted.sidecar != earlier
    assert earlier not in dockerd.containers()


async def test_a_sidecar_never_starts_in_an_image_that_somebody_else_gave_its_name(
    granted: Granted, dockerd: PrivateDockerd, web: int
) -> None:
    strangers = dockerd.import_busybox("parity/egress:1")

    await granted.start()
    said = await granted.prints(f"ask('example.org:{web}')")
    _, answer = dockerd.call("GET", f"/containers/{granted.sidecar}/json")

    assert said == "HTTP/1.1 200 OK | hello\n"
    assert json.loads(answer)["Image"] != strangers


async def test_the_sidecars_image_is_made_once(granted: Granted, dockerd: PrivateDockerd) -> None:
    images = [dockerd.call("GET", "/images/parity/egress:1/json")[1]]

    await granted.start()

    images.append(dockerd.call("GET", "/images/parity/egress:1/json")[1])
    assert images[0] == images[1]


async def test_a_sidecar_whose_execution_is_gone_is_removed_as_an_orphan(
    engine: Engine, granted: Granted, dockerd: PrivateDockerd
) -> None:
    kept = await remove_orphans(engine, WHO["node"], granted.folder.parent)
    granted.folder.rename(granted.folder.with_name("gone"))
    removed = await remove_orphans(engine, WHO["node"], granted.folder.parent)
    granted.folder.with_name("gone").rename(granted.folder)

    assert (kept, removed) == (0, 1)
    assert granted.sidecar not in dockerd.containers()


async def test_nothing_is_left_of_a_sidecar_that_was_removed(granted: Granted, dockerd: PrivateDockerd) -> None:
    await granted.egress.end(granted.name)
    await granted.egress.end(granted.name)

    assert granted.sidecar not in dockerd.containers()


async def test_a_docker_task_reaches_its_host_and_its_result_says_what_was_refused(node: Node, web: int) -> None:
    handle = await node.start(f"ask('example.org:{web}')\nask('example.net:{web}')\n", f"example.org:{web}")
    try:
        result = await node.executor.wait(handle)
    finally:
        await node.executor.cleanup(handle)

    assert result.outcome is Outcome.SUCCEEDED, result.message
    assert result.result_bytes is not None
    lines = result.result_bytes.decode().splitlines()
    assert [line.partition(" |")[0] for line in lines[:2]] == ["HTTP/1.1 200 OK", "HTTP/1.1 403 Forbidden"]
    assert lines[-1].startswith("E-EGRESS example.net: ")
    assert node.refused == ["egress.domains"]
    assert 100 / (1 << 30) < result.metrics["network_data_gb"] < 1000 / (1 << 30)


async def test_a_docker_task_that_its_restarted_node_takes_up_still_reaches_its_host(node: Node, web: int) -> None:
    handle = await node.start(
        f"ask('example.net:{web}')\nask('example.org:{web}')\ntime.sleep(1.5)\nask('example.org:{web}')\n",
        f"example.org:{web}",
    )
    try:
        waiting = asyncio.create_task(node.executor.wait(handle))
        with anyio.fail_after(20):
            while b"200 OK" not in await node.executor.logs(handle, 0):  # noqa: ASYNC110 - another program's doing
                await anyio.sleep(0.02)
        waiting.cancel()
        await asyncio.wait([waiting])
        is_taken_up = await node.restart(handle)
        result = await node.executor.wait(handle)
    finally:
        await node.executor.cleanup(handle)

    assert is_taken_up
    assert result.outcome is Outcome.SUCCEEDED, result.message
    assert result.result_bytes is not None
    assert result.result_bytes.count(b"HTTP/1.1 200 OK") == 2
    assert result.result_bytes.count(b"E-EGRESS example.net: ") == 2  # the answer that it got, and the line
    assert result.metrics["network_data_gb"] > 200 / (1 << 30)  # of both connections


async def test_a_grant_in_gvisor_is_refused_rather_than_given_in_another_runtime(node: Node) -> None:
    with pytest.raises(ExecutionFailed, match="gVisor") as caught:
        await node.start("", "example.org", tier=IsolationTier.GVISOR)

    assert caught.value.reason is FailureReason.SPEC_INVALID
