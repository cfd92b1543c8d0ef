"""Commands in a real bubblewrap: what a task sees, what it cannot do, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from parity_node.executors.base import ExecutionResult, Handle, Job, Limits
from parity_node.executors.command import CommandExecutor
from parity_node.executors.process import start_time
from parity_node.executors.sandbox.bwrap import GATE
from parity_node.executors.sandbox.orphans import kill_orphans
from parity_node.testing.inputs import StaticInputs
from parity_protocol.capability import ExecutorState
from parity_protocol.clock import SystemClock
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.report import Outcome
from parity_protocol.task import CidInput, CommandSpec, ShardInput

pytestmark = pytest.mark.service("bubblewrap")

PROVEN: list[ExecutorState] = []
"""What the first trial run found: it makes ninety attempts, and once is enough for one file of tests."""

PYTHON = "/usr/bin/python3"  # the system's own: a task sees /usr only
needs_python = pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"needs {PYTHON}")


@pytest.fixture
def exec_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="parity-exec-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def inputs() -> StaticInputs:
    return StaticInputs()


@pytest.fixture
async def executor(exec_dir: Path, inputs: StaticInputs) -> CommandExecutor:
    found = CommandExecutor(exec_dir=exec_dir, inputs=inputs, clock=SystemClock(), enabled=True)
    if not PROVEN:
        PROVEN.append(await found.describe())
    if not PROVEN[0].available:
        pytest.skip(PROVEN[0].reason)
    found._trial._found = PROVEN[0]
    return found


def limits(**changes: float) -> Limits:
    members = {"wall_time_s": 30, "cpus": 1, "memory_bytes": 256 << 20, "disk_bytes": 16 << 20, "pids": 32, **changes}
    return Limits(**members)  # type: ignore[arg-type]


def job_in(exec_dir: Path, spec: CommandSpec, bounds: Limits, *, slot: int = 0) -> Job:
    name = str(uuid.uuid4())
    folder = exec_dir / name
    folder.mkdir(mode=0o700)
    return Job(name, name, name, 1, spec, 0, 1, None, folder, bounds, slot)


class Runner:
    def __init__(self, executor: CommandExecutor, exec_dir: Path) -> None:
        self.executor = executor
        self.exec_dir = exec_dir

    async def start(self, spec: CommandSpec, bounds: Limits | None = None, *, slot: int = 0) -> Handle:
        job = job_in(self.exec_dir, spec, bounds or limits(), slot=slot)
        return await self.executor.start(await self.executor.prepare(job))

    async def run(self, *command: str, bounds: Limits | None = None, **members: object) -> ExecutionResult:
        spec = CommandSpec(command=command, **members)  # type: ignore[arg-type]
        handle = await self.start(spec, bounds)
        try:
            return await self.executor.wait(handle)
        finally:
            await self.executor.cleanup(handle)


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A folder that a slot's user can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="parity-lent-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def runner(executor: CommandExecutor, exec_dir: Path) -> AsyncIterator[Runner]:
    yield Runner(executor, exec_dir)
    assert not left_in(exec_dir), "an execution left something"


def output(result: ExecutionResult) -> str:
    assert result.outcome is Outcome.SUCCEEDED, result.message
    assert result.result_bytes is not None
    return result.result_bytes.decode()


def processes_with(marker: str) -> list[int]:
    """Return the processes whose arguments hold ``marker``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


