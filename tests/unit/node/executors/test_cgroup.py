from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from parity_node.executors.base import Limits
from parity_node.executors.sandbox.cgroup import Cgroup, remove_left_over
from parity_protocol.errors import ExecutionFailed

LIMITS = Limits(wall_time_s=30, cpus=0.5, memory_bytes=64 << 20, disk_bytes=0, pids=10)
SLACK = 8 << 20


@pytest.fixture
def unified(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    return tmp_path


@pytest.fixture
def legacy(tmp_path: Path) -> Path:
    for controller in ("memory", "pids", "cpu"):
        (tmp_path / controller).mkdir()
    return tmp_path


def test_limits_are_written_before_anybody_joins_in_version_2(unified):
    group = Cgroup.make("a", LIMITS, root=unified)

    assert group is not None
    folder = unified / "parity-node" / "a"
    assert (folder / "memory.max").read_text() == str((64 << 20) + SLACK)
    assert (folder / "pids.max").read_text() == "12"
    assert (folder / "cpu.max").read_text() == "50000 100000"
    assert (folder / "memory.oom.group").read_text() == "1"
    assert "+memory" in (unified / "parity-node" / "cgroup.subtree_control").read_text()


def test_limits_are_written_in_version_1(legacy):
    Cgroup.make("a", LIMITS, root=legacy)

    assert (legacy / "memory/parity-node/a/memory.limit_in_bytes").read_text() == str((64 << 20) + SLACK)
    assert (legacy / "pids/parity-node/a/pids.max").read_text() == "12"
    assert (legacy / "cpu/parity-node/a/cpu.cfs_quota_us").read_text() == "50000"


def test_a_process_joins_every_hierarchy(legacy):
    group = Cgroup.make("a", LIMITS, root=legacy)
    assert group is not None

    group.join(4242)

    assert [(legacy / each / "parity-node/a/cgroup.procs").read_text() for each in ("memory", "pids", "cpu")] == [
        "4242"
    ] * 3


def test_kills_for_want_of_memory_are_counted(unified):
    group = Cgroup.make("a", LIMITS, root=unified)
    assert group is not None
    (unified / "parity-node/a/memory.events").write_text("low 0\noom 3\noom_kill 2\n")

    assert group.oom_kills() == 2


def test_where_nothing_can_be_written_there_is_no_group(tmp_path):
    (tmp_path / "memory").write_text("not a folder")

    assert Cgroup.make("a", LIMITS, root=tmp_path) is None


@pytest.mark.parametrize("name", ["", "..", "a/b", "../escape"])
def test_a_name_cannot_leave_the_tree(name, tmp_path):
    with pytest.raises(ExecutionFailed):
        Cgroup(name, root=tmp_path)


def test_removing_what_is_not_there_does_nothing(tmp_path):
    Cgroup("a", root=tmp_path).remove()

    assert list(tmp_path.iterdir()) == []


# -- a tree that was delegated to the node -------------------------------------------------------------------------


@pytest.fixture
def unit(unified: Path) -> Path:
    """The group of a systemd unit with ``Delegate=yes``, in which the node is alone."""
    folder = unified / "user.slice" / "node.service"
    folder.mkdir(parents=True)
    (folder / "cgroup.procs").write_text(f"{os.getpid()}\n")
    return folder


def own_file(unified: Path, group: str) -> Path:
    path = unified / "own"
    path.write_text(f"1:name=systemd:/x\n0::{group}\n")
    return path


def test_in_a_delegated_tree_the_node_moves_to_a_leaf_and_tasks_are_beside_it(unified, unit):
    own = own_file(unified, "/user.slice/node.service")

    group = Cgroup.make("a", LIMITS, root=unified, own=own)

    assert group is not None
    assert (unit / "parity-agent" / "cgroup.procs").read_text() == str(os.getpid())
    assert "+memory" in (unit / "cgroup.subtree_control").read_text()
    assert (unit / "parity-node" / "a" / "memory.max").read_text() == str((64 << 20) + SLACK)
    assert not (unified / "parity-node").exists()


def test_the_leaf_is_recognised_when_the_node_is_in_it_already(unified, unit):
    (unit / "cgroup.procs").write_text("")
    own = own_file(unified, "/user.slice/node.service/parity-agent")

    Cgroup.make("b", LIMITS, root=unified, own=own)

    assert (unit / "parity-node" / "b" / "pids.max").read_text() == "12"
    assert not (unit / "parity-agent" / "parity-agent").exists()


def test_children_of_the_node_move_with_it(unified, unit):
    with subprocess.Popen(["sleep", "60"]) as child:  # such as a trial run that began at the same time
        try:
            (unit / "cgroup.procs").write_text(f"{os.getpid()}\n{child.pid}\n")

            group = Cgroup.make("a", LIMITS, root=unified, own=own_file(unified, "/user.slice/node.service"))
        finally:
            child.kill()

    assert group is not None
    assert (unit / "parity-agent" / "cgroup.procs").read_text() == str(child.pid)  # the last one written
    assert (unit / "parity-node" / "a").is_dir()


def test_a_group_with_others_in_it_is_not_taken_over(unified, unit):
    (unit / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")

    Cgroup.make("a", LIMITS, root=unified, own=own_file(unified, "/user.slice/node.service"))

    assert not (unit / "parity-agent").exists()
    assert (unified / "parity-node" / "a").is_dir()


def test_processor_time_is_read_in_both_versions(unified, tmp_path_factory):
    group = Cgroup.make("a", LIMITS, root=unified)
    assert group is not None
    assert group.cpu_ms() == 0
    (unified / "parity-node/a/cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    assert group.cpu_ms() == 2_500

    old = tmp_path_factory.mktemp("v1")
    for controller in ("memory", "pids", "cpu", "cpuacct"):
        (old / controller).mkdir()
    group = Cgroup.make("a", LIMITS, root=old)
    assert group is not None
    (old / "cpuacct/parity-node/a/cpuacct.usage").write_text("1500000000\n")
    assert group.cpu_ms() == 1_500


def test_groups_that_a_killed_node_left_are_removed_and_young_or_used_ones_stay(legacy):
    ours = legacy / "pids" / "parity-node"
    for name, made in (("old", 1_000), ("young", 1_990), ("used", 1_000)):
        (ours / name).mkdir(parents=True)
        if name == "used":
            (ours / name / "cgroup.procs").write_text(
                "1"
            )  # a folder with a file in it cannot be removed, as a used group
        os.utime(ours / name, (made, made))

    assert remove_left_over(2_000, root=legacy) == 1
    assert sorted(path.name for path in ours.iterdir()) == ["used", "young"]
