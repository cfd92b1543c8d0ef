"""Following tasks to their end: long polls, events in order, one deadline."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import anyio

from parity_protocol.api.tasks import EventReply, EventsReply, GroupReply, LogsReply, TaskStatusReply
from parity_protocol.clock import Clock
from parity_protocol.errors import NotFinished
from parity_protocol.task import FINAL_STATES

__all__ = ["Deadline", "OnEvent", "follow_group", "follow_logs", "follow_task", "is_final"]

MAX_WAIT_S = 20.0  # of one long poll
MAX_FOLLOWED = 32  # tasks of a group whose events are asked for
_FINAL = frozenset(str(state) for state in FINAL_STATES)

OnEvent = Callable[[str, EventReply], None]  # (task id, what happened)


class Deadline:
    """When to give up.

    Args:
        seconds: From now; None waits for ever.
    """

    def __init__(self, clock: Clock, seconds: float | None) -> None:
        self._clock = clock
        self._seconds = seconds
        self._at = None if seconds is None else clock.monotonic() + seconds

    def next_wait(self, what: str) -> float:
        """Return how long the next long poll may take, seconds.

        Raises:
            NotFinished: The time is over.
        """
        if self._at is None:
            return MAX_WAIT_S
        left = self._at - self._clock.monotonic()
        if left <= 0:
            raise NotFinished(f"{what} has not ended after {self._seconds:g} s")
        return min(MAX_WAIT_S, left)


async def follow_task(
    task_id: str,
    status: Callable[[str, int, float], Awaitable[TaskStatusReply]],
    events: Callable[[str, int], Awaitable[EventsReply]],
    *,
    deadline: Deadline,
    on_event: OnEvent | None,
) -> TaskStatusReply:
    """Return a task's status once it has ended.

    Args:
        status: (task, after seq, wait s) → where it is.
        events: (task, after seq) → what happened since.
        on_event: Called with each event once, in order.

    Raises:
        NotFinished: The deadline came first.
        ParityError: What the market raised.
    """
    seq = 0
    while True:
        found = await status(task_id, seq, deadline.next_wait(f"task {task_id}"))
        if on_event is not None and found.seq > seq:
            for event in (await events(task_id, seq)).events:
                if event.seq > seq:
                    on_event(task_id, event)
                    seq = event.seq
        seq = max(seq, found.seq)
        if found.state in _FINAL:
            return found


async def follow_group(
    group: GroupReply,
    refresh: Callable[[str, float], Awaitable[GroupReply]],
    one: Callable[[str], Awaitable[object]] | None,
    *,
    deadline: Deadline,
) -> GroupReply:
    """Return a group once it has ended and its result is merged.

    Args:
        refresh: (group, wait s) → the group.
        one: Follows one of its tasks with events; None when nobody wants them.

    Raises:
        NotFinished: The deadline came first.
        ParityError: What the market raised.
    """
    if one is not None and len(group.tasks) <= MAX_FOLLOWED:
        failures: list[Exception] = []

        async def guarded(task_id: str) -> None:
            try:
                await one(task_id)
            except Exception as exc:  # noqa: BLE001 - raised again below, without the group around it
                failures.append(exc)
                scope.cancel_scope.cancel()

        async with anyio.create_task_group() as scope:
            for task in group.tasks:
                scope.start_soon(guarded, task.id)
        if failures:
            raise failures[0]
    while True:
        group = await refresh(group.id, deadline.next_wait(f"group {group.id}"))
        if group.state in _FINAL:
            return group


async def follow_logs(
    task_id: str, read: Callable[[str, int, float], Awaitable[LogsReply]], *, follow: bool, offset: int = 0
) -> AsyncIterator[str]:
    """Yield what the newest attempt prints; with ``follow`` until it has ended.

    Args:
        read: (task, byte offset, wait s) → text.
        offset: Bytes to leave out.
    """
    attempt = None
    while True:
        found = await read(task_id, offset, MAX_WAIT_S if follow else 0.0)
        if attempt is not None and found.attempt != attempt:
            offset = 0  # another node began anew
            attempt = found.attempt
            continue
        attempt = found.attempt
        if found.text:
            yield found.text
        is_stuck = found.next_offset <= offset
        offset = max(offset, found.next_offset)
        if found.done and (is_stuck or not found.text):
            return
        if not follow and is_stuck:
            return


def is_final(state: str) -> bool:
    """Return whether a task or group with this state word has ended."""
    return state in _FINAL
