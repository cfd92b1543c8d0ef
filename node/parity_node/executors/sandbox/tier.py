"""Which tier of isolation this machine proves: every attempt to escape is made in a real sandbox, as a task is started.

A tier is announced only if all of it was denied, here, by this process. Nothing is remembered from an earlier start, and
nothing falls back to a weaker tier.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import anyio
import anyio.to_thread

from parity_node.executors.base import Limits
from parity_node.executors.process import Identity, OutputLog, adopt_orphans
from parity_node.executors.sandbox import escape
from parity_node.executors.sandbox.bwrap import TASK_HOME, Sandbox, find_bwrap
from parity_node.executors.sandbox.canaries import planted
from parity_node.executors.sandbox.drop import make_traversable, own, slot_identity
from parity_node.executors.sandbox.env import task_env
from parity_node.executors.sandbox.host_python import stage_python
from parity_node.executors.sandbox.launch import SandboxProcess
from parity_node.executors.sandbox.limits import scratch_bytes, task_rlimits
from parity_node.executors.sandbox.probes import ProbeReport, read_answer
from parity_node.executors.sandbox.syscalls import ALLOWED, REFUSED
from parity_protocol.errors import ParityError
from parity_protocol.isolation import IsolationTier

__all__ = ["INPUT_NAME", "PROBE_LIMITS", "ProbeRunner", "prove", "prove_bwrap"]

INPUT_NAME = "probe"
"""Under this name the folder with the attempts is an input of the trial execution."""

PROBE_LIMITS = Limits(wall_time_s=15.0, cpus=1.0, memory_bytes=128 << 20, disk_bytes=16 << 20, pids=16)
"""Of the trial execution."""

_PROVE_S = 40.0  # in all; on a busy machine gVisor takes some seconds
_MAX_OUTPUT_BYTES = 262_144
_START = "import sys; sys.path.insert(0, sys.argv[1]); from parity_node.executors.sandbox.escape.main import main; main(sys.argv[1])"
_SHELL_NAMES = frozenset({"PWD", "OLDPWD", "SHLVL", "_"})  # what a shell adds by itself
# Calls of the attempts that neither list of the filter has a reason to name.
_MORE_NUMBERS = {"x86_64": {"clone3": 435, "getpid": 39}, "aarch64": {"clone3": 435, "getpid": 172}}


@dataclass(frozen=True, slots=True)
class ProbeRunner:
    """How an executor starts a trial execution: exactly as it starts a task.

    Attributes:
        run: Runs a command with a folder as its one input, named ``INPUT_NAME``, under ``PROBE_LIMITS``; returns
            everything that was printed. Raises a ParityError when it could not.
    """

    sandbox: IsolationTier
    inputs: str  # the folder in which the sandbox sees its inputs
    run: Callable[[Path, Sequence[str]], Awaitable[bytes]]
    environment: frozenset[str]  # names that a task without declared ones may see
    identity: Identity | None = None  # who the task runs as, when that is a user of this machine
    uid: int | None = None  # who the task must be; None: anybody but root
    scratch: str = "/tmp"  # noqa: S108 - inside; writable
    own_kernel: bool = False  # the sandbox brings a kernel, and must not meet this machine's


async def prove(runner: ProbeRunner, workplace: Path, *, hidden: Collection[Path] = ()) -> ProbeReport:
    """Make every attempt in a sandbox and say what it proves; does not raise what stands in the way, but reports it.

    Args:
        workplace: Folder of the executions, in which a folder is made for the time of the probe.
        hidden: Files of the node, such as its keys, that must not be reachable.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="probe-", dir=workplace))
    except OSError as exc:
        return ProbeReport(runner.sandbox, f"cannot use {workplace}: {exc.strerror}")
    try:
        with anyio.fail_after(_PROVE_S):
            return await _prove(runner, folder, hidden)
    except TimeoutError:
        return ProbeReport(runner.sandbox, f"the probe did not end within {_PROVE_S:g} s")
    except (ParityError, OSError) as exc:
        return ProbeReport(runner.sandbox, exc.message if isinstance(exc, ParityError) else str(exc))
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


