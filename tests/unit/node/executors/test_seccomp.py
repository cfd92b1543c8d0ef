"""The filter is run here by a small interpreter of classic BPF, on every system call number there is."""

from __future__ import annotations

import struct

import pytest

from parity_node.executors.sandbox.seccomp import ARCHITECTURES, Architecture, compile_filter, seccomp_filter
from parity_node.executors.sandbox.syscalls import ALLOWED, FILTERED, REFUSED

ALLOW, KILL = "allow", "kill"
EPERM, ENOSYS, EAFNOSUPPORT = "errno 1", "errno 38", "errno 97"
X86, ARM = ARCHITECTURES


def run(architecture: Architecture, number: int, *args: int, audit: int | None = None) -> str:
    """Return what the filter decides about one call."""
    words = [*args, *[0] * (6 - len(args))]
    data = struct.pack("<IIQ6Q", number, audit or architecture.audit, 0, *words)
    program = list(struct.iter_unpack("<HBBI", seccomp_filter(architecture)))
    at = accumulator = 0
    for _ in range(len(program)):
        opcode, if_true, if_false, operand = program[at]
        at += 1
        if opcode == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif opcode == 0x05:
            at += operand
        elif opcode == 0x06:
            return {0x7FFF0000: ALLOW, 0x80000000: KILL}.get(operand) or f"errno {operand & 0xFFFF}"
        else:
            test = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}[
                opcode
            ]
            at += if_true if test else if_false
    raise AssertionError("the program does not end")


def number(name: str, architecture: Architecture) -> int:
    found = (ALLOWED | REFUSED)[name][architecture.column]
    assert found is not None
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
def test_each_number_gets_exactly_what_its_name_is_listed_for(architecture):
    def numbers(table):
        return {
            value[architecture.column]: name for name, value in table.items() if value[architecture.column] is not None
        }

    allowed, refused = numbers(ALLOWED), numbers(REFUSED)

    for each in range(600):
        if allowed.get(each) in FILTERED:
            continue
        expected = ALLOW if each in allowed else EPERM if each in refused else ENOSYS
        assert run(architecture, each) == expected, (each, allowed.get(each) or refused.get(each))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
def test_no_number_stands_for_two_names(architecture):
    numbers = [value[architecture.column] for value in [*ALLOWED.values(), *REFUSED.values()]]
    known = [each for each in numbers if each is not None]

    assert len(known) == len(set(known))


@pytest.mark.parametrize(
    ("name", "x86", "arm"),
    [("read", 0, 63), ("execve", 59, 221), ("openat", 257, 56), ("newfstatat", 262, 79), ("futex", 202, 98)],
)
def test_numbers_are_those_of_the_kernel(name, x86, arm):
    assert ALLOWED[name] == (x86, arm)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
@pytest.mark.parametrize(
    "name",
    [
        "mount", "umount2", "pivot_root", "unshare", "setns", "ptrace", "process_vm_readv", "bpf", "keyctl", "add_key",
        "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "open_by_handle_at", "kexec_load",
        "init_module", "clock_settime", "open_tree", "fsopen", "pidfd_getfd", "seccomp", "quotactl", "reboot", "syslog",
    ],
)  # fmt: skip
def test_what_escapes_use_is_refused(architecture, name):
    assert run(architecture, number(name, architecture)) == EPERM


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
def test_clone3_is_unknown_so_that_clone_with_checked_flags_is_used(architecture):
    assert run(architecture, 435) == ENOSYS


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
@pytest.mark.parametrize("family", range(64))
def test_only_unix_and_internet_sockets_can_be_made(architecture, family):
    expected = ALLOW if family in {1, 2, 10} else EAFNOSUPPORT

    assert run(architecture, number("socket", architecture), family) == expected
    assert run(architecture, number("socketpair", architecture), family) == (ALLOW if family == 1 else EAFNOSUPPORT)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
def test_a_family_with_bits_above_the_32nd_is_judged_by_what_the_kernel_reads(architecture):
    assert run(architecture, number("socket", architecture), (1 << 32) | 40) == EAFNOSUPPORT


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
@pytest.mark.parametrize("flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_clone_may_make_threads_but_no_namespace(architecture, flag):
    threads = 0x3D0F00  # what pthread_create asks for

    assert run(architecture, number("clone", architecture), threads) == ALLOW
    assert run(architecture, number("clone", architecture), threads | flag) == EPERM


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
def test_nothing_can_be_typed_into_a_terminal(architecture):
    ioctl = number("ioctl", architecture)

    assert run(architecture, ioctl, 0, 0x5412) == EPERM
    assert run(architecture, ioctl, 0, 0x541C) == EPERM
    assert run(architecture, ioctl, 0, 0x5401) == ALLOW


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
def test_personality_can_be_asked_but_not_changed(architecture):
    personality = number("personality", architecture)

    assert run(architecture, personality, 0) == ALLOW
    assert run(architecture, personality, 0xFFFFFFFF) == ALLOW
    assert run(architecture, personality, 0x0040000) == EPERM


def test_a_call_by_another_architectures_table_kills():
    assert run(X86, 0, audit=0x40000003) == KILL  # i386, by int 0x80
    assert run(ARM, 63, audit=0x40000028) == KILL  # 32-bit arm


def test_a_call_by_the_x32_table_kills():
    assert run(X86, 0x40000000 | 59) == KILL


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
def test_the_program_is_one_that_the_kernel_accepts(architecture):
    program = compile_filter(architecture)

    assert len(program) <= 4096
    for at, (opcode, if_true, if_false, operand) in enumerate(program):
        jumps = [operand] if opcode == 0x05 else [if_true, if_false]
        assert max(if_true, if_false) <= 255
        assert all(at + 1 + jump < len(program) for jump in jumps) or opcode == 0x06
    assert program[-1][0] == 0x06
