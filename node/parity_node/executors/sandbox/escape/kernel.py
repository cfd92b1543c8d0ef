"""Attempts on the kernel: calls that a task must not reach, however they would end. None does harm where it succeeds."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from parity_node.executors.sandbox.escape.basics import (
    ASKED,
    LIBC,
    REFUSALS,
    Attempt,
    NotApplicable,
    Outcome,
    call,
    in_child,
    name_of,
    on_surface,
    refused,
    surface,
)

__all__ = ["ATTEMPTS"]

_NEWNS, _NEWUSER, _NEWNET = 0x0002_0000, 0x1000_0000, 0x4000_0000
_AT_FDCWD = -100
_X32 = 0x4000_0000


def _namespace(flag: int) -> Callable[[], Outcome]:
    return lambda: in_child(lambda: refused(lambda: call("unshare", flag), REFUSALS | {errno.ENOSPC}))


def _clone_user() -> Outcome:
    def attempt() -> None:
        if call("clone", _NEWUSER | signal.SIGCHLD, 0, 0, 0, 0) == 0:
            os._exit(0)
        os.wait()

    return in_child(lambda: refused(attempt, REFUSALS | {errno.ENOSPC}))


def _clone3_user() -> Outcome:
    def attempt() -> None:
        fields = struct.pack("<QQQQQQQQ", _NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
        if call("clone3", fields, len(fields)) == 0:
            os._exit(0)
        os.wait()

    return in_child(lambda: refused(attempt, REFUSALS | {errno.ENOSPC}))


def _join_namespace() -> Outcome:
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        return refused(lambda: call("setns", fd, 0))
    finally:
        os.close(fd)


def _mount_something() -> Outcome:
    folder = Path(ASKED["scratch"], "parity-probe-mount")
    folder.mkdir()
    place = bytes(folder)
    try:
        found = refused(lambda: call("mount", b"none", place, b"tmpfs", 0, None))
        if found[0] == "escaped":
            LIBC.umount2(place, 2)
        return found
    finally:
        folder.rmdir()


def _unmount_something() -> Outcome:
    folder = Path(ASKED["scratch"], "parity-probe-unmount")
    folder.mkdir()
    try:
        return refused(
            lambda: call("umount2", bytes(folder), 0)
        )  # with the right to unmount it says EINVAL: no mount point
    finally:
        folder.rmdir()


def _other_numbers(code: int) -> Callable[[], Outcome]:
    """Call the kernel through another table of numbers, where a filter may know nothing."""

    def x32() -> Outcome:
        found = LIBC.syscall(ctypes.c_long(code | ASKED["numbers"]["getpid"]))
        number = ctypes.get_errno()
        return on_surface("an x32 call was taken") if found > 0 else ("denied", name_of(number))

    def x86_32() -> Outcome:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
        function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        found = function()
        return on_surface("a 32-bit call was taken") if found > 0 else ("denied", name_of(-found))

    def attempt() -> Outcome:
        if os.uname().machine != "x86_64":
            raise NotApplicable("only on x86-64")
        return in_child(x32 if code else x86_32)

    return attempt


def _performance_counter() -> Outcome:
    attributes = struct.pack("<IIQ", 1, 112, 0) + bytes(24) + struct.pack("<Q", 0b110_0001) + bytes(64)
    return refused(lambda: os.close(call("perf_event_open", attributes, 0, -1, -1, 0)))


def _sethostname() -> Outcome:
    host = os.uname().nodename.encode()
    return refused(lambda: call("sethostname", host, len(host)))


def _compare() -> int:
    return call("kcmp", os.getpid(), os.getpid(), 0, 0, 0)


ATTEMPTS: Final = {
    "kernel.io_uring": Attempt("set up io_uring", surface("io_uring_setup", 1, bytes(120))),
    "kernel.user_namespace": Attempt("make a user namespace", _namespace(_NEWUSER)),
    "kernel.net_namespace": Attempt("make a network namespace", _namespace(_NEWNET)),
    "kernel.mount_namespace": Attempt("make a mount namespace", _namespace(_NEWNS)),
    "kernel.clone_user_namespace": Attempt("make a user namespace by clone", _clone_user),
    "kernel.clone3_user_namespace": Attempt("make a user namespace by clone3", _clone3_user),
    "kernel.join_namespace": Attempt("join a namespace", _join_namespace),
    "kernel.keyctl": Attempt("look into the kernel's keyrings", surface("keyctl", 0, -3, 0)),
    "kernel.add_key": Attempt("add a key", surface("add_key", b"user", b"parity-probe", b"x", 1, -2)),
    "kernel.request_key": Attempt("ask for a key", surface("request_key", b"user", b"parity-probe", None, 0)),
    "kernel.mount": Attempt("mount a file system", _mount_something),
    "kernel.unmount": Attempt("unmount one", _unmount_something),
    "kernel.pivot_root": Attempt("change the root file system", surface("pivot_root", b"/", b"/")),
    "kernel.chroot": Attempt("change the root folder", lambda: in_child(surface("chroot", b"/"))),
    "kernel.open_tree": Attempt("copy a mount", surface("open_tree", _AT_FDCWD, b"/", 1)),
    "kernel.fsopen": Attempt("open a file system", surface("fsopen", b"tmpfs", 0)),
    "kernel.bpf": Attempt("load a program into the kernel", surface("bpf", 5, bytes(128), 128)),
    "kernel.perf_event": Attempt("open a performance counter", _performance_counter),
    "kernel.userfaultfd": Attempt("handle page faults", surface("userfaultfd", 1)),
    "kernel.modules": Attempt("load a kernel module", surface("init_module", None, 0, b"")),
    "kernel.kexec": Attempt("start another kernel", surface("kexec_load", 0, 0, None, 0xFF)),
    # With the right to, it sets nothing, and the numbers of the next one are wrong.
    "kernel.set_clock": Attempt("set the clock", surface("settimeofday", None, None)),
    "kernel.reboot": Attempt("restart the machine", surface("reboot", 1, 2, 3, None)),
    "kernel.host_name": Attempt("set the machine's name", _sethostname),
    "kernel.swap": Attempt("add swap space", surface("swapon", b"/parity-probe", 0)),
    "kernel.quota": Attempt("look at disk quotas", surface("quotactl", 0x8000_0700, b"/dev/null", 0, None)),
    "kernel.accounting": Attempt("write process accounting", surface("acct", b"/parity-probe")),
    "kernel.log": Attempt("read the kernel's log", surface("syslog", 3, bytes(64), 64)),
    "kernel.ports": Attempt("use I/O ports", surface("iopl", 3)),
    "kernel.personality": Attempt(
        "turn address randomization off", lambda: in_child(surface("personality", 0x0004_0000))
    ),
    "kernel.compare_processes": Attempt("compare kernel pointers", lambda: refused(_compare)),
    "kernel.fanotify": Attempt("watch file systems", surface("fanotify_init", 0, 0)),
    "kernel.x32_calls": Attempt("call by x32 numbers", _other_numbers(_X32)),
    "kernel.x86_32_calls": Attempt("call by 32-bit numbers", _other_numbers(0)),
}
