"""Blobs at the market."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from parity_protocol.wire import WireTime

__all__ = ["BlobInfo", "BlobsReply", "PinReply", "UploadReply"]


class UploadReply(BaseModel):
    """``POST /api/v1/storage/upload``: the body is a file, or a folder as a CAR; ``?visibility=public|private``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    cid: str
    size: int  # bytes of the file; of a folder what it counts for: its files, or its blocks where these are more
    visibility: str


class BlobInfo(BaseModel):
    """``GET /api/v1/storage/info/{cid}``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    cid: str
    size: int  # as ``UploadReply.size``
    visibility: str
    owner: str | None = None
    pinned: bool = False
    created_at: WireTime | None = None


class BlobsReply(BaseModel):
    """``GET /api/v1/storage/list``: what the caller has stored, by CID."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    blobs: tuple[BlobInfo, ...]
    used_bytes: int
    quota_bytes: int
    next_cursor: str | None = None


class PinReply(BaseModel):
    """``POST`` and ``DELETE /api/v1/storage/pin/{cid}``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    cid: str
    pinned: bool
