"""The old network's devices, and what they do of a session: one lease for one round of one part (design §8, §11).

A device is a name in a header that anybody can say. What it sends counts only through the gate that every update passes;
it signs no receipt, so nothing is ever earned by it. Its id as a node is ``legacy:`` and its name, which no enrolled node
can have.

Each round of a part is a task of its own to it: its id is the part's with the round added to the last 32 bits. The id of
the lease travels as ``round_id``: it cannot be guessed, so an update that brings it back comes from who was given it.
Attempts of a task are not counted for devices: they are nodes', and somebody pays for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from parity_market.domain.leases import task_view
from parity_market.domain.rounds import LEGACY, RoundState, SessionState, UpdateState
from parity_market.operations import groups, rounds
from parity_market.operations.blobs import add_ref
from parity_market.operations.context import Market
from parity_market.operations.groups import Group
from parity_market.operations.rounds import NewUpdate, OpenRound
from parity_market.operations.settling import release_reserve
from parity_market.operations.steps import end_lease, free, load_task, newest_lease, read_names, step
from parity_market.store import sql, sql_legacy, sql_rounds
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import LeaseRow, LegacyDeviceRow, TaskRow, to_us
from parity_protocol.errors import Conflict, FailureReason, Forbidden, NotFound, Overloaded, ParityError
from parity_protocol.ids import ClaimId, LeaseId, NodeId
from parity_protocol.lease import decide_claim
from parity_protocol.task import FINAL_STATES, GroupState, TaskEvent

__all__ = [
    "Held",
    "RoundTask",
    "complete",
    "fail",
    "find_lease",
    "give_back",
    "held_by",
    "known_device",
    "register",
    "round_task_id",
    "round_tasks",
    "start",
    "take",
    "task_of_round",
    "was_taken",
]

MAX_DEVICES: Final = 10_000
FORGOTTEN_AFTER: Final = timedelta(days=30)  # a device that was not seen
MAX_EXCLUDED: Final = 100  # devices that failed at a part; names are free, so there may be any number
MAX_LEASE: Final = timedelta(minutes=20)  # old runners do not renew; they give a task up themselves by then
_SUFFIX: Final = 8  # hex digits of an id that count rounds
_NO_DETAIL: Final = "without a reason"


@dataclass(frozen=True, slots=True)
class RoundTask:
    """A part in the open round, as a device sees it."""

    id: str
    part: int
    state: str  # pending | running | completed


@dataclass(frozen=True, slots=True)
class Held:
    """A part that a device holds for one round."""

    task: TaskRow
    lease: LeaseRow
    group: Group
    number: int


# -- devices ------------------------------------------------------------------------------------------------------


def register(tx: Tx, device: str, wallet: str, now: datetime) -> LegacyDeviceRow:
    """Note a device with the wallet that it names first; the same again is known.

    Args:
        wallet: 0x and 40 hex digits, lower case. Nothing is ever paid to it.

    Raises:
        Forbidden: The device came with another wallet before.
        Overloaded: There are too many devices.
    """
    now_us = to_us(now)
    known = tx.one(sql_legacy.LEGACY_DEVICE, id=device)
    if known is not None:
        if known.wallet != wallet:
            raise Forbidden("this device is bound to another wallet since it was first seen", field="wallet_address")
        tx.run(sql_legacy.LEGACY_DEVICE_SEEN, key_id=device, last_seen_us=now_us)
        return known._replace(last_seen_us=now_us)
    tx.run(sql_legacy.LEGACY_DEVICES_FORGOTTEN, before_us=to_us(now - FORGOTTEN_AFTER))
    if (tx.one(sql_legacy.LEGACY_DEVICES_COUNTED) or 0) >= MAX_DEVICES:
        raise Overloaded(f"{MAX_DEVICES} devices of the old network are known already", retry_after_s=3600.0)
    row = LegacyDeviceRow(device, wallet, now_us, now_us)
    tx.insert(sql_legacy.LEGACY_DEVICE_INSERT, row)
    return row


def known_device(tx: ReadTx, device: str) -> str:
    """Return a registered device's id as a node.

    Raises:
        NotFound: It never registered.
    """
    if tx.one(sql_legacy.LEGACY_DEVICE, id=device) is None:
        raise NotFound("runner not found", hint="Register with POST /runners first.")
    return LEGACY + device


# -- a round's tasks ----------------------------------------------------------------------------------------------


def round_task_id(task_id: str, number: int) -> str:
    """Return the id under which a device knows a part's task in one round."""
    last = (int(task_id[-_SUFFIX:], 16) + number) % (1 << 4 * _SUFFIX)
    return f"{task_id[:-_SUFFIX]}{last:0{_SUFFIX}x}"


def task_of_round(tx: ReadTx, round_task: str) -> tuple[TaskRow, int]:
    """Return the part's task and the round that an id stands for.

    Raises:
        NotFound: There is no such task of a session.
    """
    head = round_task[:-_SUFFIX]
    for task in tx.all(sql_legacy.TASKS_BETWEEN, first=head + "0" * _SUFFIX, last=head + "f" * _SUFFIX):
        number = _round_of(task.id, round_task)
        if task.group_id is None:
            continue
        session = tx.one(sql_rounds.FL_SESSION, group_id=task.group_id)
        if 1 <= number <= (1 if session is None else session.total_rounds):
            return task, number
    raise NotFound("task not found")


