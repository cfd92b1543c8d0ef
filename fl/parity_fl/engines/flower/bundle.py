"""Our Flower App Bundle: a zip archive whose bytes follow from the sources beside this file alone.

A node compares the SHA-256 of what a SuperLink sends with the one computed here, so archive times, compression and order
are fixed.
"""

from __future__ import annotations

import zipfile
from functools import cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Final

__all__ = ["bundle", "bundle_digest"]

_APP: Final = Path(__file__).parent / "app"
_FILES: Final = (
    "pyproject.toml",
    "parity_flower/__init__.py",
    "parity_flower/client.py",
    "parity_flower/line.py",
    "parity_flower/server.py",
)
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the earliest that the format knows
_MODE: Final = 0o644 << 16


@cache
def bundle() -> bytes:
    """Return the bundle: the app, and ``.info/CONTENT`` with each file's SHA-256 and size in bits."""
    content = {name: (_APP / name).read_bytes() for name in _FILES}
    listing = "\n".join(f"{name},{sha256(data).hexdigest()},{8 * len(data)}" for name, data in content.items())
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # what zlib makes of it depends on its version
        for name, data in {**content, ".info/CONTENT": listing.encode()}.items():
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.external_attr, entry.create_system = _MODE, 3
            archive.writestr(entry, data)
    return buffer.getvalue()


@cache
def bundle_digest() -> str:
    """Return the bundle's SHA-256, hex: the only one that a node runs unless its operator allows others."""
    return sha256(bundle()).hexdigest()
