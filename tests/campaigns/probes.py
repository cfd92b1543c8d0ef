"""A8: every attempt to escape, made in bubblewrap, Docker and gVisor as a task is started there; all are denied."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from benchmarks.figures import Aim, Figure
from parity_node.executors.docker.engine import Engine
from parity_node.executors.docker.probe import prove_docker
from parity_node.executors.docker.request import RUNTIMES
from parity_node.executors.sandbox.bwrap import find_bwrap
from parity_node.executors.sandbox.probes import ProbeReport, ProbeResult
from parity_node.executors.sandbox.tier import prove_bwrap
from parity_node.testing.dockerd import PrivateDockerd

__all__ = ["run", "told"]

LEAST_ATTEMPTS = 40
ENGINE_S = 30.0  # for one operation of the engine


async def run(*, quick: bool) -> list[Figure]:
    """Prove each sandbox, all of it also when quick; one that is not here has a figure without a value, which says why."""
    workplace = _workplace()
    try:
        if find_bwrap() is None:
            found = [Figure("A8 bwrap", None, "", note="bubblewrap is not installed")]
        else:
            found = told(await prove_bwrap(workplace))
        return [*found, *await _containers(workplace)]
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _workplace() -> Path:
    path = Path(tempfile.mkdtemp(prefix="parity-exec-"))
    path.chmod(0o711)  # for the users that tasks run as
    return path


def told(report: ProbeReport) -> list[Figure]:
    """Return the figures of one sandbox; what stands in the way of its tier is in the note."""
    name = f"A8 {report.sandbox.value}"
    denied, escaped = report.count(ProbeResult.DENIED), report.count(ProbeResult.ESCAPED)
    broken = int(bool(report.problem) and not escaped)
    return [
        Figure(f"{name}: attempts denied", denied, "attempts", Aim(LEAST_ATTEMPTS, "at least")),
        Figure(f"{name}: escaped, or not proven", escaped + broken, "attempts", Aim(0, "at most"), report.problem),
    ]


async def _containers(workplace: Path) -> list[Figure]:
    if os.geteuid() != 0:
        return [Figure("A8 docker", None, "", note="an engine of one's own needs root")]
    try:
        dockerd = PrivateDockerd.start()
    except (OSError, RuntimeError) as exc:
        return [Figure("A8 docker", None, "", note=f"no Docker engine: {exc}")]
    with dockerd:
        engine = Engine(dockerd.socket, timeout_s=ENGINE_S)
        try:
            here = (await engine.facts()).runtimes
            reports = [await prove_docker(engine, workplace, runtime=each) for each in RUNTIMES if each in here]
        finally:
            await engine.close()
    return [figure for report in reports for figure in told(report)]
