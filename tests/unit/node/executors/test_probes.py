"""What the attempts printed, judged: one escape, one secret or one attempt that was not made, and nothing is proven."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from parity_node.executors.sandbox.escape.basics import ASKED, Attempt, NotApplicable, refused, run, surface
from parity_node.executors.sandbox.escape.main import ATTEMPTS, CONTROLS, MARK
from parity_node.executors.sandbox.probes import ProbeReport, ProbeResult, read_answer
from parity_protocol.isolation import IsolationTier

CANARY = "parity-canary-" + "ab" * 16
HOST = "6.1.0 #1 SMP"
GOOD: dict[str, Any] = {
    "controls": dict.fromkeys(CONTROLS, ""),
    "probes": {name: ["denied", "EPERM"] for name in ATTEMPTS},
    "kernel": HOST,
    "uid": 61_000,
    "seen": [],
}


def judged(change: dict[str, Any] | None = None, *, before: bytes = b"", **options: Any) -> ProbeReport:
    answer = copy.deepcopy(GOOD)
    for name, value in (change or {}).items():
        if isinstance(value, dict):
            answer[name].update(value)
        else:
            answer[name] = value
    said = before + b"\n" + MARK.encode() + json.dumps(answer).encode() + b"\n"
    members = {"canaries": [CANARY], "host_kernel": HOST, "uid": 61_000, **options}
    return read_answer(IsolationTier.BWRAP, said, **members)


def test_at_least_forty_attempts_are_made():
    assert len(ATTEMPTS) >= 40
    assert all(isinstance(each, Attempt) and each.what for each in ATTEMPTS.values())


def test_a_tier_is_proven_when_every_attempt_was_denied():
    report = judged()

    assert report.tier is IsolationTier.BWRAP
    assert report.count(ProbeResult.DENIED) == len(ATTEMPTS)


@pytest.mark.parametrize("name", sorted(ATTEMPTS))
def test_one_escape_is_enough_and_is_named(name):
    report = judged({"probes": {name: ["escaped", "it worked"]}})

    assert report.tier is IsolationTier.NONE
    assert f"{name}: it worked" in report.problem
    assert next(each for each in report.probes if each.id == name).fix


def test_an_attempt_that_failed_to_run_is_no_denial():
    report = judged({"probes": {"kernel.bpf": ["error", "MemoryError"]}})

    assert report.tier is IsolationTier.NONE
    assert "kernel.bpf could not be tried" in report.problem
    assert report.count(ProbeResult.DENIED) == len(ATTEMPTS) - 1


def test_an_attempt_that_does_not_apply_leaves_the_tier():
    assert judged({"probes": {"kernel.x32_calls": ["not_applicable", "only on x86-64"]}}).is_proven


def test_without_its_controls_the_probe_proves_nothing():
    report = judged({"controls": {"socket": "PermissionError: no"}})

    assert report.tier is IsolationTier.NONE
    assert "socket: PermissionError" in report.problem


@pytest.mark.parametrize("place", [{"seen": [CANARY]}, {"probes": {"file.shadow": ["denied", CANARY]}}])
def test_a_secret_of_the_host_anywhere_in_what_was_said_is_an_escape(place):
    assert "a secret of the node was read" in judged(place).problem


def test_a_secret_that_was_printed_before_the_answer_is_seen_too():
    assert "a secret of the node was read" in judged(before=CANARY.encode()).problem


@pytest.mark.parametrize(("uid", "wanted"), [(0, None), (0, 0), (1000, 61_000)])
def test_a_task_that_is_somebody_else_is_not_contained(uid, wanted):
    assert f"runs as uid {uid}" in judged({"uid": uid}, uid=wanted).problem


def test_a_sandbox_with_a_kernel_of_its_own_must_not_show_the_machines():
    assert "no kernel of its own" in judged(own_kernel=True).problem
    assert judged({"kernel": "4.4.0 gVisor"}, own_kernel=True).is_proven


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"Segmentation fault",
        MARK.encode() + b"{",
        MARK.encode() + b"[]",
        MARK.encode() + json.dumps({**GOOD, "probes": {}}).encode(),
        MARK.encode() + json.dumps({**GOOD, "controls": {}}).encode(),
        MARK.encode() + json.dumps({**GOOD, "probes": {**GOOD["probes"], "another": ["denied", ""]}}).encode(),
        b"x" + MARK.encode() + json.dumps(GOOD).encode(),
    ],
)
def test_an_answer_that_is_not_whole_proves_nothing(said):
    report = read_answer(IsolationTier.DOCKER, said, canaries=[], host_kernel=HOST, uid=None)

    assert report.tier is IsolationTier.NONE
    assert "did not run" in report.problem


def test_control_characters_of_the_sandbox_do_not_reach_the_screen():
    report = judged({"probes": {"net.internet": ["escaped", "\x1b[2Jgone"]}})

    assert "\x1b" not in report.problem
    assert all("\x1b" not in each.cause for each in report.probes)


# -- how an attempt is judged ------------------------------------------------------------------------------------------


def raises(error: BaseException) -> Any:
    def attempt() -> Any:
        raise error

    return attempt


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setitem(ASKED, "own_kernel", False)
    monkeypatch.setitem(ASKED, "numbers", {})
    return ASKED


def test_a_call_that_the_kernel_looked_at_has_escaped(asked):
    assert refused(raises(PermissionError(1, "")))[0] == "denied"
    assert refused(raises(OSError(38, "")))[0] == "denied"
    assert refused(raises(OSError(22, "")))[0] == "escaped"
    assert refused(lambda: 3)[0] == "escaped"


def test_what_reaches_a_kernel_of_the_sandbox_does_not_apply(asked, monkeypatch):
    monkeypatch.setitem(ASKED, "own_kernel", True)

    assert run(lambda: refused(lambda: 3))[0] == "not_applicable"


def test_an_attempt_that_breaks_is_an_error(asked):
    assert run(raises(ZeroDivisionError()))[0] == "error"
    assert run(raises(NotApplicable("no")))[0] == "not_applicable"
    assert run(surface("a_call_that_is_not_there"))[0] == "not_applicable"
