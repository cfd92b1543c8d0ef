"""Updates that wait on a disk: rules read the same files several times, a piece at a time, and never hold them all."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from parity_fl.aggregate import Update
from parity_fl.codec import mapped_delta
from parity_fl.limits import MAX_UPDATE_BYTES
from parity_protocol.errors import BadDocument, TooLarge

__all__ = ["Spooled", "map_file", "spooled_updates"]


@dataclass(frozen=True, slots=True)
class Spooled:
    """One update's file, and the weight that the market gives it."""

    path: Path
    weight: float


def map_file(path: Path, *, max_bytes: int = MAX_UPDATE_BYTES) -> memoryview:
    """Return a file's bytes without reading them; the mapping ends when nothing refers to it any more.

    Nobody may shorten the file meanwhile: files of a spool are replaced, not written to.

    Raises:
        BadDocument: It cannot be read, or is empty.
        TooLarge: Over ``max_bytes``.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size > max_bytes:
                raise TooLarge(f"{path.name} is {size} bytes long, at most {max_bytes} are allowed")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as exc:  # mmap says ValueError of an empty file
        raise BadDocument(f"{path.name} cannot be read: {exc}") from exc


def spooled_updates(files: Mapping[int, Spooled], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Update]:
    """Yield the updates of a round in order of parts; give ``partial(spooled_updates, …)`` to a ``Strategy``.

    Args:
        files: By part; bodies as ``codec`` writes them.
        shapes: Of the session's model.

    Raises:
        BadDocument: A file is not an update of this model; values are the strategy's to check.
    """
    for part in sorted(files):
        yield Update(part, files[part].weight, mapped_delta(map_file(files[part].path), shapes))
