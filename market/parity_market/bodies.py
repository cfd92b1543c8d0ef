"""The one way a request's body comes in: raw bytes under a cap and a deadline, then strict JSON, then the model.

FastAPI's own body parsing is not used anywhere: it lets NaN and duplicate members pass and answers a lone surrogate
with 500.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Protocol, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request

from parity_protocol import strict_json
from parity_protocol.errors import BadDocument, DigestMismatch, InvalidInput, Overloaded, TooLarge, Unreachable
from parity_protocol.signing.http_signatures import RequestSignature, check_body
from parity_protocol.wire import parse_as

__all__ = ["BODY_TIMEOUT_S", "BodyBudget", "Digest", "checked_body", "declared_length", "parse_body", "read_body"]

BODY_TIMEOUT_S = 30.0  # for a whole JSON body to arrive
STREAM_IDLE_S = 30.0  # longest silence in a body that is streamed
STREAM_LIMIT_S = 3_600.0  # of a whole streamed body
MAX_VALUES = 40_000  # members and items of one body: 256 reports with every metric have 30,000

MAX_HELD = 256 << 20  # bytes of all bodies in memory at once

M = TypeVar("M", bound=BaseModel)


class Digest(Protocol):
    """A hash that is fed piece by piece, as of ``hashlib``."""

    def update(self, data: bytes, /) -> None:
        """Take a piece."""
        ...

    def digest(self) -> bytes:
        """Return the hash of what came so far."""
        ...

    def hexdigest(self) -> str:
        """Return the same in hex."""
        ...


class BodyBudget:
    """Bytes of bodies that are in memory now: many callers at once must not take more than a few do."""

    def __init__(self, max_bytes: int = MAX_HELD) -> None:
        self._max_bytes = max_bytes
        self._held = 0

    @contextmanager
    def counting(self) -> Iterator[Callable[[int], None]]:
        """Give a function that counts bytes while they are held; what it counted is given back at the end.

        The function raises ``Overloaded`` when there is no room for so many.
        """
        held = 0

        def take(size: int) -> None:
            nonlocal held
            if self._held + size > self._max_bytes:
                raise Overloaded("too many large requests at once", retry_after_s=1.0)
            self._held += size
            held += size

        try:
            yield take
        finally:
            self._held -= held


def declared_length(request: Request, max_bytes: int) -> int | None:
    """Return the Content-Length, or None when the body is chunked.

    Raises:
        TooLarge: It is over ``max_bytes``; nothing of the body was read.
        BadDocument: It is not a number.
    """
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise BadDocument("Content-Length is not a number", field="content-length")
    if int(text) > max_bytes:
        raise TooLarge(f"the body has {text} bytes, at most {max_bytes} are accepted here", field="body")
    return int(text)


async def read_body(request: Request, max_bytes: int, take: Callable[[int], None]) -> bytes:
    """Read the whole body.

    Args:
        take: Counts what is held in memory, see ``BodyBudget.counting``.

    Raises:
        Overloaded: Other bodies take all the memory there is for them.
        TooLarge: Over ``max_bytes``.
        InvalidInput: It did not arrive within ``BODY_TIMEOUT_S``.
        Unreachable: The caller went away.
    """
    declared_length(request, max_bytes)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                size += len(piece)
                if size > max_bytes:
                    raise TooLarge(f"the body has more than the {max_bytes} bytes accepted here", field="body")
                take(len(piece))
                pieces.append(piece)
    except TimeoutError as exc:
        raise InvalidInput(f"the body did not arrive within {BODY_TIMEOUT_S:g} s", field="body") from exc
    except ClientDisconnect as exc:
        raise Unreachable("the caller went away while sending") from exc
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def checked_body(
    request: Request, signature: RequestSignature | None, *, what: str, digest: Digest | None = None
) -> AsyncIterator[bytes]:
    """Yield a body of any length as it comes; at its end, refuse it unless its digest is the signed one.

    Args:
        signature: Of the request, whose other parts were checked.
        what: A noun for messages: "upload".
        digest: A new SHA-256 of a caller who needs the body's too; it has seen all of it at the end.

    Raises:
        DigestMismatch: It is not what was signed, or nothing was.
        InvalidInput: It was silent for ``STREAM_IDLE_S``, or took ``STREAM_LIMIT_S``.
        Unreachable: The caller went away.
    """
    found = sha256() if digest is None else digest
    stream = aiter(request.stream())
    try:
        async with asyncio.timeout(STREAM_LIMIT_S):
            while True:
                async with asyncio.timeout(STREAM_IDLE_S):
                    piece = await anext(stream, None)
                if piece is None:
                    break
                found.update(piece)
                yield piece
    except TimeoutError as exc:
        raise InvalidInput(f"the {what} was silent for {STREAM_IDLE_S:g} s or took too long", field="body") from exc
    except ClientDisconnect as exc:
        raise Unreachable(f"the caller went away while sending the {what}") from exc
    if signature is None:
        raise DigestMismatch(f"the {what} is not signed", field="content-digest")
    check_body(signature, found.digest())


def parse_body(model: type[M], body: bytes, *, max_bytes: int) -> M:
    """Read JSON into ``model``.

    Raises:
        BadDocument: Not JSON that is accepted here; the message says where.
        TooLarge: More values than any message has.
        BadField: A field is missing, unknown or wrong; ``field`` names it.
    """
    strict_json.loads(body, max_bytes=max_bytes, max_values=MAX_VALUES)
    return parse_as(model, body)
