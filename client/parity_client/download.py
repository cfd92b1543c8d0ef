"""A file on its way from a market: its ETag is its SHA-256, and what broke off is taken up again where it did."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import anyio
import anyio.to_thread
import httpx

from parity_client.http import OUT_OF_RANGE, REPLY_TIMEOUT_S, MarketHttp
from parity_client.session import Session
from parity_protocol.errors import BadDocument, DigestMismatch, InvalidInput, StorageFull, TooLarge, Unreachable

__all__ = ["Downloaded", "OnProgress", "download"]

OnProgress = Callable[[int, int | None], None]
"""Told of the bytes that are here, and of all of them once that is known."""

_ETAG = re.compile(r'"([0-9a-f]{64})"')
_WHOLE = 200
_PARTIAL = 206
_UNCHANGED = 304
_SLOWEST = 64 << 10  # bytes a second; a market slower than that counts as away
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A file that is here, and whole.

    Attributes:
        sha256: Hex.
        size: Bytes.
        is_new: False when it was here already, and the market has no other.
    """

    path: Path
    sha256: str
    size: int
    is_new: bool


async def download(
    http: MarketHttp,
    session: Session,
    path: str,
    target: Path,
    *,
    max_bytes: int,
    replace: bool = False,
    on_progress: OnProgress | None = None,
) -> Downloaded:
    """Make one attempt to write what the market has at ``path`` to a file; it appears whole or not at all.

    What came before a connection broke lies beside ``target`` and is not asked for again; once the market has another
    file, it begins anew.

    Args:
        target: When it exists the market is asked only for another file.
        replace: Write over ``target``.

    Raises:
        InvalidInput: ``target`` exists with other content.
        Unreachable: The connection broke: try again.
        DigestMismatch: The bytes are not those that the market named.
        BadDocument: The market does not name them.
        TooLarge: It has more than ``max_bytes``.
        StorageFull: The disk is full, or the file cannot be written.
        ParityError: What the market raised.
    """
    there = await anyio.to_thread.run_sync(_digest_of, target)
    part = await anyio.to_thread.run_sync(_part_of, target)
    headers = {} if there is None else {"If-None-Match": f'"{there[0]}"'}
    if part is not None:
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": f'"{part.name.split(".")[-2]}"'}
    async with http.opened(path, session=session, headers=headers) as answer:
        if answer.status_code == _UNCHANGED and there is not None:
            return Downloaded(target, there[0], there[1], is_new=False)
        if answer.status_code == OUT_OF_RANGE and part is not None:  # there is no rest
            await anyio.to_thread.run_sync(part.unlink)
            raise Unreachable("what was left of an earlier transfer did not fit; it was removed")
        named = _ETAG.fullmatch(answer.headers.get("etag", ""))
        if answer.status_code not in (_WHOLE, _PARTIAL) or named is None:
            raise BadDocument("the market does not name the file by its SHA-256")
        if there is not None and not replace:
            raise InvalidInput(f"{target} exists already", hint="Choose another --output.", field="output")
        place = target.with_name(f".{target.name}.{named[1]}.part")
        if part is not None and part != place:  # of a file that the market no longer has
            await anyio.to_thread.run_sync(part.unlink)
        size = await _write(answer, place, max_bytes, on_progress)
    found = await anyio.to_thread.run_sync(_digest_of, place)
    if found is None or found[0] != named[1]:
        await anyio.to_thread.run_sync(place.unlink)
        raise DigestMismatch(f"the market named {named[1]} and sent other bytes")
    await anyio.to_thread.run_sync(os.replace, place, target)
    return Downloaded(target, named[1], size, is_new=True)


async def _write(answer: httpx.Response, place: Path, max_bytes: int, on_progress: OnProgress | None) -> int:
    """Write an answer's body to ``place`` and return the file's size."""
    begin = 0
    if answer.status_code == _PARTIAL:
        begin = await anyio.to_thread.run_sync(lambda: place.stat().st_size if place.exists() else 0)
        if not answer.headers.get("content-range", "").startswith(f"bytes {begin}-"):
            raise BadDocument("the market sent another part of the file than was asked for")
    length = answer.headers.get("content-length", "")
    total = begin + int(length) if length.isascii() and length.isdigit() and len(length) < 16 else None
    if total is not None and total > max_bytes:
        raise TooLarge(f"the file has {total} bytes, at most {max_bytes} are fetched")
    limit_s = REPLY_TIMEOUT_S + ((total or max_bytes) - begin) / _SLOWEST
    assert isinstance(answer.stream, httpx.AsyncByteStream)
    size = begin
    try:
        with place.open("ab" if begin else "wb") as file, anyio.fail_after(limit_s):
            async for piece in answer.stream:
                size += len(piece)
                if size > max_bytes:
                    raise TooLarge(f"the file has over {max_bytes} bytes")
                file.write(piece)
                if on_progress is not None:
                    on_progress(size, total)
            file.flush()
            await anyio.to_thread.run_sync(os.fsync, file.fileno())
    except TimeoutError:
        raise
    except OSError as exc:
        raise StorageFull(f"{place.parent} cannot be written: {exc.strerror}") from exc
    if total is not None and size != total:
        raise Unreachable(f"the connection broke after {size} of {total} bytes")
    return size


def _digest_of(path: Path) -> tuple[str, int] | None:
    """Return a file's SHA-256 and size, None when it is not there.

    Raises:
        InvalidInput: It is there, and no file.
    """
    if not path.exists():
        return None
    if not path.is_file():
        raise InvalidInput(f"{path} is not a file", field="output")
    digest, size = sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size


def _part_of(target: Path) -> Path | None:
    """Return what an earlier attempt left, None when it left nothing; of several all but the largest go."""
    named = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{64}}\.part")
    if not target.parent.is_dir():
        raise InvalidInput(f"the folder {target.parent} does not exist", field="output")
    found = [one for one in target.parent.iterdir() if named.fullmatch(one.name) and one.is_file()]
    found.sort(key=lambda one: one.stat().st_size)
    for old in found[:-1]:
        old.unlink(missing_ok=True)
    return found[-1] if found else None