async def appeared(marker: str, count: int, within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if len(processes_with(marker)) >= count:
            return
        await anyio.sleep(0.02)
    raise AssertionError(f"fewer than {count} processes started")


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def user_ids(pid: object) -> set[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return set(next(line for line in lines if line.startswith("Uid:")).split()[1:])


async def gone(marker: str, within_s: float = 2.0) -> bool:
    end = time.monotonic() + within_s
    while processes_with(marker):
        if time.monotonic() > end:
            return False
        await anyio.sleep(0.02)
    return True


# -- results -------------------------------------------------------------------------------------------------------


async def test_the_result_is_what_the_task_printed_on_both_streams_in_order(runner):
    result = await runner.run("sh", "-c", "echo one; echo two >&2; echo three")

    assert output(result) == "one\ntwo\nthree\n"
    assert result.exit_code == 0


async def test_arguments_are_data_and_no_shell_reads_them(runner):
    result = await runner.run("printf", "%s|", "a b", "$(id)", "; rm -rf /", "*", "ü")

    assert output(result) == "a b|$(id)|; rm -rf /|*|ü|"


async def test_an_exit_status_fails_the_task_and_its_last_words_say_why(runner):
    result = await runner.run("sh", "-c", "echo broken pipe wrench >&2; exit 7")

    assert (result.outcome, result.reason, result.exit_code) == (Outcome.FAILED, FailureReason.EXIT_STATUS, 7)
    assert "broken pipe wrench" in result.message


def test_it_runs_on_the_event_loop_that_nodes_use(exec_dir):
    async def main() -> ExecutionResult:
        executor = CommandExecutor(exec_dir=exec_dir, inputs=StaticInputs(), clock=SystemClock(), enabled=True)
        return await Runner(executor, exec_dir).run("sh", "-c", "sleep 0.1; echo done")

    result = anyio.run(main, backend_options={"use_uvloop": True})

    assert output(result) == "done\n"


async def test_a_program_that_is_not_here_fails_the_task(runner):
    result = await runner.run("no-such-program")

    assert (result.reason, result.exit_code) == (FailureReason.EXIT_STATUS, 127)
    assert "no-such-program" in result.message


async def test_a_signal_is_named(runner):
    result = await runner.run("sh", "-c", "kill -SEGV $$")

    assert (result.reason, result.exit_code) == (FailureReason.EXIT_STATUS, 128 + signal.SIGSEGV)
    assert "signal 11" in result.message


async def test_a_large_result_is_a_file(executor, exec_dir):
    handle = await Runner(executor, exec_dir).start(CommandSpec(command=("head", "-c", "100000", "/dev/zero")))

    result = await executor.wait(handle)

    assert result.result_path is not None
    assert result.result_path.stat().st_size == 100_000
    await executor.cleanup(handle)


async def test_a_lent_data_set_is_there_read_only_and_leads_nowhere_else(runner, inputs, open_dir):
    lent = open_dir / "lent"
    lent.mkdir()
    lent.chmod(0o755)
    (lent / "1.txt").write_text("one\n")
    (lent / "1.txt").chmod(0o644)
    (open_dir / "secret").write_text("not lent")
    (lent / "out").symlink_to("../secret")
    inputs.shards["numbers"] = lent
    asked = (ShardInput(name="data", shard="numbers"),)

    read = await runner.run("cat", "/task/inputs/data/1.txt", inputs=asked)
    write = await runner.run("sh", "-c", "echo x > /task/inputs/data/2.txt", inputs=asked)
    out = await runner.run("cat", "/task/inputs/data/out", inputs=asked)

    assert read.result_bytes == b"one\n"
    assert (write.reason, out.reason) == (FailureReason.EXIT_STATUS, FailureReason.EXIT_STATUS)
    assert sorted(path.name for path in lent.iterdir()) == ["1.txt", "out"]


async def test_inputs_are_there_read_only(runner, inputs):
    cid = inputs.add(b"forty-two\n")
    spec_inputs = (CidInput(name="answer.txt", cid=cid),)

    read = await runner.run("cat", "/task/inputs/answer.txt", inputs=spec_inputs)
    write = await runner.run("sh", "-c", "echo x > /task/inputs/answer.txt", inputs=spec_inputs)

    assert output(read) == "forty-two\n"
    assert write.outcome is Outcome.FAILED
    assert "Read-only file system" in write.message


async def test_usage_is_what_the_task_and_its_children_used(runner):
    busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"

    result = await runner.run("sh", "-c", f"sh -c '{busy}'; {busy}")

    assert result.outcome is Outcome.SUCCEEDED
    assert result.usage.cpu_ms >= 100
    assert result.usage.wall_ms >= result.usage.cpu_ms * 0.5
    assert result.usage.peak_memory_bytes > 0


# -- what a task sees ----------------------------------------------------------------------------------------------


async def test_the_environment_is_exactly_what_was_declared(runner, monkeypatch):
    monkeypatch.setenv("OPERATOR_SECRET", "canary")

    result = await runner.run("/usr/bin/env", env={"GREETING": "hello"})

    names = {line.split("=", 1)[0] for line in output(result).splitlines()}
    assert names == {"GREETING", "PATH", "LANG", "HOME", "PWD"}  # bubblewrap sets PWD with --chdir
    assert "canary" not in output(result)


async def test_variables_that_load_code_reach_the_task(runner):
    result = await runner.run("/usr/bin/env", env={"LD_DEBUG_OUTPUT": "/task/x", "LD_BIND_NOW": "1"})

    assert "LD_BIND_NOW=1" in output(result)


async def test_nobody_can_read_the_environment_in_the_process_list(executor, exec_dir):
    secret = uuid.uuid4().hex
    handle = await Runner(executor, exec_dir).start(CommandSpec(command=("sleep", "30"), env={"TOKEN": secret}))

    assert processes_with(secret) == []
    await executor.cleanup(handle)


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/root", "/home", "/var", "/run", "/work", "/sys", "/proc/1/root/etc/shadow", "/mnt"]
)
async def test_the_hosts_files_are_not_there(runner, path):
    result = await runner.run("sh", "-c", f"ls -d {path} 2>/dev/null || echo absent")

    assert output(result) == "absent\n"


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/usr/bin/x",
        "/x",
        "/dev/x",
        "/etc/passwd",
    ],
)
async def test_nothing_of_the_system_can_be_written(runner, path):
    result = await runner.run("sh", "-c", f"(echo x > {path}) 2>/dev/null && echo written || echo denied")

    assert output(result) == "denied\n"


