"""Data at the market: in as a stream whose digest is signed, out block by block, each checked against its hash."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
import httpx

from parity_blobs import AddOptions, BlobStat, BlobStore, Cid, DagLimits
from parity_blobs.files import export_path
from parity_blobs.gateway import FetchLimits, Gateway, TrustlessGateway
from parity_blobs.importer import FileImporter
from parity_blobs.local import LocalBlobStore
from parity_blobs.memory import MemoryBlobStore
from parity_client.http import MarketHttp, Upload, parse_reply
from parity_client.session import Session, Sessions
from parity_protocol.api import paths
from parity_protocol.api.storage import BlobInfo, UploadReply
from parity_protocol.clock import Clock
from parity_protocol.errors import BadField, DigestMismatch, InvalidInput, NotFound, TooLarge, Unavailable
from parity_protocol.quantities import ByteSize

__all__ = ["Data", "Visibility", "measure"]

Visibility = Literal["private", "public"]
OnBytes = Callable[[int], None]  # bytes sent so far

MAX_GET_BYTES = 8 << 30
_PIECE_BYTES = 1 << 20
_OVERHEAD_PERCENT = 5  # of blocks that hold links, generously

Call = Callable[[Callable[[Session], Awaitable[bytes]]], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What the first pass over a file found."""

    cid: Cid  # version 1, raw leaves: what the market makes of the same bytes
    size: int
    sha256: bytes


class Data:
    """A submitter's data at one market; ``Client.data`` is one.

    Args:
        call: Runs a signed request with a session, again where that helps.
    """

    def __init__(
        self,
        http: MarketHttp,
        sessions: Sessions,
        call: Call,
        *,
        clock: Clock,
        verify: ssl.SSLContext | None,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self._http = http
        self._sessions = sessions
        self._call = call
        self._clock = clock
        self._verify = verify
        self._transport = transport

    async def add(
        self, path: Path | str, *, visibility: Visibility = "private", on_bytes: OnBytes | None = None
    ) -> UploadReply:
        """Store a file at the market and return its CID, which is compared with this machine's own.

        Args:
            visibility: ``private``: you, and nodes while they hold a lease on a task that names it. ``public``: all.

        Raises:
            NotFound: There is no such file.
            InvalidInput: It is a folder, or changed meanwhile.
            TooLarge: It is over the market's limit.
            DigestMismatch: The market made another CID of it.
        """
        file = Path(path)
        measured = await anyio.to_thread.run_sync(measure, file, abandon_on_cancel=True)
        upload = Upload(measured.size, measured.sha256, lambda: _pieces(file, measured.size, on_bytes))

        async def send(session: Session) -> bytes:
            query = {"visibility": visibility}
            return await self._http.send("POST", paths.STORAGE_UPLOAD, query=query, body=upload, session=session)

        reply = parse_reply(UploadReply, await self._call(send))
        if Cid.parse(reply.cid).key != measured.cid.key:
            raise DigestMismatch(f"the market stored {reply.cid}, this file is {measured.cid}", field="cid")
        return reply

    async def info(self, cid: str) -> BlobInfo:
        """Return what the market knows of a blob; ``NotFound`` when it has none, or not for you."""
        path = paths.storage_path("info", _checked(cid))
        return parse_reply(BlobInfo, await self._call(lambda session: self._http.send("GET", path, session=session)))

    async def get(self, cid: str, target: Path | str, *, max_bytes: ByteSize = MAX_GET_BYTES) -> BlobStat:
        """Write content to ``target``, a file or a folder, which must not exist; it appears whole or not at all.

        Raises:
            NotFound: The market has none, or not for you.
            DigestMismatch: It sent bytes that do not match.
            TooLarge: It has more than ``max_bytes``.
            InvalidInput: ``target`` exists.
        """
        wanted, place = Cid.parse(cid), _free(Path(target))
        limit = max_bytes + max_bytes * _OVERHEAD_PERCENT // 100 + (1 << 20)
        try:
            with tempfile.TemporaryDirectory(prefix=".parity-get-", dir=place.parent) as folder:
                async with LocalBlobStore(Path(folder) / "blobs", max_bytes=2 * limit) as store:
                    await self._fetch(wanted, store, limit)
                    return await export_path(store, wanted, place, max_bytes=max_bytes)
        except OSError as exc:
            raise Unavailable(f"{place}: {exc.strerror}") from exc

    async def read(self, cid: str, *, max_bytes: ByteSize) -> bytes:
        """Return a file's content, verified.

        Raises:
            NotFound: The market has none, or not for you.
            DigestMismatch: It sent bytes that do not match.
            TooLarge: It has more than ``max_bytes``.
        """
        wanted = Cid.parse(cid)
        limit = max_bytes + max_bytes * _OVERHEAD_PERCENT // 100 + (1 << 20)
        store = MemoryBlobStore(max_bytes=limit)
        await self._fetch(wanted, store, limit)
        return b"".join([piece async for piece in store.open(wanted, max_bytes=max_bytes)])

    async def _fetch(self, cid: Cid, store: BlobStore, max_bytes: int) -> None:
        await self._sessions.get()  # its problems are told in its own words
        async with self._gateway(max_bytes) as gateway:
            await gateway.fetch_into(cid, store, max_bytes=max_bytes)

    @asynccontextmanager
    async def _gateway(self, max_bytes: int) -> AsyncGenerator[TrustlessGateway]:
        limits = FetchLimits(dag=DagLimits(max_bytes=max_bytes))
        auth = _SessionAuth(self._http, self._sessions)
        async with TrustlessGateway(
            [Gateway(self._http.url, auth)],
            clock=self._clock,
            limits=limits,
            verify=True if self._verify is None else self._verify,
            transport=self._transport,
        ) as gateway:
            yield gateway


class _SessionAuth(httpx.Auth):
    """Signs what the gateway client asks of the market."""

    def __init__(self, http: MarketHttp, sessions: Sessions) -> None:
        self._http = http
        self._sessions = sessions

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        session = await self._sessions.get()
        request.headers.update(self._http.signature(request, session))
        response = yield request
        if response.status_code == 401:
            session = await self._sessions.replace(session)
            request.headers.update(self._http.signature(request, session))
            yield request


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
            raise InvalidInput(
                f"{path} is not a plain file", hint="A market stores files; pack a folder into one file first."
            )
        importer, digest = FileImporter(AddOptions()), sha256()
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                importer.feed(piece)
    except OSError as exc:
        raise Unavailable(f"{path}: {exc.strerror}") from exc
    done = importer.finish()
    return Measured(done.cid, done.size, digest.digest())


def _free(target: Path) -> Path:
    place = Path.cwd() / target
    if place.exists() or place.is_symlink():
        raise InvalidInput(f"{target} exists already", field="target")
    if not place.parent.is_dir():
        raise NotFound(f"the folder {place.parent} does not exist")
    return place


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
                    on_bytes(sent)
    except OSError as exc:
        raise Unavailable(f"{path}: {exc.strerror}") from exc
    if sent != size:
        raise InvalidInput(f"{path} changed while it was read", field="path")


def _checked(cid: str) -> str:
    if len(cid) > 128:
        raise TooLarge("a CID has at most 128 characters", field="cid")
    try:
        return str(Cid.parse(cid))
    except InvalidInput as exc:
        raise BadField(f"{cid[:80]!r} is not a CID: {exc.message}", field="cid") from exc
