"""What a command task asks for beside its program: a shell, a working folder, an output folder, hosts."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from parity_node.executors.base import ExecutionResult, Job, Limits
from parity_node.executors.command import CommandExecutor
from parity_node.executors.sandbox.landlock import missing_layer
from parity_node.testing.inputs import StaticInputs
from parity_protocol.capability import ExecutorState
from parity_protocol.clock import SystemClock
from parity_protocol.errors import FailureReason
from parity_protocol.needs import Egress, OutputFolder
from parity_protocol.report import Outcome
from parity_protocol.task import CidInput, CommandSpec

pytestmark = pytest.mark.service("bubblewrap")

PROVEN: list[ExecutorState] = []
"""What the first trial run found: it makes ninety attempts, and once is enough for one file of tests."""


class Runner:
    def __init__(self, exec_dir: Path) -> None:
        self.exec_dir = exec_dir
        self.inputs = StaticInputs()
        self.refused: list[str] = []  # rules of the proxy
        self.executor = CommandExecutor(
            exec_dir=exec_dir,
            inputs=self.inputs,
            clock=SystemClock(),
            enabled=True,
            on_egress_refused=self.refused.append,
        )
        self.files: dict[str, bytes] = {}  # of the last result that was a folder

    async def run(self, *command: str, bounds: dict[str, float] | None = None, **members: object) -> ExecutionResult:
        spec = CommandSpec(command=command, **members)  # type: ignore[arg-type]
        folder = self.exec_dir / str(uuid.uuid4())
        folder.mkdir(mode=0o700)
        limits = Limits(
            **{
                "wall_time_s": 30,
                "cpus": 1,
                "memory_bytes": 256 << 20,
                "disk_bytes": 16 << 20,
                "pids": 32,
                **(bounds or {}),
            }  # type: ignore[arg-type]
        )
        job = Job(folder.name, "t", "l", 1, spec, 0, 1, None, folder, limits)
        handle = await self.executor.start(await self.executor.prepare(job))
        try:
            result = await self.executor.wait(handle)
            self.files = files_in(result.result_path) if result.result_path is not None else {}
            return result
        finally:
            await self.executor.cleanup(handle)


def files_in(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        return {}
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def exec_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="parity-exec-"))
    path.chmod(0o711)
    yield path
    left = [each.name for each in path.iterdir()]
    shutil.rmtree(path, ignore_errors=True)
    assert not left


@pytest.fixture
async def runner(exec_dir: Path) -> Runner:
    found = Runner(exec_dir)
    if not PROVEN:
        PROVEN.append(await found.executor.describe())
    if not PROVEN[0].available:
        pytest.skip(PROVEN[0].reason)
    found.executor._trial._found = PROVEN[0]
    return found


def printed(result: ExecutionResult) -> str:
    assert result.outcome is Outcome.SUCCEEDED, result.message
    assert result.result_bytes is not None
    return result.result_bytes.decode()


# -- the program ---------------------------------------------------------------------------------------------------


async def test_a_shell_reads_the_text_only_when_it_was_asked_for(runner):
    assert printed(await runner.run("echo $((40 + 2)) | cat", shell=True)) == "42\n"
    assert printed(await runner.run("echo", "$((40 + 2)) | cat")) == "$((40 + 2)) | cat\n"


@pytest.mark.parametrize("workdir", ["/usr/lib", "/tmp", "/task/deep/below", "/tmp/a b", "/task/inputs"])
async def test_it_starts_in_its_working_folder_which_is_made_where_it_may_write(runner, workdir):
    cid = runner.inputs.add(b"x")

    result = await runner.run(
        'pwd; test "$PWD" = "$(pwd)" && echo same', shell=True, workdir=workdir, inputs=(CidInput(cid=cid),)
    )

    assert printed(result) == f"{workdir}\nsame\n"


async def test_a_working_folder_that_is_not_there_is_the_tasks_fault_and_is_named(runner):
    result = await runner.run("pwd", workdir="/nowhere/at/all")

    assert result.reason is FailureReason.EXIT_STATUS
    assert "/nowhere/at/all" in result.message


# -- the output folder ---------------------------------------------------------------------------------------------


async def test_the_files_of_the_output_folder_and_what_was_printed_are_the_result(runner):
    script = "echo said; mkdir -p /output/sub; echo one > /output/a; echo two > /output/sub/b; chmod 000 /output/sub /output/a"

    result = await runner.run(script, shell=True, output=OutputFolder())

    assert result.outcome is Outcome.SUCCEEDED, result.message
    assert runner.files == {"output.log": b"said\n", "files/a": b"one\n", "files/sub/b": b"two\n"}


async def test_without_asking_for_it_there_is_no_output_folder(runner):
    result = await runner.run("ls /output 2>&1; mkdir /output", shell=True)

    assert result.reason is FailureReason.EXIT_STATUS


@pytest.mark.parametrize(
    ("script", "reason", "said"),
    [
        ("head -c 2000000 /dev/zero > /output/a", FailureReason.OUTPUT_TOO_LARGE, "1000000 bytes"),
        ("head -c 99000000 /dev/zero > /output/a", FailureReason.OUTPUT_TOO_LARGE, "of /output"),
        ("truncate -s 500M /output/sparse", FailureReason.OUTPUT_TOO_LARGE, ""),
        ("for i in $(seq 20); do : > /output/$i; done", FailureReason.OUTPUT_TOO_LARGE, "10 files"),
        ("ln -s /etc/shadow /output/a", FailureReason.DATA_INVALID, "symbolic link"),
        ("mkfifo /output/a", FailureReason.DATA_INVALID, "pipe"),
    ],
    ids=["bytes", "full", "sparse", "files", "link", "pipe"],
)
async def test_an_output_over_its_limits_or_not_plain_fails_the_task(runner, script, reason, said):
    result = await runner.run(
        script, shell=True, output=OutputFolder(max_bytes=1_000_000, max_files=10), bounds={"disk_bytes": 1 << 30}
    )

    assert result.reason is reason, result.message
    assert said in result.message
    assert runner.files == {}


async def test_an_output_is_there_when_the_last_process_has_long_closed_it(runner):
    script = "(sleep 0.2; echo late > /output/late) & (trap '' HUP; sleep 600) & wait %1; head -c 3000000 /dev/zero > /output/big"

    result = await runner.run(script, shell=True, output=OutputFolder())

    assert result.outcome is Outcome.SUCCEEDED, result.message
    assert runner.files["files/late"] == b"late\n"
    assert len(runner.files["files/big"]) == 3_000_000


async def test_what_a_task_used_is_measured(runner):
    script = "head -c 3000000 /dev/zero > /output/a; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"

    result = await runner.run(script, shell=True, output=OutputFolder())

    assert result.metrics["storage_gb"] >= 3_000_000 / (1 << 30)
    assert 0 < result.metrics["cpu_seconds"] < 30
    assert result.metrics["cpu_seconds"] == result.usage.cpu_ms / 1000
    assert result.metrics["memory_gb_hours"] > 0
    assert result.metrics["network_data_gb"] == 0


# -- hosts ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs /usr/bin/python3")
async def test_with_granted_hosts_the_proxy_answers_inside_and_its_refusals_are_in_the_tasks_log(runner):
    script = (
        "import os, socket; s = socket.create_connection(('127.0.0.1', 3128)); "
        "s.sendall(b'CONNECT evil.test:443 HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n'); "
        "print(s.recv(100).split(b'\\r\\n')[0].decode()); print(os.environ['HTTPS_PROXY'])"
    )

    said = printed(await runner.run("/usr/bin/python3", "-c", script, egress=Egress(domains=("example.org",))))

    assert "403" in said
    assert "http://127.0.0.1:3128" in said
    assert "E-EGRESS evil.test" in said
    assert runner.refused == ["egress.domains"]


async def test_without_granted_hosts_nothing_listens_there(runner):
    result = await runner.run("env | grep -i proxy; (: < /dev/tcp/127.0.0.1/3128) 2>/dev/null || true", shell=True)

    assert printed(result) == ""


# -- the second layer ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(missing_layer()), reason=missing_layer() or "Landlock")
@pytest.mark.parametrize(
    "attempt",
    [
        "echo x > /proc/self/comm",  # the mount allows it: only the second layer refuses
        "echo 5 > /proc/self/oom_score_adj",
        ": >> /proc/1/mem",
    ],
)
async def test_what_the_mounts_allow_and_landlock_does_not_is_refused(runner, attempt):
    said = printed(await runner.run(f"({attempt}) 2>&1 || echo refused", shell=True))

    assert "Permission denied" in said
    assert said.endswith("refused\n")


async def test_ordinary_work_goes_on_behind_the_second_layer(runner):
    script = """
