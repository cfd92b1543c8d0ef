"""A8: ninety attempts to escape from bubblewrap, Docker and gVisor; and sandboxes weakened on purpose, which must be caught."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import JsonValue

from parity_node.doctor import FindingResult, examine_sandboxes
from parity_node.executors.base import Job
from parity_node.executors.command import CommandExecutor
from parity_node.executors.docker import probe as docker_probe
from parity_node.executors.docker.engine import Engine
from parity_node.executors.docker.probe import prove_docker
from parity_node.executors.docker.request import ContainerRequest
from parity_node.executors.process import Identity
from parity_node.executors.sandbox import launch, tier
from parity_node.executors.sandbox.drop import slot_identity
from parity_node.executors.sandbox.probes import ProbeReport, ProbeResult
from parity_node.executors.sandbox.tier import INPUT_NAME, PROBE_LIMITS, ProbeRunner, prove, prove_bwrap
from parity_node.settings import NodeSettings
from parity_node.testing.dockerd import PrivateDockerd
from parity_node.testing.inputs import StaticInputs
from parity_protocol.clock import SystemClock
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.isolation import IsolationTier
from parity_protocol.task import CommandSpec

SYSTEM_PYTHON = Path("/usr/bin/python3")
LEAST_ATTEMPTS = 40  # A8
ALLOW_EVERYTHING = b"\x06\x00\x00\x00\x00\x00\xff\x7f"  # return SECCOMP_RET_ALLOW


@pytest.fixture
def workplace() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="parity-exec-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def dockerd() -> Iterator[PrivateDockerd]:
    with PrivateDockerd() as engine:
        yield engine


@pytest.fixture
async def engine(dockerd: PrivateDockerd) -> AsyncIterator[Engine]:
    found = Engine(dockerd.socket, timeout_s=30.0)
    yield found
    await found.close()


def escapes(report: ProbeReport) -> set[str]:
    return {each.id for each in report.probes if each.result is ProbeResult.ESCAPED}


def print_figures(report: ProbeReport) -> None:
    counts = ", ".join(f"{report.count(each)} {each.value}" for each in ProbeResult)
    print(f"A8 {report.sandbox.value}: {len(report.probes)} attempts, {counts}")


# -- what tasks get ------------------------------------------------------------------------------------------------------


@pytest.mark.service("bubblewrap")
async def test_bubblewrap_denies_every_attempt(workplace: Path) -> None:
    report = await prove_bwrap(workplace, hidden=[Path.home() / ".parity"])

    print_figures(report)
    assert report.problem == ""
    assert report.tier is IsolationTier.BWRAP
    assert report.count(ProbeResult.DENIED) >= LEAST_ATTEMPTS
    assert os.listdir(workplace) == []  # noqa: PTH208 - nothing is left


@pytest.mark.root
@pytest.mark.service("bubblewrap")
@pytest.mark.skipif(not SYSTEM_PYTHON.exists(), reason=f"needs {SYSTEM_PYTHON}")
def test_an_ordinary_user_proves_the_same(workplace: Path) -> None:
    workplace.chmod(0o777)
    program = (
        "import asyncio, sys; from pathlib import Path\n"
        "from parity_node.executors.sandbox.tier import prove_bwrap\n"
        "report = asyncio.run(prove_bwrap(Path(sys.argv[1])))\n"
        "print(report.tier.value, report.problem)"
    )

    answer = subprocess.run(
        [str(SYSTEM_PYTHON), "-B", "-c", program, str(workplace)],
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
        cwd="/",
        user=65_533,
        group=65_533,
        extra_groups=(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert answer.stdout.strip() == "bwrap", answer.stdout + answer.stderr


@pytest.mark.root
@pytest.mark.service("docker")
async def test_docker_denies_every_attempt(engine: Engine, workplace: Path) -> None:
    report = await prove_docker(engine, workplace)

    print_figures(report)
    assert report.problem == ""
    assert report.tier is IsolationTier.DOCKER
    assert report.count(ProbeResult.DENIED) >= LEAST_ATTEMPTS
    assert await engine.containers(**{docker_probe.PROBE_LABEL: "true"}) == {}


@pytest.mark.root
@pytest.mark.service("docker", "runsc")
async def test_gvisor_denies_every_attempt_that_could_reach_this_machine(engine: Engine, workplace: Path) -> None:
    report = await prove_docker(engine, workplace, runtime="runsc")

    print_figures(report)
    assert report.problem == ""
    assert report.tier is IsolationTier.GVISOR
    assert report.count(ProbeResult.DENIED) >= LEAST_ATTEMPTS
    unclear = {each.cause for each in report.probes if each.result is ProbeResult.NOT_APPLICABLE}
    assert all("own kernel" in cause or "no setuid program" in cause for cause in unclear), unclear


@pytest.mark.root
@pytest.mark.service("docker", "runsc", "bubblewrap")
async def test_the_doctor_proves_every_sandbox_at_once(
    dockerd: PrivateDockerd, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", dockerd.url)
    settings = NodeSettings(runner_state_dir=workplace / "node", runner_exec_dir=workplace, runner_shell_enabled=True)

    found = await examine_sandboxes(settings)

    results = {each.id: each.result for each in found.findings}
    assert found.proven == (IsolationTier.BWRAP, IsolationTier.DOCKER, IsolationTier.GVISOR)
    assert results["docker.engine"] is FindingResult.OK
    assert {results[f"isolation.{tier.value}"] for tier in found.proven} == {FindingResult.OK}


async def test_the_doctor_says_when_an_engine_that_was_named_is_not_there(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{workplace}/docker.sock")
    settings = NodeSettings(runner_state_dir=workplace / "node", runner_exec_dir=workplace)

    found = {each.id: each for each in (await examine_sandboxes(settings)).findings}

    assert found["docker.engine"].result is FindingResult.FAIL
    assert found["docker.engine"].fix
    assert "isolation.docker" not in found


# -- what they must never get: the attempts find it ------------------------------------------------------------------------


@pytest.mark.service("bubblewrap")
async def test_a_sandbox_that_shares_everything_is_caught(workplace: Path) -> None:
    identity = slot_identity(0)

    async def run(program: Path, argv: Sequence[str]) -> bytes:
        place = f"/tmp/{INPUT_NAME}"
        words = ["bwrap", "--bind", "/", "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
        return await output_of([*words, "--ro-bind", str(program), place, "--", *argv], identity)

    runner = ProbeRunner(IsolationTier.BWRAP, "/tmp", run, frozenset(), identity=identity)

    report = await prove(runner, workplace)

    assert report.tier is IsolationTier.NONE
    assert {
        *("net.host_loopback", "net.abstract_socket", "proc.other_processes", "proc.signal_node", "socket.netlink"),
        *("kernel.io_uring", "kernel.keyctl", "identity.filter", "identity.environment"),
    } <= escapes(report)


@pytest.mark.service("bubblewrap")
async def test_bubblewrap_without_its_filter_is_caught(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "seccomp_filter", lambda _architecture: ALLOW_EVERYTHING)

    report = await prove_bwrap(workplace)

    found = escapes(report)
    assert report.tier is IsolationTier.NONE
    assert {"socket.netlink", "kernel.keyctl", "kernel.io_uring", "proc.trace_child"} <= found
    assert not {name for name in found if name.startswith(("file.", "net.", "device."))}


@pytest.mark.service("bubblewrap")
@pytest.mark.parametrize(
    ("hole", "caught"),
    [
        (["--share-net"], {"net.host_loopback"}),  # Landlock keeps abstract sockets closed
        (["--ro-bind", "WORKPLACE", "WORKPLACE"], {"file.node_folder", "file.node_keys"}),
        (["--bind", "/proc", "/proc"], {"proc.other_processes"}),
        (["--dev-bind", "/dev/zero", "/dev/kmsg"], {"device.kmsg"}),
        (["--setenv", "OPERATORS_SECRET", "x"], {"identity.environment"}),
        (["--cap-add", "CAP_SYS_PTRACE"], {"identity.capabilities"}),
    ],
    ids=["network", "folder", "processes", "device", "variable", "capability"],
)
async def test_one_hole_in_bubblewrap_is_caught_by_its_name(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, hole: list[str], caught: set[str]
) -> None:
    whole = launch.bwrap_options

    def with_hole(*arguments: Any, **members: Any) -> list[str]:
        options = whole(*arguments, **members)
        closed = [at for at, word in enumerate(options) if word == "--remount-ro"]  # /dev first, the root folder last
        at = closed[0] if "/dev/kmsg" in hole else closed[-1]
        return [*options[:at], *(each.replace("WORKPLACE", str(workplace)) for each in hole), *options[at:]]

    monkeypatch.setattr(launch, "bwrap_options", with_hole)

    report = await prove_bwrap(workplace)

    assert report.tier is IsolationTier.NONE, report
    assert caught <= escapes(report), report.problem


@dataclass(frozen=True, slots=True)
class Privileged(ContainerRequest):
    """What an operator in despair would start."""

    socket: ClassVar[str] = ""

    def body(self, seccomp: str) -> dict[str, JsonValue]:
        body = ContainerRequest.body(self, seccomp)
        host = body["HostConfig"]
        assert isinstance(host, dict)
        host.update(
            NetworkMode="host",
            PidMode="host",
            CapDrop=None,
            CapAdd=[
                "SYS_ADMIN",
                "SYS_PTRACE",
                "NET_RAW",
                "MKNOD",
            ],  # all of them may be more than this machine's root has
            SecurityOpt=["seccomp=unconfined"],
            ReadonlyRootfs=False,
            MaskedPaths=[],
            ReadonlyPaths=[],
        )
        mounts = host["Mounts"]
        assert isinstance(mounts, list)
        mounts.append({"Type": "bind", "Source": self.socket, "Target": "/var/run/docker.sock"})
        body.pop("Hostname", None)
        return {**body, "User": "0:0"}


@pytest.mark.root
@pytest.mark.service("docker")
async def test_a_privileged_container_is_caught(
    engine: Engine, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_probe, "ContainerRequest", Privileged)
    monkeypatch.setattr(Privileged, "socket", str(engine.socket))

    report = await prove_docker(engine, workplace, user=Identity(0, 0))

    assert report.tier is IsolationTier.NONE, report.problem
    assert report.probes, report.problem
    assert {
        *("proc.core_pattern", "proc.signal_node", "proc.other_processes", "net.host_loopback", "net.abstract_socket"),
        *("kernel.mount", "kernel.user_namespace", "kernel.io_uring", "identity.root", "identity.capabilities"),
        *("identity.new_privileges", "identity.filter", "file.engine_socket", "socket.packet", "socket.raw"),
    } <= escapes(report)


@pytest.mark.root
@pytest.mark.service("docker")
@pytest.mark.parametrize(
    ("hole", "caught"),
    [
        ({"NetworkMode": "host"}, {"net.host_loopback", "net.abstract_socket", "net.interfaces"}),
        ({"PidMode": "host"}, {"proc.other_processes", "proc.signal_node"}),
        ({"SecurityOpt": ["seccomp=unconfined"]}, {"identity.new_privileges", "identity.filter"}),
        ({"SecurityOpt": ["no-new-privileges:true", "seccomp=unconfined"]}, {"identity.filter", "kernel.io_uring"}),
        ({"Binds": ["SOCKET:/run/docker.sock"]}, {"file.engine_socket"}),
        ({"Binds": ["WORKPLACE:WORKPLACE:ro"]}, {"file.node_folder", "file.node_keys"}),
    ],
    ids=["network", "processes", "new-privileges", "filter", "socket", "folder"],
)
async def test_one_hole_in_a_container_is_caught_by_its_name(
    engine: Engine, workplace: Path, monkeypatch: pytest.MonkeyPatch, hole: dict[str, Any], caught: set[str]
) -> None:
    class WithHole(ContainerRequest):
        def body(self, seccomp: str) -> dict[str, JsonValue]:
            body = ContainerRequest.body(self, seccomp)
            host = body["HostConfig"]
            assert isinstance(host, dict)
            for name, value in hole.items():
                words = {"OURS": seccomp, "SOCKET": str(engine.socket), "WORKPLACE": str(workplace)}
                host[name] = [filled(each, words) for each in value] if isinstance(value, list) else value
            if hole.get("NetworkMode") == "host":
                body.pop("Hostname")
            return body

    monkeypatch.setattr(docker_probe, "ContainerRequest", WithHole)
    engine.socket.chmod(0o666)  # so that it is not its permissions that keep a task away

    report = await prove_docker(engine, workplace)

    assert report.tier is IsolationTier.NONE, report
    assert caught <= escapes(report), report.problem


def filled(text: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        text = text.replace(name, value)
    return text


@pytest.mark.root
@pytest.mark.service("docker")
async def test_docker_with_its_own_profile_is_caught(
    engine: Engine, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OwnProfile(ContainerRequest):
        def body(self, seccomp: str) -> dict[str, JsonValue]:
            body = ContainerRequest.body(self, seccomp)
            host = body["HostConfig"]
            assert isinstance(host, dict)
            host["SecurityOpt"] = ["no-new-privileges:true"]
            return body

    monkeypatch.setattr(docker_probe, "ContainerRequest", OwnProfile)

    report = await prove_docker(engine, workplace)

    assert report.tier is IsolationTier.NONE
    assert "socket.netlink" in escapes(report)
    assert not {name for name in escapes(report) if name.startswith(("file.", "net.", "device."))}


@pytest.mark.root
@pytest.mark.service("docker")
async def test_runc_does_not_pass_for_gvisor(engine: Engine, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fallen(ContainerRequest):
        def body(self, seccomp: str) -> dict[str, JsonValue]:
            body = ContainerRequest.body(self, seccomp)
            host = body["HostConfig"]
            assert isinstance(host, dict)
            host["Runtime"] = "runc"
            return body

    monkeypatch.setattr(docker_probe, "ContainerRequest", Fallen)

    report = await prove_docker(engine, workplace, runtime="runsc")

    assert report.tier is IsolationTier.NONE
    assert "no kernel of its own" in report.problem


@pytest.mark.root
@pytest.mark.service("docker")
async def test_a_runtime_that_the_engine_lacks_proves_nothing(engine: Engine, workplace: Path) -> None:
    report = await prove_docker(engine, workplace, runtime="no-such-runtime")  # type: ignore[arg-type]

    assert report.tier is IsolationTier.NONE
    assert "no-such-runtime" in report.problem


async def test_an_engine_that_is_not_there_proves_nothing(workplace: Path) -> None:
    report = await prove_docker(Engine(workplace / "docker.sock", timeout_s=1.0), workplace)

    assert report.tier is IsolationTier.NONE
    assert "no Docker engine" in report.problem


# -- nothing falls back ---------------------------------------------------------------------------------------------------


@pytest.mark.service("bubblewrap")
async def test_commands_are_refused_where_an_attempt_escaped(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "seccomp_filter", lambda _architecture: ALLOW_EVERYTHING)
    executor = CommandExecutor(exec_dir=workplace, inputs=StaticInputs(), clock=SystemClock(), enabled=True)
    spec = CommandSpec(command=("true",))
    folder = workplace / "job"
    folder.mkdir()

    state = await executor.describe()

    assert not state.available
    assert state.isolation is IsolationTier.NONE
    assert "socket.netlink" in state.reason or "kernel." in state.reason or "proc." in state.reason
    with pytest.raises(ExecutionFailed, match="commands cannot run here"):
        await executor.prepare(Job("j", "t", "l", 1, spec, 0, 1, None, folder, PROBE_LIMITS))


def runner_that(run: Callable[[Path, Sequence[str]], Awaitable[bytes]]) -> ProbeRunner:
    return ProbeRunner(IsolationTier.BWRAP, "/inputs", run, frozenset())


async def test_a_sandbox_that_cannot_start_proves_nothing_and_leaves_nothing(workplace: Path) -> None:
    async def run(*_: object) -> bytes:
        raise ExecutionFailed(FailureReason.SANDBOX_FAILED, "no namespaces")

    report = await prove(runner_that(run), workplace)

    assert (report.tier, report.problem) == (IsolationTier.NONE, "no namespaces")
    assert os.listdir(workplace) == []  # noqa: PTH208


async def test_a_sandbox_that_hangs_is_given_up(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier, "_PROVE_S", 0.5)

    async def run(*_: object) -> bytes:
        await asyncio.Event().wait()
        return b""

    report = await prove(runner_that(run), workplace)

    assert report.tier is IsolationTier.NONE
    assert "did not end within" in report.problem
    assert os.listdir(workplace) == []  # noqa: PTH208


async def test_without_a_folder_nothing_is_proven(workplace: Path) -> None:
    report = await prove_bwrap(workplace / "missing")

    assert report.tier is IsolationTier.NONE
    assert "cannot use" in report.problem


async def output_of(argv: Sequence[str], identity: Identity | None) -> bytes:
    user = {} if identity is None else {"user": identity.uid, "group": identity.gid, "extra_groups": ()}
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={"SECRET": "x"}, **user
    )
    said, _ = await process.communicate()
    return said
