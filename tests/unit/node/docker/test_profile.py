"""The containers' system-call profile, read as libseccomp reads it: whole 64-bit arguments, rules of one call joined by "or"."""

from __future__ import annotations

import json

import pytest

from parity_node.executors.docker.profile import seccomp_profile
from parity_node.executors.sandbox.syscalls import ALLOWED, FILTERED, REFUSED

EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET = 0x1000_0000, 0x0002_0000, 0x4000_0000


def holds(argument: dict[str, int | str], values: tuple[int, ...]) -> bool:
    value = values[int(argument["index"])]
    wanted, second = int(argument["value"]), int(argument["valueTwo"])
    match argument["op"]:
        case "SCMP_CMP_EQ":
            return value == wanted
        case "SCMP_CMP_LE":
            return value <= wanted
        case "SCMP_CMP_GE":
            return value >= wanted
        case "SCMP_CMP_MASKED_EQ":
            return value & wanted == second
        case other:
            raise AssertionError(other)


def outcome(name: str, *values: int) -> set[int]:
    """Return what a call comes to: 0 when it is allowed, else the errno; more than one would be a contradiction."""
    profile = json.loads(seccomp_profile())
    found = {
        0 if rule["action"] == "SCMP_ACT_ALLOW" else rule["errnoRet"]
        for rule in profile["syscalls"]
        if name in rule["names"] and all(holds(argument, values) for argument in rule["args"])
    }
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    return found or {profile["defaultErrnoRet"]}


@pytest.mark.parametrize("family", [*range(64), (1 << 32) | 40, (1 << 32) | 1, 2**64 - 1])
def test_only_unix_and_internet_sockets_can_be_made(family):
    assert outcome("socket", family, 1, 0) == ({0} if family in {1, 2, 10} else {EAFNOSUPPORT})


def test_only_unix_sockets_come_in_pairs():
    assert outcome("socketpair", 1, 1, 0) == {0}
    assert 0 not in outcome("socketpair", 30, 1, 0)


@pytest.mark.parametrize(
    "flag", [CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWUSER | 17, (1 << 32) | CLONE_NEWUSER]
)
def test_a_clone_with_a_new_namespace_is_not_allowed(flag):
    assert 0 not in outcome("clone", flag)


def test_a_fork_and_a_thread_are_allowed():
    assert outcome("clone", 17) == {0}
    assert outcome("clone", 0x003D_0F00) == {0}


def test_clone3_says_that_it_does_not_exist_so_that_the_c_library_uses_clone():
    assert outcome("clone3", 0) == {ENOSYS}


@pytest.mark.parametrize(("persona", "is_allowed"), [(0, True), (0xFFFF_FFFF, True), (0x0004_0000, False), (8, False)])
def test_only_the_default_personality_is_allowed(persona, is_allowed):
    assert (outcome("personality", persona) == {0}) == is_allowed


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_could_be_used_against_the_host_is_refused(name):
    assert outcome(name, 0, 0, 0) == {EPERM}


def test_everything_else_that_programs_need_is_allowed():
    assert all(outcome(name, 0, 0, 0) == {0} for name in set(ALLOWED) - FILTERED)


def test_a_call_that_nobody_has_thought_of_is_not_allowed():
    assert outcome("a_call_of_next_year") == {ENOSYS}


def test_other_tables_of_numbers_are_no_part_of_it():
    profile = json.loads(seccomp_profile())

    assert [each["architecture"] for each in profile["archMap"]] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]
    assert all(each["subArchitectures"] == [] for each in profile["archMap"])


def test_no_argument_is_compared_twice_in_one_rule():
    # runc would read that as "or".
    for rule in json.loads(seccomp_profile())["syscalls"]:
        places = [each["index"] for each in rule["args"]]
        assert len(places) == len(set(places))
