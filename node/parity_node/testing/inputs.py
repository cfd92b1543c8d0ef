"""Inputs without a market: content by CID that a test gave."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from parity_blobs.importer import cid_of_bytes
from parity_node.inputs import make_readable
from parity_protocol.errors import ExecutionFailed, FailureReason
from parity_protocol.needs import CidInput, HttpsInput, ShardInput

__all__ = ["StaticInputs"]


class StaticInputs:
    """Implements ``InputSource`` from memory.

    Attributes:
        shards: The operator's data sets by name.
    """

    def __init__(self, contents: Iterable[bytes] = ()) -> None:
        self._contents: dict[str, bytes] = {}
        self.shards: dict[str, Path] = {}
        for content in contents:
            self.add(content)

    def add(self, content: bytes) -> str:
        """Hold ``content`` and return its CID."""
        cid = str(cid_of_bytes(content))
        self._contents[cid] = content
        return cid

    async def fetch(self, cid: str, target: Path, *, max_bytes: int) -> int:
        """See ``ByCid.fetch``."""
        content = self._contents.get(cid)
        if content is None:
            raise ExecutionFailed(FailureReason.DATA_UNAVAILABLE, f"input {cid}: nobody has it")
        if len(content) > max_bytes:
            raise ExecutionFailed(FailureReason.DATA_INVALID, f"input {cid}: more than {max_bytes} bytes")
        target.write_bytes(content)  # noqa: ASYNC240 - small, and only in tests
        return len(content)

    async def bring(self, item: CidInput | HttpsInput | ShardInput, target: Path) -> int:
        """See ``InputSource.bring``."""
        if isinstance(item, ShardInput) and item.shard in self.shards:
            target.symlink_to(self.shards[item.shard])  # noqa: ASYNC240 - as above
            return 0
        if not isinstance(item, CidInput):
            raise ExecutionFailed(FailureReason.DATA_UNAVAILABLE, f"input {item.name}: nobody has it")
        size = await self.fetch(item.cid, target, max_bytes=item.max_bytes)
        make_readable(target)
        return size
