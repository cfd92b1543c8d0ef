"""Where images come from: a registry that the test starts, an archive among the task's data, the engine itself."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from parity_node.cache.images import ImageCache
from parity_node.cache.uses import Uses
from parity_node.executors.docker.executor import DockerExecutor, DockerOptions
from parity_node.testing.dockerd import PrivateDockerd, busybox_tar
from parity_protocol.clock import SystemClock
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.task import CidInput, DockerSpec

pytestmark = [pytest.mark.service("docker", "busybox", "registry"), pytest.mark.root]


@pytest.fixture(scope="module")
def registry(service_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address},
    }
    (folder / "config.yml").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(service_path("registry")), "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
    try:
        await_port(address)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def await_port(address: str, within_s: float = 20.0) -> None:
    host, _, port = address.partition(":")
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"nobody listens at {address}")


def push(engine: PrivateDockerd, image: str, address: str, name: str) -> str:
    """Push an image and forget it; return its digest."""
    reference = f"{address}/{name}"
    status, answer = engine.call("POST", f"/images/{image}/tag?repo={reference}&tag=1")
    assert status == 201, answer
    header = {"X-Registry-Auth": base64.b64encode(b"{}").decode()}
    _, answer = engine.call("POST", f"/images/{reference}/push?tag=1", None, header)
    events = [json.loads(line) for line in answer.splitlines()]
    assert not any("error" in event for event in events), events
    digest = next(event["aux"]["Digest"] for event in events if "aux" in event)
    engine.call("DELETE", f"/images/{image}?force=1")
    return str(digest)


def fresh_image(engine: PrivateDockerd, name: str, *, weight: int = 0) -> str:
    content = {"marker": name.encode() + b"x" * weight}
    return engine.import_tar(f"parity-test/{name}:1", busybox_tar(files=content))


async def test_an_image_is_pulled_and_its_digest_recorded(runner, engine, registry):
    digest = push(engine, fresh_image(engine, "pulled"), registry, "pulled")
    handle = await runner.start(DockerSpec(image=f"{registry}/pulled:1", command=("cat", "/marker")))

    result = await runner.executor.wait(handle)
    log = await runner.executor.logs(handle, 0)
    log += await runner.executor.logs(handle, len(log))
    await runner.executor.cleanup(handle)

    assert runner.output(result) == "pulled"
    assert result.environment == digest
    assert f"pulled {registry}/pulled@{digest}".encode() in log
    assert log.endswith(b"pulled")


async def test_an_image_is_pulled_by_its_digest(runner, engine, registry):
    digest = push(engine, fresh_image(engine, "by-digest"), registry, "by-digest")
    handle = await runner.start(DockerSpec(image=f"{registry}/by-digest@{digest}", command=("cat", "/marker")))

    result = await runner.executor.wait(handle)
    await runner.executor.cleanup(handle)

    assert runner.output(result) == "by-digest"
    assert result.environment == digest


async def test_an_image_that_nobody_has_cannot_be_had(runner, registry):
    job = runner.job(DockerSpec(image=f"{registry}/nothing:1"))

    with pytest.raises(ExecutionFailed) as caught:
        await runner.executor.prepare(job)
    shutil.rmtree(job.folder)

    assert caught.value.reason is FailureReason.DATA_UNAVAILABLE


async def test_a_pull_moves_no_name_of_the_operators(runner, engine, registry):
    theirs = fresh_image(engine, "name-theirs")
    push(engine, theirs, registry, "name")
    own = fresh_image(engine, "name-own")
    engine.call("POST", f"/images/{own}/tag?repo={registry}/name&tag=1")
    handle = await runner.start(DockerSpec(image=f"{registry}/name:1", command=("cat", "/marker")))

    result = await runner.executor.wait(handle)
    await runner.executor.cleanup(handle)

    assert runner.output(result) == "name-theirs"
    assert await runner.executor.engine.find_image(f"{registry}/name:1") == own


async def test_an_image_that_the_operator_named_too_is_theirs_and_keeps_its_names(runner, engine, registry):
    name = f"{registry}/shared"
    exact = f"{name}@{push(engine, fresh_image(engine, 'shared'), registry, 'shared')}"
    handle = await runner.start(DockerSpec(image=exact, command=("true",)))
    await runner.executor.wait(handle)
    await runner.executor.cleanup(handle)
    api = runner.executor.engine
    brought = (await api.image(exact)).id
    engine.call("POST", f"/images/{brought}/tag?repo=parity/mine&tag=1")

    is_given_back = await api.remove_image(brought, exact)

    assert is_given_back
    assert await api.find_image("parity/mine:1") == brought == await api.find_image(exact)
    engine.call("DELETE", "/images/parity/mine:1")
    assert await api.remove_image(brought, exact)
    assert await api.find_image(brought) is None


async def test_an_image_of_the_operators_own_cannot_be_run_by_its_name(runner, engine, registry):
    own = fresh_image(engine, "private")
    engine.call("POST", f"/images/{own}/tag?repo={registry}/private&tag=1")
    job = runner.job(DockerSpec(image=f"{registry}/private:1", command=("cat", "/marker")))

    with pytest.raises(ExecutionFailed) as caught:
        await runner.executor.prepare(job)
    shutil.rmtree(job.folder)

    assert caught.value.reason is FailureReason.DATA_UNAVAILABLE


async def test_a_pull_over_the_cap_is_given_up(runner, engine, registry, tmp_path):
    push(engine, fresh_image(engine, "large"), registry, "large")
    small = DockerExecutor(
        exec_dir=runner.exec_dir,
        inputs=runner.inputs,
        clock=SystemClock(),
        node_id=runner.node_id,
        options=DockerOptions(timeout_s=20, max_image_bytes=1_000, floor_bytes=0, local_images=("parity-test/*",)),
        environ={"DOCKER_HOST": engine.url},
    )
    job = runner.job(DockerSpec(image=f"{registry}/large:1"))

    with pytest.raises(ExecutionFailed) as caught:
        await small.prepare(job)
    await small.aclose()
    shutil.rmtree(job.folder)

    assert "larger than" in caught.value.message


async def test_the_ledger_knows_what_was_brought_and_nothing_else(runner, engine, registry, tmp_path):
    digest = push(engine, fresh_image(engine, "booked"), registry, "booked")
    ledger = ImageCache(tmp_path / "images.json", max_bytes=1 << 30, clock=SystemClock(), uses=Uses())
    watched: list[Path] = []
    executor = DockerExecutor(
        exec_dir=runner.exec_dir,
        inputs=runner.inputs,
        clock=SystemClock(),
        node_id=runner.node_id,
        options=DockerOptions(timeout_s=20, floor_bytes=0, local_images=("parity-test/*",)),
        ledger=ledger,
        watch=watched.append,
        environ={"DOCKER_HOST": engine.url},
    )
    for image in (f"{registry}/booked:1", "parity-test/busybox:1"):
        job = runner.job(DockerSpec(image=image, command=("true",)))
        handle = await executor.prepare(job)
        await executor.cleanup(handle)
    booked = [row.reference for row in ledger.rows]
    await executor.aclose()

    assert booked == [f"{registry}/booked@{digest}"]
    assert watched == [engine.folder / "root"], "images take room there"


async def test_an_archive_is_loaded_and_takes_no_other_images_name(runner, engine):
    foreign = await runner.executor.engine.find_image("parity-test/busybox:1")
    own = fresh_image(engine, "archived")
    _, archive = engine.call("GET", "/images/parity-test/archived:1/get")
    engine.call("DELETE", f"/images/{own}?force=1")
    hostile = retagged(archive, ["parity-test/busybox:1", "parity-test/archived:1"])
    cid = runner.inputs.add(hostile)
    spec = DockerSpec(image="parity-test/archived:1", image_tar=CidInput(cid=cid), command=("cat", "/marker"))
    handle = await runner.start(spec)

    result = await runner.executor.wait(handle)
    await runner.executor.cleanup(handle)

    assert runner.output(result) == "archived"
    assert result.environment == own
    assert await runner.executor.engine.find_image("parity-test/busybox:1") == foreign
    assert await runner.executor.engine.find_image("parity-test/archived:1") is None
    assert await runner.executor.engine.find_image(f"parity/{own.removeprefix('sha256:')}:latest") == own


async def test_an_archive_whose_layer_is_another_is_refused_by_the_engine(runner, engine):
    own = fresh_image(engine, "altered")
    _, archive = engine.call("GET", "/images/parity-test/altered:1/get")
    engine.call("DELETE", f"/images/{own}?force=1")
    assert archive.count(b"\0altered\0") == 1
    cid = runner.inputs.add(archive.replace(b"\0altered\0", b"\0ALTERED\0"))
    job = runner.job(DockerSpec(image="parity-test/altered:1", image_tar=CidInput(cid=cid), command=("true",)))

    with pytest.raises(ExecutionFailed) as caught:
        await runner.executor.prepare(job)
    shutil.rmtree(job.folder)

    assert caught.value.reason is FailureReason.DATA_INVALID
    assert await runner.executor.engine.find_image(own) is None


def retagged(archive: bytes, tags: list[str]) -> bytes:
    """Return the archive with other names for its image."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as source, tarfile.open(fileobj=out, mode="w") as target:
        for member in source:
            data = source.extractfile(member).read() if member.isreg() else b""
            if member.name == "manifest.json":
                data = json.dumps([{**json.loads(data)[0], "RepoTags": tags}]).encode()
                member.size = len(data)
            target.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return out.getvalue()