async def prove_bwrap(workplace: Path, *, slot: int = 0, hidden: Collection[Path] = ()) -> ProbeReport:
    """Prove bubblewrap, as the shell executor starts it; as ``prove``."""
    identity = slot_identity(slot)
    adopt_orphans()

    async def run(program: Path, argv: Sequence[str]) -> bytes:
        return await _run_bwrap(program, argv, identity)

    runner = ProbeRunner(
        IsolationTier.BWRAP,
        f"{TASK_HOME}/inputs",
        run,
        frozenset(task_env({}, home=TASK_HOME)) | _SHELL_NAMES,
        identity=identity,
        uid=identity.uid if identity is not None else os.geteuid(),
    )
    return await prove(runner, workplace, hidden=hidden)


async def _prove(runner: ProbeRunner, folder: Path, hidden: Collection[Path]) -> ProbeReport:
    make_traversable(folder)
    program, secrets = folder / "program", folder / "secrets"
    for path in (program, secrets):
        path.mkdir()
        path.chmod(0o755)
    place = PurePosixPath(runner.inputs, INPUT_NAME)
    host_kernel = f"{os.uname().release} {os.uname().version}"
    async with planted(secrets, identity=runner.identity) as canaries:
        question = {
            **canaries.question(hidden),
            "numbers": _numbers(),
            "environment": sorted(runner.environment),
            "scratch": runner.scratch,
            "own_kernel": runner.own_kernel,
        }
        python = await anyio.to_thread.run_sync(stage_python, program)
        await anyio.to_thread.run_sync(_stage_attempts, program, json.dumps(question))
        said = await runner.run(program, python.argv(place, ["-c", _START, str(place)]))
        return read_answer(
            runner.sandbox,
            said,
            canaries=canaries.tokens,
            host_kernel=host_kernel,
            uid=runner.uid,
            own_kernel=runner.own_kernel,
        )


def _stage_attempts(program: Path, question: str) -> None:
    """Put the attempts and what they look for beside the interpreter."""
    source = Path(str(escape.__file__)).parent
    target = program
    for name in escape.__name__.split("."):
        target = target / name
        target.mkdir(mode=0o755)
        (target / "__init__.py").touch(mode=0o644)
    for path in source.glob("*.py"):
        shutil.copyfile(path, target / path.name)
        (target / path.name).chmod(0o644)
    (program / "probe.json").write_text(question)
    (program / "probe.json").chmod(0o644)


def _numbers() -> dict[str, int]:
    """Return system calls' numbers on this machine."""
    machine = os.uname().machine
    column = 0 if machine == "x86_64" else 1
    found = {name: numbers[column] for name, numbers in {**ALLOWED, **REFUSED}.items()}
    return {name: number for name, number in found.items() if number is not None} | _MORE_NUMBERS.get(machine, {})


async def _run_bwrap(program: Path, argv: Sequence[str], identity: Identity | None) -> bytes:
    """Run the attempts as the shell executor runs a task; call it on the event loop's thread."""
    bwrap = find_bwrap()
    log = program.parent / "output.log"
    inputs = program.parent / "inputs"
    inputs.mkdir(mode=0o700)
    own(inputs, identity)
    output = OutputLog(log, _MAX_OUTPUT_BYTES)
    try:
        if bwrap is None:
            return b"bubblewrap is not installed"
        sandbox = Sandbox(
            command=tuple(argv),
            env=task_env({}, home=TASK_HOME),
            inputs=((program, INPUT_NAME),),
            scratch_bytes=scratch_bytes(PROBE_LIMITS),
            rlimits=task_rlimits(PROBE_LIMITS),
            identity=identity,
        )
        process = await SandboxProcess.launch(bwrap, sandbox, output)
        try:
            await process.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await process.end()
    finally:
        output.close()
    return log.read_bytes()
