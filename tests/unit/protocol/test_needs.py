"""What a command or container spec may ask for, and what is refused in words."""

from __future__ import annotations

import json

import pytest

from parity_protocol.errors import BadField
from parity_protocol.needs import split_image
from parity_protocol.task import CommandSpec, DockerSpec, parse_spec

DIGEST = "sha256:" + "0" * 64


def spec(**fields: object) -> CommandSpec | DockerSpec:
    found = parse_spec(json.dumps(fields))
    assert isinstance(found, CommandSpec | DockerSpec)
    return found


def command(**fields: object) -> CommandSpec:
    found = spec(type="command", **fields)
    assert isinstance(found, CommandSpec)
    return found


def test_a_text_is_split_at_white_space_and_no_shell_reads_it() -> None:
    assert command(command="echo  $HOME 'a b'; ls").argv == ("echo", "$HOME", "'a", "b';", "ls")


def test_a_shell_reads_the_text_only_when_the_spec_asks_for_it() -> None:
    assert command(shell=True, command="echo  $HOME; ls").argv == ("/bin/sh", "-c", "echo  $HOME; ls")


def test_a_list_stays_as_it_is() -> None:
    assert command(command=["a", "b c"]).argv == ("a", "b c")


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("busybox", ("busybox", "", "")),
        ("debian:12", ("debian", "12", "")),
        ("ghcr.io/me/a_tool:1.0", ("ghcr.io/me/a_tool", "1.0", "")),
        (f"localhost:5000/a/b@{DIGEST}", ("localhost:5000/a/b", "", DIGEST)),
        (f"a:1@{DIGEST}", ("a", "1", DIGEST)),
    ],
)
def test_an_image_reference_has_name_tag_and_digest(image: str, parts: tuple[str, str, str]) -> None:
    assert spec(type="docker", image=image).image == image  # type: ignore[union-attr]
    assert split_image(image) == parts


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"type": "command", "command": "  "}, "spec.command"),
        ({"type": "command", "shell": True, "command": ["a", "b"]}, "spec.command"),
        ({"type": "command", "command": [1]}, "spec.command.0"),
        ({"type": "docker", "image": "--privileged"}, "spec.image"),
        ({"type": "docker", "image": "a\n"}, "spec.image"),
        ({"type": "docker", "image": "a@sha256:12"}, "spec.image"),
        ({"type": "docker", "image": "a", "workdir": "tmp"}, "spec.workdir"),
        ({"type": "docker", "image": "a", "env": {"A=B": "c"}}, "spec.env.A=B.[key]"),
        ({"type": "docker", "image": "a", "env": {"HOME": None}}, "spec.env.HOME"),
        ({"type": "docker", "image": "a", "network": "host"}, "spec.network"),
        ({"type": "docker", "image": "a", "egress": {"domains": []}}, "spec.egress.domains"),
        ({"type": "docker", "image": "a", "egress": {"domains": ["169.254.169.254"]}}, "spec.egress.domains.0"),
        ({"type": "docker", "image": "a", "egress": {"domains": ["localhost"]}}, "spec.egress.domains.0"),
        ({"type": "docker", "image": "a", "egress": {"domains": ["*"]}}, "spec.egress.domains.0"),
        ({"type": "docker", "image": "a", "output": {"max_files": 0}}, "spec.output.max_files"),
        (
            {
                "type": "docker",
                "image": "a",
                "egress": {"domains": ["example.org"]},
                "requires": {"isolation": "docker+gvisor"},
            },
            "spec.egress",
        ),
        ({"type": "docker", "image": "a", "resources": {"gpus": -1}}, "spec.resources.gpus"),
        ({"type": "docker", "image": "a", "image_tar": {"kind": "shard", "shard": "x"}}, "spec.image_tar"),
    ],
)
def test_what_is_refused_names_its_field(fields: dict[str, object], field: str) -> None:
    with pytest.raises(BadField) as caught:
        spec(**fields)
    assert caught.value.field == field
