from __future__ import annotations

import json
from pathlib import Path

import pytest

from parity_node.executors.base import Job, Limits
from parity_node.executors.command_job import CommandJob
from parity_node.executors.folder import JobFolder
from parity_node.executors.sandbox.bwrap import TASK_HOME
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.needs import Egress, OutputFolder
from parity_protocol.task import CidInput, CommandSpec

LIMITS = Limits(wall_time_s=30, cpus=1, memory_bytes=256 << 20, disk_bytes=64 << 20, pids=32)


def job_of(folder: Path, **members: object) -> CommandJob:
    spec = CommandSpec(**{"command": ("echo", "$HOME"), **members})  # type: ignore[arg-type]
    return CommandJob.of(Job("e", "t", "l", 1, spec, 0, 1, None, folder, LIMITS, slot=3), spec)


def test_a_job_is_read_back_as_written(tmp_path):
    job = job_of(
        tmp_path,
        env={"A": "ü"},
        workdir="/tmp/x",
        inputs=(CidInput(cid="bafk", name="rows"),),
        output=OutputFolder(max_bytes=5, max_files=6),
        egress=Egress(domains=("example.org",), max_bytes=7),
    )

    job.write(JobFolder(tmp_path))

    assert CommandJob.read(JobFolder(tmp_path)) == job


def test_without_a_wish_it_starts_at_home_and_asks_for_nothing(tmp_path):
    job = job_of(tmp_path)

    assert (job.workdir, job.output, job.egress, job.slot) == (TASK_HOME, None, None, 3)


def test_a_shell_is_part_of_the_command_only_if_the_task_asks_for_one(tmp_path):
    assert job_of(tmp_path).command == ("echo", "$HOME")
    assert job_of(tmp_path, command="echo $HOME", shell=True).command == ("/bin/sh", "-c", "echo $HOME")


@pytest.mark.parametrize("member", ["command", "env", "workdir", "inputs", "max_output_bytes", "slot"])
def test_a_job_that_lacks_a_member_is_a_restart(tmp_path, member):
    job_of(tmp_path).write(JobFolder(tmp_path))
    found = json.loads((tmp_path / "job.json").read_text())
    del found[member]
    (tmp_path / "job.json").write_text(json.dumps(found))

    with pytest.raises(ExecutionFailed) as caught:
        CommandJob.read(JobFolder(tmp_path))

    assert caught.value.reason is FailureReason.NODE_RESTARTED


@pytest.mark.parametrize(
    ("member", "value"), [("command", "rm"), ("env", []), ("slot", "0"), ("output", {"max_bytes": -1})]
)
def test_a_job_with_a_wrong_member_is_a_restart(tmp_path, member, value):
    job_of(tmp_path).write(JobFolder(tmp_path))
    found = json.loads((tmp_path / "job.json").read_text())
    (tmp_path / "job.json").write_text(json.dumps({**found, member: value}))

    with pytest.raises(ExecutionFailed) as caught:
        CommandJob.read(JobFolder(tmp_path))

    assert caught.value.reason is FailureReason.NODE_RESTARTED


def test_what_the_task_declared_wins_over_what_the_node_adds(tmp_path):
    job = job_of(tmp_path, env={"HTTPS_PROXY": "mine"})

    env = job.sandbox(JobFolder(tmp_path), also_env={"HTTPS_PROXY": "ours", "NO_PROXY": "localhost"}).env

    assert (env["HTTPS_PROXY"], env["NO_PROXY"]) == ("mine", "localhost")


def test_an_output_folder_is_never_larger_than_memory(tmp_path):
    sandbox = job_of(tmp_path, output=OutputFolder(max_bytes=1 << 40)).sandbox(JobFolder(tmp_path), also_env={})

    assert sandbox.output_bytes == LIMITS.memory_bytes - (32 << 20)
    assert "/output" in sandbox.writable
