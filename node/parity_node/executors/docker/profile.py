"""Our system-call profile for containers: the allow-list of sandboxed commands, in the engine's JSON.

The engine's own profile, of whatever version is installed, leaves AF_VSOCK, AF_ALG, netlink and io_uring open. Nothing is
allowed by default here: what a later kernel adds is refused until ``sandbox.syscalls`` names it.

Two things differ from the filter of bubblewrap, because libseccomp compares whole 64-bit arguments and joins the rules of one
call by "or". Address families are told apart by rules that each allow or refuse on their own, never by two "not equal". And
``ioctl`` is allowed whole: what it could type into is a terminal of the container's own.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Final

from parity_node.executors.sandbox.seccomp import EAFNOSUPPORT, ENOSYS, EPERM
from parity_node.executors.sandbox.syscalls import ALLOWED, FILTERED, REFUSED

__all__ = ["seccomp_profile"]

_ALLOW, _ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
_EQ, _LE, _GE, _MASKED = "SCMP_CMP_EQ", "SCMP_CMP_LE", "SCMP_CMP_GE", "SCMP_CMP_MASKED_EQ"
# The machine's own numbers and no others: 32-bit and x32 calls kill the process.
_ARCHITECTURES = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")

_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_FAMILIES: Final = (_AF_UNIX, _AF_INET, _AF_INET6)
_NEW_NAMESPACES = 0x7E02_0000  # CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
_PERSONALITIES = (0, 0xFFFF_FFFF)  # the default one, and asking
# A program that gets ENOSYS tries its older way; with EPERM the C library gives up. clone3 hides its flags in memory.
_OLDER_WAY_EXISTS: Final = ("clone3", "io_pgetevents", "io_setup", "io_submit", "cachestat", "statmount", "listmount")


@cache
def seccomp_profile() -> str:
    """Return the profile as the Engine API takes it in ``SecurityOpt``: ``seccomp=`` and this text."""
    plain = sorted(set(ALLOWED) - FILTERED)
    rules: list[dict[str, Any]] = [
        _rule(plain, _ALLOW),
        _rule(["ioctl"], _ALLOW),
        _rule(["clone"], _ALLOW, _argument(0, _MASKED, _NEW_NAMESPACES, 0)),
        *(_rule(["personality"], _ALLOW, _argument(0, _EQ, value)) for value in _PERSONALITIES),
        _rule(["socketpair"], _ALLOW, _argument(0, _EQ, _AF_UNIX)),
        *(_rule(["socket"], _ALLOW, _argument(0, _EQ, family)) for family in _FAMILIES),
        *_refused_families(),
        _rule(sorted(REFUSED), _ERRNO, errno=EPERM),
        _rule(list(_OLDER_WAY_EXISTS), _ERRNO, errno=ENOSYS),
    ]
    profile = {
        "defaultAction": _ERRNO,
        "defaultErrnoRet": ENOSYS,  # engines before 23 do not read it, and say EPERM
        "archMap": [{"architecture": each, "subArchitectures": []} for each in _ARCHITECTURES],
        "syscalls": rules,
    }
    return json.dumps(profile, separators=(",", ":"), sort_keys=True)


def _refused_families() -> list[dict[str, Any]]:
    """Say "no such address family" for the rest, as a kernel without it does; programs know how to go on then."""
    between = [family for family in range(min(_FAMILIES), max(_FAMILIES)) if family not in _FAMILIES]
    rules = [_argument(0, _LE, min(_FAMILIES) - 1), _argument(0, _GE, max(_FAMILIES) + 1)]
    rules += [_argument(0, _EQ, family) for family in between]
    return [_rule(["socket"], _ERRNO, each, errno=EAFNOSUPPORT) for each in rules]


def _argument(index: int, operator: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": index, "op": operator, "value": value, "valueTwo": second}


def _rule(names: list[str], action: str, *args: dict[str, Any], errno: int | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": action, "args": list(args)}
    if errno is not None:
        rule["errnoRet"] = errno
    return rule
