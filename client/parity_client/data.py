"""Data at the market: in as a stream whose digest is signed, out block by block, each checked against its hash."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import httpx

from parity_blobs import BlobStat, BlobStore, Cid, DagLimits, Kind
from parity_blobs.files import list_folder
from parity_blobs.gateway import FetchLimits, Gateway, Progress, TrustlessGateway
from parity_blobs.memory import MemoryBlobStore
from parity_client.http import MarketHttp, parse_reply
from parity_client.session import Session, Sessions
from parity_client.upload import OnBytes, uploading
from parity_protocol.api import paths
from parity_protocol.api.storage import BlobInfo, BlobsReply, PinReply, UploadReply
from parity_protocol.clock import Clock
from parity_protocol.errors import BadField, DigestMismatch, InvalidInput, NotFound, TooLarge
from parity_protocol.quantities import ByteSize

__all__ = ["Content", "Data", "StoredFile", "Visibility"]

Visibility = Literal["private", "public"]

MAX_GET_BYTES = 8 << 30
MAX_LISTED = 100_000  # blobs of one listing
_PAGE = 200
_OVERHEAD_PERCENT = 5  # of blocks that hold links, generously
_LOG_NAME = "output.log"  # in the folder that a task with an output folder brings

Call = Callable[[Callable[[Session], Awaitable[bytes]]], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in a folder."""

    path: str  # below the folder, with slashes
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Content:
    """Content in memory, verified.

    Attributes:
        data: Of the file; of a folder what a task printed (``output.log``), empty when it has none.
        files: Of a folder, by path; None for a file.
    """

    data: bytes
    files: tuple[StoredFile, ...] | None = None


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
        self,
        path: Path | str,
        *,
        visibility: Visibility = "private",
        hidden: bool = False,
        on_bytes: OnBytes | None = None,
    ) -> UploadReply:
        """Store a file or a folder at the market and return its CID, which is compared with this machine's own.

        Args:
            visibility: ``private``: you, and nodes while they hold a lease on a task that names it. ``public``: all.
            hidden: Take files of a folder whose names start with a dot, as ``ipfs add --hidden``.
            on_bytes: Told of the bytes sent so far, and of those that will be sent in all.

        Raises:
            NotFound: There is nothing at ``path``.
            InvalidInput: It is neither a file nor a folder, or changed meanwhile.
            TooLarge: It is over the market's limit.
            DigestMismatch: The market made another CID of it.
        """
        async with uploading(Path(path), on_bytes, hidden=hidden) as (cid, upload):

            async def send(session: Session) -> bytes:
                query = {"visibility": visibility}
                return await self._http.send("POST", paths.STORAGE_UPLOAD, query=query, body=upload, session=session)

            reply = parse_reply(UploadReply, await self._call(send))
        if Cid.parse(reply.cid).key != cid.key:
            raise DigestMismatch(f"the market stored {reply.cid}, this file is {cid}", field="cid")
        return reply

    async def info(self, cid: str) -> BlobInfo:
        """Return what the market knows of a blob; ``NotFound`` when it has none, or not for you."""
        path = paths.storage_path("info", _checked(cid))
        return parse_reply(BlobInfo, await self._call(lambda session: self._http.send("GET", path, session=session)))

    async def list(self) -> BlobsReply:
        """Return all that you have stored at the market, and how much of your quota it takes."""
        blobs: list[BlobInfo] = []
        cursor = ""
        while True:
            query = {"limit": str(_PAGE), **({"cursor": cursor} if cursor else {})}
            page = parse_reply(BlobsReply, await self._call(partial(self._get, paths.STORAGE_LIST, query)))
            blobs += page.blobs
            if page.next_cursor is None or page.next_cursor <= cursor or len(blobs) >= MAX_LISTED:
                return page.model_copy(update={"blobs": tuple(blobs)})
            cursor = page.next_cursor

    async def pin(self, cid: str) -> PinReply:
        """Have the market keep a blob of yours; ``NotFound`` when you have none such."""
        path = paths.storage_path("pin", _checked(cid))
        return parse_reply(PinReply, await self._call(lambda session: self._http.send("POST", path, session=session)))

    async def unpin(self, cid: str) -> PinReply:
        """Have the market keep a blob of yours no longer; it leaves your quota, and what tasks brought stays theirs.

        Raises:
            NotFound: You have no such blob.
            Conflict: A task that has not ended needs it.
        """
        path = paths.storage_path("pin", _checked(cid))
        return parse_reply(PinReply, await self._call(lambda session: self._http.send("DELETE", path, session=session)))

    async def _get(self, path: str, query: dict[str, str], session: Session) -> bytes:
        return await self._http.send("GET", path, query=query, session=session)

    async def get(
        self,
        cid: str,
        target: Path | str,
        *,
        max_bytes: ByteSize = MAX_GET_BYTES,
        progress: Progress | None = None,
    ) -> BlobStat:
        """Write content to ``target``, a file or a folder, which must not exist; it appears whole or not at all.

        A file that broke off is taken up again by the next call with the same ``target``.

        Args:
            progress: Told of the content bytes that are here and checked, and of all of them once that is known.

        Raises:
            NotFound: The market has none, or not for you.
            DigestMismatch: It sent bytes that do not match.
            TooLarge: It has more than ``max_bytes``.
            InvalidInput: ``target`` exists.
        """
        wanted, place = Cid.parse(cid), _free(Path(target))
        await self._sessions.get()  # its problems are told in its own words
        async with self._gateway(_with_overhead(max_bytes)) as gateway:
            return await gateway.fetch_to(wanted, place, max_bytes=max_bytes, progress=progress)

    async def copy(
        self,
        cid: str,
        store: BlobStore,
        *,
        max_bytes: ByteSize = MAX_GET_BYTES,
        pin: bool = False,
        progress: Progress | None = None,
    ) -> BlobStat:
        """Put content into a store of yours, such as your Kubo's; raises as ``get`` and that store."""
        await self._sessions.get()
        async with self._gateway(_with_overhead(max_bytes)) as gateway:
            return await gateway.fetch_into(Cid.parse(cid), store, max_bytes=max_bytes, pin=pin, progress=progress)

    async def read(self, cid: str, *, max_bytes: ByteSize) -> bytes:
        """Return a file's content, verified.

        Raises:
            NotFound: The market has none, or not for you.
            DigestMismatch: It sent bytes that do not match.
            TooLarge: It has more than ``max_bytes``.
            InvalidInput: It is a folder.
        """
        content = await self.load(cid, max_bytes=max_bytes)
        if content.files is not None:
            raise InvalidInput(f"{cid} is a folder, not a file")
        return content.data

    async def load(self, cid: str, *, max_bytes: ByteSize) -> Content:
        """Return content in memory, verified: a file, or a folder's list of files and what its task printed.

        Raises:
            ParityError: As ``read``, but for ``InvalidInput``.
        """
        wanted = Cid.parse(cid)
        limit = _with_overhead(max_bytes)
        store = MemoryBlobStore(max_bytes=limit)
        await self._fetch(wanted, store, limit)
        stat = await store.stat(wanted)
        assert stat is not None
        if stat.kind is Kind.FILE:
            return Content(await _whole(store, wanted, max_bytes))
        found = [entry async for entry in _walk(store, wanted, "")]
        log = next((each for name, each, _ in found if name == _LOG_NAME), None)
        return Content(
            b"" if log is None else await _whole(store, log, max_bytes),
            tuple(StoredFile(name, size) for name, _, size in found),
        )

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


