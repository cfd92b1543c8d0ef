"""The system-call filter of sandboxed tasks: an allow-list, compiled to classic BPF in Python.

Shipped as our own program because the lists that container engines come with differ by version and leave AF_VSOCK,
AF_ALG, io_uring and netlink open. Nothing is default-allowed: a system call that a later kernel adds is refused until
somebody adds it to ``syscalls``.
"""

from __future__ import annotations

import platform
import struct
from dataclasses import dataclass
from functools import cache
from typing import Final

from parity_node.executors.sandbox.syscalls import ALLOWED, FILTERED, REFUSED

__all__ = ["ARCHITECTURES", "Architecture", "compile_filter", "machine_architecture", "seccomp_filter"]

EPERM: Final = 1
ENOSYS: Final = 38
EAFNOSUPPORT: Final = 97

_ALLOW = 0x7FFF_0000
_ERRNO = 0x0005_0000
_KILL_PROCESS = 0x8000_0000

_LOAD, _JUMP, _JEQ, _JGE, _JSET, _RET = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24  # offsets in struct seccomp_data; the low half of an argument comes first

_X32_BIT = 0x4000_0000
_NEW_NAMESPACES = 0x7E02_0000  # CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10  # not: netlink 16, ALG 38, vsock 40, packet 17, bluetooth, XDP …
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # they type into the terminal that the task was started from
_PERSONALITIES = (0, 0xFFFF_FFFF)  # the default one, and asking


@dataclass(frozen=True, slots=True)
class Architecture:
    """One machine type."""

    name: str  # as ``platform.machine()`` says it
    audit: int  # AUDIT_ARCH_…, which the kernel puts beside every call
    column: int  # in ``syscalls``
    has_x32: bool = False


ARCHITECTURES: Final = (
    Architecture("x86_64", 0xC000_003E, 0, has_x32=True),
    Architecture("aarch64", 0xC000_00B7, 1),
)

_Program = list[tuple[int, int, int, int]]  # opcode, jump if true, jump if false, operand


def machine_architecture() -> Architecture | None:
    """Return this machine's architecture, or None when there is no filter for it."""
    found = platform.machine()
    return next((each for each in ARCHITECTURES if each.name == found), None)


@cache
def seccomp_filter(architecture: Architecture) -> bytes:
    """Return the filter as ``bwrap --seccomp`` reads it: an array of ``struct sock_filter``, little endian."""
    return b"".join(struct.pack("<HBBI", *each) for each in compile_filter(architecture))


def compile_filter(architecture: Architecture) -> _Program:
    """Return the filter's instructions for one architecture.

    A call from another architecture's table (32-bit, x32) kills the process: its numbers mean other calls.
    """
    actions = {number: _ret(_ALLOW) for name, number in _numbers(ALLOWED, architecture) if name not in FILTERED}
    actions |= {number: _ret(_ERRNO | EPERM) for _, number in _numbers(REFUSED, architecture)}
    checks = _argument_checks()
    actions |= {number: checks[name] for name, number in _numbers(ALLOWED, architecture) if name in FILTERED}

    program: _Program = [
        (_LOAD, 0, 0, _ARCH),
        (_JEQ, 1, 0, architecture.audit),
        (_RET, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NR),
    ]
    if architecture.has_x32:
        program += [(_JGE, 0, 1, _X32_BIT), (_RET, 0, 0, _KILL_PROCESS)]
    return program + _search(_intervals(actions))


def _numbers(table: dict[str, tuple[int | None, int | None]], architecture: Architecture) -> list[tuple[str, int]]:
    found = ((name, numbers[architecture.column]) for name, numbers in table.items())
    return [(name, number) for name, number in found if number is not None]


def _argument_checks() -> dict[str, _Program]:
    """Return a block per filtered call. Families are tested as an allow-list: two "not equal" tests do not combine."""
    only = _allow_only
    return {
        "socket": only(_ARG0, (_AF_UNIX, _AF_INET, _AF_INET6), EAFNOSUPPORT),
        "socketpair": only(_ARG0, (_AF_UNIX,), EAFNOSUPPORT),
        "personality": only(_ARG0, _PERSONALITIES, EPERM),
        "clone": [(_LOAD, 0, 0, _ARG0), (_JSET, 0, 1, _NEW_NAMESPACES), *_ret(_ERRNO | EPERM), *_ret(_ALLOW)],
        "ioctl": [
            (_LOAD, 0, 0, _ARG1),
            (_JEQ, 2, 0, _TIOCSTI),
            (_JEQ, 1, 0, _TIOCLINUX),
            *_ret(_ALLOW),
            *_ret(_ERRNO | EPERM),
        ],
    }


def _allow_only(offset: int, values: tuple[int, ...], errno: int) -> _Program:
    block: _Program = [(_LOAD, 0, 0, offset)]
    block += [(_JEQ, len(values) - at, 0, value) for at, value in enumerate(values)]
    return [*block, *_ret(_ERRNO | errno), *_ret(_ALLOW)]


def _ret(action: int) -> _Program:
    return [(_RET, 0, 0, action)]


def _intervals(actions: dict[int, _Program]) -> list[tuple[int, _Program]]:
    """Return (first number, what to do from there on) in order, beginning at 0; gaps are refused."""
    refuse = _ret(_ERRNO | ENOSYS)
    steps: list[tuple[int, _Program]] = []
    for number in range(max(actions) + 2):
        action = actions.get(number, refuse)
        if not steps or steps[-1][1] != action:
            steps.append((number, action))
    return steps


def _search(steps: list[tuple[int, _Program]]) -> _Program:
    """Return a binary search over ``steps``: about eight comparisons a call instead of three hundred."""
    if len(steps) == 1:
        return steps[0][1]
    middle = len(steps) // 2
    low, high = _search(steps[:middle]), _search(steps[middle:])
    # Conditional jumps reach 255 instructions only, so the far side is reached by an unconditional one.
    return [(_JGE, 0, 1, steps[middle][0]), (_JUMP, 0, 0, len(low)), *low, *high]
