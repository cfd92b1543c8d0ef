"""What a node says of an execution: progress, and one final outcome."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from parity_protocol.errors import Blame, FailureReason
from parity_protocol.ids import WireUuid
from parity_protocol.receipt import Usage
from parity_protocol.wire import Request

__all__ = [
    "MAX_INLINE_RESULT_BYTES",
    "MAX_MESSAGE_CHARS",
    "Outcome",
    "Report",
    "ReportKind",
    "report_id",
]

MAX_INLINE_RESULT_BYTES = 32_768  # a larger result is uploaded as a blob first
MAX_MESSAGE_CHARS = 2_000


class ReportKind(StrEnum):
    """Progress may be lost; the final report may not."""

    PROGRESS = "progress"
    FINAL = "final"


class Outcome(StrEnum):
    """How an execution ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"


def _printable(text: str) -> str:
    if any(ord(char) < 32 and char not in "\n\t" for char in text):
        raise ValueError("must not contain control characters")
    return text


Metric = Annotated[float, Field(allow_inf_nan=False)]
MetricName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]{0,63}$", max_length=64)]


class Report(Request):
    """One report. ``id`` is deterministic, so sending it again changes nothing."""

    id: Annotated[str, StringConstraints(max_length=128)]
    task_id: WireUuid
    lease_id: WireUuid
    fence: int = Field(ge=1, lt=2**31)
    kind: ReportKind
    seq: int = Field(ge=0, lt=2**31)
    outcome: Outcome | None = None  # with a final report
    reason: Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}$")] | None = None  # with a failed one
    blame: Blame | None = None
    message: Annotated[str, StringConstraints(max_length=MAX_MESSAGE_CHARS), AfterValidator(_printable)] = ""
    exit_code: int | None = Field(default=None, ge=-(2**31), lt=2**31)
    started_at: float = Field(ge=0, lt=2**40, allow_inf_nan=False)  # unix seconds, the node's clock
    finished_at: float | None = Field(default=None, ge=0, lt=2**40, allow_inf_nan=False)
    usage: Usage = Usage()
    metrics: Annotated[dict[MetricName, Metric], Field(max_length=64)] = {}
    result_cid: Annotated[str, StringConstraints(max_length=128)] | None = None  # with a successful final one
    result_size: int | None = Field(default=None, ge=0, le=1 << 40)  # bytes

    @model_validator(mode="after")
    def _is_whole(self) -> Report:
        if self.id != report_id(self.lease_id, self.fence, self.kind, self.seq):
            raise ValueError("id: must be 'lease:fence:kind:seq' of this report")
        if self.kind is ReportKind.PROGRESS:
            return self
        if self.outcome is None or self.finished_at is None:
            raise ValueError("outcome, finished_at: a final report needs both")
        if self.outcome is Outcome.SUCCEEDED and (self.result_cid is None or self.result_size is None):
            raise ValueError("result_cid, result_size: a successful report needs both")
        if self.outcome is Outcome.FAILED and self.reason is None:
            raise ValueError("reason: a failed report needs one")
        return self

    @property
    def failure(self) -> FailureReason | None:
        """The reason of a failed report; an unknown word folds to its blame's general one."""
        if self.reason is None:
            return None
        return FailureReason.parse(self.reason, self.blame or Blame.NODE)


def report_id(lease_id: str, fence: int, kind: ReportKind, seq: int) -> str:
    """Return the deterministic id of a report."""
    return f"{lease_id}:{fence}:{kind}:{seq}"
