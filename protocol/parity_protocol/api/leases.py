"""Polling, claiming, renewing, reporting. Every message is a list: many small ones share one commit.

A claim's, renewal's or report's own answer is an ``Item`` with the HTTP status that it would have had alone.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from parity_protocol.api.problem import Problem
from parity_protocol.ids import WireSha256, WireUuid
from parity_protocol.receipt import Receipt
from parity_protocol.report import MAX_INLINE_RESULT_BYTES, Report
from parity_protocol.wire import Request

__all__ = [
    "AHEAD_A_CLAIM",
    "MAX_BATCH",
    "MAX_LOG_CHUNK_BYTES",
    "MAX_REFUSED",
    "ClaimItem",
    "ClaimReply",
    "ClaimsReply",
    "ClaimsRequest",
    "FinalReport",
    "LogChunk",
    "LogsRequest",
    "OfferRefusal",
    "PollReply",
    "PollRequest",
    "ReleaseItem",
    "ReleaseRequest",
    "RenewItem",
    "RenewReply",
    "RenewRequest",
    "RenewsReply",
    "ReportItem",
    "ReportReply",
    "ReportsRequest",
    "SingleClaimRequest",
    "StartItem",
    "StartRequest",
    "WriteItem",
    "WriteReply",
]

MAX_BATCH = 256  # items in one message
AHEAD_A_CLAIM = 2  # offers that come with the answer to each claim, at most
MAX_LOG_CHUNK_BYTES = 65_536
MAX_MANIFEST_CHARS = 262_144
MAX_REFUSED = 64  # refusals in one poll


class OfferRefusal(Request):
    """A rule by which the node refused an offer: the market shows it, and offers the task to others."""

    task_id: WireUuid | None  # None when the node takes no work at all now
    rule: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.+-]{0,79}$")]
    message: Annotated[str, StringConstraints(max_length=200)] = ""


class PollRequest(Request):
    """``POST /api/v1/leases/poll``: wait for work."""

    instance: WireSha256
    slots: int = Field(ge=1, le=MAX_BATCH)  # how many tasks the node can start now
    wait_s: float = Field(default=20.0, ge=0, le=60)
    policy: WireSha256 | None = None  # digest of the operator's policy that is in force
    refused: Annotated[tuple[OfferRefusal, ...], Field(max_length=MAX_REFUSED)] = ()  # since the last poll


class PollReply(BaseModel):
    """Manifests softly reserved for this node for two seconds; empty when the wait ended."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    manifests: tuple[str, ...]  # compact JWS
    retry_after_s: float = 0.0  # wait this long before the next poll


class ClaimItem(Request):
    """One claim: the manifest as it came, and an id that the node made and journalled."""

    manifest: Annotated[str, StringConstraints(max_length=MAX_MANIFEST_CHARS)]
    claim_id: WireUuid


class ClaimsRequest(Request):
    """``POST /api/v1/leases/claims``."""

    instance: WireSha256
    claims: Annotated[tuple[ClaimItem, ...], Field(min_length=1, max_length=MAX_BATCH)]
    ahead: int = Field(default=0, ge=0, le=MAX_BATCH)  # offers wanted with the answer, AHEAD_A_CLAIM each at most


class SingleClaimRequest(ClaimItem):
    """``POST /api/v1/tasks/{id}/claim``: 200 with the lease, 409, or 422 with the reason."""

    instance: WireSha256


class ClaimReply(BaseModel):
    """The lease, as a JWS of type ``lease+jws`` and in the open."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    status: int
    claim_id: str
    lease: str = ""
    lease_id: str = ""
    fence: int = 0
    ttl_s: float = 0.0
    problem: Problem | None = None


class ClaimsReply(BaseModel):
    """Answers in the order of the claims, and offers ahead, softly reserved for this node for 0.3 s."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    claims: tuple[ClaimReply, ...]
    manifests: tuple[str, ...] = ()  # compact JWS; none waits, and none is wanted as a rule


class RenewItem(Request):
    """One renewal."""

    task_id: WireUuid
    lease_id: WireUuid
    fence: int = Field(ge=1, lt=2**31)


class RenewRequest(Request):
    """``POST /api/v1/leases/renew``."""

    renewals: Annotated[tuple[RenewItem, ...], Field(min_length=1, max_length=MAX_BATCH)]


class RenewReply(BaseModel):
    """Answer to one renewal: 200 with a new ttl, or 409 (``stale_fence`` or ``cancelled``): stop the work."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    status: int
    lease_id: str
    ttl_s: float = 0.0
    problem: Problem | None = None


class RenewsReply(BaseModel):
    """Answers in the order of the renewals."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    renewals: tuple[RenewReply, ...]


class StartItem(RenewItem):
    """One execution has started."""

    started_at: float = Field(ge=0, lt=2**40, allow_inf_nan=False)  # unix seconds, the node's clock


class StartRequest(Request):
    """``POST /api/v1/leases/start``; a lost one does no harm."""

    starts: Annotated[tuple[StartItem, ...], Field(min_length=1, max_length=MAX_BATCH)]


class ReleaseItem(RenewItem):
    """One lease handed back before it was executed to its end."""

    reason: Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}$")]
    message: Annotated[str, StringConstraints(max_length=2_000)] = ""


class ReleaseRequest(Request):
    """``POST /api/v1/leases/release``."""

    releases: Annotated[tuple[ReleaseItem, ...], Field(min_length=1, max_length=MAX_BATCH)]


class LogChunk(RenewItem):
    """Text that an execution printed, at its byte offset; repeating a chunk changes nothing."""

    offset: int = Field(ge=0, lt=2**40)
    text: Annotated[str, StringConstraints(max_length=MAX_LOG_CHUNK_BYTES)]


class LogsRequest(Request):
    """``POST /api/v1/leases/logs``."""

    chunks: Annotated[tuple[LogChunk, ...], Field(min_length=1, max_length=MAX_BATCH)]


class WriteItem(BaseModel):
    """Answer to one item of start, release or logs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    status: int
    problem: Problem | None = None


class WriteReply(BaseModel):
    """Answers in the order of the items."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    items: tuple[WriteItem, ...]


class FinalReport(Request):
    """A report with its receipt; a small result travels inside, a large one was uploaded before."""

    report: Report
    receipt: Receipt | None = None  # with a successful final report
    result: Annotated[str, StringConstraints(max_length=4 * MAX_INLINE_RESULT_BYTES // 3 + 4)] | None = None  # base64


class ReportsRequest(Request):
    """``POST /api/v1/reports``."""

    reports: Annotated[tuple[FinalReport, ...], Field(min_length=1, max_length=MAX_BATCH)]


class ReportItem(BaseModel):
    """Answer to one report: 200 taken (now or before); 409 stale or cancelled; 422 not acceptable. 5xx: send again."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    status: int
    task_state: str = ""
    problem: Problem | None = None


class ReportReply(BaseModel):
    """Answers in the order of the reports."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    reports: tuple[ReportItem, ...]
