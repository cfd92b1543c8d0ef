"""What the market in memory stores: files, folders, and who may see them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from parity_blobs import Cid
from parity_blobs.car import CAR_MEDIA_TYPE, write_car
from parity_blobs.car_files import CAR_TYPE, put_car, weight_of
from parity_blobs.files import add_path
from parity_blobs.memory import MemoryBlobStore
from parity_protocol.api import paths
from parity_protocol.errors import NotFound

__all__ = ["FakeStorage"]

RAW_MEDIA_TYPE = "application/vnd.ipld.raw"
QUOTA_BYTES = 1 << 30


class FakeStorage:
    """Answers the requests about data of one account."""

    def __init__(self) -> None:
        self.blobs = MemoryBlobStore()
        self.visibility: dict[str, str] = {}  # of what was uploaded, by CID
        self.pinned: set[str] = set()

    async def put(self, data: bytes) -> str:
        """Store a file and return its CID."""
        return str(await self.blobs.put_bytes(data))

    async def put_folder(self, path: Path) -> tuple[str, int]:
        """Store a folder and return its CID and what it counts for."""
        stat = await add_path(self.blobs, path, hidden=True)
        return str(stat.cid), weight_of(stat)

    async def answer(
        self, request: httpx.Request, path: str, query: dict[str, str], body: bytes, account: str
    ) -> dict[str, Any] | httpx.Response | None:
        """Return the answer to a request, or None when it is about something else."""
        if path == paths.STORAGE_UPLOAD:
            return await self._upload(request, query, body)
        if path == paths.STORAGE_LIST:
            mine = sorted(cid for cid in self.visibility if cid > query.get("cursor", ""))
            limit = int(query.get("limit", "50"))
            page = [await self._info(cid, account) for cid in mine[:limit]]
            used = sum([(await self._info(cid, account))["size"] for cid in self.visibility])
            cursor = mine[limit - 1] if len(mine) > limit else None
            return {"blobs": page, "used_bytes": used, "quota_bytes": QUOTA_BYTES, "next_cursor": cursor}
        if path.startswith("/ipfs/"):
            return await self._content(Cid.parse(path.removeprefix("/ipfs/")), query["format"])
        cid = path.rpartition("/")[2]
        if path.startswith(paths.storage_path("info", "")):
            return await self._info(cid, account)
        if path.startswith(paths.storage_path("pin", "")):
            if cid not in self.visibility:
                raise NotFound(f"there is no blob {cid} of yours here")
            if request.method == "DELETE":
                del self.visibility[cid]
                self.pinned.discard(cid)
            else:
                self.pinned.add(cid)
            return {"cid": cid, "pinned": request.method != "DELETE"}
        return None

    async def _upload(self, request: httpx.Request, query: dict[str, str], body: bytes) -> dict[str, Any]:
        if request.headers.get("content-type") == CAR_TYPE:
            stat = await put_car(self.blobs, _whole(body))
            cid, size = str(stat.cid), weight_of(stat)
        else:
            cid, size = await self.put(body), len(body)
        self.visibility[cid] = query.get("visibility", "private")
        return {"cid": cid, "size": size, "visibility": self.visibility[cid]}

    async def _content(self, cid: Cid, form: str) -> httpx.Response:
        if await self.blobs.stat(cid) is None:
            raise NotFound(f"there is no {cid} here")
        if form == "raw":
            pieces = [block.data async for block in self.blobs.blocks(cid, scope="block")]
        else:
            pieces = [piece async for piece in write_car(cid, self.blobs.blocks(cid))]
        kind = RAW_MEDIA_TYPE if form == "raw" else CAR_MEDIA_TYPE
        return httpx.Response(200, stream=httpx.ByteStream(b"".join(pieces)), headers={"content-type": kind})

    async def _info(self, cid: str, account: str) -> dict[str, Any]:
        stat = await self.blobs.stat(Cid.parse(cid))
        if stat is None:
            raise NotFound(f"there is no {cid} here")
        visibility = self.visibility.get(cid, "private")
        return {
            "cid": cid,
            "size": stat.size,
            "visibility": visibility,
            "owner": account,
            "pinned": cid in self.pinned,
        }


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data