async def _whole(store: BlobStore, cid: Cid, max_bytes: int) -> bytes:
    return b"".join([piece async for piece in store.open(cid, max_bytes=max_bytes)])


async def _walk(store: BlobStore, folder: Cid, prefix: str) -> AsyncIterator[tuple[str, Cid, int]]:
    """Yield path, CID and size of each file below a folder, in the order of names; its depth was bounded as it came."""
    for entry in await list_folder(store, folder):
        stat = await store.stat(entry.cid)
        if stat is None:
            raise NotFound(f"{entry.cid} is not here")
        if stat.kind is Kind.FILE:
            yield prefix + entry.name, entry.cid, stat.size
        else:
            async for found in _walk(store, entry.cid, f"{prefix}{entry.name}/"):
                yield found


def _with_overhead(max_bytes: int) -> int:
    return max_bytes + max_bytes * _OVERHEAD_PERCENT // 100 + (1 << 20)


def _free(target: Path) -> Path:
    place = Path.cwd() / target
    if place.exists() or place.is_symlink():
        raise InvalidInput(f"{target} exists already", field="target")
    if not place.parent.is_dir():
        raise NotFound(f"the folder {place.parent} does not exist")
    return place


def _checked(cid: str) -> str:
    if len(cid) > 128:
        raise TooLarge("a CID has at most 128 characters", field="cid")
    try:
        return str(Cid.parse(cid))
    except InvalidInput as exc:
        raise BadField(f"{cid[:80]!r} is not a CID: {exc.message}", field="cid") from exc
