"""Files that are whole and durable or not there, and secrets that nobody else may read."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from parity_protocol.disk import is_full
from parity_protocol.errors import ConfigInvalid, StorageFull

__all__ = ["make_private_dir", "read_private", "sync_dir", "sync_file", "write_file"]


def make_private_dir(path: Path) -> Path:
    """Create ``path`` with mode 0700, or check that an existing one is ours alone.

    Raises:
        ConfigInvalid: It belongs to another user, is a link, or others may write to it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConfigInvalid([f"the folder {path} must be a real folder of this user that nobody else may write to"])
    return path


def write_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file in one step, durably: after a crash it holds all of the old content or all of the new.

    Raises:
        StorageFull: No room.
        OSError: The disk says so; the old content is there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(file, mode)  # whatever the umask
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        finally:
            os.close(file)
        temporary.rename(path)
        sync_dir(path.parent)
    except BaseException as exc:
        temporary.unlink(missing_ok=True)
        if is_full(exc):
            raise StorageFull(f"no room for {path}") from exc
        raise


def read_private(path: Path, *, max_bytes: int) -> bytes | None:
    """Return a secret file's content, or None when it is not there.

    Raises:
        ConfigInvalid: It is a link, not a plain file, too long, another user's, or others may read it.
    """
    try:
        # O_NONBLOCK: a pipe in its place must not hold the program.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ConfigInvalid([f"{path} cannot be read: {exc.strerror}; expected a plain file, not a link"]) from exc
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size > max_bytes:
            raise ConfigInvalid([f"{path} must be a plain file of at most {max_bytes} bytes"])
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ConfigInvalid([f"{path} holds a secret: it must be yours, with mode 0600 (`chmod 600 {path}`)"])
        return os.read(file, max_bytes)
    finally:
        os.close(file)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    _sync(path, os.O_RDONLY)


def sync_dir(path: Path) -> None:
    """Make the names in a folder durable."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    file = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
