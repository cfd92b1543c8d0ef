"""What a container may do, as the engine wrote it down and as the kernel keeps it."""

from __future__ import annotations

import json

import pytest

from parity_node.executors.docker.profile import seccomp_profile
from parity_protocol.errors import FailureReason
from parity_protocol.report import Outcome
from parity_protocol.task import CidInput, OutputFolder

pytestmark = [pytest.mark.service("docker", "busybox"), pytest.mark.root]

# What an engine fills in by itself, and whose value does not loosen anything.
OF_THE_ENGINE = {
    "ConsoleSize", "ContainerIDFile", "GroupAdd", "Isolation", "Links", "MaskedPaths", "ReadonlyPaths", "VolumeDriver",
    "VolumesFrom", "ShmSize", "Annotations", "Cgroup", "BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps",
    "BlkioDeviceWriteIOps", "BlkioWeightDevice", "StorageOpt", "MemorySwappiness", "KernelMemory", "KernelMemoryTCP",
}  # fmt: skip
LEAST_MASKED = {"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware"}
LEAST_READONLY = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}


async def test_the_engine_was_told_exactly_this(runner, engine):
    cid = runner.inputs.add(b"x")
    spec = runner.shell("sleep 5", inputs=(CidInput(name="in", cid=cid),), output=OutputFolder(max_bytes=1 << 20))
    handle = await runner.start(spec, cpus=0.5)
    _, answer = engine.call("GET", f"/containers/{handle.state['container']}/json")
    found = json.loads(answer)
    await runner.executor.cleanup(handle)

    key, folder = handle.state["execution_id"], handle.state["folder"]
    host = found["HostConfig"]
    own = "nosuid,nodev,noexec,uid=61000,gid=61000,mode=0700"
    assert set(host["MaskedPaths"]) >= LEAST_MASKED
    assert set(host["ReadonlyPaths"]) >= LEAST_READONLY
    bind = {"Type": "bind", "BindOptions": {"Propagation": "rprivate", "NonRecursive": True}}
    assert {name: value for name, value in host.items() if name not in OF_THE_ENGINE and value not in (None, [], "", 0, False)} == {
        "Init": True,
        "Runtime": "runc",
        "NetworkMode": "none",
        "IpcMode": "none",
        "CgroupnsMode": "private",
        "CgroupParent": f"/parity-node/{key}",
        "ReadonlyRootfs": True,
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={seccomp_profile()}"],
        "Memory": 128 << 20,
        "MemorySwap": 128 << 20,
        "NanoCpus": 500_000_000,
        "PidsLimit": 33,
        "OomScoreAdj": 500,
        "Ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "fsize", "Soft": 16 << 20, "Hard": 16 << 20},
            {"Name": "memlock", "Soft": 0, "Hard": 0},
            {"Name": "nofile", "Soft": 1_024, "Hard": 1_024},
        ],
        "LogConfig": {"Type": "local", "Config": {"max-size": str(2 << 20), "max-file": "2", "compress": "false"}},
        "Tmpfs": {"/tmp": f"rw,size={16 << 20},{own}", "/dev/shm": f"rw,size={16 << 20},{own}"},
        "Mounts": [
            {**bind, "Source": f"{folder}/inputs/in", "Target": "/inputs/in", "ReadOnly": True},
            {**bind, "Source": f"{folder}/output", "Target": "/output"},
        ],
    }  # fmt: skip
    config = found["Config"]
    assert config["User"] == "61000:61000"
    assert (config["Tty"], config["OpenStdin"], config["StopSignal"]) == (False, False, "SIGTERM")
    assert config["Image"].startswith("sha256:")
    labels = {name.removeprefix("network.parity."): value for name, value in config["Labels"].items()}
    assert labels.keys() == {"node", "boot", "execution", "task", "lease", "fence"}
    assert (labels["node"], labels["execution"], labels["fence"]) == (runner.node_id, key, "1")


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm", "/data"])
async def test_writable_places_are_bounded(runner, engine, place):
    engine.import_busybox("parity-test/volume:1", changes=("VOLUME /data",))
    spec = runner.shell(f"head -c 40000000 /dev/zero > {place}/x; stat -c %s {place}/x").model_copy(
        update={"image": "parity-test/volume:1"}
    )
    handle = await runner.start(spec)

    result = await runner.executor.wait(handle)
    await runner.executor.cleanup(handle)

    sizes = [int(word) for word in runner.output(result).split() if word.isdigit()]  # among what was said of the limit
    assert len(sizes) == 1
    assert 0 < sizes[0] <= 16 << 20
    _, volumes = engine.call("GET", "/volumes")
    assert not json.loads(volumes)["Volumes"], "an image's volume lies on the machine's disk"


@pytest.mark.parametrize("path", ["/x", "/etc/x", "/usr/x", "/dev/x", "/sys/x", "/inputs/x"])
async def test_nothing_else_is_writable(runner, path):
    assert await runner.printed(f"(echo x > {path}) 2>/dev/null && echo written; true") == ""


async def test_forks_end_at_the_limit(runner):
    result = await runner.run("n=0; while [ $n -lt 60 ]; do sleep 5 & n=$((n+1)); done; echo all")

    assert result.reason is FailureReason.EXIT_STATUS
    assert "can't fork" in result.message


async def test_processor_time_is_shared_out(runner):
    result = await runner.run("timeout 1 sh -c 'while :; do :; done'; true", limits={"cpus": 0.25})

    assert result.usage.cpu_ms < 600


async def test_more_files_than_the_output_folder_takes_end_the_task(runner):
    script = "n=0; while :; do echo x > /output/$n; n=$((n+1)); done"

    result = await runner.run(script, output=OutputFolder(max_files=50))

    assert (result.outcome, result.reason) == (Outcome.FAILED, FailureReason.OUTPUT_TOO_LARGE), result.message


async def test_more_bytes_than_the_output_folder_takes_end_the_task(runner):
    script = "n=0; while :; do head -c 900000 /dev/zero > /output/$n; n=$((n+1)); sleep 0.02; done"

    result = await runner.run(script, output=OutputFolder(max_bytes=4 << 20))

    assert (result.outcome, result.reason) == (Outcome.FAILED, FailureReason.OUTPUT_TOO_LARGE), result.message


async def test_one_file_cannot_grow_over_the_output_folders_limit(runner):
    script = "head -c 60000000 /dev/zero > /output/x; s=$?; stat -c %s /output/x; rm /output/x; exit $s"

    result = await runner.run(script, output=OutputFolder(max_bytes=32 << 20))

    assert result.outcome is Outcome.FAILED
    assert "33554432" in result.message or result.reason is FailureReason.OUTPUT_TOO_LARGE, result.message


async def test_a_link_out_of_the_output_folder_is_refused(runner):
    result = await runner.run("ln -s /etc/passwd /output/x", output=OutputFolder())

    assert (result.outcome, result.reason) == (Outcome.FAILED, FailureReason.DATA_INVALID)
