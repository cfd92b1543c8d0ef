"""What strangers bring to an engine to harm it or its operator: images that lie, folders that hide, containers held up."""

from __future__ import annotations

import json
import time
import uuid

import pytest

from parity_node.executors.docker.executor import DockerExecutor
from parity_node.testing.dockerd import PrivateDockerd
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.needs import OutputFolder
from parity_protocol.report import Outcome

from .conftest import Runner, shell

pytestmark = [pytest.mark.service("docker", "busybox"), pytest.mark.root]


def run_by_operator(engine: PrivateDockerd, image: str) -> str:
    """Start a container as the engine's owner would, with nothing but an image; return its id."""
    body = json.dumps({"Image": image, "Cmd": ["sleep", "60"], "HostConfig": {"NetworkMode": "none"}}).encode()
    status, answer = engine.call("POST", "/containers/create", body, {"Content-Type": "application/json"})
    assert status == 201, answer
    made = str(json.loads(answer)["Id"])
    assert engine.call("POST", f"/containers/{made}/start")[0] == 204
    return made


async def test_an_image_that_carries_the_nodes_labels_does_not_make_the_operators_container_an_orphan(
    runner: Runner, engine: PrivateDockerd
) -> None:
    labels = f'LABEL network.parity.node="{runner.node_id}" network.parity.execution="gone"'
    engine.import_busybox("strangers/tool:1", changes=(labels,))
    foreign = run_by_operator(engine, "strangers/tool:1")
    again: DockerExecutor = runner.again()
    try:
        assert (await again.describe()).available

        assert engine.call("GET", f"/containers/{foreign}/json")[0] == 200
    finally:
        await again.aclose()
        engine.call("DELETE", f"/containers/{foreign}?force=1")


async def test_a_folder_too_deep_to_be_named_does_not_hide_what_is_in_it(runner: Runner) -> None:
    name = "x" * 200
    script = (
        f"cd /output; n=0; while [ $n -lt 40 ]; do mkdir {name} && cd {name}; n=$((n+1)); done; "
        "n=0; while [ $n -lt 20 ]; do head -c 4000000 /dev/zero > $n; n=$((n+1)); done; sleep 20"
    )
    began = time.monotonic()

    result = await runner.run(script, output=OutputFolder(max_bytes=4 << 20))

    assert (result.outcome, result.reason) == (Outcome.FAILED, FailureReason.OUTPUT_TOO_LARGE), result.message
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("workdir", ["/proc/self/fd/3", "/proc/self/fd/7", "/proc/self/fd/8", "/proc/self/fd/9"])
async def test_a_working_folder_that_is_a_descriptor_of_the_engine_leads_nowhere(runner: Runner, workdir: str) -> None:
    handle = await runner.executor.prepare(runner.job(shell("ls ../../../../../../../root", workdir=workdir)))
    try:
        with pytest.raises(ExecutionFailed) as caught:
            await runner.executor.wait(await runner.executor.start(handle))
    finally:
        await runner.executor.cleanup(handle)

    assert caught.value.reason is FailureReason.SPEC_INVALID, caught.value.message


async def test_a_container_that_somebody_holds_ends_at_its_wall_time(runner: Runner, engine: PrivateDockerd) -> None:
    handle = await runner.start(shell("sleep 60"), wall_time_s=2)
    engine.call("POST", f"/containers/{handle.state['container']}/pause")
    began = time.monotonic()
    try:
        result = await runner.executor.wait(handle)
    finally:
        await runner.executor.cleanup(handle)

    assert result.reason is FailureReason.TIMEOUT
    assert time.monotonic() - began < 6
    assert engine.containers(label=f"network.parity.node={runner.node_id}") == []


async def test_a_container_that_somebody_renamed_is_taken_up_and_removed(
    runner: Runner, engine: PrivateDockerd
) -> None:
    handle = await runner.start(shell("sleep 1; echo done"))
    container = handle.state["container"]
    status, _ = engine.call("POST", f"/containers/{container}/rename?name=mine-{uuid.uuid4()}")
    again: DockerExecutor = runner.again()
    try:
        await again.describe()

        assert await again.recover(handle)
        result = await again.wait(handle)
        await again.cleanup(handle)
    finally:
        await again.aclose()
        await runner.executor.cleanup(handle)

    assert (status, result.result_bytes) == (204, b"done\n")
    assert engine.call("GET", f"/containers/{container}/json")[0] == 404


HOSTILE = (
    *(f"ENV A{n}={'x' * 60_000}" for n in range(4)),
    "ENV LD_PRELOAD=/data/evil.so",
    "ENV PATH=/data:/bin",
    "USER root",
    "EXPOSE 1-90",
    "HEALTHCHECK --interval=100ms CMD echo hurt",
    "ONBUILD RUN true",
    'LABEL network.parity.execution="another"',
)


async def test_what_an_image_asks_for_itself_is_not_given(runner: Runner, engine: PrivateDockerd) -> None:
    engine.import_busybox("parity-test/hostile:1", changes=HOSTILE)
    spec = shell("id -u; sleep 0.5").model_copy(update={"image": "parity-test/hostile:1"})
    handle = await runner.start(spec)
    try:
        _, answer = engine.call("GET", f"/containers/{handle.state['container']}/json")
        found = json.loads(answer)

        result = await runner.executor.wait(handle)
    finally:
        await runner.executor.cleanup(handle)

    assert runner.output(result).strip() not in {"", "0"}
    assert "Health" not in found["State"]
    assert found["Config"]["Labels"]["network.parity.execution"] == handle.state["execution_id"]
    assert not found["HostConfig"]["PortBindings"]
