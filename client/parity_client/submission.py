"""What a submission became, with everything that can be done about it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from parity_client.following import OnEvent
from parity_client.proof import VerifiedReceipt
from parity_client.results import MAX_RESULT_BYTES, Result
from parity_protocol.api.tasks import CancelReply, GroupReply, SubmitReply, TaskReply, WhyPendingReply

if TYPE_CHECKING:
    from parity_client.client import Client

__all__ = ["Submission"]


class Submission:
    """What a submission became: one task, or a group of them.

    Attributes:
        id: The group's when there is one, else the task's.
        kind: ``task`` or ``group``.
        created: False when the market knew this submission already.
    """

    def __init__(self, client: Client, reply: SubmitReply) -> None:
        self._client = client
        self.id = reply.id
        self.kind = reply.kind
        self.task_ids = reply.task_ids
        self.created = reply.created

    async def status(self) -> TaskReply | GroupReply:
        """Return where it is."""
        return await self._client.find(self.id)

    async def wait(self, timeout: float | None = None, *, on_event: OnEvent | None = None) -> TaskReply | GroupReply:
        """Return it once it has ended; see ``Client.wait``."""
        return await self._client.wait(self.id, timeout=timeout, on_event=on_event)

    async def result(self, wait: float | None = None, *, max_bytes: int = MAX_RESULT_BYTES) -> Result:
        """Wait for the end and return the result; see ``Client.result``."""
        return await self._client.result(self.id, wait=wait, max_bytes=max_bytes)

    def logs(self, *, follow: bool = True) -> AsyncIterator[str]:
        """Yield what the first task prints."""
        return self._client.logs(self.task_ids[0], follow=follow)

    async def cancel(self) -> CancelReply:
        """Cancel it; what has ended stays as it is."""
        return await self._client.cancel(self.id)

    async def why(self) -> list[WhyPendingReply]:
        """Return why its tasks wait, one answer a task."""
        return [await self._client.why(task_id) for task_id in self.task_ids]

    async def receipts(self) -> list[VerifiedReceipt]:
        """Return the verified receipts of its tasks, all of which must have completed."""
        return [self._client.verify(await self._client.proof(task_id)) for task_id in self.task_ids]

    def __repr__(self) -> str:
        return f"Submission({self.kind} {self.id})"
