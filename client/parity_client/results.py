"""What a task or a group brought: fetched, checked against its CID, and given as one value."""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as BadBase64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from parity_blobs import Cid, cid_of_bytes
from parity_client.data import Content, StoredFile
from parity_protocol.api.tasks import GroupReply, ResultReply
from parity_protocol.errors import (
    BadDocument,
    Blame,
    DigestMismatch,
    ExecutionFailed,
    FailureReason,
    NotFinished,
    TaskCancelled,
)
from parity_protocol.quantities import ByteSize
from parity_protocol.task import FINAL_STATES, TaskState

__all__ = ["MAX_RESULT_BYTES", "Fetch", "Result", "raise_unless_completed", "result_of_group", "result_of_task"]

MAX_RESULT_BYTES = 16 << 20  # held in memory; `data.get` writes larger ones to a file

Fetch = Callable[[str, ByteSize], Awaitable[Content]]  # (cid, most bytes) → verified content


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a completed task, or of a group's merge.

    Attributes:
        id: Of the task or the group.
        kind: ``task`` or ``group``.
        node_id: Who did it; None for a group.
        cid: Of the content; None when a group merges to metrics only.
        data: The content, verified against ``cid``; None when it is larger than was asked for. Of a folder it is what
            the task printed.
        files: What is in a folder, which ``data.get`` writes to disk; None for a file, or when it is larger than that.
        exit_code: Of a command.
        metrics: Numbers of a task; of a group whatever JSON its merge gave.
    """

    id: str
    kind: str
    state: str
    node_id: str | None = None
    cid: str | None = None
    size: int | None = None
    data: bytes | None = field(default=None, repr=False)
    files: tuple[StoredFile, ...] | None = None
    exit_code: int | None = None
    metrics: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def output(self) -> str | None:
        """The content as text: what a command printed; None when it is not UTF-8 or was not fetched."""
        if self.data is None:
            return None
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError:
            return None


def raise_unless_completed(root_id: str, state: str, failure: str | None, message: str) -> None:
    """Return if a task or group has completed.

    Raises:
        ExecutionFailed: It failed, or its result did not verify; ``reason`` says why.
        TaskCancelled: It was cancelled.
        NotFinished: It has not ended.
    """
    if state == TaskState.COMPLETED:
        return
    if state == TaskState.CANCELLED:
        raise TaskCancelled(f"{root_id} was cancelled")
    if state == TaskState.NOT_VERIFIED:
        text = f"the result of {root_id} did not verify{f': {message}' if message else ''}"
        raise ExecutionFailed(FailureReason.NODE_FAULT, text)
    if state == TaskState.FAILED:
        reason = FailureReason.parse(failure or "", Blame.TASK)
        raise ExecutionFailed(
            reason, f"{root_id} failed{f' ({failure})' if failure else ''}: {message or 'no reason was given'}"
        )
    if state in {str(each) for each in TaskState if each not in FINAL_STATES}:
        raise NotFinished(f"{root_id} is {state}: it has no result yet")
    raise BadDocument(f"the market gives {root_id} the state {state[:40]!r}, which is not one", field="state")


async def result_of_task(reply: ResultReply, fetch: Fetch, *, max_bytes: ByteSize = MAX_RESULT_BYTES) -> Result:
    """Return a completed task's result, with its content if it has at most ``max_bytes``.

    Raises:
        DigestMismatch: The content is not what its CID says.
        ParityError: As ``raise_unless_completed`` and ``fetch``.
    """
    raise_unless_completed(reply.task_id, reply.state, reply.failure, reply.message)
    if reply.cid is None:
        raise BadDocument(f"the market names no result of the completed task {reply.task_id}", field="cid")
    if reply.inline is not None:
        content: Content | None = Content(_inline(reply.inline, reply.cid))
    else:
        content = await fetch(reply.cid, max_bytes) if reply.size is None or reply.size <= max_bytes else None
    return Result(
        id=reply.task_id,
        kind="task",
        state=reply.state,
        node_id=reply.node_id,
        cid=reply.cid,
        size=reply.size if content is None or content.files is not None else len(content.data),
        data=None if content is None else content.data,
        files=None if content is None else content.files,
        exit_code=reply.exit_code,
        metrics=dict(reply.metrics),
    )


async def result_of_group(reply: GroupReply, fetch: Fetch, *, max_bytes: ByteSize = MAX_RESULT_BYTES) -> Result:
    """Return what a group's tasks were merged to; raises as ``result_of_task``."""
    raise_unless_completed(reply.id, reply.state, None, reply.message)
    content = None if reply.result_cid is None else await fetch(reply.result_cid, max_bytes)
    return Result(
        id=reply.id,
        kind="group",
        state=reply.state,
        cid=reply.result_cid,
        size=None if content is None else len(content.data),
        data=None if content is None else content.data,
        files=None if content is None else content.files,
        metrics=dict(reply.metrics),
    )


def _inline(text: str, cid: str) -> bytes:
    try:
        data = b64decode(text, validate=True)
    except (BadBase64, ValueError) as exc:
        raise BadDocument("the market's result is not base64", field="inline") from exc
    wanted, found = Cid.parse(cid), cid_of_bytes(data)
    if wanted.key != found.key:
        raise DigestMismatch(f"the result hashes to {found}, the market names {wanted}", field="inline")
    return data
