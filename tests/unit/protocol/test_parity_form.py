"""Tasks as the Parity network writes them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from parity_protocol.errors import BadField
from parity_protocol.parity_form import from_parity_form, is_parity_form
from parity_protocol.task import CommandSpec, DockerSpec, parse_spec

CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


def read(document: dict[str, Any]) -> CommandSpec | DockerSpec:
    assert is_parity_form(document)
    found = parse_spec(json.dumps(from_parity_form(document)))
    assert isinstance(found, CommandSpec | DockerSpec)
    return found


def test_a_command_is_split_and_keeps_its_time_and_folder() -> None:
    spec = read(
        {
            "id": "6f1c",
            "title": "t",
            "description": "d",
            "type": "command",
            "config": {"command": "echo hi", "timeout_seconds": 30, "working_dir": "/tmp", "environment": {"A": "1"}},
            "environment": None,
            "nonce": "9a",
            "status": "pending",
        }
    )
    assert isinstance(spec, CommandSpec)
    assert (spec.argv, spec.budgets.wall_time_s, spec.workdir, spec.env) == (("echo", "hi"), 30.0, "/tmp", {"A": "1"})


def test_a_command_without_a_time_has_the_parity_runners_default() -> None:
    assert read({"type": "command", "config": {"command": "true"}}).budgets.wall_time_s == 300.0


def test_a_container_has_image_archive_environment_and_resources() -> None:
    spec = read(
        {
            "type": "docker",
            "config": {
                "image_name": "alpine:3.20",
                "docker_image_url": f"http://host/api/v1/storage/download/{CID}",
                "resources": {"cpu": 0.5, "memory": "64m", "timeout": "20s", "pids": 32},
            },
            "environment": {"type": "docker", "config": {"workdir": "/w", "env": ["A=1=2"], "command": ["echo", "hi"]}},
        }
    )
    assert isinstance(spec, DockerSpec)
    assert (spec.image, spec.command, spec.workdir, spec.env) == ("alpine:3.20", ("echo", "hi"), "/w", {"A": "1=2"})
    assert spec.image_tar is not None
    assert spec.image_tar.kind == "cid"
    assert (spec.resources.cpus, spec.resources.memory_bytes, spec.resources.pids) == (0.5, 64 << 20, 32)
    assert spec.budgets.wall_time_s == 20.0


def test_an_image_at_the_top_makes_it_a_container() -> None:
    spec = read({"title": "t", "image": "busybox", "command": ["true"], "environment": None})
    assert isinstance(spec, DockerSpec)
    assert spec.command == ("true",)


def test_our_own_form_is_left_alone() -> None:
    assert not is_parity_form({"type": "docker", "image": "busybox"})


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"type": "llm", "config": {}}, "type"),
        ({"config": {}}, "type"),
        ({"type": "command", "config": {}}, "config.command"),
        ({"type": "command", "config": {"command": "a", "user": "root"}}, "config.user"),
        ({"type": "command", "config": {"command": "a", "timeout_seconds": "x"}}, "config.timeout_seconds"),
        ({"type": "command", "config": {"command": "a"}, "volumes": []}, "volumes"),
        ({"type": "docker", "config": {}}, "config.image_name"),
        ({"type": "docker", "config": {"image_name": "a", "privileged": True}}, "config.privileged"),
        ({"type": "docker", "config": {"image_name": "a", "docker_image_url": "http://h/x.tar"}}, "config.docker_image_url"),
        ({"type": "docker", "config": {"image_name": "a"}, "environment": {"config": {"env": ["HOME"]}}}, "environment.config.env.0"),
        ({"type": "docker", "config": {"image_name": "a"}, "environment": {"type": "vm"}}, "environment.type"),
        ({"type": "docker", "config": {"image_name": "a", "resources": {"shm": 1}}}, "config.resources.shm"),
        ({"type": "docker", "config": "x"}, "config"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_by_name(document: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as caught:
        from_parity_form(document)
    assert caught.value.field == field