async def test_only_its_own_processes_are_visible(runner):
    result = await runner.run("sh", "-c", "cd /proc; for p in [0-9]*; do echo $p; done")

    assert len(output(result).split()) <= 4


async def test_there_is_no_network_but_loopback(runner):
    result = await runner.run("cat", "/proc/net/dev", "/proc/net/route")

    interfaces = [line.split(":")[0].strip() for line in output(result).splitlines() if ":" in line]
    assert interfaces == ["lo"]


async def test_it_is_nobody_special(runner):
    result = await runner.run("sh", "-c", "id -u; grep -E 'Cap(Eff|Prm|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status")

    uid, *facts = output(result).split("\n", 1)
    assert int(uid) != 0
    assert dict(line.split(":\t") for line in facts[0].strip().splitlines()) == {
        "CapPrm": "0" * 16,
        "CapEff": "0" * 16,
        "CapBnd": "0" * 16,
        "NoNewPrivs": "1",
        "Seccomp": "2",
    }


@pytest.mark.root
async def test_under_root_each_slot_is_another_user(executor, exec_dir):
    runner = Runner(executor, exec_dir)
    uids = []
    for slot in (0, 3):
        handle = await runner.start(CommandSpec(command=("id", "-u")), slot=slot)
        uids.append(output(await executor.wait(handle)).strip())
        await executor.cleanup(handle)

    assert uids == ["61000", "61003"]


@pytest.mark.root
async def test_under_root_the_task_is_not_root_to_the_kernel_either(executor, exec_dir):
    handle = await Runner(executor, exec_dir).start(CommandSpec(command=("sleep", "30")))

    assert user_ids(handle.state["init_pid"]) == {"61000"}
    await executor.cleanup(handle)


PROBES = """
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    ctypes.set_errno(0)
    got = libc.syscall(*args)
    print(name, "ok" if got >= 0 else errno.errorcode[ctypes.get_errno()])
x86 = os.uname().machine == "x86_64"
pick = lambda a, b: a if x86 else b
for family in (16, 17, 38, 40, 44):
    try: socket.socket(family, socket.SOCK_RAW); print("family", family, "ok")
    except OSError as exc: print("family", family, errno.errorcode[exc.errno])
for family in (socket.AF_UNIX, socket.AF_INET):
    socket.socket(family, socket.SOCK_STREAM).close(); print("family", int(family), "ok")
call("unshare", pick(272, 97), 0x10000000)
call("clone", pick(56, 220), 0x10000000 | 17, 0, 0, 0, 0)
call("clone3", 435, 0, 0)
call("keyctl", pick(250, 219), 0, 0)
call("bpf", pick(321, 280), 0, 0, 0)
call("perf", pick(298, 241), 0, 0, 0, 0, 0)
call("ptrace", pick(101, 117), 0, 0, 0, 0)
call("mount", pick(165, 40), 0, 0, 0, 0, 0)
call("io_uring", 425, 1, 0)
call("userfaultfd", pick(323, 282), 0)
call("setns", pick(308, 268), 0, 0)
call("handle", pick(304, 265), 0, 0, 0)
call("vm_read", pick(310, 270), 1, 0, 0, 0, 0, 0)
call("memfd_secret", 447, 0)
call("new", 999)
import threading; t = threading.Thread(target=print, args=("thread", "ok")); t.start(); t.join()
import subprocess; print("child", subprocess.run(["true"]).returncode)
"""


