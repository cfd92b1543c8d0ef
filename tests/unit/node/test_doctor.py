"""Findings about a machine and its folders: each with a cause, and a line that changes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_node.doctor import FindingResult, Sandboxes, check_machine, check_place, machine, place, sandboxes
from parity_node.doctor.finding import Finding
from parity_node.executors.sandbox.probes import Probe, ProbeReport, ProbeResult
from parity_node.keys import load_keys
from parity_node.settings import NodeSettings
from parity_protocol.isolation import IsolationTier
from parity_protocol.task import TaskKind

OK, WARN, FAIL, UNUSED = FindingResult


def by_id(findings: list[Finding]) -> dict[str, Finding]:
    found = {each.id: each for each in findings}
    assert len(found) == len(findings), "two checks of one name"
    assert all(each.fix for each in findings if each.result in {WARN, FAIL})
    return found


def settings_in(folder: Path, **changes: object) -> NodeSettings:
    return NodeSettings(runner_state_dir=folder / "node", runner_exec_dir=folder / "exec", **changes)  # type: ignore[arg-type]


# -- the machine ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wants", "result"), [(True, FAIL), (False, WARN)])
def test_without_bubblewrap_only_a_node_that_wants_commands_fails(monkeypatch, wants, result):
    monkeypatch.setattr(machine, "find_bwrap", lambda: None)
    monkeypatch.setattr(machine.sys, "platform", "linux")

    found = by_id(check_machine(wants_sandbox=wants))

    assert found["bubblewrap"].result is result
    assert "install bubblewrap" in found["bubblewrap"].fix


def test_user_namespaces_that_are_turned_off_are_found(monkeypatch, tmp_path):
    switch = tmp_path / "max_user_namespaces"
    switch.write_text("0\n")
    monkeypatch.setattr(machine, "_NAMESPACES", switch)
    monkeypatch.setattr(machine.sys, "platform", "linux")

    found = by_id(check_machine(wants_sandbox=True))["user_namespaces"]

    assert (found.result, found.fix) == (FAIL, "sysctl -w user.max_user_namespaces=15000")


@pytest.mark.parametrize(
    ("files", "result"),
    [
        ({"cgroup.controllers": "cpuset cpu io memory pids"}, OK),
        ({"cgroup.controllers": "cpu memory"}, WARN),
        ({"memory": None, "pids": None, "cpu": None}, OK),
        ({"memory": None, "pids": None}, WARN),
        ({}, WARN),
    ],
)
def test_control_groups_of_both_versions_are_known(monkeypatch, tmp_path, files, result):
    for name, text in files.items():
        (tmp_path / name).mkdir() if text is None else (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(machine.sys, "platform", "linux")

    assert by_id(check_machine(wants_sandbox=True))["control_groups"].result is result


def test_another_system_can_train_and_nothing_else(monkeypatch):
    monkeypatch.setattr(machine.sys, "platform", "darwin")

    found = by_id(check_machine(wants_sandbox=True))

    assert found["platform"].result is WARN
    assert found["sandbox"].result is UNUSED


# -- the node's place ----------------------------------------------------------------------------------------------------


def test_before_init_nothing_is_made(tmp_path):
    found = by_id(check_place(settings_in(tmp_path)))

    assert found["state.folder"].result is FAIL
    assert found["state.folder"].fix == "parity node init"
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_was_set_up_is_fine(tmp_path):
    load_keys(tmp_path / "node")

    found = by_id(check_place(settings_in(tmp_path)))

    assert found["state.folder"].result is OK
    assert found["state.keys"].result is OK
    assert found["policy"].result is OK


@pytest.mark.parametrize(("file", "mode", "check"), [("", 0o755, "state.folder"), ("device.key", 0o644, "state.keys")])
def test_what_others_may_read_is_found(tmp_path, file, mode, check):
    load_keys(tmp_path / "node")
    (tmp_path / "node" / file).chmod(mode)

    found = by_id(check_place(settings_in(tmp_path)))[check]

    assert found.result is FAIL
    assert "chmod" in found.fix


@pytest.mark.root
def test_executions_that_other_users_cannot_reach_are_found(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)

    found = by_id(
        check_place(settings_in(tmp_path, runner_disk_floor=1).model_copy(update={"runner_exec_dir": closed}))
    )

    assert found["executions.folder"].result is FAIL
    assert str(closed) in found["executions.folder"].cause


@pytest.mark.parametrize(("floor", "result"), [(1, OK), (2**59, FAIL)])
def test_free_space_is_compared_with_the_floor(tmp_path, floor, result):
    found = by_id(check_place(settings_in(tmp_path, runner_disk_floor=floor)))

    assert found["disk.state"].result is result
    assert found["disk.executions"].result is result


def test_more_slots_than_memory_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(place, "measure_processors_and_memory", lambda: (2.0, 600 << 20))

    found = by_id(check_place(settings_in(tmp_path, runner_slots=8)))["slots"]

    assert (found.result, found.fix) == (WARN, "RUNNER_SLOTS=2")


def test_a_policy_that_is_wrong_is_a_finding(tmp_path):
    load_keys(tmp_path / "node")
    (tmp_path / "node/policy.toml").write_text("[allow]\nno_such_rule = 1\n")

    found = by_id(check_place(settings_in(tmp_path)))["policy"]

    assert found.result is FAIL
    assert "no_such_rule" in found.cause


# -- sandboxes -----------------------------------------------------------------------------------------------------------


def report(tier: IsolationTier, problem: str = "", *probes: Probe) -> ProbeReport:
    return ProbeReport(tier, problem, probes)


ESCAPE = Probe("file.shadow", "read the passwords", ProbeResult.ESCAPED, "/etc/shadow can be opened", "bind no folder")


@pytest.mark.parametrize("enabled", [False, True])
def test_a_sandbox_that_was_escaped_from_fails_even_if_nobody_uses_it(tmp_path, enabled):
    settings = settings_in(tmp_path, runner_shell_enabled=enabled)

    found = sandboxes._proof(report(IsolationTier.BWRAP, "file.shadow", ESCAPE), settings)

    assert (found.result, found.fix) == (FAIL, "bind no folder")


@pytest.mark.parametrize(("enabled", "result"), [(False, WARN), (True, FAIL)])
def test_a_sandbox_that_cannot_start_matters_where_commands_are_wanted(tmp_path, enabled, result):
    settings = settings_in(tmp_path, runner_shell_enabled=enabled)

    assert sandboxes._proof(report(IsolationTier.BWRAP, "no namespaces"), settings).result is result


def test_only_proven_tiers_are_announced_and_only_wanted_kinds(tmp_path):
    found = Sandboxes(
        (), (report(IsolationTier.DOCKER), report(IsolationTier.BWRAP), report(IsolationTier.GVISOR, "no"))
    )

    assert found.proven == (IsolationTier.BWRAP, IsolationTier.DOCKER)
    assert set(found.kinds(settings_in(tmp_path))) == {TaskKind.FEDERATED_LEARNING, TaskKind.DOCKER}
    only = settings_in(tmp_path, runner_shell_enabled=True, runner_policy_kinds=frozenset({TaskKind.COMMAND}))
    assert found.kinds(only) == (TaskKind.COMMAND,)


@pytest.mark.parametrize(
    ("enabled", "host", "result"),
    [
        ("false", "", UNUSED),
        ("auto", "", UNUSED),
        ("auto", "tcp://192.0.2.1:2375", FAIL),
        ("true", "", None),  # it is asked, and will not answer
        ("auto", "unix:///nowhere/docker.sock", None),
    ],
)
def test_an_engine_that_nobody_asked_for_is_not_missed(tmp_path, monkeypatch, enabled, host, result):
    monkeypatch.setenv("DOCKER_HOST", host)
    monkeypatch.setattr(sandboxes, "DEFAULT_SOCKET", Path("/var/run/docker.sock"))
    monkeypatch.setattr(Path, "exists", lambda _path: False)

    engine, found = sandboxes._named_engine(settings_in(tmp_path, runner_docker_enabled=enabled))

    assert [each.result for each in found] == ([result] if result is not None else [])
    assert (engine is None) == (result is not None)
