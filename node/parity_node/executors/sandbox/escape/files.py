"""Attempts on files: the host's secrets, its folders, devices and sockets."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from parity_node.executors.sandbox.escape.basics import (
    ASKED,
    CONNECT_S,
    REFUSALS,
    Attempt,
    NotApplicable,
    Outcome,
    call,
    listed,
    name_of,
    on_surface,
    opened,
    own_status,
    refused,
)

__all__ = ["ATTEMPTS"]

_SETUID_S = 0.5
_AT_FDCWD = -100
_WRITE = os.O_WRONLY
_HOMES = ("/root", "/home", "/var/lib", "/var/log", "/run/user", "/srv", "/mnt", "/media")
_SYSTEM = ("/", "/usr", "/etc", "/bin", "/lib", "/sbin", "/dev", "/var", "/sys", "/proc", "/root", "/home", "/run")
_DISKS = ("sda", "vda", "xvda", "nvme0n1", "loop0", "loop-control", "mapper/control", "dm-0", "sr0")
_SETUID = ("su", "sudo", "mount", "umount", "passwd", "newgrp", "gpasswd", "chsh", "chfn", "fusermount3", "pkexec")


def _through_proc() -> Outcome:
    """Reach the host's canary file by other names of the root folder."""
    pids = [each.name for each in Path("/proc").iterdir() if each.name.isdigit()]
    roots = [f"/proc/{pid}/{link}" for pid in pids for link in ("root", "cwd")]
    return opened(root + path for root in [*roots, "/proc/self/cwd/../../../../../.."] for path in ASKED["files"])


def _write_outside() -> Outcome:
    for folder in _SYSTEM:
        path = f"{folder.rstrip('/')}/parity-probe-{os.getpid()}"
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError:
            continue
        Path(path).unlink()
        return "escaped", f"wrote {path}"
    return "denied", "no folder of the system takes a file"


def _write_input() -> Outcome:
    place = Path(ASKED["place"])
    for path, flags in ((place / "probe.json", os.O_WRONLY), (place / "new", os.O_WRONLY | os.O_CREAT)):
        found = opened([str(path)], flags)
        if found[0] != "denied":
            return found
    return refused(lambda: (place / "probe.json").rename(place / "moved"), REFUSALS | {errno.EROFS})


def _by_handle() -> Outcome:
    handle = struct.pack("<Ii", 8, 1) + struct.pack("<II", 2, 0)  # inode 2, the root of most file systems
    return refused(lambda: os.close(call("open_by_handle_at", _AT_FDCWD, handle, os.O_RDONLY)))


def _device_node() -> Outcome:
    path = f"{ASKED['scratch']}/parity-probe-device"
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 1))
    except OSError as exc:
        return "denied", name_of(exc.errno or 0)
    try:
        return opened([path])
    finally:
        Path(path).unlink()


def _engine_socket() -> Outcome:
    reasons = set()
    for path in ASKED["sockets"]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.settimeout(CONNECT_S)
            try:
                door.connect(path)
            except OSError as exc:
                reasons.add(name_of(exc.errno or 0))
                if exc.errno in {errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.EPERM}:
                    continue
                return "escaped", f"{path} is there: {exc}"
            return "escaped", f"{path} answers"
    return "denied", ", ".join(sorted(reasons))


def _setuid_program() -> Outcome:
    """Start a program with the setuid bit and look whether that changed who it is."""
    program = next(_setuid_programs(), None)
    if program is None:
        raise NotApplicable("no setuid program can be seen")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(read, 0)
        sink = os.open("/dev/null", os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        try:
            os.execv(program, [program])  # noqa: S606 - the attempt itself
        finally:
            os._exit(120)
    try:
        before = Path("/proc/self/exe").readlink()
        until = time.monotonic() + _SETUID_S
        while time.monotonic() < until:
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                ids = next(line.split()[1:] for line in status.splitlines() if line.startswith("Uid:"))
                if int(ids[1]) != os.geteuid():
                    return "escaped", f"{program} runs as uid {ids[1]}"
                if Path(f"/proc/{pid}/exe").readlink() != before:
                    return "denied", f"{program} runs as this user"
            except OSError:  # it has ended, or became somebody whose links cannot be read
                break
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
        if own_status().get("NoNewPrivs") == "1":
            return "denied", f"{program} ended at once, and no_new_privs is set"
        return "error", f"{program} could not be watched"
    finally:
        os.close(write)
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _setuid_programs() -> Iterator[str]:
    for folder in ("/usr/bin", "/bin", "/usr/sbin"):
        for name in _SETUID:
            path = f"{folder}/{name}"
            try:
                if Path(path).stat().st_mode & stat.S_ISUID:
                    yield path
            except OSError:
                continue


def _control_groups() -> Outcome:
    found = []
    for folder, _, names in os.walk("/sys/fs/cgroup"):
        if folder.count("/") > 6:
            continue
        found += [f"{folder}/{name}" for name in names if name in {"release_agent", "cgroup.procs", "devices.allow"}]
    return opened(found or ["/sys/fs/cgroup/cgroup.procs"], _WRITE)


def _device(*paths: str, flags: int = os.O_RDONLY) -> Callable[[], Outcome]:
    """Return an attempt on devices that a sandbox with its own kernel makes itself, under the same names."""

    def attempt() -> Outcome:
        result, detail = opened(paths, flags)
        return on_surface(detail) if result == "escaped" else (result, detail)

    return attempt


def _path(path: str) -> Callable[[], Outcome]:
    return lambda: opened([path])


ATTEMPTS: Final = {
    "file.shadow": Attempt(
        "read the machine's passwords", lambda: opened(["/etc/shadow", "/etc/gshadow", "/etc/sudoers"])
    ),
    "file.other_homes": Attempt("list other users' folders", lambda: listed(_HOMES)),
    "file.node_folder": Attempt("read a file that only the node may read", lambda: opened(ASKED["files"])),
    "file.node_keys": Attempt("open the node's keys and state", lambda: opened(ASKED["secrets"])),
    "file.through_proc": Attempt("reach the machine's files by links in /proc", _through_proc),
    "file.write_outside": Attempt("write a file into the system's folders", _write_outside),
    "file.write_input": Attempt("change an input", _write_input),
    "file.by_handle": Attempt("open a file by its handle", _by_handle),
    "file.device_node": Attempt("make a device", _device_node),
    "file.setuid_program": Attempt("become somebody else by a setuid program", _setuid_program),
    "file.engine_socket": Attempt("talk to a container engine", _engine_socket),
    "file.control_groups": Attempt("change control groups", _control_groups),
    "device.mem": Attempt("open physical memory", lambda: opened(["/dev/mem", "/dev/kmem", "/dev/port"])),
    "device.kmsg": Attempt("read the kernel's messages", _path("/dev/kmsg")),
    "device.kvm": Attempt("open the hypervisor", _path("/dev/kvm")),
    "device.fuse": Attempt("open FUSE", _device("/dev/fuse")),
    "device.tun": Attempt("make a network interface", _device("/dev/net/tun")),
    "device.vsock": Attempt(
        "open devices towards a hypervisor", lambda: opened(["/dev/vsock", "/dev/vhost-vsock", "/dev/vhost-net"])
    ),
    "device.disk": Attempt("open the machine's disks", lambda: opened(f"/dev/{name}" for name in _DISKS)),
    "device.terminal": Attempt(
        "open the operator's terminal", _device("/dev/tty", "/dev/tty0", "/dev/console", flags=os.O_RDWR)
    ),
}
