"""When a round closes, and when a session cannot go on: decided from rows alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from parity_fl.rounds_config import RoundsConfig
from parity_market.store.rows import FlUpdateRow, TaskRow
from parity_protocol.task import FINAL_STATES, TaskState

__all__ = [
    "HELD",
    "LEGACY",
    "Decision",
    "RoundState",
    "SessionState",
    "UpdateState",
    "Verdict",
    "decide",
    "newest_of_parts",
    "setup_rules",
]

LEGACY = "legacy:"  # before the name of a device, or the address of an account, that nobody has proved
HELD = frozenset({TaskState.LEASED, TaskState.RUNNING})


class SessionState(StrEnum):
    """Where a session that trains in rounds is."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"  # the open round is its last
    DONE = "done"  # there is a final model; parts report


class RoundState(StrEnum):
    """Where one phase of a round is."""

    OPEN = "open"
    CLOSING = "closing"  # its updates are chosen; what comes now is late
    CLOSED = "closed"


class UpdateState(StrEnum):
    """What became of an update."""

    RECEIVED = "received"
    CHOSEN = "chosen"
    ACCEPTED = "accepted"
    REJECTED = "rejected"


class Decision(StrEnum):
    """What to do with an open round."""

    WAIT = "wait"
    CLOSE = "close"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, with what to tell people."""

    decision: Decision
    reason: str = ""
    starts_clock: bool = False  # enough nodes are there now: the round's deadline begins


def newest_of_parts(updates: Sequence[FlUpdateRow]) -> list[FlUpdateRow]:
    """Return each part's update with the newest fence that was not rejected, by part."""
    newest: dict[int, FlUpdateRow] = {}
    for update in updates:
        if update.state == UpdateState.REJECTED:
            continue
        known = newest.get(update.part)
        if known is None or update.fence > known.fence:
            newest[update.part] = update
    return [newest[part] for part in sorted(newest)]


def decide(
    config: RoundsConfig,
    *,
    cohort: Collection[int],
    updates: Sequence[FlUpdateRow],
    tasks: Sequence[TaskRow],
    deadline_us: int | None,
    now_us: int,
) -> Verdict:
    """Decide about an open round.

    Args:
        config: The session's.
        cohort: Parts that are asked.
        updates: The round's.
        tasks: The session's, by part.
        deadline_us: None when its clock does not run yet.
        now_us: Microseconds since the epoch.
    """
    parts = len(tasks)
    have = [update.part for update in newest_of_parts(updates)]
    needed = min(config.needed(parts), len(cohort))
    if len(have) >= needed:
        return Verdict(Decision.CLOSE)
    lost = {task.part for task in tasks if task.state in FINAL_STATES}
    can_come = [part for part in cohort if part not in lost and part not in have]
    refused = _refused(updates, tasks) & set(can_come)
    quorum = min(config.quorum, len(cohort))
    if len(have) + len(can_come) < quorum:
        gone = sorted(lost & set(cohort))
        return Verdict(
            Decision.FAIL,
            f"only {len(have) + len(can_come)} of {quorum} needed updates can come: lost parts"
            f" {', '.join(map(str, gone))}{_said(tasks, gone)}",
        )
    if len(have) >= quorum and refused.issuperset(can_come):
        return Verdict(Decision.CLOSE)  # nobody else will send one, unless somebody takes over: that is not waited for
    if deadline_us is None:
        # Who has sent was there; a device of the old network has given its part back then.
        held = sum(task.state in HELD or task.part in have for task in tasks)
        if held >= config.min_available_clients:
            return Verdict(Decision.WAIT, starts_clock=True)
        return Verdict(Decision.WAIT, f"waits for nodes: {held} of {config.min_available_clients} parts are held")
    if now_us < deadline_us:
        return Verdict(Decision.WAIT, _waits_for(refused) if len(have) + len(can_come) - len(refused) < quorum else "")
    if len(have) >= quorum:
        return Verdict(Decision.CLOSE)
    missing = ", ".join(str(part) for part in can_come)
    return Verdict(
        Decision.FAIL,
        f"{len(have)} of {quorum} needed updates came within {config.round_timeout_s:g} s; missing parts"
        f" {missing}{_said(tasks, can_come)}",
    )


def setup_rules(config: RoundsConfig, cohort: Collection[int], updates: Sequence[FlUpdateRow]) -> RoundsConfig:
    """Return the rules of a phase in which parts agree: it needs every part but those of which only refused answers came.

    Args:
        config: The session's; its quorum is the least with which it may go on.
        cohort: Parts that are asked.
        updates: The phase's.
    """
    refused = {update.part for update in updates} - {update.part for update in newest_of_parts(updates)}
    least = max(len(cohort) - len(refused), config.quorum)
    whole = replace(config, fraction=1.0, over_selection=0.0, sampling="seed")
    return replace(whole, quorum=least, min_available_clients=len(cohort))


def _said(tasks: Sequence[TaskRow], parts: Sequence[int]) -> str:
    """Return what the first of some parts whose node gave it up said, after a colon; empty when none did."""
    for part in parts:
        if tasks[part].failure and tasks[part].message:
            return f": part {part}: {tasks[part].message}"
    return ""


def _refused(updates: Sequence[FlUpdateRow], tasks: Sequence[TaskRow]) -> set[int]:
    """Return the parts whose present holder's update was rejected: it is not asked again, only who takes over is."""
    holders = {task.part: task.fence for task in tasks if task.state in HELD}
    return {
        update.part
        for update in updates
        if update.state == UpdateState.REJECTED and holders.get(update.part) == update.fence
    }


def _waits_for(refused: Collection[int]) -> str:
    parts = ", ".join(str(part) for part in sorted(refused))
    return f"waits for somebody to take over parts {parts}: their updates were rejected"