set -e
cd /tmp && mkdir d && echo x > d/a && mv d/a /task/b && ln /task/b /task/c && ln -s b /task/l && cat /task/l
mkfifo p && (echo through > p &) && cat p
echo out > /dev/stdout; echo no > /dev/null; cat /proc/self/status > /dev/null; ls / /dev /etc > /dev/null
printf '#!/bin/sh\\necho script' > /task/s && chmod +x /task/s && /task/s
cp /bin/true /tmp/t && /tmp/t && : > /dev/shm/x && rm -r /tmp/d
sleep 60 & kill $! && echo killed
"""
    assert printed(await runner.run(script, shell=True)) == "x\nthrough\nout\nscript\nkilled\n"


async def test_the_stage_leaves_nothing_behind_in_the_task(runner):
    said = printed(
        await runner.run(
            "env | sort; ls -l /proc/self/fd | grep -c landlock || true", shell=True, env={"LC_ALL": "xx_XX"}
        )
    )

    names = {line.partition("=")[0] for line in said.splitlines()[:-1]}
    assert names <= {"PATH", "LANG", "HOME", "PWD", "LC_ALL", "_", "SHLVL", "OLDPWD"}
    assert said.splitlines()[-1] == "0"


async def test_code_loading_variables_reach_the_task_and_not_the_stages_before_it(runner):
    env = {"PERL5OPT": "-MNoSuchModule", "PERL_BADLANG": "7", "CDPATH": "/usr"}

    said = printed(await runner.run("sh", "-c", "echo $PERL5OPT $PERL_BADLANG $CDPATH", env=env))

    assert said == "-MNoSuchModule 7 /usr\n"


# -- bombs that only this executor has -----------------------------------------------------------------------------


async def test_a_task_that_makes_files_without_end_is_ended(runner):
    script = "i=0; while :; do i=$((i+1)); : > /tmp/$i; done"

    with anyio.fail_after(25):
        result = await runner.run(script, shell=True, bounds={"memory_bytes": 48 << 20})

    assert result.reason is FailureReason.OUT_OF_MEMORY, result.message
