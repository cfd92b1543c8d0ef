"""Which runtime a task gets: the one it asks for, proven here, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parity_node.executors.docker import gate as gate_module
from parity_node.executors.docker.engine import Engine, EngineFacts
from parity_node.executors.docker.gate import EngineGate
from parity_node.executors.sandbox.probes import ProbeReport
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.isolation import IsolationTier
from parity_protocol.needs import Requirements
from parity_protocol.task import DockerSpec
from parity_protocol.testing.clock import FakeClock

pytestmark = pytest.mark.anyio

GVISOR = DockerSpec(image="busybox", requires=Requirements(isolation=IsolationTier.GVISOR))
TIERS = {"runc": IsolationTier.DOCKER, "runsc": IsolationTier.GVISOR}


class AnsweringEngine(Engine):
    """An engine with these runtimes, without containers of anybody."""

    def __init__(self, folder: Path, *runtimes: str) -> None:
        super().__init__(folder / "docker.sock", timeout_s=1)
        self._runtimes = frozenset(runtimes)

    def instance(self) -> str:
        return "1:1"

    async def facts(self) -> EngineFacts:
        root = Path("/var/lib/docker")
        return EngineFacts(
            "24.0", "1.43", self._runtimes, "cgroupfs", "overlay2", "amd64", root, is_rootless=False, init_binary="i"
        )

    async def containers(self, **labels: str) -> dict[str, Any]:
        return {}


@pytest.fixture
def make_gate(tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Any:
    async def nothing(_facts: EngineFacts) -> None: ...

    def make(*runtimes: str, escaped: str = "") -> EngineGate:
        async def prove(_engine: Engine, _workplace: Path, *, runtime: str, **_: Any) -> ProbeReport:
            return ProbeReport(TIERS[runtime], "file.shadow escaped" if runtime == escaped else "")

        monkeypatch.setattr(gate_module, "prove_docker", prove)
        engine = AnsweringEngine(tmp_path, *runtimes)
        return EngineGate(engine, exec_dir=tmp_path, node_id="0xn", clock=clock, hidden=(), off="", on_proven=nothing)

    return make


@pytest.mark.parametrize(("runtimes", "escaped"), [(("runc",), ""), (("runc", "runsc"), "runsc")])
async def test_gvisor_that_is_not_proven_is_refused_and_never_replaced_by_runc(
    make_gate: Any, runtimes: tuple[str, ...], escaped: str
) -> None:
    gate = make_gate(*runtimes, escaped=escaped)

    state = await gate.describe()
    with pytest.raises(ExecutionFailed) as caught:
        gate.runtime_for(GVISOR)

    assert caught.value.reason is FailureReason.EXECUTOR_UNAVAILABLE
    assert (state.available, state.isolation) == (True, IsolationTier.DOCKER), "and it is not announced"
    assert gate.runtime_for(DockerSpec(image="busybox")) == "runc"


async def test_gvisor_that_is_proven_is_announced_and_used_only_when_asked_for(make_gate: Any) -> None:
    gate = make_gate("runc", "runsc")

    state = await gate.describe()

    assert state.isolation is IsolationTier.GVISOR
    assert gate.runtime_for(GVISOR) == "runsc"
    assert gate.runtime_for(DockerSpec(image="busybox")) == "runc"


async def test_without_runc_proven_no_container_runs_even_with_gvisor(make_gate: Any) -> None:
    gate = make_gate("runc", "runsc", escaped="runc")

    state = await gate.describe()

    assert not state.available
    assert "file.shadow escaped" in state.reason
    with pytest.raises(ExecutionFailed):
        await gate.require()
