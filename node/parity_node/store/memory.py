"""The journal in memory: for tests, and the second reader of the port's rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from parity_node.store.base import ClaimIntent, Execution, IntentState, NodeStore, OutboxEntry, Phase, Snapshot
from parity_protocol.errors import Internal, StorageFull

__all__ = ["MemoryNodeStore"]


class MemoryNodeStore(NodeStore):
    """A ``NodeStore`` that lives as long as the object; set ``is_full`` to make durable writes fail."""

    def __init__(self) -> None:
        self.is_full = False
        self.is_closed = False
        self._executions: dict[str, Execution] = {}
        self._seen: dict[str, int] = {}
        self._outbox: dict[str, OutboxEntry] = {}
        self._pins: dict[str, str] = {}
        self._position = 0

    async def record_intents(self, executions: Sequence[Execution], *, now: int) -> list[ClaimIntent]:
        """Record claims that are about to be sent; see the port."""
        self._check()
        self._seen = {jti: end for jti, end in self._seen.items() if end >= now - 3_600}
        found = []
        for execution in executions:
            known = next((row for row in self._executions.values() if row.jti == execution.jti), None)
            if known is not None:
                is_open = known.phase is Phase.VERIFIED
                found.append(ClaimIntent(IntentState.RESUMED if is_open else IntentState.USED, known))
            elif execution.jti in self._seen:
                found.append(ClaimIntent(IntentState.USED, execution))
            else:
                self._seen[execution.jti] = execution.jti_expires_at
                self._executions[execution.id] = execution
                found.append(ClaimIntent(IntentState.NEW, execution))
        return found

    def note(self, execution_id: str, **changes: Any) -> None:
        """Change fields of an execution; see the port."""
        if execution_id in self._executions:
            self._executions[execution_id] = replace(self._executions[execution_id], **changes)

    def forget(self, execution_id: str) -> None:
        """Drop an execution; see the port."""
        self._executions.pop(execution_id, None)
        self._outbox = {k: e for k, e in self._outbox.items() if e.is_final or e.execution_id != execution_id}

    async def collect(self, entry: OutboxEntry, *, phase: Phase | None) -> None:
        """Queue a report and move its execution; see the port."""
        self._check()
        if entry.id not in self._outbox:
            self._position += 1
            self._outbox[entry.id] = replace(entry, position=self._position)
        if phase is not None:
            self.note(entry.execution_id, phase=phase)

    async def settle(self, entry_ids: Sequence[str]) -> None:
        """Take answered reports from the queue; see the port."""
        self._check()
        for entry_id in entry_ids:
            entry = self._outbox.pop(entry_id, None)
            if entry is not None and entry.is_final:
                self.note(entry.execution_id, phase=Phase.REPORTED)

    async def load(self) -> Snapshot:
        """Return what is kept; see the port."""
        return Snapshot(tuple(self._executions.values()), tuple(self._outbox.values()), dict(self._pins))

    async def pin(self, key: str, value: str) -> str:
        """Store a value once; see the port."""
        self._check()
        return self._pins.setdefault(key, value)

    async def close(self) -> None:
        """Let go; see the port."""
        self.is_closed = True

    def _check(self) -> None:
        if self.is_closed:
            raise Internal("the journal is closed")
        if self.is_full:
            raise StorageFull("the journal cannot be written: the disk is full")
