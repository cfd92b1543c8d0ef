from __future__ import annotations

import resource
from pathlib import Path

import pytest

from parity_node.executors.base import Limits
from parity_node.executors.process import Identity
from parity_node.executors.sandbox.bwrap import Sandbox, bwrap_options, inner_command
from parity_node.executors.sandbox.drop import make_traversable, slot_identity
from parity_node.executors.sandbox.env import child_env, task_env
from parity_node.executors.sandbox.limits import limit_command, scratch_bytes, task_rlimits
from parity_protocol.errors import ExecutionFailed, FailureReason

FDS = {"status": 3, "block": 4, "seccomp": 5, "passwd": 6, "group": 7}
LIMITS = Limits(wall_time_s=30, cpus=1, memory_bytes=256 << 20, disk_bytes=64 << 20, pids=32)


def sandbox(**changes: object) -> Sandbox:
    members: dict[str, object] = {
        "command": ("echo", "hello; rm -rf /"),
        "env": {"PATH": "/usr/bin", "TOKEN": "secret"},
        "inputs": ((Path("/data/x"), "x"),),
        "scratch_bytes": 1 << 20,
        "rlimits": task_rlimits(LIMITS),
        "identity": Identity(61_000, 61_000),
        **changes,
    }
    return Sandbox(**members)  # type: ignore[arg-type]


def groups(options: list[str], flag: str, count: int) -> list[tuple[str, ...]]:
    return [tuple(options[at + 1 : at + 1 + count]) for at, each in enumerate(options) if each == flag]


@pytest.mark.parametrize(
    "flag",
    ["--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session", "--clearenv"],
)
def test_every_flag_that_contains_is_there(flag):
    assert flag in bwrap_options(sandbox(), fds=FDS)


def test_all_capabilities_are_dropped_and_no_network_is_shared():
    options = bwrap_options(sandbox(), fds=FDS)

    assert groups(options, "--cap-drop", 1) == [("ALL",)]
    assert not {"--share-net", "--cap-add", "--dev-bind", "--bind", "--userns"} & set(options)


def test_system_settings_are_read_only_and_the_root_at_last():
    options = bwrap_options(sandbox(), fds=FDS)

    assert ("/proc/sys", "/proc/sys") in groups(options, "--ro-bind", 2)
    assert groups(options, "--remount-ro", 1) == [("/dev",), ("/",)]


def test_every_tmpfs_has_a_size():
    options = bwrap_options(sandbox(), fds=FDS)

    sized = [options[at - 2] for at, each in enumerate(options) if each == "--tmpfs"]
    assert sized == ["--size"] * 3
    assert {"/tmp", "/task", "/dev/shm"} == {path for (path,) in groups(options, "--tmpfs", 1)}


def test_nothing_of_the_host_is_bound_but_programs_and_inputs():
    options = bwrap_options(sandbox(), fds=FDS)

    sources = {source for source, _ in groups(options, "--ro-bind", 2)}
    assert sources <= {"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/proc/sys", "/data/x"}
    assert ("/data/x", "/task/inputs/x") in groups(options, "--ro-bind", 2)


def test_the_environment_travels_in_options_that_no_process_list_shows():
    assert ("TOKEN", "secret") in groups(bwrap_options(sandbox(), fds=FDS), "--setenv", 2)
    assert not any("secret" in word for word in inner_command(sandbox()))


def test_arguments_stay_arguments():
    assert inner_command(sandbox())[-2:] == ["echo", "hello; rm -rf /"]


def test_limits_come_before_the_command_and_cannot_be_taken_for_its_options():
    words = inner_command(sandbox(command=("--nproc=9999:9999",)))

    assert words[-2:] == ["--", "--nproc=9999:9999"]


def test_variables_that_load_code_are_set_after_the_limits():
    found = sandbox(env={"LD_PRELOAD": "/task/inputs/x", "GCONV_PATH": "/task", "A": "1"})

    assert groups(bwrap_options(found, fds=FDS), "--setenv", 2) == [("A", "1")]
    words = inner_command(found)
    assert words.index("--") < words.index("/usr/bin/env") < words.index("LD_PRELOAD=/task/inputs/x")


