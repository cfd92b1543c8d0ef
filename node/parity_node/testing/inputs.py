"""Inputs without a market: content by CID that a test gave."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from parity_blobs.importer import cid_of_bytes
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["StaticInputs"]


class StaticInputs:
    """Implements ``InputSource`` from memory."""

    def __init__(self, contents: Iterable[bytes] = ()) -> None:
        self._contents: dict[str, bytes] = {}
        for content in contents:
            self.add(content)

    def add(self, content: bytes) -> str:
        """Hold ``content`` and return its CID."""
        cid = str(cid_of_bytes(content))
        self._contents[cid] = content
        return cid

    async def fetch(self, cid: str, target: Path, *, max_bytes: int) -> int:
        """See ``InputSource.fetch``."""
        content = self._contents.get(cid)
        if content is None:
            raise ExecutionFailed(FailureReason.DATA_UNAVAILABLE, f"input {cid}: nobody has it")
        if len(content) > max_bytes:
            raise ExecutionFailed(FailureReason.DATA_INVALID, f"input {cid}: more than {max_bytes} bytes")
        target.write_bytes(content)  # noqa: ASYNC240 - small, and only in tests
        return len(content)
