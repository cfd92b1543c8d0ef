"""A file or a folder on its way to a market: measured first, since its digest is signed before the first byte is sent."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import anyio
import anyio.to_thread

from parity_blobs import AddOptions, Cid
from parity_blobs.car_files import CAR_TYPE, pack_car
from parity_blobs.importer import FileImporter
from parity_client.http import Upload
from parity_protocol.errors import InvalidInput, NotFound, Unavailable

__all__ = ["Measured", "OnBytes", "measure", "uploading"]

OnBytes = Callable[[int, int], None]  # bytes sent so far, and in all

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Measured:
    """What the first pass over a file found."""

    cid: Cid  # version 1, raw leaves: what the market makes of the same bytes
    size: int
    sha256: bytes


@asynccontextmanager
async def uploading(path: Path, on_bytes: OnBytes | None, *, hidden: bool) -> AsyncGenerator[tuple[Cid, Upload]]:
    """Give the CID of a file or folder and the body that stores it; a folder is packed into a temporary file meanwhile.

    Args:
        hidden: Take files of a folder whose names start with a dot.

    Raises:
        NotFound: There is nothing at ``path``.
        InvalidInput: It is neither a file nor a folder, or has something else in it.
        Unavailable: It cannot be read, or the temporary folder has no room.
    """
    if not await anyio.Path(path).is_dir():
        measured = await anyio.to_thread.run_sync(measure, path, abandon_on_cancel=True)
        yield measured.cid, Upload(measured.size, measured.sha256, lambda: _pieces(path, measured.size, on_bytes))
        return
    try:
        with tempfile.TemporaryDirectory(prefix="parity-add-") as folder:
            target = Path(folder) / "folder.car"
            packed = await anyio.to_thread.run_sync(lambda: pack_car(path, target, hidden=hidden))
            yield (
                packed.root,
                Upload(packed.length, packed.sha256, lambda: _pieces(target, packed.length, on_bytes), CAR_TYPE),
            )
    except OSError as exc:
        raise Unavailable(f"{path}: {exc.strerror}", hint="TMPDIR names the folder where it is packed.") from exc


def measure(path: Path) -> Measured:
    """Return a file's CID, size and digest in one pass; blocking.

    Raises:
        NotFound: There is no such file.
        InvalidInput: It is not a plain file.
        Unavailable: It cannot be read.
    """
    try:
        if not path.exists():
            raise NotFound(f"{path} does not exist")
        if not path.is_file():
            raise InvalidInput(f"{path} is neither a plain file nor a folder")
        importer, digest = FileImporter(AddOptions()), sha256()
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                importer.feed(piece)
    except OSError as exc:
        raise Unavailable(f"{path}: {exc.strerror}") from exc
    done = importer.finish()
    return Measured(done.cid, done.size, digest.digest())


async def _pieces(path: Path, size: int, on_bytes: OnBytes | None) -> AsyncIterator[bytes]:
    """Yield the file again; a changed size ends the request before the market sees a whole body."""
    sent = 0
    try:
        async with await anyio.open_file(path, "rb") as file:
            while piece := await file.read(_PIECE_BYTES):
                sent += len(piece)
                if sent > size:
                    break
                yield piece
                if on_bytes is not None:
                    on_bytes(sent, size)
    except OSError as exc:
        raise Unavailable(f"{path}: {exc.strerror}") from exc
    if sent != size:
        raise InvalidInput(f"{path} changed while it was read", field="path")