def test_a_program_that_env_would_take_for_a_variable_is_refused():
    with pytest.raises(ExecutionFailed) as caught:
        inner_command(sandbox(env={"LD_PRELOAD": "x"}, command=("LD_AUDIT=y", "true")))

    assert caught.value.reason is FailureReason.SPEC_INVALID


# -- environment, limits, users ------------------------------------------------------------------------------------


def test_a_tasks_environment_is_what_it_declared_and_three_names(monkeypatch):
    monkeypatch.setenv("OPERATOR_SECRET", "canary")

    assert set(task_env({"A": "b"}, home="/task")) == {"A", "PATH", "LANG", "HOME"}
    assert task_env({"PATH": "/mine"}, home="/task")["PATH"] == "/mine"


def test_a_training_process_gets_one_thread_per_library_and_nothing_of_the_nodes(monkeypatch):
    monkeypatch.setenv("OPERATOR_SECRET", "canary")

    env = child_env(home="/x")

    assert env["OMP_NUM_THREADS"] == env["OPENBLAS_NUM_THREADS"] == "1"
    assert "canary" not in env.values()
    assert not any("proxy" in name.lower() for name in env)


def test_limits_follow_the_job():
    rlimits = task_rlimits(LIMITS)

    assert rlimits[resource.RLIMIT_CORE] == 0
    assert rlimits[resource.RLIMIT_DATA] == 256 << 20
    assert 32 < rlimits[resource.RLIMIT_NPROC] <= 36
    assert 30 < rlimits[resource.RLIMIT_CPU] <= 40
    assert f"--data={256 << 20}:{256 << 20}" in limit_command(rlimits)


@pytest.mark.parametrize(
    ("memory", "disk", "expected"),
    [
        (256 << 20, 64 << 20, 64 << 20),
        (64 << 20, 1 << 30, 32 << 20),
        (16 << 20, 1 << 30, 4 << 20),
        (1 << 30, 0, 4 << 20),
    ],
)
def test_scratch_space_leaves_room_for_the_program(memory, disk, expected):
    assert scratch_bytes(Limits(1, 1, memory, disk, 1)) == expected


@pytest.mark.parametrize("slot", [-1, 4_096, 10**9])
def test_a_slot_out_of_range_gets_no_user(slot):
    with pytest.raises(ExecutionFailed):
        slot_identity(slot)


def test_each_slot_of_root_has_a_user_of_its_own(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)

    assert [slot_identity(slot) for slot in (0, 3)] == [Identity(61_000, 61_000), Identity(61_003, 61_003)]


def test_an_ordinary_user_stays_who_they_are(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1_000)

    assert slot_identity(0) is None


def test_a_folder_is_opened_for_passing_through_only(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir(mode=0o700)

    make_traversable(folder)

    assert folder.stat().st_mode & 0o777 == 0o711


# -- what a task may ask for beside its program ---------------------------------------------------------------------


def test_an_output_folder_is_a_tmpfs_with_a_size():
    options = bwrap_options(sandbox(output_bytes=4096), fds=FDS)

    at = options.index("/output")
    assert options[at - 5 : at] == ["--perms", "0700", "--size", "4096", "--tmpfs"]
    assert "/output" not in bwrap_options(sandbox(), fds=FDS)


@pytest.mark.parametrize(
    ("workdir", "made"),
    [
        ("/task/a/b", ["/task/a/b"]),
        ("/tmp/../task/x", ["/task/x"]),
        ("/task", []),
        ("/usr/share", []),
        ("/task/inputs/data/x", []),
        ("/task/../etc/x", []),
        ("/output/x", []),  # there is none
    ],
)
def test_a_working_folder_is_made_only_where_the_task_may_write(workdir, made):
    options = bwrap_options(sandbox(workdir=workdir), fds=FDS)

    assert [path for (path,) in groups(options, "--dir", 1)] == made
    assert workdir in inner_command(sandbox(workdir=workdir))
