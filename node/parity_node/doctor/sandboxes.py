"""Container engines and models that this machine has, and the attempts to escape, made in every sandbox at once."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from parity_node.doctor.finding import Finding, failed, fine, unused, warned
from parity_node.doctor.place import executions_folder, hidden_files
from parity_node.executors.docker.engine import DEFAULT_SOCKET, Engine, EngineFacts, socket_of
from parity_node.executors.docker.probe import prove_docker
from parity_node.executors.sandbox.probe import find_missing
from parity_node.executors.sandbox.probes import ProbeReport, ProbeResult
from parity_node.executors.sandbox.tier import prove_bwrap
from parity_node.settings import NodeSettings
from parity_protocol.errors import ParityError
from parity_protocol.isolation import IsolationTier
from parity_protocol.task import TaskKind

__all__ = ["Sandboxes", "examine_sandboxes"]

_ENGINE_S = 10.0
_OLLAMA_S = 1.0
_MAX_ANSWER_BYTES = 65_536
_DEFAULT_OLLAMA = "127.0.0.1:11434"
_SLOT = 4_095  # whose user no running task of this machine's node has
_GPU_PROGRAM = "nvidia-container-cli"


@dataclass(frozen=True, slots=True)
class Sandboxes:
    """What was found, and what each sandbox proved."""

    findings: tuple[Finding, ...]
    reports: tuple[ProbeReport, ...]

    @property
    def proven(self) -> tuple[IsolationTier, ...]:
        """The tiers that this machine proved, weakest first."""
        return tuple(sorted((each.tier for each in self.reports if each.is_proven), key=lambda tier: tier.rank))

    def kinds(self, settings: NodeSettings) -> tuple[TaskKind, ...]:
        """Return the kinds of task that can run here: proven, turned on, and wanted by the settings."""
        can = {TaskKind.FEDERATED_LEARNING}
        if IsolationTier.BWRAP in self.proven and settings.runner_shell_enabled:
            can.add(TaskKind.COMMAND)
        if {IsolationTier.DOCKER, IsolationTier.GVISOR} & set(self.proven):
            can.add(TaskKind.DOCKER)
        return tuple(kind for kind in TaskKind if kind in can & settings.runner_policy_kinds)


async def examine_sandboxes(settings: NodeSettings) -> Sandboxes:
    """Look for container engines, and prove every sandbox that can be started here.

    The attempts are made in the folder of the executions where it exists, else in a temporary one.
    """
    findings: list[Finding] = [await anyio.to_thread.run_sync(_ollama)]
    engine, problems = _named_engine(settings)
    findings += problems
    facts: EngineFacts | None = None
    try:
        if engine is not None:
            found, facts = await _engine(engine, settings)
            findings += found
        with _workplace(settings) as workplace:
            reports = await _prove(settings, workplace, engine if facts is not None else None, facts)
    finally:
        if engine is not None:
            await engine.close()
    findings += [_proof(report, settings) for report in reports]
    if not settings.runner_shell_enabled:
        findings.append(unused("commands", "off: a node runs none unless you say so", "RUNNER_SHELL_ENABLED=true"))
    return Sandboxes(tuple(findings), tuple(reports))


async def _prove(
    settings: NodeSettings, workplace: Path, engine: Engine | None, facts: EngineFacts | None
) -> list[ProbeReport]:
    """Make the attempts in all sandboxes at the same time."""
    hidden = hidden_files(settings)
    reports: dict[IsolationTier, ProbeReport] = {}

    async def bwrap() -> None:
        missing = find_missing()
        if missing is not None:
            reports[IsolationTier.BWRAP] = ProbeReport(IsolationTier.BWRAP, missing.reason)
        else:
            reports[IsolationTier.BWRAP] = await prove_bwrap(workplace, slot=_SLOT, hidden=hidden)

    async def docker(tier: IsolationTier) -> None:
        assert engine is not None
        runtime = "runsc" if tier is IsolationTier.GVISOR else "runc"
        reports[tier] = await prove_docker(engine, workplace, runtime=runtime, hidden=hidden)  # type: ignore[arg-type]  # one of two words

    async with anyio.create_task_group() as group:
        group.start_soon(bwrap)
        if engine is not None:
            group.start_soon(docker, IsolationTier.DOCKER)
        if engine is not None and facts is not None and "runsc" in facts.runtimes:
            group.start_soon(docker, IsolationTier.GVISOR)
    return [reports[tier] for tier in sorted(reports, key=lambda tier: tier.rank)]


def _proof(report: ProbeReport, settings: NodeSettings) -> Finding:
    """Return the finding about one sandbox."""
    name = f"isolation.{report.sandbox.value}"
    denied, escaped = report.count(ProbeResult.DENIED), report.count(ProbeResult.ESCAPED)
    if report.is_proven:
        idle = len(report.probes) - denied
        unable = f", {idle} not applicable" if idle else ""
        return fine(name, f"proven: {len(report.probes)} attempts to escape, {denied} denied, none succeeded{unable}")
    fix = next((each.fix for each in report.probes if each.result is ProbeResult.ESCAPED), "") or _how_to(report)
    is_bwrap = report.sandbox is IsolationTier.BWRAP
    is_wanted = settings.runner_shell_enabled if is_bwrap else settings.runner_docker_enabled == "true"
    bad = failed if is_wanted or escaped else warned
    return bad(name, report.problem, fix)


def _how_to(report: ProbeReport) -> str:
    if report.sandbox is IsolationTier.BWRAP:
        return "apt-get install bubblewrap, and allow user namespaces to ordinary users"
    return "look at the engine's own log: journalctl -u docker"


def _named_engine(settings: NodeSettings) -> tuple[Engine | None, list[Finding]]:
    """Return the engine that the settings and the environment name, or what is to be said about there being none."""
    if settings.runner_docker_enabled == "false":
        return None, [unused("docker.engine", "containers are off", "RUNNER_DOCKER_ENABLED=auto")]
    socket, problem = socket_of(os.environ)
    if socket is None:
        return None, [failed("docker.engine", problem, "unset DOCKER_HOST, or name a unix:// socket")]
    if socket == DEFAULT_SOCKET and not socket.exists() and settings.runner_docker_enabled != "true":
        return None, [unused("docker.engine", f"there is no {socket}", "apt-get install docker.io, to run containers")]
    return Engine(socket, timeout_s=_ENGINE_S), []


async def _engine(engine: Engine, settings: NodeSettings) -> tuple[list[Finding], EngineFacts | None]:
    try:
        facts = await engine.facts()
    except ParityError as exc:
        if "may not be used" not in exc.message:
            return [failed("docker.engine", exc.message, "systemctl start docker, or unset DOCKER_HOST")], None
        bad = failed if settings.runner_docker_enabled == "true" else warned
        fix = f"usermod -aG docker {os.environ.get('USER', 'USER')}, and sign in again"
        return [bad("docker.engine", exc.message, fix)], None
    if facts.problem:
        return [failed("docker.engine", facts.problem, "update Docker to 20.10 or newer")], None
    words = f"Docker {facts.version} at {engine.socket}, {facts.storage_driver}, {facts.cgroup_driver}"
    found = [fine("docker.engine", words + (", rootless" if facts.is_rootless else ""))]
    if facts.cgroup_driver == "none":
        fix = "let systemd delegate cpu, memory and pids to this user"
        found.append(failed("docker.limits", "the engine cannot limit a container's memory and processes", fix))
    if "runsc" in facts.runtimes:
        found.append(fine("docker.gvisor", "the engine has the runtime runsc"))
    else:
        found.append(
            unused("docker.gvisor", "the engine has no runtime runsc", "apt-get install runsc && runsc install")
        )
    if settings.runner_docker_gpus and shutil.which(_GPU_PROGRAM) is None:
        granted = ", ".join(settings.runner_docker_gpus)
        found.append(
            failed(
                "docker.gpus", f"{granted} granted, and {_GPU_PROGRAM} is missing", "install nvidia-container-toolkit"
            )
        )
    return found, facts


@contextmanager
def _workplace(settings: NodeSettings) -> Iterator[Path]:
    folder = executions_folder(settings)
    if os.access(folder, os.W_OK | os.X_OK):
        yield folder
        return
    path = Path(tempfile.mkdtemp(prefix="parity-doctor-"))
    try:
        path.chmod(0o711)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _ollama() -> Finding:
    """Ask Ollama for its version; it is what would run language models."""
    told = os.environ.get("OLLAMA_HOST", "") or _DEFAULT_OLLAMA
    parts = urlsplit(told if "//" in told else f"//{told}")
    try:
        connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 11_434, timeout=_OLLAMA_S)
        try:
            connection.request("GET", "/api/version")
            answer = json.loads(connection.getresponse().read(_MAX_ANSWER_BYTES))
        finally:
            connection.close()
        return fine("ollama", f"Ollama {str(answer['version'])[:40]} at {told}")
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return unused("ollama", f"nothing answers at {told}", "install Ollama, to answer prompts")
