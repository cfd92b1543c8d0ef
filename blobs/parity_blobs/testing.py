"""Content that is the same in every run and every language: what the vectors and benchmarks are made of."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["deterministic_bytes", "in_pieces", "wide_names", "write_tree"]


def deterministic_bytes(seed: int, size: int) -> bytes:
    """Return the first ``size`` bytes of SHAKE-256 of the seed's decimal digits; seed 0 is all zero bytes."""
    return bytes(size) if seed == 0 else hashlib.shake_256(str(seed).encode()).digest(size)


def wide_names(count: int, name_chars: int, extra: int) -> list[str]:
    """Return ``count`` different names of ``name_chars`` characters, the last one ``extra`` characters longer."""
    names = [f"{number:06d}".ljust(name_chars, "x") for number in range(count)]
    return [*names[:-1], names[-1] + "x" * extra]


def write_tree(spec: Mapping[str, Any], path: Path) -> None:
    """Make the file or folder that a vector describes.

    Args:
        spec: ``{"seed": …, "size": …}`` is a file, ``{"wide": {…}}`` a folder of empty files named by ``wide_names``,
            ``{"entries": {name: spec, …}}`` any folder.
    """
    if "size" in spec:
        path.write_bytes(deterministic_bytes(int(spec["seed"]), int(spec["size"])))
        return
    path.mkdir()
    if "wide" in spec:
        for name in wide_names(**spec["wide"]):
            (path / name).touch()
    else:
        for name, entry in spec["entries"].items():
            write_tree(entry, path / name)


async def in_pieces(data: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    """Yield ``data`` as a network would bring it, ``size`` bytes at a time."""
    for at in range(0, len(data), size):
        yield data[at : at + size]
