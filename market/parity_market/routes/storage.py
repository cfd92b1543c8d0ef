"""Blobs: upload, download, info, pin, and the trustless gateway ``/ipfs/{cid}``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256

from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse

from parity_blobs import Block, Cid
from parity_blobs.car import write_car
from parity_market.auth import Access
from parity_market.bodies import declared_length
from parity_market.operations import blobs
from parity_market.routing import Call, Endpoint, Query
from parity_market.store.rows import BlobRefRow, from_us
from parity_protocol.api import paths
from parity_protocol.api.storage import BlobInfo, PinReply, UploadReply
from parity_protocol.errors import BadField, InvalidInput, NotFound, TooLarge, Unreachable
from parity_protocol.signing.http_signatures import check_body

__all__ = ["ENDPOINTS"]

UPLOAD_IDLE_S = 30.0  # longest silence in an upload
UPLOAD_LIMIT_S = 3_600.0  # of a whole upload
CAR = "application/vnd.ipld.car; version=1; order=dfs; dups=n"
RAW = "application/vnd.ipld.raw"


async def upload(call: Call) -> UploadReply:
    """Store the body as a file; ``?visibility=public`` shows it to anybody, else only to its owner and its tasks' nodes."""
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
    stat = await state.blobs.put(_checked(call), max_bytes=min(limit, max(quota - used, 0)), pin=True)
    cid = str(stat.cid)
    await state.store.write(lambda tx: blobs.add_ref(tx, cid, owner, visibility=visibility, size=stat.size, now=now))
    return UploadReply(cid=cid, size=stat.size, visibility=visibility)


async def _checked(call: Call) -> AsyncIterator[bytes]:
    """Yield the body; at its end, refuse it unless its digest is the signed one."""
    digest = sha256()
    stream = aiter(call.request.stream())
    try:
        async with asyncio.timeout(UPLOAD_LIMIT_S):
            while True:
                async with asyncio.timeout(UPLOAD_IDLE_S):
                    piece = await anext(stream, None)
                if piece is None:
                    break
                digest.update(piece)
                yield piece
    except TimeoutError as exc:
        raise InvalidInput(f"the upload was silent for {UPLOAD_IDLE_S:g} s or took too long", field="body") from exc
    except ClientDisconnect as exc:
        raise Unreachable("the caller went away while uploading") from exc
    assert call.signature is not None
    check_body(call.signature, digest.digest())


async def _readable(call: Call) -> tuple[Cid, BlobRefRow, bytes | None]:
    cid = Cid.parse(call.path("cid"))
    text = str(cid)

    def read(tx: object) -> tuple[BlobRefRow, bytes | None]:
        return blobs.readable(tx, text, call.caller.reader), blobs.small_blob(tx, text)  # type: ignore[arg-type]  # ReadTx

    ref, small = await call.state.store.read(read)
    return cid, ref, small


async def download(call: Call) -> Response:
    """Return a file's bytes."""
    cid, ref, small = await _readable(call)
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
    form = call.text("format") or _form_of(call.request.headers.get("accept", ""))
    if form == "file":
        return await download(call)
    if form not in ("raw", "car"):
        raise BadField("format: expected 'raw' or 'car'", field="format")
    cid, _, small = await _readable(call)
    if small is not None:
        block = Block(cid, small)
        if form == "raw":
            return Response(small, media_type=RAW)
        return StreamingResponse(write_car(cid, _one(block)), media_type=CAR)
    if await call.state.blobs.stat(cid) is None:
        raise NotFound(f"there is no blob {cid} here")
    if form == "raw":
        async for block in call.state.blobs.blocks(cid, scope="block"):
            return Response(block.data, media_type=RAW)
        raise NotFound(f"there is no blob {cid} here")
    return StreamingResponse(write_car(cid, call.state.blobs.blocks(cid)), media_type=CAR)


def _form_of(accept: str) -> str:
    if "vnd.ipld.car" in accept:
        return "car"
    return "raw" if "vnd.ipld.raw" in accept else "file"


async def _one(block: Block) -> AsyncIterator[Block]:
    yield block


async def info(call: Call) -> BlobInfo:
    """Return what the caller may know of a blob."""
    cid = str(Cid.parse(call.path("cid")))
    row = await call.state.store.read(lambda tx: blobs.info(tx, cid, call.caller.reader))
    mine = row.owner == call.caller.id
    return BlobInfo(
        cid=cid,
        size=row.size,
        visibility=row.visibility,
        owner=row.owner if mine else None,
        pinned=bool(row.pinned) and mine,
        created_at=from_us(row.created_us),
    )


async def pin(call: Call) -> PinReply:
    """Keep a blob of the caller's."""
    cid = Cid.parse(call.path("cid"))
    text = str(cid)
    await call.state.store.write(lambda tx: blobs.pin(tx, text, call.caller.id))
    if await call.state.blobs.stat(cid) is not None:
        await call.state.blobs.pin(cid)
    return PinReply(cid=text, pinned=True)


VISIBILITY = Query("visibility", {"enum": ["private", "public"], "default": "private"}, "Who may read it")
FORMAT = Query("format", {"enum": ["raw", "car"]}, "One block, or all as a CARv1; else by the header Accept")

ENDPOINTS = (
    Endpoint(
        "POST",
        paths.STORAGE_UPLOAD,
        upload,
        Access.SIGNED,
        "Upload a file",
        UploadReply,
        streams_body=True,
        status=201,
        query=(VISIBILITY,),
    ),
    Endpoint("GET", paths.storage_path("download", "{cid}"), download, Access.OPTIONAL, "Download a file"),
    Endpoint("GET", paths.storage_path("info", "{cid}"), info, Access.OPTIONAL, "About a file", BlobInfo),
    Endpoint("POST", paths.storage_path("pin", "{cid}"), pin, Access.SIGNED, "Pin a file", PinReply),
    Endpoint("GET", paths.gateway_path("{cid}"), gateway, Access.OPTIONAL, "Trustless gateway", query=(FORMAT,)),
)
