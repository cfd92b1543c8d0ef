"""What the options of ``parity task submit`` ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from parity_client.testing.market import FakeMarket
from parity_protocol.task import parse_spec

if TYPE_CHECKING:
    from .conftest import Parity

CID = "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am"
SHA = "0" * 64


def submitted(parity: Parity, market: FakeMarket, *arguments: str) -> dict[str, Any]:
    done = parity("task", "submit", "--reward", "1", *arguments)
    assert done.code == 0, done.err
    (task,) = market.tasks.values()
    parse_spec(task.request.spec)
    return dict(json.loads(task.request.spec))


def test_a_container_takes_image_archive_limits_and_hosts(parity: Parity, joined: FakeMarket) -> None:
    spec = submitted(
        parity,
        joined,
        *("--image", "debian:12", "--image-tar", CID, "--workdir", "/w", "--output", "--output-max", "1m"),
        *("--egress", "pypi.org", "--egress", "*.pythonhosted.org", "--egress-max", "2m", "--pids", "32", "--disk", "1g"),
        *("--gpus", "1", "--isolation", "docker", "--", "cat", "/etc/os-release"),
    )  # fmt: skip

    assert spec == {
        "type": "docker",
        "image": "debian:12",
        "image_tar": {"kind": "cid", "name": "image", "cid": CID},
        "command": ["cat", "/etc/os-release"],
        "workdir": "/w",
        "output": {"max_bytes": 1 << 20},
        "egress": {"domains": ["pypi.org", "*.pythonhosted.org"], "max_bytes": 2 << 20},
        "resources": {"pids": 32, "disk_bytes": 1 << 30, "gpus": 1},
        "requires": {"isolation": "docker"},
    }


def test_an_image_may_run_its_own_command(parity: Parity, joined: FakeMarket) -> None:
    assert submitted(parity, joined, "--image", "busybox") == {"type": "docker", "image": "busybox"}


def test_a_shell_reads_one_text(parity: Parity, joined: FakeMarket) -> None:
    spec = submitted(parity, joined, "--shell", "--", "echo $HOME; ls")

    assert spec == {"type": "command", "shell": True, "command": ["echo $HOME; ls"]}


def test_data_by_url_come_with_digest_and_size(parity: Parity, joined: FakeMarket) -> None:
    spec = submitted(
        parity, joined, "--input", f"rows=https://example.org/a.csv?x=1#sha256={SHA}&size=12", "--", "true"
    )

    assert spec["inputs"] == [
        {"kind": "https", "name": "rows", "url": "https://example.org/a.csv?x=1", "sha256": SHA, "size": 12}
    ]


def test_a_file_in_the_parity_networks_form_becomes_our_spec(
    parity: Parity, joined: FakeMarket, tmp_path: Path
) -> None:
    file = tmp_path / "task.json"
    file.write_text(
        json.dumps(
            {
                "title": "t",
                "type": "docker",
                "config": {"image_name": "busybox"},
                "environment": {"type": "docker", "config": {"env": ["A=1"], "command": ["env"]}},
            }
        )
    )

    spec = submitted(parity, joined, "--spec", str(file))

    assert spec == {"type": "docker", "title": "t", "image": "busybox", "command": ["env"], "env": {"A": "1"}}


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--image-tar", CID, "--", "true"], 2, "--image"),
        (["--image", "a", "--shell", "--", "true"], 2, "sh -c"),
        (["--image", "a", "--image-tar", "nothing"], 20, "--image-tar"),
        (["--image", "A B"], 20, "spec.image"),
        (["--egress-max", "1m", "--", "true"], 2, "--egress"),
        (["--egress", "10.0.0.1", "--", "true"], 20, "egress"),
        (["--input", "rows=https://example.org/a.csv", "--", "true"], 20, "sha256"),
        (["--spec", "x", "--image", "a"], 2, "leave out"),
    ],
)
def test_what_does_not_go_together_is_named(
    parity: Parity, joined: FakeMarket, arguments: list[str], code: int, word: str
) -> None:
    done = parity("task", "submit", "--reward", "1", *arguments)

    assert (done.code, not joined.tasks) == (code, True)
    assert word in done.err
