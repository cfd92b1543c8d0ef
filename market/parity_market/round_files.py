"""The files of a session that trains in rounds: where each lies, and how it gets there whole.

Used by the market and by the process of ``round_child``: this imports nothing that is slow to load.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import anyio.to_thread

from parity_contracts.files import write_file
from parity_protocol.errors import StorageFull

__all__ = [
    "SMALL_BYTES",
    "append",
    "make_folder",
    "model_file",
    "noise_file",
    "on_disk",
    "resume_file",
    "sent_file",
    "settle",
    "start_file",
    "state_file",
    "sync_folder",
    "update_file",
    "write_missing",
    "write_synced",
]

SMALL_BYTES: Final = 32 << 10  # what is longer is synced as a file, the rest with the rows that name it

P = ParamSpec("P")
R = TypeVar("R")


def model_file(folder: Path, number: int, phase: int) -> Path:
    """Return where the market's model lies that a round starts from."""
    return folder / f"model-{number}-{phase}.safetensors"


def sent_file(folder: Path, number: int, phase: int) -> Path:
    """Return where the model lies that nodes start a round from, if that is not the market's own."""
    return folder / f"sent-{number}-{phase}.safetensors"


def start_file(folder: Path, number: int, phase: int) -> Path:
    """Return the file of the model that nodes start a round from."""
    sent = sent_file(folder, number, phase)
    return sent if sent.exists() else model_file(folder, number, phase)


def state_file(folder: Path, number: int, phase: int) -> Path:
    """Return where the strategy's state lies that a round starts from."""
    return folder / f"state-{number}-{phase}.safetensors"


def resume_file(folder: Path) -> Path:
    """Return where the checkpoint lies that a session goes on from."""
    return folder / "resume.npz"


def noise_file(folder: Path) -> Path:
    """Return where the key of a session's noise lies. It is in no checkpoint and never leaves the market."""
    return folder / "noise.key"


def update_file(folder: Path, number: int, phase: int, part: int, digest: str) -> Path:
    """Return where an update lies; by its SHA-256, so that two that come at once do not mix."""
    return folder / "updates" / f"{number}-{phase}" / f"{part}-{digest}.safetensors"


async def on_disk(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call ``function``, which uses files, in a thread.

    Raises:
        StorageFull: The disk is full, or cannot be used; nobody who sent something is to blame.
    """
    try:
        return await anyio.to_thread.run_sync(partial(function, *args, **kwargs))
    except OSError as exc:
        raise StorageFull(f"the market cannot use its files of a session: {exc.strerror}") from exc


def make_folder(folder: Path, dataset: bytes | None) -> None:
    """Make a session's folder with its data set, if the market has one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sync_folder(folder.parent)
    if dataset is not None:
        write_file(folder / "dataset", dataset)


def append(path: Path, pieces: Sequence[bytes]) -> None:
    """Write to the end of a file that does not have its name yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest) :]


def settle(temporary: Path, rest: bytes, path: Path, *, is_synced: bool = True) -> None:
    """Write the rest, make it durable, and give it its name.

    Args:
        is_synced: Wait for the disk; a file that is durable somewhere else does not need it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("ab") as file:
        file.write(rest)
        if is_synced:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
    if is_synced:
        sync_folder(path.parent)


def write_missing(files: Iterable[tuple[Path, bytes]]) -> None:
    """Write those files again that are not there or have another content: what a power cut took of them."""
    for path, data in files:
        if not path.is_file() or path.read_bytes() != data:
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.unlink(missing_ok=True)
            settle(temporary, data, path)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file's bytes to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
