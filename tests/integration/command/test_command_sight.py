"""What a command sees in a real bubblewrap, and what it cannot do."""

from __future__ import annotations

import os
import shutil
import uuid

import pytest

from parity_node.executors.command import CommandExecutor
from parity_node.testing.inputs import StaticInputs
from parity_protocol.clock import SystemClock
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.report import Outcome
from parity_protocol.task import CidInput, CommandSpec

from .commands import (
    PYTHON,
    Runner,
    job_in,
    left_in,
    limits,
    needs_python,
    output,
    processes_with,
    user_ids,
)

pytestmark = pytest.mark.service("bubblewrap")


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
