"""The machine itself: Python, processors, memory, and what a sandbox is made of. Files are read; nothing is run or changed."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from parity_fl.engines.flower import FLWR_VERSION, is_installed
from parity_node.doctor.finding import Finding, failed, fine, unused, warned
from parity_node.executors.sandbox.bwrap import find_bwrap
from parity_node.executors.sandbox.cgroup import CONTROL_GROUPS
from parity_node.executors.sandbox.landlock import landlock_abi, missing_layer
from parity_node.executors.sandbox.limits import PRLIMIT
from parity_node.executors.sandbox.seccomp import machine_architecture
from parity_node.fingerprint.machine import measure_processors_and_memory

__all__ = ["check_machine"]

LEAST_PYTHON = (3, 11)
_LEAST_MEMORY = 512 << 20  # bytes; under it a training task hardly fits
_NAMESPACES = Path("/proc/sys/user/max_user_namespaces")
_SWITCHES = {
    # Debian's own switch, and Ubuntu's since 24.04: what they must say.
    Path("/proc/sys/kernel/unprivileged_userns_clone"): "1",
    Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"): "0",
}
_CONTROLLERS = frozenset({"memory", "pids", "cpu"})


def check_machine(*, wants_sandbox: bool) -> list[Finding]:
    """Return the findings, in the order in which they matter.

    Args:
        wants_sandbox: The settings ask for commands; without, what only those need cannot fail.
    """
    return [_python(), _platform(), *_processors(), _flower(), *_sandbox(wants_sandbox=wants_sandbox)]


def _python() -> Finding:
    found = f"Python {platform.python_version()}"
    if sys.version_info[:2] < LEAST_PYTHON:
        return failed("python", found, "install Python 3.11 or newer")
    return fine("python", found)


def _platform() -> Finding:
    found = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform != "linux":
        return warned("platform", f"{found}: only federated learning can run here", "use Linux for the other kinds")
    return fine("platform", found)


def _flower() -> Finding:
    if not is_installed():
        return unused(
            "flower", "not installed: sessions with engine flower go elsewhere", "parity fl engine install flower"
        )
    return fine("flower", f"flwr {FLWR_VERSION}, for sessions with engine flower")


def _processors() -> Iterator[Finding]:
    cpus, memory = measure_processors_and_memory()
    yield fine("cpus", f"{cpus:g} for this process")
    found = f"{memory / (1 << 30):.1f} GiB for this process"
    if memory < _LEAST_MEMORY:
        yield warned("memory", found, "give the node at least 512 MiB")
    else:
        yield fine("memory", found)


def _sandbox(*, wants_sandbox: bool) -> Iterator[Finding]:
    if sys.platform != "linux":
        yield unused("sandbox", "needs Linux")
        return
    bad = failed if wants_sandbox else warned
    bwrap = find_bwrap()
    if bwrap is None:
        yield bad(
            "bubblewrap", "bubblewrap is not installed", "apt-get install bubblewrap (dnf, pacman: the same name)"
        )
    else:
        yield fine("bubblewrap", str(bwrap))
    if not Path(PRLIMIT).is_file():
        yield bad("prlimit", f"{PRLIMIT} is missing", "apt-get install util-linux")
    yield _user_namespaces(is_wanted=wants_sandbox)
    yield _seccomp(is_wanted=wants_sandbox)
    yield _landlock()
    yield _control_groups()


def _user_namespaces(*, is_wanted: bool) -> Finding:
    bad = failed if is_wanted else warned
    most = _read(_NAMESPACES)
    if not Path("/proc/self/ns/user").exists():
        return bad("user_namespaces", "this kernel has none", "use a kernel with CONFIG_USER_NS")
    if most == "0":
        return bad("user_namespaces", f"{_NAMESPACES} is 0", "sysctl -w user.max_user_namespaces=15000")
    for switch, wanted in _SWITCHES.items():
        if (found := _read(switch)) not in {"", wanted} and os.geteuid() != 0:
            name = str(switch).removeprefix("/proc/sys/").replace("/", ".")
            return warned("user_namespaces", f"{name} is {found}", f"sysctl -w {name}={wanted}")
    return fine("user_namespaces", f"up to {most}" if most else "there are")


def _seccomp(*, is_wanted: bool) -> Finding:
    bad = failed if is_wanted else warned
    if machine_architecture() is None:
        return bad("seccomp", f"no system-call filter for {platform.machine()}", "use x86-64 or arm64")
    actions = _read(Path("/proc/sys/kernel/seccomp/actions_avail"))
    if "errno" not in actions.split():
        return bad("seccomp", "this kernel has no seccomp filters", "use a kernel with CONFIG_SECCOMP_FILTER")
    return fine("seccomp", f"our own filter for {platform.machine()}")


def _landlock() -> Finding:
    lacks = missing_layer()
    if lacks:
        return warned("landlock", lacks, "use a kernel from 5.13 on with lsm=landlock, and install perl")
    return fine("landlock", f"ABI {landlock_abi()}, a second layer behind the sandbox's mounts")


def _control_groups() -> Finding:
    """Say whether a task's memory and processes can be limited as a sum."""
    unified = _read(CONTROL_GROUPS / "cgroup.controllers").split()
    if set(unified) >= _CONTROLLERS:
        folder, version = CONTROL_GROUPS, "2"
    elif all((CONTROL_GROUPS / each).is_dir() for each in _CONTROLLERS):
        folder, version = CONTROL_GROUPS / "memory", "1"
    else:
        return warned(
            "control_groups",
            "no memory, pids and cpu controllers: limits hold per process only",
            "boot with systemd.unified_cgroup_hierarchy=1",
        )
    if not os.access(folder, os.W_OK):
        return warned(
            "control_groups",
            f"version {version}, not writable by this user: limits hold per process only",
            "run the node by `parity node service install`, which delegates them, or as root",
        )
    return fine("control_groups", f"version {version}, writable")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
