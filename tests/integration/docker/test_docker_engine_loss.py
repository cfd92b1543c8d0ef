"""An engine that lets containers go on while it is down, and a node that is an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from parity_node.testing.dockerd import PrivateDockerd
from parity_node.testing.ordinary_user import as_ordinary_user
from parity_protocol.errors import FailureReason
from parity_protocol.report import Outcome

pytestmark = [pytest.mark.service("docker", "busybox"), pytest.mark.root, pytest.mark.serial]

UID = 54_321


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateDockerd]:
    with PrivateDockerd.start(live_restore=True, has_gvisor=False) as found:
        found.import_busybox("parity-test/busybox:1")
        yield found


async def test_a_container_outlives_its_engine_and_its_status_is_found(runner, engine):
    script = "echo before; n=0; while [ $n -lt 30 ]; do n=$((n+1)); sleep 0.1; done; echo after; exit 7"
    handle = await runner.start(runner.shell(script))
    results = []

    async def wait() -> None:
        results.append(await runner.executor.wait(handle))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(0.3)
        await anyio.to_thread.run_sync(engine.kill9)
        await anyio.sleep(0.2)
        await anyio.to_thread.run_sync(engine.restart)
    printed = await runner.executor.logs(handle, 0)
    await runner.executor.cleanup(handle)

    assert (results[0].outcome, results[0].reason) == (Outcome.FAILED, FailureReason.EXIT_STATUS), results[0].message
    assert results[0].exit_code == 7
    assert printed == b"before\nafter\n"


NODE = textwrap.dedent(
    """
    import asyncio, json, os, sys
    from pathlib import Path
    from parity_node.executors.base import Job, Limits
    from parity_node.executors.docker.executor import DockerExecutor, DockerOptions
    from parity_node.testing.inputs import StaticInputs
    from parity_protocol.clock import SystemClock
    from parity_protocol.task import CidInput, DockerSpec, OutputFolder

    async def main():
        exec_dir, inputs, found = Path(sys.argv[1]), StaticInputs(), {}
        executor = DockerExecutor(exec_dir=exec_dir, inputs=inputs, clock=SystemClock(), node_id="0xordinary", options=DockerOptions(floor_bytes=0, local_images=("parity-test/*",)))
        state = await executor.describe()
        found["state"] = [state.available, state.reason, state.isolation]
        cid = inputs.add(b"data")
        script = "id -u; cat /inputs/data; mkdir -p /output/a; echo x > /output/a/b; chmod 0 /output/a/b; timeout 0.5 sh -c 'while :; do :; done'; true"
        for name, output in (("with", OutputFolder()), ("without", None)):
            folder = exec_dir / name
            folder.mkdir(mode=0o700)
            text = script if output else "id -u; timeout 0.5 sh -c 'while :; do :; done'; true"
            spec = DockerSpec(image="parity-test/busybox:1", command=("sh", "-c", text), output=output, inputs=(CidInput(cid=cid),))
            job = Job(name, "t", "l", 1, spec, 0, 1, None, folder, Limits(20, 1, 128 << 20, 16 << 20, 32))
            handle = await executor.start(await executor.prepare(job))
            result = await executor.wait(handle)
            log = (await executor.logs(handle, 0)).decode()
            files = sorted(str(path.relative_to(result.result_path)) for path in result.result_path.rglob("*")) if result.result_path else []
            await executor.cleanup(handle)
            found[name] = [result.outcome, result.message, log, files, result.usage.cpu_ms, result.usage.peak_memory_bytes]
        found["left"] = [path.name for path in exec_dir.iterdir()]
        await executor.aclose()
        print(json.dumps(found))

    asyncio.run(main())
    """
)


def test_an_ordinary_user_runs_containers_too(engine, tmp_path, repo_root):
    folder = Path(tempfile.mkdtemp(prefix="pdu-", dir="/tmp"))
    os.chown(folder, UID, UID)
    os.chown(engine.socket, UID, UID)
    engine.folder.chmod(0o711)
    needed = (repo_root, Path(sys.base_prefix), Path(sys.prefix))
    try:
        done = subprocess.run(
            as_ordinary_user(UID, [sys.executable, "-B", "-c", NODE, str(folder)], staging=tmp_path, needed=needed),
            env={"DOCKER_HOST": engine.url, "PATH": os.environ["PATH"], "HOME": str(folder)},
            cwd=folder,
            capture_output=True,
            timeout=90,
            check=False,
        )
    finally:
        os.chown(engine.socket, 0, 0)
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr.decode()[-2_000:]

    found = json.loads(done.stdout.splitlines()[-1])

    assert found["state"][0], found["state"][1]
    outcome, message, log, files, cpu_ms, peak = found["with"]
    assert outcome == "succeeded", message
    assert log.startswith(f"{UID}\ndata")
    assert files == ["files", "files/a", "files/a/b", "output.log"]
    assert cpu_ms > 100
    assert peak > 0
    assert found["without"][0] == "succeeded", found["without"][1]
    assert found["without"][2].startswith("61000\n")
    assert found["without"][4] > 100
    assert found["left"] == []
