"""The port of the node's journal, and the rows it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pydantic import JsonValue

__all__ = ["ClaimIntent", "Execution", "IntentState", "NodeStore", "OutboxEntry", "Phase", "Snapshot"]


class Phase(StrEnum):
    """How far an execution is; it only moves forward."""

    VERIFIED = "verified"  # the manifest passed and a claim is being sent
    CLAIMED = "claimed"  # the lease is ours
    PREPARED = "prepared"  # inputs are here
    STARTED = "started"  # the task runs; the handle finds it again
    COLLECTED = "collected"  # the result is durable and its report waits in the outbox
    REPORTED = "reported"  # the market has answered; only cleaning up is left

    @property
    def rank(self) -> int:
        """Position from 0 (first)."""
        return list(Phase).index(self)


@dataclass(frozen=True, slots=True)
class Execution:
    """One attempt at a task on this node."""

    id: str  # UUID
    task_id: str
    jti: str  # of the manifest: used once
    jti_expires_at: int  # unix seconds until which the jti is remembered
    claim_id: str
    kind: str
    manifest: str  # the compact JWS, verified before it was journalled
    manifest_hash: str  # hex
    order_hash: str  # 0x…
    reward: int  # base units
    phase: Phase = Phase.VERIFIED
    lease_id: str = ""
    fence: int = 0
    ttl_s: float = 0.0
    deadline: float = 0.0  # Clock.monotonic() of this boot after which the lease is not ours
    boot_id: str = ""  # the boot that ``deadline`` counts in
    handle: Mapping[str, JsonValue] | None = None
    started_at: float = 0.0  # unix seconds
    log_read: int = 0  # bytes of the execution's log that were read
    log_sent: int = 0  # bytes of text that the market has; differs where bytes were not UTF-8


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One report that waits until the market lists it."""

    id: str  # the report's deterministic id
    execution_id: str
    body: bytes  # JSON of a FinalReport
    is_final: bool
    result_path: str = ""  # file to upload first, or empty
    result_cid: str = ""
    position: int = 0  # given by the store, growing


class IntentState(StrEnum):
    """What the journal knows of a manifest's jti."""

    NEW = "new"  # recorded now
    RESUMED = "resumed"  # its own claim is open: send that again
    USED = "used"  # its claim was decided before: refuse it


@dataclass(frozen=True, slots=True)
class ClaimIntent:
    """The answer for one offered execution; ``execution`` is the recorded one when it is resumed."""

    state: IntentState
    execution: Execution


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a starting node needs."""

    executions: tuple[Execution, ...]  # oldest first
    outbox: tuple[OutboxEntry, ...]  # in order
    pins: Mapping[str, str]


class NodeStore(Protocol):
    """The node's journal.

    Writes MUST take effect in the order of the calls, ``note`` included. What a method documents as durable MUST
    survive ``kill -9`` and power loss once it has returned. A method that fails MUST leave the journal unchanged.

    Raises:
        StorageFull: From any durable method: there is no room; nothing was written.
    """

    async def record_intents(self, executions: Sequence[Execution], *, now: int) -> list[ClaimIntent]:
        """Record that these manifests are about to be claimed, each ``jti`` once for ever. Durable.

        Args:
            now: Unix seconds; ids of manifests that expired long before it may be forgotten.
        """
        ...

    def note(self, execution_id: str, **changes: object) -> None:
        """Change fields of an execution. Returns at once; durable soon, and before any later durable call returns."""
        ...

    def forget(self, execution_id: str) -> None:
        """Drop an execution, its queued progress, and nothing else; its jti stays used. As durable as ``note``."""
        ...

    async def collect(self, entry: OutboxEntry, *, phase: Phase | None) -> None:
        """Queue a report and move its execution to ``phase`` (None leaves it), in one transaction. Durable."""
        ...

    async def settle(self, entry_ids: Sequence[str]) -> None:
        """Take answered reports from the queue and move their executions to REPORTED (finals). Durable."""
        ...

    async def load(self) -> Snapshot:
        """Return what is kept."""
        ...

    async def pin(self, key: str, value: str) -> str:
        """Store ``value`` unless ``key`` has one already; return the stored one. Durable."""
        ...

    async def close(self) -> None:
        """Make everything noted durable and let go; idempotent."""
        ...