def round_tasks(tx: ReadTx, group: Group, found: OpenRound | None) -> list[RoundTask]:
    """Return the parts of the open round, those that can be had as ``pending``.

    Args:
        found: None for a session whose parts train once and are merged.
    """
    listed = []
    for task in group.tasks:
        if found is not None and task.part not in found.cohort:
            continue
        lease = newest_lease(tx, task)
        is_done = task.state in FINAL_STATES if found is None else _has_sent(found, task.part)
        state = "completed" if is_done else "running" if lease is not None and lease.live else "pending"
        listed.append(RoundTask(round_task_id(task.id, 1 if found is None else found.row.round), task.part, state))
    return listed


def _has_sent(found: OpenRound, part: int) -> bool:
    return any(update.part == part and update.state != UpdateState.REJECTED for update in found.updates)


def start(tx: Tx, market: Market, node_id: str, round_task: str, now: datetime, *, timeout_s: float) -> Held:
    """Give a device a part for the open round; the same device gets the same again.

    Args:
        node_id: As of ``known_device``.
        timeout_s: Of the session's rounds.

    Raises:
        NotFound: There is no such task.
        Conflict: It cannot be had (now); the message says why.
    """
    task, number = task_of_round(tx, round_task)
    group = groups.load(tx, task.group_id or "")
    if group.value.state is not GroupState.RUNNING:
        raise Conflict(f"task unavailable: the session is {group.value.state}")
    found = rounds.load(tx, group.value.id)
    if found is not None:
        _check_open(found, task.part, number)
    held = newest_lease(tx, task)
    if held is not None and held.live:
        if held.node_id != node_id:
            raise Conflict("task unavailable: another runner has it")
        if held.jti == round_task:
            return Held(task, held, group, number)
        task = give_back(tx, market, task, held, now, "the round went on without it")
    if node_id in read_names(task.excluded_doc):
        raise Conflict("task unavailable: this runner failed at it before")
    ttl = min(MAX_LEASE, timedelta(seconds=timeout_s))
    base = "" if found is None else found.row.base_hash
    return Held(*_claim(tx, market, task, node_id, round_task, base, now, ttl=ttl), group, number)


def _check_open(found: OpenRound, part: int, number: int) -> None:
    is_open = found.row.state == RoundState.OPEN and found.session.state != SessionState.PAUSED
    if number != found.row.round or not is_open or part not in found.cohort:
        raise Conflict(f"task unavailable: round {number} is not open for part {part}")
    if _has_sent(found, part):
        raise Conflict("task unavailable: the part's update has come")


def _claim(
    tx: Tx,
    market: Market,
    task: TaskRow,
    node_id: str,
    round_task: str,
    base: str,
    now: datetime,
    *,
    ttl: timedelta,
) -> tuple[TaskRow, LeaseRow]:
    now_us = to_us(now)
    try:
        lease = decide_claim(
            task_view(task, None),
            node_id=NodeId(node_id),
            claim_id=ClaimId(f"{round_task} {task.fence + 1}"),
            manifest_hash=base,  # there is no manifest: the lease says which model it started from
            lease_id=LeaseId(market.make_id()),
            ttl=ttl,
            now=now,
        ).lease
    except ParityError as exc:
        raise Conflict(f"task unavailable: {exc.message}") from exc
    claimed = step(
        tx, task, [(TaskEvent.CLAIM, "without a signature")], sql.TASK_CLAIMED,
        now_us=now_us, node_id=node_id, fence=int(lease.fence), attempts=task.attempts, last_node=node_id,
    )  # fmt: skip
    row = LeaseRow(
        task_id=task.id,
        fence=lease.fence,
        id=lease.lease_id,
        node_id=node_id,
        claim_id=lease.claim_id,
        jti=round_task,
        manifest_hash=lease.manifest_hash,
        ttl_us=ttl // timedelta(microseconds=1),
        expires_us=to_us(lease.expires_at),
        live=1,
        granted_us=now_us,
        started_us=now_us,
        ended_us=None,
        end_reason="",
    )
    tx.insert(sql.LEASE_INSERT, row)
    tx.after_commit(partial(market.signals.task_taken, task.id, node_id))
    started = step(
        tx, claimed, [(TaskEvent.START, "")], sql.TASK_STARTED, now_us=now_us, node_id=node_id, started_us=now_us
    )
    tx.after_commit(partial(market.signals.task_changed, task.id))
    return started, row


def give_back(tx: Tx, market: Market, task: TaskRow, lease: LeaseRow, now: datetime, detail: str) -> TaskRow:
    """End a device's lease and let the part wait for the next round."""
    now_us = to_us(now)
    end_lease(tx, market, lease, detail, now_us=now_us)
    changed = step(
        tx, task, [(TaskEvent.RELEASE, detail)], sql.TASK_STEP,
        now_us=now_us, node_id=lease.node_id,
    )  # fmt: skip
    tx.after_commit(partial(market.signals.task_pending, changed))
    tx.after_commit(partial(market.signals.task_changed, task.id))
    return changed


