"""Blobs at the market."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from parity_protocol.wire import WireTime

__all__ = ["BlobInfo", "PinReply", "UploadReply"]


class UploadReply(BaseModel):
    """``POST /api/v1/storage/upload``: the body is the file; ``?visibility=public|private`` (default private)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    cid: str
    size: int
    visibility: str


class BlobInfo(BaseModel):
    """``GET /api/v1/storage/info/{cid}``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    cid: str
    size: int  # bytes of the file
    visibility: str
    owner: str | None = None
    pinned: bool = False
    created_at: WireTime | None = None


class PinReply(BaseModel):
    """``POST /api/v1/storage/pin/{cid}``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    cid: str
    pinned: bool
