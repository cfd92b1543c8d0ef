"""The ports behind which the market lies."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from parity_protocol.api.leases import (
    ClaimsReply,
    ClaimsRequest,
    LogsRequest,
    PollReply,
    PollRequest,
    ReleaseRequest,
    RenewRequest,
    RenewsReply,
    ReportReply,
    ReportsRequest,
    StartRequest,
    WriteReply,
)
from parity_protocol.api.nodes import EnrolReply, EnrolRequest, Heartbeat, HeartbeatReply
from parity_protocol.api.storage import UploadReply
from parity_protocol.join import TrustedMarket

__all__ = ["PACKED_SUFFIX", "MarketClient", "MarketDirectory"]

PACKED_SUFFIX = ".car"


class MarketClient(Protocol):
    """What a node says to its market all day.

    Every call MUST be bounded in time, MUST be safe to repeat, and MUST raise only classes of
    ``parity_protocol.errors``: what the market raised where it answered with a problem document, ``Unreachable`` where
    it did not answer (then the call may or may not have had its effect), ``Untrusted`` where its answer is not
    acceptable. The answers of a list MUST be as many as its items, in their order.
    """

    async def poll(self, request: PollRequest) -> PollReply:
        """Wait up to ``request.wait_s`` for manifests; empty when there were none."""
        ...

    async def claim(self, request: ClaimsRequest) -> ClaimsReply:
        """Claim leases; the same ``claim_id`` gets the same lease."""
        ...

    async def renew(self, request: RenewRequest) -> RenewsReply:
        """Extend leases."""
        ...

    async def start(self, request: StartRequest) -> WriteReply:
        """Say that executions have started."""
        ...

    async def release(self, request: ReleaseRequest) -> WriteReply:
        """Hand leases back."""
        ...

    async def report(self, request: ReportsRequest) -> ReportReply:
        """Deliver reports; the market inserts each id once."""
        ...

    async def logs(self, request: LogsRequest) -> WriteReply:
        """Append text to executions' logs at byte offsets."""
        ...

    async def heartbeat(self, request: Heartbeat) -> HeartbeatReply:
        """Say that the node lives."""
        ...


class MarketDirectory(Protocol):
    """Getting to know a market, and leaving data with it. The same rules hold as for ``MarketClient``."""

    async def trust(self) -> TrustedMarket:
        """Fetch the signed key set and check it against the pinned identity; requests are signed for it from then on."""
        ...

    async def enrol(self, request: EnrolRequest) -> EnrolReply:
        """Introduce this node."""
        ...

    async def upload(self, path: Path) -> UploadReply:
        """Store a result, private; storing it again changes nothing.

        Args:
            path: A file, or a folder packed by ``parity_blobs.car_files``, whose name ends in ``PACKED_SUFFIX``.
        """
        ...
