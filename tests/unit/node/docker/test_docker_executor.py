"""The Docker executor where no engine answers, and what of it needs none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from parity_node.executors.base import Handle, Job, Limits
from parity_node.executors.docker.engine import EngineFacts, Image, socket_of
from parity_node.executors.docker.executor import DockerExecutor, DockerOptions
from parity_node.executors.docker.images import _digest, _Progress
from parity_node.executors.docker.job import DockerJob
from parity_node.executors.docker.place import GpuGrants, environment
from parity_node.executors.docker.result import Ending, docker_result, weigh
from parity_node.executors.docker.usage import Counters
from parity_node.executors.folder import JobFolder
from parity_node.executors.log_file import LogFile
from parity_node.testing.inputs import StaticInputs
from parity_protocol.clock import SystemClock
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.report import Outcome
from parity_protocol.task import CommandSpec, DockerSpec

LIMITS = Limits(wall_time_s=10, cpus=1, memory_bytes=64 << 20, disk_bytes=16 << 20, pids=16)


def make(
    folder: Path,
    environ: Mapping[str, str] | None = None,
    watch: Callable[[Path], None] | None = None,
    **options: object,
) -> DockerExecutor:
    return DockerExecutor(
        exec_dir=folder,
        inputs=StaticInputs(),
        clock=SystemClock(),
        node_id="0xnode",
        options=DockerOptions(**options),  # type: ignore[arg-type]
        watch=watch,
        environ=environ if environ is not None else {"DOCKER_HOST": f"unix://{folder}/none.sock"},
    )


async def test_without_an_engine_it_says_so_and_runs_nothing(tmp_path):
    executor = make(tmp_path)
    job = Job("e", "t", "l", 1, DockerSpec(image="busybox"), 0, 1, None, tmp_path, LIMITS)

    state = await executor.describe()

    assert not state.available
    assert "none.sock" in state.reason
    with pytest.raises(ExecutionFailed) as caught:
        await executor.prepare(job)
    assert caught.value.reason is FailureReason.EXECUTOR_UNAVAILABLE


async def test_it_is_off_when_the_operator_says_so(tmp_path):
    state = await make(tmp_path, is_enabled=False).describe()

    assert state.reason == "off by RUNNER_DOCKER_ENABLED=false"


async def test_an_engine_on_another_machine_is_not_used(tmp_path):
    state = await make(tmp_path, {"DOCKER_HOST": "tcp://10.0.0.1:2375"}).describe()

    assert not state.available
    assert "tcp://10.0.0.1:2375" in state.reason


async def test_an_engines_disk_counts_only_where_this_node_can_look_at_it(tmp_path):
    watched: list[Path] = []
    executor = make(tmp_path, watch=watched.append)
    facts = EngineFacts("24.0", "1.43", frozenset(), "cgroupfs", "overlay2", "amd64", tmp_path, False, "")

    await executor._adopt_engine(replace(facts, root=tmp_path / "elsewhere"))
    await executor._adopt_engine(facts)

    assert watched == [tmp_path]


async def test_another_kind_of_task_is_refused(tmp_path):
    job = Job("e", "t", "l", 1, CommandSpec(command=("true",)), 0, 1, None, tmp_path, LIMITS)

    with pytest.raises(ExecutionFailed) as caught:
        await make(tmp_path).prepare(job)
    assert caught.value.reason is FailureReason.SPEC_INVALID


async def test_without_an_engine_there_is_nothing_to_stop_or_to_clean_up(tmp_path):
    folder = tmp_path / "e"
    folder.mkdir()
    handle = Handle("docker", 1, {"execution_id": "e", "folder": str(folder)})
    executor = make(tmp_path)

    await executor.stop(handle)
    await executor.cleanup(handle)

    assert not folder.exists()


def test_the_engines_library_is_not_loaded_before_an_engine_is_opened():
    script = (
        "import sys, parity_node.executors.registry; print([n for n in ('docker', 'requests') if n in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("host", "path"),
    [("", "/var/run/docker.sock"), ("unix:///run/user/1/docker.sock", "/run/user/1/docker.sock"), ("ssh://x", None)],
)
def test_the_socket_is_looked_up_as_the_engines_own_client_does(host, path):
    found, reason = socket_of({"DOCKER_HOST": host})

    assert found == (Path(path) if path else None)
    assert bool(reason) == (path is None)


@pytest.mark.parametrize(
    ("version", "is_refused"),
    [("20.10.24+dfsg1", False), ("20.10.0", False), ("28.2.2", False), ("19.03.15", True), ("dev", True), ("", True)],
)
def test_an_engine_before_20_10_is_refused(version, is_refused):
    facts = EngineFacts(
        version, "1.41", frozenset({"runc"}), "cgroupfs", "overlay2", "amd64", Path("/"), False, "docker-init"
    )

    assert bool(facts.problem) == is_refused


# -- images ----------------------------------------------------------------------------------------------------------


def image(*digests: str) -> Image:
    return Image("sha256:" + "1" * 64, digests, (), (), False, 1, "amd64", "linux", ())


def test_the_receipt_says_the_digest_that_the_registry_has_else_the_id():
    asked, other = "sha256:" + "2" * 64, "sha256:" + "3" * 64

    assert _digest(f"me/tool@{asked}", image()) == asked
    assert _digest("me/tool:1", image(f"you/tool@{other}", f"me/tool@{asked}")) == asked
    assert _digest("tool:1", image(f"docker.io/library/tool@{asked}")) == asked
    assert _digest("me/tool:1", image()) == image().id
    assert _digest("tool:1", image(f"me/tool@{asked}")) == image().id


def progress(folder: Path, **members: int) -> _Progress:
    limits = {"max_bytes": 1_000, "floor_bytes": 0, **members}
    return _Progress(folder / "log", "me/tool:1", root=folder, **limits)


def downloading(layer: str, current: int, total: int) -> dict[str, object]:
    return {"id": layer, "status": "Downloading", "progressDetail": {"current": current, "total": total}}


def test_a_pull_that_would_be_too_large_is_ended_before_it_is(tmp_path):
    found = progress(tmp_path)
    found.take(downloading("a", 1, 600))

    with pytest.raises(ExecutionFailed) as caught:
        found.take(downloading("b", 1, 600))
    assert caught.value.reason is FailureReason.DATA_INVALID


def test_a_pull_that_would_fill_the_disk_is_ended(tmp_path):
    with pytest.raises(ExecutionFailed) as caught:
        progress(tmp_path, floor_bytes=1 << 62).take({"status": "Extracting", "id": "a"})
    assert caught.value.reason is FailureReason.DISK_FULL


def test_a_pull_that_nobody_waits_for_is_ended(tmp_path):
    found = progress(tmp_path)
    found.abandon()

    with pytest.raises(ExecutionFailed):
        found.take(downloading("a", 1, 2))


def test_progress_is_a_bounded_number_of_lines(tmp_path):
    found = progress(tmp_path, max_bytes=1 << 40)
    for at in range(1_000):
        found.take(downloading("a", at, 1_000_000))
    found.done("sha256:1")

    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) <= 3
    assert lines[-1] == "pulled me/tool:1: sha256:1"


# -- devices, environment --------------------------------------------------------------------------------------------


def test_a_gpu_is_held_by_one_execution_at_a_time():
    grants = GpuGrants(("GPU-1", "GPU-2"))

    assert grants.take("a", 1) == ("GPU-1",)
    assert grants.take("b", 1) == ("GPU-2",)
    with pytest.raises(ExecutionFailed, match="0 are free"):
        grants.take("c", 1)
    grants.release("a")
    assert grants.take("c", 1) == ("GPU-1",)


def test_no_gpu_without_a_grant_and_none_for_who_asks_for_none():
    assert GpuGrants(()).take("a", 0) == ()
    with pytest.raises(ExecutionFailed, match="RUNNER_DOCKER_GPUS"):
        GpuGrants(()).take("a", 1)


def test_what_an_earlier_process_gave_is_not_given_again():
    grants = GpuGrants(("GPU-1", "GPU-2"))
    grants.hold("old", ("GPU-1",))

    assert grants.take("new", 1) == ("GPU-2",)


@pytest.mark.parametrize("verb", ["recover", "start"])
async def test_devices_of_an_earlier_process_are_held_before_its_engine_is_found(tmp_path, verb):
    executor = make(tmp_path, gpus=("GPU-1",))
    replace(job(), gpus=("GPU-1",)).write(JobFolder(tmp_path))
    handle = Handle("docker", 1, {"execution_id": "e", "folder": str(tmp_path), "container": "c"})

    with suppress(ExecutionFailed):  # there is no engine
        await getattr(executor, verb)(handle)

    with pytest.raises(ExecutionFailed, match="0 are free"):
        executor._gpus.take("new", 1)


def test_a_home_is_added_only_where_none_is_named():
    assert environment({"A": "1"}, ["PATH=/bin"]) == {"HOME": "/tmp", "A": "1"}
    assert environment({"HOME": "/x"}, []) == {"HOME": "/x"}
    assert environment({"A": "1"}, ["HOME=/root"]) == {"A": "1"}


# -- results ---------------------------------------------------------------------------------------------------------


def job() -> DockerJob:
    return DockerJob(
        execution_id="e", task_id="t", lease_id="l", fence=1, image="sha256:1", environment="sha256:2", entrypoint=None,
        command=(), env={}, workdir="/", volumes=(), inputs=(), max_output_bytes=10, output=None, egress=None, slot=0,
        uid=61_000, gid=61_000, runtime="runc", gpus=(), limits=LIMITS,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"code": 1}, FailureReason.EXIT_STATUS),
        ({"code": 137}, FailureReason.EXIT_STATUS),
        ({"code": 137, "is_oom_killed": True}, FailureReason.OUT_OF_MEMORY),
        ({"code": 0, "is_oom_killed": True}, FailureReason.OUT_OF_MEMORY),
        ({"code": 0, "counters": Counters(oom_kills=1)}, FailureReason.OUT_OF_MEMORY),
        ({"code": 137, "is_late": True}, FailureReason.TIMEOUT),
        ({"code": 137, "is_late": True, "is_stopped": True}, FailureReason.INTERRUPTED),
        ({"code": None, "is_gone": True}, FailureReason.INTERRUPTED),
        ({"code": 137, "has_lost_engine": True}, FailureReason.INTERRUPTED),
        ({"code": 143, "has_lost_engine": True}, FailureReason.INTERRUPTED),
        ({"code": 7, "has_lost_engine": True}, FailureReason.EXIT_STATUS),
        ({"code": None}, FailureReason.SANDBOX_FAILED),
        ({"code": 128, "error": "no such device"}, FailureReason.SANDBOX_FAILED),
        ({"code": 137, "overflow": "too much"}, FailureReason.OUTPUT_TOO_LARGE),
    ],
)
def test_the_first_fault_that_explains_the_others_is_the_reason(tmp_path, members, reason):
    log = LogFile(tmp_path / "output.log", 10)
    log.close()

    found = docker_result(JobFolder(tmp_path), job(), log, Ending(**{"wall_s": 1.0, "counters": Counters(), **members}))

    assert (found.outcome, found.reason) == (Outcome.FAILED, reason)
    assert found.environment == "sha256:2"


def test_a_success_after_a_lost_engine_is_one(tmp_path):
    log = LogFile(tmp_path / "output.log", 10)
    log.write(b"said")
    log.close()

    found = docker_result(
        JobFolder(tmp_path), job(), log, Ending(0, 3_600.0, Counters(500, 1 << 30), has_lost_engine=True)
    )

    assert (found.outcome, found.result_bytes) == (Outcome.SUCCEEDED, b"said")
    assert found.metrics == {"cpu_seconds": 0.5, "memory_gb_hours": 1.0, "storage_gb": 0.0, "network_data_gb": 0.0}


def test_what_a_task_writes_is_weighed_without_following_links(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"x" * 10_000)
    (tmp_path / "link").symlink_to("/usr")

    found = weigh(tmp_path, max_entries=100)

    assert found.entries == 3
    assert 10_000 <= found.size < 100_000
    assert weigh(tmp_path, max_entries=1).entries == 2
    assert weigh(tmp_path / "gone", max_entries=1).entries == 0


def test_a_folder_deeper_than_its_path_can_be_long_is_noticed(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("x" * 200, dir_fd=fd)
        below = os.open("x" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)

    found = weigh(tmp_path, max_entries=100)

    assert "16 folders deep" in found.fault