# -- what a device says of it -------------------------------------------------------------------------------------


def find_lease(tx: ReadTx, group_id: str, lease_id: str, node_id: str) -> tuple[TaskRow, LeaseRow, int]:
    """Return the part, lease and round that an update names, live or not.

    Raises:
        NotFound: No part of the session was last leased to this device under this id: the answers are the same on
            purpose.
    """
    for task in tx.all(sql.TASKS_OF_GROUP, group_id=group_id):
        if task.last_node != node_id:
            continue
        for lease in reversed(tx.all(sql.LEASES_OF_TASK, task_id=task.id)):
            if (lease.id, lease.node_id) == (lease_id, node_id):
                return task, lease, _round_of(task.id, lease.jti)
    raise NotFound("round not found: no part of this session was given to this runner under this round_id")


def _round_of(task_id: str, round_task: str) -> int:
    return (int(round_task[-_SUFFIX:], 16) - int(task_id[-_SUFFIX:], 16)) % (1 << 4 * _SUFFIX)


def was_taken(tx: ReadTx, task: TaskRow, lease: LeaseRow, number: int) -> bool:
    """Return whether an update came under a lease before."""
    if task.result_cid is not None and task.fence == lease.fence:
        return True
    known = tx.one(
        sql_rounds.FL_UPDATE, group_id=task.group_id or "", round=number, phase=0, part=task.part, fence=lease.fence
    )
    return known is not None


def take(tx: Tx, market: Market, node_id: str, new: NewUpdate, group_id: str, now: datetime) -> bool:
    """Note a device's update that is on disk and take its part back, in one step; returns False when it was known.

    Raises:
        Conflict: It is late, or not wanted; ``StaleFence``, ``TaskCancelled``, ``NotFound`` as of ``rounds.take``.
    """
    created = rounds.take(tx, group_id, node_id, new, now)
    task = rounds.check_part(tx, group_id, new.part, node_id=node_id, lease_id=new.lease_id, fence=new.fence)
    lease = newest_lease(tx, task)
    if lease is not None and lease.live:
        give_back(tx, market, task, lease, now, f"round {new.number} is done")
    return created


def complete(tx: Tx, market: Market, task_id: str, fence: int, cid: str, size: int, now: datetime) -> None:
    """End a part that trains once with the update that was made here of what a device sent; nothing is earned.

    Raises:
        Conflict: The device does not hold it any more.
    """
    task = load_task(tx, task_id)
    lease = newest_lease(tx, task)
    if lease is None or not lease.live or lease.fence != fence:
        raise Conflict("the part is not this runner's any more")
    now_us = to_us(now)
    add_ref(tx, cid, task.creator, visibility="private", size=size, task_id=task.id, now=now)
    end_lease(tx, market, lease, "reported", now_us=now_us)
    step(
        tx, task, [(TaskEvent.REPORT, ""), (TaskEvent.ACCEPT, "counted again by the market")], sql.TASK_REPORTED,
        now_us=now_us, node_id=lease.node_id, completed_us=now_us, result_cid=cid, result_size=size, exit_code=0,
        message="", usage_doc="{}", metrics_doc="{}", failure=None, started_us=task.started_us,
    )  # fmt: skip
    release_reserve(tx, market, task, earned=0)
    tx.after_commit(partial(market.signals.task_gone, task.id))
    tx.after_commit(partial(market.signals.task_changed, task.id))


def fail(tx: Tx, market: Market, node_id: str, round_task: str, detail: str, now: datetime) -> bool:
    """Take a part back from a device that failed at it; returns False when it had no lease any more.

    Raises:
        NotFound: There is no such task.
        Forbidden: It is another device's.
    """
    task, lease = held_by(tx, node_id, round_task)
    if not lease.live or lease.fence != task.fence:
        return False
    end_lease(tx, market, lease, "failed", now_us=to_us(now))
    free(
        tx, market, task, TaskEvent.NODE_FAULT, now_us=to_us(now), node_id=node_id,
        detail=detail or _NO_DETAIL, failure=str(FailureReason.NODE_FAULT),
        exclude=len(read_names(task.excluded_doc)) < MAX_EXCLUDED,
    )  # fmt: skip
    return True


def held_by(tx: ReadTx, node_id: str, round_task: str) -> tuple[TaskRow, LeaseRow]:
    """Return the newest lease of a round's task, if it is or was this device's.

    Raises:
        NotFound: There is no such task, or nobody had it.
        Forbidden: It is another device's.
    """
    task, _ = task_of_round(tx, round_task)
    leases = [lease for lease in tx.all(sql.LEASES_OF_TASK, task_id=task.id) if lease.jti == round_task]
    if not leases:
        raise NotFound("task not found")
    if leases[-1].node_id != node_id:
        raise Forbidden("task is assigned to a different runner")
    return task, leases[-1]
