"""From a task's hostile output folder to a result folder that is this node's own.

::

    output.log    what the task printed
    files/        what it left in /output

The folder that a task filled is moved, not copied, where it can be, and only then looked at: every entry through a
descriptor that follows no link, so that nothing can be swapped between the look and the use. What is kept is plain
files and folders with usable names, under caps. A crash anywhere leaves a state from which the same call goes on.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import unicodedata
from contextlib import suppress
from pathlib import Path

from parity_blobs.importer import MAX_DIRECTORY_BYTES
from parity_blobs.unixfs import MAX_NAME_BYTES
from parity_protocol.disk import failure_of
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.needs import OutputFolder

__all__ = ["FILES_NAME", "LOG_NAME", "MAX_OUTPUT_DEPTH", "MAX_OUTPUT_PATH_BYTES", "gather_output"]

LOG_NAME = "output.log"
FILES_NAME = "files"
MAX_OUTPUT_DEPTH = 16  # folders below /output; the blocks of a large file below that stay within a DAG's 32 links
MAX_OUTPUT_PATH_BYTES = 1_024  # of a path below /output

_CID_BYTES = 36  # of each entry in the block of a folder, beside its name
_PIECE_BYTES = 1 << 20
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, lone surrogates, line separators
_O_PATH = getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK)  # opens anything, and does nothing to it
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def gather_output(source: Path, log: Path, target: Path, limits: OutputFolder) -> Path:
    """Make the result folder of a task that has ended and return its path; blocking, so call it on a thread.

    Calling it again after a crash goes on, and returns a ``target`` that is complete already.

    Args:
        source: What was ``/output`` inside the sandbox. It is gone afterwards, unless it is a mount of its own.
        log: What the task printed; copied. A missing one becomes an empty file.
        target: Must be in a folder of this node's own, on the file system where the result may stay.
        limits: Bytes by apparent size (a sparse file counts whole, each name of a hard-linked file counts again);
            ``max_files`` counts folders too.

    Raises:
        ExecutionFailed: ``output_too_large``: over a limit, or deeper, longer or wider than a result may be;
            ``data_invalid``: a link, a device, a pipe, a socket, or a name that cannot be used; ``disk_full``;
            ``node_fault``: it cannot be read. Nothing is at ``target`` then.
    """
    staging = target.with_name(f".{target.name}.gathering")
    try:
        if target.is_dir() and not target.is_symlink():
            return target
        staging.mkdir(mode=0o700, exist_ok=True)
        files = staging / FILES_NAME
        walk = _Walk(limits)
        if _take_over(source, files):
            walk.settle(files, scratch=staging)
        else:
            _remove(files)
            walk.copy(source, files)
        _copy_log(log, staging / LOG_NAME)
        staging.rename(target)
    except OSError as exc:
        _remove(staging)
        raise ExecutionFailed(failure_of(exc), f"the task's output cannot be taken: {exc.strerror}") from exc
    except ExecutionFailed:
        _remove(staging)
        raise
    return target


class _Walk:
    """Checks every entry of one output, and makes it the node's own or copies it. Counts across the whole tree."""

    def __init__(self, limits: OutputFolder) -> None:
        self._limits = limits
        self._bytes = 0
        self._entries = 0
        self._scratch: Path | None = None  # where copies are made; no name of the task's is in it

    def settle(self, folder: Path, *, scratch: Path) -> None:
        """Check a folder in place, and give all of it to this process: owner, modes, one name a file."""
        self._scratch = scratch
        fd = os.open(folder, _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._folder(fd, None, "", 0)
        finally:
            os.close(fd)

    def copy(self, source: Path, target: Path) -> None:
        """Check a folder that cannot be moved while copying it to ``target``, which does not exist."""
        target.mkdir(mode=0o700)
        fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            into = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self._folder(fd, into, "", 0)
            finally:
                os.close(into)
        finally:
            os.close(fd)

    def _folder(self, fd: int, into: int | None, path: str, depth: int) -> None:
        """Take one folder.

        Args:
            fd: Of the folder, opened without following links.
            into: Where it is copied to; None settles it in place.
        """
        if depth > MAX_OUTPUT_DEPTH:
            raise _too_large(f"{_shown(path)} is more than {MAX_OUTPUT_DEPTH} folders deep")
        if into is None:
            _own(fd, 0o700)
        readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if into is None else fd
        try:
            for name in self._names(readable, path):
                self._entry(readable, into, name, f"{path}/{name}" if path else name, depth)
        finally:
            if into is None:
                os.close(readable)

    def _names(self, fd: int, path: str) -> list[str]:
        """Return the usable names in a folder, sorted by their bytes; the caps hold while they are read."""
        names, weight = list[str](), 0
        with os.scandir(fd) as entries:
            for entry in entries:
                self._entries += 1
                if self._entries > self._limits.max_files:
                    raise _too_large(f"more than {self._limits.max_files} files and folders")
                name = _checked_name(entry.name, path)
                weight += len(name.encode()) + _CID_BYTES
                names.append(name)
        if weight > MAX_DIRECTORY_BYTES:
            raise _too_large(f"{len(names)} entries in {_shown(path)}; put some of them into sub-folders")
        return sorted(names, key=str.encode)

    def _entry(self, folder: int, into: int | None, name: str, path: str, depth: int) -> None:
        if len(path.encode()) > MAX_OUTPUT_PATH_BYTES:
            raise _too_large(f"a path of {len(path.encode())} bytes, at most {MAX_OUTPUT_PATH_BYTES} are accepted")
        fd = os.open(name, _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            found = os.fstat(fd)
            if stat.S_ISDIR(found.st_mode):
                self._subfolder(fd, into, name, path, depth)
            elif stat.S_ISREG(found.st_mode):
                self._file(fd, folder, into, name, found, path)
            else:
                kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no plain file")
                raise ExecutionFailed(
                    FailureReason.DATA_INVALID,
                    f"the task's output holds {kind}: {_shown(path)}; only plain files and folders are taken",
                )
        finally:
            os.close(fd)

    def _subfolder(self, fd: int, into: int | None, name: str, path: str, depth: int) -> None:
        if into is None:
            self._folder(fd, None, path, depth + 1)
            return
        os.mkdir(name, 0o700, dir_fd=into)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=into)
        try:
            readable = _reopen(fd, os.O_DIRECTORY, 0o700)
            try:
                self._folder(readable, below, path, depth + 1)
            finally:
                os.close(readable)
        finally:
            os.close(below)

    def _file(self, fd: int, folder: int, into: int | None, name: str, found: os.stat_result, path: str) -> None:
        self._bytes += found.st_size
        if self._bytes > self._limits.max_bytes:
            raise _too_large(f"more than {self._limits.max_bytes} bytes")
        if into is not None:
            _copy_file(fd, into, name, found.st_size, path)
            return
        _own(fd, 0o600)
        if found.st_nlink > 1:  # another name of the same file would let one entry change with another
            self._unshare(fd, folder, name, found.st_size, path)

    def _unshare(self, fd: int, folder: int, name: str, size: int, path: str) -> None:
        assert self._scratch is not None
        copy = self._scratch / ".copy"
        copy.unlink(missing_ok=True)
        scratch = os.open(self._scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _copy_file(fd, scratch, copy.name, size, path)
            os.replace(copy.name, name, src_dir_fd=scratch, dst_dir_fd=folder)
        finally:
            os.close(scratch)


def _take_over(source: Path, files: Path) -> bool:
    """Move the whole folder at once; False when it has to be copied."""
    if not source.exists() and files.is_dir():
        return True  # a crash came after the move
    if source.is_symlink() or not source.is_dir():
        raise ExecutionFailed(FailureReason.NODE_FAULT, "there is no output folder")
    fd = os.open(source, _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _own(fd, 0o700)  # moving a folder writes to it
        _remove(files)
        source.rename(files)
    except OSError as exc:
        if exc.errno in {errno.EXDEV, errno.EBUSY, errno.EACCES, errno.EPERM, errno.EOVERFLOW}:
            return False  # a mount, another file system, another user's, or of a user namespace that we are not in
        raise
    finally:
        os.close(fd)
    return True


def _own(fd: int, mode: int) -> None:
    """Make this process the owner of what a path descriptor stands for, with exactly ``mode``."""
    path = f"/proc/self/fd/{fd}"
    if os.fstat(fd).st_uid != os.geteuid():
        os.chown(path, os.geteuid(), os.getegid())
    os.chmod(path, mode)  # noqa: PTH101 - of a descriptor


def _reopen(fd: int, flags: int, mode: int) -> int:
    """Open for reading what a path descriptor stands for, with ``mode`` if the task took its own right to read away."""
    path = f"/proc/self/fd/{fd}"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except PermissionError:
        os.chmod(path, mode)  # noqa: PTH101 - of a descriptor
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)


def _copy_file(fd: int, into: int, name: str, size: int, path: str) -> None:
    """Copy a file of ``size`` bytes, a hole as zeros; one that grows meanwhile is refused."""
    source = _reopen(fd, os.O_NONBLOCK, 0o600)
    try:
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=into)
        try:
            copied = 0
            while piece := os.read(source, _PIECE_BYTES):
                copied += len(piece)
                if copied > size:
                    raise _too_large(f"{_shown(path)} grew while it was read")
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(target, rest) :]
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_log(log: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        fd = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        target.touch(mode=0o600)
        return
    with os.fdopen(fd, "rb") as file, target.open("xb") as copy:
        shutil.copyfileobj(file, copy, _PIECE_BYTES)
    target.chmod(0o600)


def _checked_name(name: str, path: str) -> str:
    """Return a name that every file system and terminal can take."""
    # Bytes that are not UTF-8 come as lone surrogates.
    categories = {unicodedata.category(char) for char in name}
    if categories & _REFUSED_CATEGORIES or len(name.encode()) > MAX_NAME_BYTES:
        raise ExecutionFailed(
            FailureReason.DATA_INVALID,
            f"the task's output holds a name that cannot be used, in {_shown(path)}: {name[:80]!a}",
        )
    return name


def _shown(path: str) -> str:
    return f"/output/{path}"[:200].rstrip("/")


def _too_large(what: str) -> ExecutionFailed:
    return ExecutionFailed(FailureReason.OUTPUT_TOO_LARGE, f"the task's output is too large: {what}")


def _remove(path: Path) -> None:
    """Remove a tree, whatever its modes; what is left is swept with the execution's folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=_unlock_and_retry)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _unlock_and_retry(_function: object, path: str, _error: object) -> None:
    with suppress(OSError):
        parent = os.path.dirname(path)  # noqa: PTH120 - rmtree hands out texts
        for each in (parent, path):
            if not os.path.islink(each):  # noqa: PTH114
                os.chmod(each, 0o700)  # noqa: PTH101
        if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)  # noqa: PTH108
