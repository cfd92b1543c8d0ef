"""This machine's Python, for programs of ours that run where the machine's files are not: the probe, the egress sidecar.

An interpreter may lie anywhere, such as below a home of mode 0700, and its shared libraries elsewhere again. A child says
which files it really loaded; they are copied into one folder that needs nothing beside itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Final

from parity_protocol.disk import failure_of
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["OPTIONS", "StagedPython", "interpreter", "stage_python"]

OPTIONS: Final = ("-I", "-S", "-E", "-B")
"""Options of our programs: no environment, no site-packages, no user's folder, no written bytecode."""

_INVENTORY_S = 20.0
_BINARY = "python"
_LOADER = "loader"
_LIBRARIES = "lib"
# What our programs import beside pure modules: of these the shared libraries are found. Not asyncio, which would bring ssl.
_MODULES = (
    *(
        "__future__",
        "array",
        "collections.abc",
        "ctypes",
        "errno",
        "fcntl",
        "json",
        "mmap",
        "pathlib",
        "re",
        "resource",
        "select",
    ),
    *("selectors", "signal", "socket", "stat", "struct", "threading", "time", "typing"),
)
# The handle of the program itself is the head of the dynamic linker's list (struct link_map: addr, name, ld, next). Its
# names are those by which libraries are looked for, not what the links lead to.
_INVENTORY = """
import ctypes, json, sys
for name in sys.argv[1:]:
    __import__(name)
class Link(ctypes.Structure):
    pass
Link._fields_ = [("addr", ctypes.c_void_p), ("name", ctypes.c_char_p), ("ld", ctypes.c_void_p), ("next", ctypes.POINTER(Link))]
objects, link = [], ctypes.cast(ctypes.CDLL(None)._handle, ctypes.POINTER(Link))
while link:
    name = (link.contents.name or b"").decode()
    if name.startswith("/"):
        objects.append(name)
    link = link.contents.next
found = list(sys.modules.values())
files = [getattr(module, "__file__", None) for module in found] + [getattr(module, "__cached__", None) for module in found]
print(json.dumps({"objects": objects, "files": [each for each in files if each]}))
"""


@dataclass(frozen=True, slots=True)
class _Inventory:
    objects: tuple[Path, ...]  # shared libraries and extension modules, by the names that the linker uses
    files: tuple[Path, ...]  # of modules, with bytecode where it exists


@dataclass(frozen=True, slots=True)
class StagedPython:
    """A folder with an interpreter that needs nothing outside of it."""

    folder: Path

    def argv(self, place: PurePosixPath, words: Sequence[str]) -> list[str]:
        """Return a command for a sandbox that sees the folder as ``place``.

        Args:
            words: What follows ``OPTIONS``: a script and its arguments, or ``-c`` and a program.
        """
        loader = [str(place / _LOADER), "--library-path", str(place / _LIBRARIES)]
        python = place / "bin" / _BINARY
        return [*loader, str(python), *OPTIONS, *words]


def interpreter() -> Path:
    """Return this interpreter's own program: not the link of a virtual environment."""
    return Path(getattr(sys, "_base_executable", "") or sys.executable).resolve()


def stage_python(folder: Path) -> StagedPython:
    """Copy the interpreter and the modules of ``_MODULES`` into an existing folder, readable for everybody; 15 to 30 MB.

    Raises:
        ExecutionFailed: It cannot be written (``disk_full``, ``node_fault``), or the interpreter cannot be found out
            about (``executor_unavailable``).
    """
    found = _inventory()
    loader = next((each for each in found.objects if each.name.startswith("ld")), None)
    if loader is None:
        raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, "this Python has no dynamic loader")
    landmark = next(each for each in found.files if each.name == "os.py")
    version = landmark.parent.name  # python3.11: a name by which the interpreter looks for its modules
    library = folder / _LIBRARIES
    modules = folder / sys.platlibdir / version  # lib, or lib64 where the interpreter was built to look there
    try:
        for path in (folder / "bin", library, modules.parent, modules, modules / "lib-dynload"):
            path.mkdir(mode=0o755, exist_ok=True)
        _copy(interpreter(), folder / "bin" / _BINARY, mode=0o755)
        _copy(loader, folder / _LOADER, mode=0o755)
        for path in (*found.files, *found.objects):
            if path.is_relative_to(landmark.parent):
                _copy(path, modules / path.relative_to(landmark.parent))
            elif path.parent.name == "lib-dynload":
                _copy(path, modules / "lib-dynload" / path.name)
            elif path in found.objects and path != loader:
                _copy(path, library / path.name)
    except OSError as exc:
        raise ExecutionFailed(failure_of(exc), f"cannot copy this Python to {folder}: {exc.strerror}") from exc
    return StagedPython(folder)


def _copy(source: Path, target: Path, *, mode: int = 0o644) -> None:
    if target.exists() or not source.exists():
        return
    missing = [each for each in (target.parent, *target.parent.parents) if not each.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o755)
    shutil.copy2(source, target)  # with its time, by which bytecode is known to be fresh
    target.chmod(mode)


@cache
def _inventory() -> _Inventory:
    try:
        answer = subprocess.run(
            [str(interpreter()), *OPTIONS, "-c", _INVENTORY, *_MODULES],
            capture_output=True,
            timeout=_INVENTORY_S,
            check=True,
            env={"PATH": os.defpath},
        )
        said = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as exc:
        text = f"{interpreter()} does not say what it needs: {exc}"
        raise ExecutionFailed(FailureReason.EXECUTOR_UNAVAILABLE, text) from exc
    return _Inventory(tuple(map(Path, said["objects"])), tuple(map(Path, said["files"])))
