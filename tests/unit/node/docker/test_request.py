"""What the engine is asked for: a closed request, whatever a task says."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from parity_node.executors.base import Limits
from parity_node.executors.docker.job import DockerJob, check_places
from parity_node.executors.docker.request import ContainerRequest
from parity_node.executors.folder import JobFolder
from parity_node.executors.process import Identity
from parity_protocol.errors import ExecutionFailed, FailureReason, InvalidInput
from parity_protocol.task import DockerSpec, parse_spec

REQUEST = ContainerRequest(
    image="sha256:" + "a" * 64,
    user=Identity(61_000, 61_000),
    cpus=0.5,
    memory_bytes=128 << 20,
    pids=32,
    scratch_bytes=16 << 20,
    file_bytes=32 << 20,
    log_bytes=1 << 20,
)


def host(request: ContainerRequest) -> dict[str, object]:
    found = request.body("{}")["HostConfig"]
    assert isinstance(found, dict)
    return found


def test_the_smallest_request_is_closed_on_all_sides():
    body = REQUEST.body("{}")

    assert body["User"] == "61000:61000"
    assert body["Env"] == []
    assert "Cmd" not in body
    assert "Entrypoint" not in body
    found = host(REQUEST)
    assert (found["NetworkMode"], found["IpcMode"], found["PidMode"], found["UTSMode"]) == ("none", "none", "", "")
    assert found["CapDrop"] == ["ALL"]
    assert found["SecurityOpt"] == ["no-new-privileges:true", "seccomp={}"]
    assert (found["Memory"], found["MemorySwap"]) == (128 << 20, 128 << 20)
    assert found["ReadonlyRootfs"] is True
    assert found["Privileged"] is False
    assert found["Mounts"] == []
    assert not {"Binds", "Devices", "CapAdd", "DeviceRequests", "PortBindings", "ExtraHosts", "Dns"} & found.keys()


def test_no_task_reaches_an_option_of_the_engine():
    spec = DockerSpec(
        image="busybox",
        command=("--privileged", "-v", "/:/host"),
        env={"LD_PRELOAD": "x", "HOME": "--network=host"},
        workdir="/--pid=host",
    )
    request = replace(REQUEST, command=spec.command, env=spec.env, workdir=spec.workdir)

    assert host(request) == host(REQUEST)
    assert request.body("{}")["Cmd"] == ["--privileged", "-v", "/:/host"]
    assert request.body("{}")["Env"] == ["LD_PRELOAD=x", "HOME=--network=host"]


@pytest.mark.parametrize(
    "members",
    [
        {"privileged": True},
        {"volumes": ["/:/host"]},
        {"network": "host"},
        {"cap_add": ["SYS_ADMIN"]},
        {"devices": ["/dev/mem"]},
        {"image": "--privileged"},
        {"image": "busybox -v /:/host"},
        {"env": {"A=B": "c"}},
        {"env": {"": "c"}},
        {"env": ["HOME"]},
        {"env": {"A": "a\x00b"}},
        {"workdir": "relative"},
        {"workdir": "/a\x00b"},
        {"command": ["a\x00b"]},
        {"runtime": "runc"},
        {"security_opt": ["seccomp=unconfined"]},
    ],
)
def test_a_spec_that_asks_for_more_is_refused(members):
    text = json.dumps({"type": "docker", "image": "busybox", **members})

    with pytest.raises(InvalidInput):
        parse_spec(text)


def test_every_variable_has_its_value_so_that_none_is_copied_from_the_engine():
    request = replace(REQUEST, env={"HOME": "", "PATH": "/bin"})

    assert request.body("{}")["Env"] == ["HOME=", "PATH=/bin"]


def test_a_container_that_joins_a_network_names_no_host():
    body = replace(REQUEST, network_of="abc").body("{}")

    assert "Hostname" not in body
    assert isinstance(body["HostConfig"], dict)
    assert body["HostConfig"]["NetworkMode"] == "container:abc"


def test_volumes_of_an_image_become_bounded_memory():
    found = host(replace(REQUEST, volumes=("/data", "/var/lib/x")))

    assert found["Mounts"] == [
        {"Type": "tmpfs", "Target": path, "TmpfsOptions": {"SizeBytes": 16 << 20, "Mode": 0o1777}}
        for path in ("/data", "/var/lib/x")
    ]


def test_gpus_are_fixed_devices():
    found = host(replace(REQUEST, gpus=("GPU-1", "MIG-2")))

    assert found["DeviceRequests"] == [
        {"Driver": "nvidia", "DeviceIDs": ["GPU-1", "MIG-2"], "Capabilities": [["gpu", "compute", "utility"]]}
    ]


def test_gvisor_gets_room_for_its_own_threads_and_the_runtime_is_always_named():
    assert host(REQUEST)["Runtime"] == "runc"
    found = host(replace(REQUEST, runtime="runsc"))
    assert found["Runtime"] == "runsc"
    assert found["PidsLimit"] == 192 + 12 * 32


def test_inputs_are_readonly_and_the_output_is_the_only_writable_mount():
    found = host(replace(REQUEST, readonly=((Path("/a/in"), "/inputs/in"),), output=Path("/a/output")))

    mounts = found["Mounts"]
    assert isinstance(mounts, list)
    assert [(each["Target"], each["ReadOnly"]) for each in mounts] == [("/inputs/in", True), ("/output", False)]
    assert {each["Type"] for each in mounts} == {"bind"}


def test_the_request_has_no_member_for_options():
    free = {each.name for each in fields(ContainerRequest) if "object" in str(each.type) or "Any" in str(each.type)}

    assert free == set()


@pytest.mark.parametrize(
    "places",
    [("/",), ("/proc",), ("/dev/shm",), ("/sys/fs",), ("/inputs",), ("/output/x",), ("/etc",), ("a",), ("/a/../..",)],
)
def test_an_image_cannot_cover_what_the_node_puts_there(places):
    with pytest.raises(ExecutionFailed) as caught:
        check_places(places)

    assert caught.value.reason is FailureReason.SPEC_INVALID


def test_ordinary_volumes_are_accepted_and_too_many_are_not():
    check_places(("/data", "/var/lib/postgresql/data", "/etc/nginx"))

    with pytest.raises(ExecutionFailed, match="volumes"):
        check_places(tuple(f"/v{n}" for n in range(17)))


def test_a_damaged_job_is_not_believed(tmp_path):
    folder = JobFolder(tmp_path)
    folder.write_job({"image": "x"}, Limits(1, 1, 1, 1, 1))

    with pytest.raises(ExecutionFailed) as caught:
        DockerJob.read(folder)
    assert caught.value.reason is FailureReason.NODE_RESTARTED
    assert isinstance(caught.value.__cause__, ValidationError)