@needs_python
async def test_system_calls_that_escapes_use_are_refused_and_ordinary_ones_work(runner):
    lines = output(await runner.run(PYTHON, "-c", PROBES)).splitlines()

    expected = [
        *(f"family {family} EAFNOSUPPORT" for family in (16, 17, 38, 40, 44)),
        "family 1 ok", "family 2 ok",
        "unshare EPERM", "clone EPERM", "clone3 ENOSYS", "keyctl EPERM", "bpf EPERM", "perf EPERM", "ptrace EPERM",
        "mount EPERM", "io_uring EPERM", "userfaultfd EPERM", "setns EPERM", "handle EPERM", "vm_read EPERM",
        "memfd_secret EPERM", "new ENOSYS", "thread ok", "child 0",
    ]  # fmt: skip
    assert lines == expected


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'bwrap: No permissions to create a new namespace' >&2; exit 1", "No permissions"),
        ("exit 0", "could not set up"),
        ('exec "$REAL" --ro-bind /nonexistent /x "$@"', "/nonexistent"),
    ],
)
async def test_a_bubblewrap_that_does_not_work_makes_it_unavailable_and_says_why(exec_dir, monkeypatch, script, said):
    real = shutil.which("bwrap")
    programs = exec_dir / "programs"
    programs.mkdir(mode=0o755)
    fake = programs / "bwrap"
    fake.write_text(f"#!/bin/sh\nREAL={real}\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    executor = CommandExecutor(exec_dir=exec_dir, inputs=StaticInputs(), clock=SystemClock(), enabled=True)

    state = await executor.describe()

    assert not state.available
    assert said in state.reason
    assert left_in(exec_dir) == ["programs"]


@pytest.mark.root
async def test_a_folder_that_the_slots_user_cannot_reach_makes_it_unavailable_and_says_why(exec_dir):
    hidden = exec_dir / "hidden" / "exec"
    hidden.mkdir(parents=True, mode=0o711)
    hidden.parent.chmod(0o700)
    executor = CommandExecutor(exec_dir=hidden, inputs=StaticInputs(), clock=SystemClock(), enabled=True)

    state = await executor.describe()

    assert not state.available
    assert "Permission denied" in state.reason
    assert left_in(hidden) == []


async def test_an_input_that_vanished_fails_the_task_as_the_nodes_fault(executor, exec_dir, inputs):
    cid = inputs.add(b"x")
    job = job_in(exec_dir, CommandSpec(command=("true",), inputs=(CidInput(cid=cid),)), limits())
    handle = await executor.prepare(job)
    (job.folder / "inputs" / "data").unlink()

    try:
        result = await executor.wait(await executor.start(handle))
    except ExecutionFailed as exc:  # bwrap ended before it named its process: `start` raises what `wait` says else
        reason, message = exc.reason, exc.message
    else:
        assert result.outcome is Outcome.FAILED
        reason, message = result.reason, result.message

    assert reason is FailureReason.SANDBOX_FAILED
    assert "inputs/data" in message
    await executor.cleanup(handle)


async def test_keys_pressed_at_the_nodes_terminal_do_not_reach_the_task(executor, exec_dir):
    handle = await Runner(executor, exec_dir).start(CommandSpec(command=("sleep", "30")))
    outer = executor._runs[str(handle.state["execution_id"])].process.child.pid

    assert os.getsid(outer) != os.getsid(0)
    await executor.cleanup(handle)


# -- limits --------------------------------------------------------------------------------------------------------


async def test_output_over_its_cap_fails_the_task_at_once_and_the_log_keeps_the_cap(executor, exec_dir):
    spec = CommandSpec(command=("yes",), max_output_bytes=10_000)
    handle = await Runner(executor, exec_dir).start(spec)

    with anyio.fail_after(10):
        result = await executor.wait(handle)

    assert result.reason is FailureReason.OUTPUT_TOO_LARGE
    assert len(await executor.logs(handle, 0)) == 10_000
    await executor.cleanup(handle)


async def test_a_task_is_ended_at_its_wall_time(runner):
    began = time.monotonic()

    result = await runner.run("sleep", "600", bounds=limits(wall_time_s=0.3))

    assert result.reason is FailureReason.TIMEOUT
    assert time.monotonic() - began < 5


async def test_files_in_scratch_space_have_a_limit(runner):
    result = await runner.run("sh", "-c", "head -c 64000000 /dev/zero > /tmp/big", bounds=limits(disk_bytes=8 << 20))

    assert result.outcome is Outcome.FAILED


@pytest.mark.parametrize("folder", ["/task", "/tmp", "/dev/shm"])
async def test_all_of_scratch_space_has_a_limit(runner, folder):
    fill = f"for i in 1 2 3 4 5 6 7 8; do head -c 6000000 /dev/zero > {folder}/$i 2>/dev/null; done; du -sm {folder} | cut -f1"

    result = await runner.run("sh", "-c", fill, bounds=limits(disk_bytes=16 << 20))

    assert int(output(result)) <= 16


@needs_python
async def test_memory_has_a_limit(runner):
    result = await runner.run(PYTHON, "-c", "x = b'x' * (400 << 20)", bounds=limits(memory_bytes=128 << 20))

    assert result.reason in {FailureReason.EXIT_STATUS, FailureReason.OUT_OF_MEMORY}
    assert result.usage.peak_memory_bytes < 200 << 20


async def test_processes_have_a_limit(runner):
    bomb = "i=0; while [ $i -lt 60 ]; do sleep 20 & i=$((i+1)); done; echo all started"

    result = await runner.run("sh", "-c", bomb, bounds=limits(pids=20))

    assert result.outcome is Outcome.FAILED
    assert "all started" not in result.message


@pytest.mark.root
async def test_under_root_every_process_of_a_task_is_in_its_control_group(runner):
    if not os.access("/sys/fs/cgroup/memory", os.W_OK) and not os.access("/sys/fs/cgroup/cgroup.procs", os.W_OK):
        pytest.skip("control groups cannot be written here")

    result = await runner.run("sh", "-c", "cat /proc/1/cgroup; echo --; cat /proc/self/cgroup")

    first, own = output(result).split("--\n")
    assert "parity-node" in own
    assert first == own


@pytest.mark.root
@needs_python
async def test_under_root_the_sum_of_memory_has_a_limit(runner):
    if not os.access("/sys/fs/cgroup/memory", os.W_OK) and not os.access("/sys/fs/cgroup/cgroup.procs", os.W_OK):
        pytest.skip("control groups cannot be written here")
    hog = "import mmap, time\nm = mmap.mmap(-1, 300 << 20)\nfor i in range(0, 300 << 20, 4096): m[i] = 1"

    result = await runner.run(PYTHON, "-c", hog, bounds=limits(memory_bytes=64 << 20))

    assert result.reason is FailureReason.OUT_OF_MEMORY


# -- nothing is left -----------------------------------------------------------------------------------------------

ESCAPEE = "for i in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP INT; sleep 600 & sleep 600' {marker} & done; sleep 600"


async def test_stopping_ends_the_whole_tree_with_those_that_left_their_session(executor, exec_dir):
    marker = f"marker-{uuid.uuid4().hex}"
    handle = await Runner(executor, exec_dir).start(CommandSpec(command=("sh", "-c", ESCAPEE.format(marker=marker))))
    await appeared(marker, 4)
    began = time.monotonic()

    await executor.stop(handle)

    assert await gone(marker, 2.0 - (time.monotonic() - began))
    result = await executor.wait(handle)
    assert (result.outcome, result.reason) == (Outcome.FAILED, FailureReason.INTERRUPTED)
    await executor.cleanup(handle)


async def test_what_a_task_leaves_in_the_background_ends_with_it_and_is_not_waited_for(runner):
    marker = f"marker-{uuid.uuid4().hex}"
    began = time.monotonic()

    result = await runner.run("sh", "-c", f"setsid sh -c 'sleep 600; true' {marker} & echo done")

    assert output(result) == "done\n"
    assert time.monotonic() - began < 10
    assert await gone(marker)


async def test_many_trees_are_all_gone(executor, exec_dir):
    runner, marker = Runner(executor, exec_dir), f"marker-{uuid.uuid4().hex}"
    spec = CommandSpec(command=("sh", "-c", ESCAPEE.format(marker=marker)))
    handles = [await runner.start(spec, slot=slot) for slot in range(8)]

    async with anyio.create_task_group() as group:
        for handle in handles:
            group.start_soon(executor.cleanup, handle)

    assert await gone(marker)
    assert not left_in(exec_dir)


async def test_a_cancelled_wait_leaves_no_file_open_after_cleanup(executor, exec_dir):
    runner = Runner(executor, exec_dir)
    await runner.run("true")
    before = open_files()

    for _ in range(5):
        handle = await runner.start(CommandSpec(command=("sleep", "600")))
        with anyio.move_on_after(0.01):
            await executor.wait(handle)
        await executor.cleanup(handle)

    assert open_files() == before


NODE = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from parity_node.executors.base import Job, Limits
    from parity_node.executors.command import CommandExecutor
    from parity_node.testing.inputs import StaticInputs
    from parity_protocol.clock import SystemClock
    from parity_protocol.task import CommandSpec
    import json

    async def main():
        exec_dir, script = Path(sys.argv[1]), sys.argv[2]
        executor = CommandExecutor(exec_dir=exec_dir, inputs=StaticInputs(), clock=SystemClock(), enabled=True)
        folder = exec_dir / "e"
        folder.mkdir(mode=0o700)
        spec = CommandSpec(command=("sh", "-c", script))
        job = Job("e", "t", "l", 1, spec, 0, 1, None, folder, Limits(600, 1, 1 << 28, 1 << 24, 32))
        handle = await executor.start(await executor.prepare(job))
        print(json.dumps(handle.to_json()), flush=True)
        await executor.wait(handle)

    asyncio.run(main())
    """
)


def spawn_node(exec_dir: Path, script: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", NODE, str(exec_dir), script], stdout=subprocess.PIPE, text=True)


async def test_a_sandbox_that_lost_its_outer_process_is_ended_by_the_next_node(executor, exec_dir):
    marker = f"marker-{uuid.uuid4().hex}"
    held_open = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", *GATE, "true", marker]
    outer = start_outer(held_open)
    await appeared(marker, 2)  # the shell behind the gate has no argument of its own yet
    outer.kill()
    outer.wait()
    assert processes_with(marker)

    ended = await anyio.to_thread.run_sync(kill_orphans)

    assert ended >= 1
    assert await gone(marker)
    if outer.stdin is not None:
        outer.stdin.close()


async def test_a_sandbox_that_runs_is_no_orphan(executor, exec_dir):
    handle = await Runner(executor, exec_dir).start(CommandSpec(command=("sh", "-c", "sleep 0.5; echo done")))

    await anyio.to_thread.run_sync(kill_orphans)

    assert output(await executor.wait(handle)) == "done\n"
    await executor.cleanup(handle)


def start_outer(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.PIPE)


async def test_a_node_killed_with_sigkill_takes_its_tasks_with_it(executor, exec_dir):
    marker = f"marker-{uuid.uuid4().hex}"
    script = ESCAPEE.format(marker=marker)
    node = spawn_node(exec_dir, script)
    try:
        assert node.stdout is not None
        handle = Handle.from_json(json.loads(await anyio.to_thread.run_sync(node.stdout.readline)))
        await appeared(marker, 5)  # the node itself has it in its arguments too
        init_pid = handle.state["init_pid"]
        assert isinstance(init_pid, int)
        assert start_time(init_pid) == handle.state["init_started"]
    finally:
        node.kill()
        node.wait()
        if node.stdout is not None:
            node.stdout.close()

    assert await gone(marker)
    assert not await executor.recover(handle)
    result = await executor.wait(handle)
    assert result.reason is FailureReason.NODE_RESTARTED
    await executor.cleanup(handle)
    assert not left_in(exec_dir)
