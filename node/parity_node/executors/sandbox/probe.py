"""The trial run: is the sandbox one, here, today? Present is not working, and configured is not proven.

A shell inside the sandbox says what it sees; what it says is compared here. The same checks with system calls are in
the tests, which may bring a compiler.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anyio

from parity_node.executors.base import Limits
from parity_node.executors.process import OutputLog
from parity_node.executors.sandbox.bwrap import TASK_HOME, Sandbox, find_bwrap
from parity_node.executors.sandbox.drop import make_traversable, own, slot_identity
from parity_node.executors.sandbox.env import task_env
from parity_node.executors.sandbox.launch import SandboxProcess
from parity_node.executors.sandbox.limits import PRLIMIT, scratch_bytes, task_rlimits
from parity_node.executors.sandbox.seccomp import machine_architecture
from parity_protocol.errors import ParityError

__all__ = ["Missing", "find_missing", "judge", "try_sandbox"]

_TRIAL_S = 15.0
_MAX_OUTPUT_BYTES = 65_536
_LIMITS = Limits(wall_time_s=10.0, cpus=1.0, memory_bytes=128 << 20, disk_bytes=16 << 20, pids=16)
_CANARY = "PARITY_PROBE"

# Only what a POSIX shell and coreutils have. Each line is one fact; ``judge`` knows the right ones.
_SCRIPT = f"""
while read -r name value; do case $name in
  CapEff:|CapPrm:|NoNewPrivs:|Seccomp:) echo "$name $value";; esac; done < /proc/self/status
echo "uid: $(id -u)"
echo "pid: $$"
echo "input: $(cat {TASK_HOME}/inputs/probe)"
echo "home: $(echo written > {TASK_HOME}/file && cat {TASK_HOME}/file)"
while read -r name rest; do case $name in *:*) echo "interface: $name";; esac; done < /proc/net/dev
for path in /etc/shadow /root /home /var /run /proc/1/root/etc/shadow; do
  if [ -e "$path" ]; then echo "visible: $path"; fi
done
for path in / /usr /etc /dev /proc/sys/kernel/core_pattern {TASK_HOME}/inputs/probe; do
  if (: >> "$path/probe" || : >> "$path") 2>/dev/null; then echo "writable: $path"; fi
done
if unshare -U true 2>/dev/null; then echo "namespace: nested"; fi
echo "environment: $(env | cut -d= -f1 | sort | tr '\\n' ' ')"
echo "done: yes"
"""


@dataclass(frozen=True, slots=True)
class Missing:
    """Why no sandbox can be made here."""

    reason: str


def find_missing() -> Missing | None:
    """Return what this machine lacks for a sandbox, or None; runs nothing."""
    if os.uname().sysname != "Linux":
        return Missing("the shell executor needs Linux")
    if machine_architecture() is None:
        return Missing(f"no system-call filter for {os.uname().machine}")
    if find_bwrap() is None:
        return Missing("bubblewrap is not installed (Debian, Ubuntu, Fedora: the package bubblewrap)")
    if not Path(PRLIMIT).is_file():
        return Missing(f"{PRLIMIT} is missing (package util-linux)")
    return None


async def try_sandbox(exec_dir: Path, *, slot: int = 0) -> Missing | None:
    """Run the trial in ``exec_dir``, as tasks will run; return why it failed, or None when every fact was right."""
    missing = find_missing()
    if missing is not None:
        return missing
    try:
        folder = Path(tempfile.mkdtemp(prefix="probe-", dir=exec_dir))
    except OSError as exc:
        return Missing(f"cannot use {exec_dir}: {exc.strerror}")
    try:
        with anyio.fail_after(_TRIAL_S):
            return await _trial(folder, slot)
    except TimeoutError:
        return Missing(f"the trial run did not end within {_TRIAL_S:g} s")
    except ParityError as exc:
        said = (folder / "output.log").read_text(errors="replace").strip() if (folder / "output.log").exists() else ""
        return Missing(f"{exc.message}: {said[-300:]}" if said else exc.message)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _trial(folder: Path, slot: int) -> Missing | None:
    identity = slot_identity(slot)
    inputs = folder / "inputs"
    inputs.mkdir(mode=0o700)
    probe = inputs / "probe"
    probe.write_text("verified")
    probe.chmod(0o444)
    if identity is not None:
        make_traversable(folder)
        own(inputs, identity)
    output = OutputLog(folder / "output.log", _MAX_OUTPUT_BYTES)
    sandbox = Sandbox(
        command=("/bin/sh", "-c", _SCRIPT),
        env=task_env({_CANARY: "1"}, home=TASK_HOME),
        inputs=((probe, "probe"),),
        scratch_bytes=scratch_bytes(_LIMITS),
        rlimits=task_rlimits(_LIMITS),
        identity=identity,
    )
    bwrap = find_bwrap()
    if bwrap is None:
        return Missing("bubblewrap is not installed")
    try:
        process = await SandboxProcess.launch(bwrap, sandbox, output)
        try:
            ended = await process.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await process.end()
    finally:
        output.close()
    said = (folder / "output.log").read_text(errors="replace")
    if ended.code != 0:
        return Missing(f"the trial run ended with {ended.code}: {said.strip()[-300:]}")
    uid = identity.uid if identity is not None else os.geteuid()
    problem = judge(said, uid=uid)
    return Missing(problem) if problem else None


def judge(said: str, *, uid: int) -> str:
    """Return what is wrong with the facts that the trial's script printed; empty when all are right.

    Args:
        uid: Who the task must be.
    """
    lines = [line.partition(":") for line in said.splitlines()]
    facts = [(name.strip(), value.strip()) for name, colon, value in lines if colon]
    expected: dict[str, Callable[[str], bool]] = {
        "CapEff": lambda value: set(value) == {"0"},
        "CapPrm": lambda value: set(value) == {"0"},
        "NoNewPrivs": lambda value: value == "1",
        "Seccomp": lambda value: value == "2",
        "uid": lambda value: value == str(uid) and uid != 0,
        "pid": lambda value: value.isdigit() and int(value) < 16,
        "input": lambda value: value == "verified",
        "home": lambda value: value == "written",
        "interface": lambda value: value in {"lo:", "lo"},
        "environment": lambda value: {_CANARY, "PATH", "LANG", "HOME"} <= set(value.split()) <= _SHELL_NAMES,
        "done": lambda value: value == "yes",
    }
    for name, is_right in expected.items():
        values = [value for found, value in facts if found == name]
        if not values or not all(is_right(value) for value in values):
            return f"the sandbox does not contain a task: {name} is {', '.join(values) or 'unknown'}"
    for name in ("visible", "writable", "namespace"):
        values = [value for found, value in facts if found == name]
        if values:
            return f"the sandbox does not contain a task: {name} {', '.join(values)}"
    return ""


_SHELL_NAMES = {_CANARY, "PATH", "LANG", "HOME", "PWD", "OLDPWD", "SHLVL", "_"}  # what a shell adds by itself
