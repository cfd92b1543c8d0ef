"""Blobs: upload, download, info, pin, and the trustless gateway ``/ipfs/{cid}``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TypeVar

from starlette.responses import Response, StreamingResponse

from parity_blobs import BlobStat, Block, Cid, DagLimits
from parity_blobs.car import write_car
from parity_blobs.car_files import CAR_TYPE, put_car, weight_of
from parity_blobs.export import Walk, split_path, walk_directory, walk_path
from parity_blobs.spec_cids import names_of
from parity_blobs.unixfs import Kind
from parity_market.auth import Access
from parity_market.blob_keeping import let_go
from parity_market.bodies import checked_body, declared_length
from parity_market.operations import blobs
from parity_market.routing import CURSOR, LIMIT, Call, Endpoint, Query
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import BlobRefRow, from_us
from parity_protocol.api import paths
from parity_protocol.api.storage import BlobInfo, BlobsReply, PinReply, UploadReply
from parity_protocol.errors import BadField, InvalidInput, NotFound, TooLarge

__all__ = ["ENDPOINTS"]

T = TypeVar("T")

CAR = "application/vnd.ipld.car; version=1; order=dfs; dups=n"
RAW = "application/vnd.ipld.raw"
_MAX_PATH_CHARS = 4_096  # below a CID
_MAX_ROOTS = 1_024  # that are asked about one block: others may have stored the same content many times


async def upload(call: Call) -> UploadReply:
    """Store the body as a file; ``?visibility=public`` shows it to anybody, else only to its owner and its tasks' nodes.

    With the content type of a CAR the body is the blocks of one file or folder, and its root is the CID.
    """
    state, owner, now = call.state, call.caller.id, call.state.clock.now()
    visibility = call.text("visibility", blobs.PRIVATE)
    if visibility not in (blobs.PUBLIC, blobs.PRIVATE):
        raise BadField("visibility: expected 'public' or 'private'", field="visibility")
    limit = state.settings.market_upload_max
    declared = declared_length(call.request, limit)
    used = await state.store.read(lambda tx: blobs.bytes_of_owner(tx, owner))
    quota = state.settings.market_upload_quota
    if used + (declared or 0) > quota:
        raise TooLarge(f"you have {used} of {quota} bytes stored here; the file does not fit", field="body")
    room = min(limit, max(quota - used, 0))
    if call.request.headers.get("content-type", "").partition(";")[0].strip().lower() == CAR_TYPE:
        stat = await _put_car(call, room)
        size = weight_of(stat)
    else:
        stat = await state.blobs.put(
            checked_body(call.request, call.signature, what="upload"), max_bytes=room, pin=True
        )
        size = stat.size
    cid = str(stat.cid)

    def take(tx: Tx) -> None:
        # Again: the owner's other uploads, begun at the same time, may have ended meanwhile.
        if not blobs.fits(tx, cid, owner, size=size, quota=quota):
            raise TooLarge(f"with your other uploads this would be over {quota} bytes stored here", field="body")
        blobs.add_ref(tx, cid, owner, visibility=visibility, size=size, now=now)

    try:
        await state.store.write(take)
    except TooLarge:
        await let_go(state.store, state.blobs, stat.cid)
        raise
    await state.blobs.pin(stat.cid)  # again: somebody may have unpinned the same content before it had this owner
    return UploadReply(cid=cid, size=size, visibility=visibility)


async def _put_car(call: Call, room: int) -> BlobStat:
    """Store a folder of at most ``room`` bytes: few blocks can make many, so what they make is counted too."""
    stat = await put_car(
        call.state.blobs, checked_body(call.request, call.signature, what="upload"), limits=DagLimits(max_bytes=room)
    )
    if weight_of(stat) > room:
        raise TooLarge(f"{stat.cid} has {stat.size} bytes, at most {room} are accepted", field="body")
    await call.state.blobs.pin(stat.cid)
    return stat


async def _readable(call: Call, cid: Cid) -> tuple[BlobRefRow, bytes | None]:
    """Return the reference by which the caller may read ``cid``, and its bytes if they lie in the database.

    A block inside a file or folder is read by whoever may read that.

    Raises:
        NotFound: It is not here, or not for this caller: the answers are the same on purpose.
    """
    state, text = call.state, str(cid)

    def read(tx: ReadTx) -> tuple[BlobRefRow, bytes | None]:
        return blobs.readable(tx, text, call.caller.reader), blobs.small_blob(tx, text)

    with suppress(NotFound):
        return await state.store.read(read)

    roots = await state.blobs.roots_around(cid, limit=_MAX_ROOTS)
    names = [name for root in roots for name in names_of(root)]

    def read_any(tx: ReadTx) -> BlobRefRow:
        for name in names:
            with suppress(NotFound):
                return blobs.readable(tx, name, call.caller.reader)
        raise NotFound(f"there is no blob {cid} here")

    return await state.store.read(read_any), None


async def download(call: Call) -> Response:
    """Return a file's bytes."""
    cid = Cid.parse(call.path("cid"))
    return await _file(call, cid, *await _readable(call, cid))


