from __future__ import annotations

import pytest

from parity_node.executors.sandbox import probe

GOOD = """
CapPrm: 0000000000000000
CapEff: 0000000000000000
NoNewPrivs: 1
Seccomp: 2
uid: 61000
pid: 2
input: verified
home: written
interface: lo:
environment: HOME LANG PARITY_PROBE PATH PWD SHLVL _
done: yes
"""


def test_right_facts_prove_the_sandbox():
    assert probe.judge(GOOD, uid=61_000) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("CapEff: 0000000000000000", "CapEff: 0000000000200000", "CapEff"),
        ("NoNewPrivs: 1", "NoNewPrivs: 0", "NoNewPrivs"),
        ("Seccomp: 2", "Seccomp: 0", "Seccomp"),
        ("uid: 61000", "uid: 0", "uid"),
        ("pid: 2", "pid: 4242", "pid"),
        ("input: verified", "input: ", "input"),
        ("home: written", "home: ", "home"),
        ("interface: lo:", "interface: lo:\ninterface: eth0:", "interface"),
        ("interface: lo:", "", "interface"),
        ("HOME LANG", "HOME AWS_SECRET_ACCESS_KEY LANG", "environment"),
        ("done: yes", "", "done"),
        ("done: yes", "done: yes\nvisible: /etc/shadow", "/etc/shadow"),
        ("done: yes", "done: yes\nwritable: /proc/sys/kernel/core_pattern", "core_pattern"),
        ("done: yes", "done: yes\nnamespace: nested", "nested"),
    ],
)
def test_one_wrong_fact_is_enough_to_refuse(right, wrong, named):
    assert right in GOOD

    assert named in probe.judge(GOOD.replace(right, wrong), uid=61_000)


def test_a_task_that_would_be_root_is_never_contained():
    assert "uid" in probe.judge(GOOD.replace("uid: 61000", "uid: 0"), uid=0)


async def test_without_bubblewrap_nothing_is_tried(monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "find_bwrap", lambda: None)

    found = await probe.try_sandbox(tmp_path)

    assert found is not None
    assert "bubblewrap is not installed" in found.reason or "needs Linux" in found.reason


def test_a_machine_without_a_filter_has_no_sandbox(monkeypatch):
    monkeypatch.setattr(probe, "machine_architecture", lambda: None)

    found = probe.find_missing()

    assert found is not None
    assert "filter" in found.reason or "Linux" in found.reason