async def _file(call: Call, cid: Cid, ref: BlobRefRow, small: bytes | None) -> Response:
    headers = {
        "Content-Disposition": f'attachment; filename="{cid}"',
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, immutable, max-age=31536000"
        if ref.visibility != blobs.PUBLIC
        else "public, immutable",
        "ETag": f'"{cid}"',
    }
    if small is not None:
        return Response(small, media_type="application/octet-stream", headers=headers)
    stat = await call.state.blobs.stat(cid)
    if stat is None:
        raise NotFound(f"there is no blob {cid} here")
    if stat.kind is not Kind.FILE:
        raise InvalidInput(f"{cid} is a folder", hint="Name a file in it by /ipfs/CID/path, or take ?format=car.")
    pieces = call.state.blobs.open(cid, max_bytes=stat.size)
    first = await anext(pieces, b"")
    headers["Content-Length"] = str(stat.size)
    return StreamingResponse(_with_first(first, pieces), media_type="application/octet-stream", headers=headers)


async def _with_first(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


async def gateway(call: Call) -> Response:
    """Answer as a trustless gateway: ``?format=raw`` one block, ``?format=car`` the whole, else the file."""
    return await _gateway(call, Cid.parse(call.path("cid")), ())


async def gateway_below(call: Call) -> Response:
    """Answer as ``gateway`` for what lies at a path in a folder; a CAR begins with the folders on the way."""
    path = call.path("path")
    if len(path) > _MAX_PATH_CHARS:
        raise TooLarge(f"a path has at most {_MAX_PATH_CHARS} characters", field="path")
    root, names = split_path(f"{Cid.parse(call.path('cid'))}/{path}")
    return await _gateway(call, root, names)


async def _gateway(call: Call, root: Cid, names: tuple[str, ...]) -> Response:
    form = call.text("format") or _form_of(call.request.headers.get("accept", ""))
    if form not in ("raw", "car", "file"):
        raise BadField("format: expected 'raw' or 'car'", field="format")
    scope = call.text("dag-scope", "all")
    if scope not in ("all", "entity", "block"):
        raise BadField("dag-scope: expected 'all', 'entity' or 'block'", field="dag-scope")
    ref, small = await _readable(call, root)
    if small is not None:
        return await _small(call, root, names, form, ref, small)
    way, cid = await _drive(call, walk_path(root, names))
    if form == "file":
        return await _file(call, cid, ref, None)
    stat = await call.state.blobs.stat(cid)
    if stat is None:
        raise NotFound(f"there is no blob {cid} here")
    if form == "raw":
        return Response((await _block(call, cid)).data, media_type=RAW)
    if scope == "entity" and stat.kind is Kind.DIRECTORY:
        own, _ = await _drive(call, walk_directory(cid))
        return StreamingResponse(write_car(root, _after([*way, *own])), media_type=CAR)
    blocks = call.state.blobs.blocks(cid, scope="block" if scope == "block" else "all")
    return StreamingResponse(write_car(root, _after(way, blocks)), media_type=CAR)


async def _small(call: Call, cid: Cid, names: tuple[str, ...], form: str, ref: BlobRefRow, data: bytes) -> Response:
    """Answer for a file that lies in the database."""
    if names:
        raise InvalidInput(f"{cid} is a file, not a folder")
    if form == "file":
        return await _file(call, cid, ref, data)
    if form == "raw":
        return Response(data, media_type=RAW)
    return StreamingResponse(write_car(cid, _after([Block(cid, data)])), media_type=CAR)


async def _drive(call: Call, walk: Walk[T]) -> tuple[list[Block], T]:
    """Run a walk over blocks that are here; return those it asked for, in its order, and what it found."""
    asked: list[Block] = []
    try:
        wanted = next(walk)
        while True:
            asked.append(await _block(call, wanted))
            wanted = walk.send(asked[-1].data)
    except StopIteration as end:
        return asked, end.value


async def _block(call: Call, cid: Cid) -> Block:
    async for block in call.state.blobs.blocks(cid, scope="block"):
        return block
    raise NotFound(f"there is no blob {cid} here")


def _form_of(accept: str) -> str:
    if "vnd.ipld.car" in accept:
        return "car"
    return "raw" if "vnd.ipld.raw" in accept else "file"


async def _after(first: list[Block], rest: AsyncIterator[Block] | None = None) -> AsyncIterator[Block]:
    """Yield blocks, each once."""
    seen = set()
    for block in first:
        if block.cid.key not in seen:
            seen.add(block.cid.key)
            yield block
    if rest is not None:
        async for block in rest:
            if block.cid.key not in seen:
                yield block


async def info(call: Call) -> BlobInfo:
    """Return what the caller may know of a blob."""
    cid = str(Cid.parse(call.path("cid")))
    row = await call.state.store.read(lambda tx: blobs.info(tx, cid, call.caller.reader))
    return _info_of(row, call.caller.id)


def _info_of(row: BlobRefRow, reader: str) -> BlobInfo:
    mine = row.owner == reader
    return BlobInfo(
        cid=row.cid,
        size=row.size,
        visibility=row.visibility,
        owner=row.owner if mine else None,
        pinned=bool(row.pinned) and mine,
        created_at=from_us(row.created_us),
    )


async def listing(call: Call) -> BlobsReply:
    """Return what the caller has stored, by CID, and how much of the quota that takes."""
    me, limit, after = call.caller.id, call.limit(), call.text("cursor")

    def read(tx: ReadTx) -> tuple[list[BlobRefRow], int]:
        return blobs.owned(tx, me, after=after, limit=limit + 1), blobs.bytes_of_owner(tx, me)

    rows, used = await call.state.store.read(read)
    return BlobsReply(
        blobs=tuple(_info_of(row, me) for row in rows[:limit]),
        used_bytes=used,
        quota_bytes=call.state.settings.market_upload_quota,
        next_cursor=rows[limit - 1].cid if len(rows) > limit else None,
    )


async def pin(call: Call) -> PinReply:
    """Keep a blob of the caller's."""
    cid = Cid.parse(call.path("cid"))
    text = str(cid)
    await call.state.store.write(lambda tx: blobs.pin(tx, text, call.caller.id))
    if await call.state.blobs.stat(cid) is not None:
        await call.state.blobs.pin(cid)
    return PinReply(cid=text, pinned=True)


async def unpin(call: Call) -> PinReply:
    """Keep a blob of the caller's no longer; what nobody else needs may be evicted when room is needed."""
    cid = Cid.parse(call.path("cid"))
    text, state = str(cid), call.state
    if await state.store.write(lambda tx: blobs.unpin(tx, text, call.caller.id)):
        await let_go(state.store, state.blobs, cid)
    return PinReply(cid=text, pinned=False)


VISIBILITY = Query("visibility", {"enum": ["private", "public"], "default": "private"}, "Who may read it")
SCOPE = Query("dag-scope", {"enum": ["all", "entity", "block"], "default": "all"}, "How much of it a CAR holds")
FORMAT = Query("format", {"enum": ["raw", "car"]}, "One block, or all as a CARv1; else by the header Accept")

ENDPOINTS = (
    Endpoint(
        "POST",
        paths.STORAGE_UPLOAD,
        upload,
        Access.SIGNED,
        "Upload a file, or a folder as a CAR",
        UploadReply,
        streams_body=True,
        status=201,
        query=(VISIBILITY,),
    ),
    Endpoint("GET", paths.storage_path("download", "{cid}"), download, Access.OPTIONAL, "Download a file"),
    Endpoint("GET", paths.storage_path("info", "{cid}"), info, Access.OPTIONAL, "About a file", BlobInfo),
    Endpoint("POST", paths.storage_path("pin", "{cid}"), pin, Access.SIGNED, "Pin a file", PinReply),
    Endpoint("DELETE", paths.storage_path("pin", "{cid}"), unpin, Access.SIGNED, "Unpin a file", PinReply),
    Endpoint(
        "GET",
        paths.STORAGE_LIST,
        listing,
        Access.SIGNED,
        "List what you have stored",
        BlobsReply,
        query=(LIMIT, CURSOR),
    ),
    Endpoint("GET", paths.gateway_path("{cid}"), gateway, Access.OPTIONAL, "Trustless gateway", query=(FORMAT, SCOPE)),
    Endpoint(
        "GET",
        paths.gateway_path("{cid}", "{path}"),
        gateway_below,
        Access.OPTIONAL,
        "Trustless gateway, inside a folder",
        takes_rest=True,
        query=(FORMAT, SCOPE),
    ),
)
