"""A round of a session for the old network's devices: what they are given, and what becomes of what they send."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any, Final

import anyio.to_thread
import structlog

from parity_fl.privacy.config import read_privacy
from parity_fl.spec import ForestConfig
from parity_market.operations import groups, legacy, old_sessions, rounds
from parity_market.operations.groups import Group
from parity_market.operations.legacy import Held
from parity_market.operations.rounds import NewUpdate
from parity_market.round_engine import rounds_of
from parity_market.round_files import append, on_disk, update_file
from parity_market.state import MarketState
from parity_market.store.base import ReadTx
from parity_market.store.rows import LeaseRow, TaskRow, from_us
from parity_protocol import strict_json
from parity_protocol.errors import BadField, Conflict, InvalidInput, NotFound
from parity_protocol.task import FederatedLearningSpec, GroupState

__all__ = ["MAX_UPDATE_BODY", "start_round", "take_update"]

log = structlog.get_logger(__name__)

MAX_UPDATE_BODY: Final = 8 << 20  # bytes of an update in JSON
MAX_UPDATE_VALUES: Final = 500_000
MAX_ID: Final = 255  # characters


@dataclass(frozen=True, slots=True)
class _Named:
    task: TaskRow
    lease: LeaseRow
    number: int
    was_taken: bool


async def start_round(state: MarketState, device: str, round_task: str) -> dict[str, Any]:
    """Give a device a part for the open round; returns the task as the old server shows it.

    Raises:
        NotFound: The device or the task is not known.
        Conflict: It cannot be had (now); the message says why.
    """

    def read(tx: ReadTx) -> tuple[str, Group, int]:
        node_id = legacy.known_device(tx, device)
        task, number = legacy.task_of_round(tx, round_task)
        shown = old_sessions.find(tx, task.group_id or "")
        if shown.described is None or shown.group is None:  # who made it any other way asked for nodes with a bond
            raise NotFound("task not found")
        return node_id, shown.group, number

    node_id, group, number = await state.store.read(read)
    why = _why_not(state, group)
    if why:
        raise Conflict(f"task unavailable: devices of the old network {why}")
    layers: dict[str, list[float]] | None = None
    timeout_s = legacy.MAX_LEASE.total_seconds()
    if rounds_of(group.value.spec):
        timeout_s = state.rounds.known(group).config.round_timeout_s
        # Before the lease, so that a model that does not travel as JSON leaves none behind.
        try:
            made = await state.rounds.work(group, {"do": "old_base", "round": number, "phase": 0})
        except (Conflict, InvalidInput) as exc:
            raise Conflict(f"task unavailable: {exc.message}") from exc
        layers = made["layers"]
    now = state.clock.now()
    held = await state.store.write(
        lambda tx: legacy.start(tx, state.market, node_id, round_task, now, timeout_s=timeout_s)
    )
    state.rounds.wake(group.value.id)
    shown = await state.store.read(partial(old_sessions.find, session_id=group.value.id))
    log.info("legacy_round_started", device=device, group_id=group.value.id, part=held.task.part, round=number)
    return _task_reply(held, device, old_sessions.session_reply(shown), layers)


def _why_not(state: MarketState, group: Group) -> str:
    """Return what a session needs and old devices do not do; empty when they can take part."""
    asked = group.value.spec
    if not isinstance(asked, FederatedLearningSpec):
        return "have no part in it"
    if asked.data_mode != "partitioned":
        return "cannot read data that nobody shares"
    if asked.engine != "parity":
        return f"do not speak {asked.engine}"
    if read_privacy(asked.privacy or None).secure_aggregation:
        return "cannot mask their updates"
    if not rounds_of(asked):
        return "" if asked.model_type == "random_forest" else "do not send the sums that this session is solved by"
    known = state.rounds.known(group)
    model = known.session.spec.model
    if known.is_phased or isinstance(model, ForestConfig):
        return "do not make a forest in phases"
    return "do not scale their rows, as this session does" if model.standardize else ""


def _task_reply(
    held: Held, device: str, session: dict[str, Any], layers: dict[str, list[float]] | None
) -> dict[str, Any]:
    spec, task, lease = held.group.value.spec, held.task, held.lease
    assert isinstance(spec, FederatedLearningSpec)
    partition = dict(spec.partition_config)
    asked = session["config"]["model_config"]
    settings = {name: value for name, value in asked.items() if name != "standardize"}
    if spec.model_type == "random_forest":  # as ``parity_fl.bootstrap.split_trees`` deals the whole forest's trees
        total = settings.get("num_trees") or ForestConfig().num_trees
        settings["num_trees"] = total // task.parts + (task.part < total % task.parts)
    created, updated, number = _time(task.created_us), _time(lease.granted_us), held.number
    return {
        "id": lease.jti,
        "title": f"FL Training - Session {session['name']} Round {number} (Partition {task.part + 1}/{task.parts})",
        "description": f"Federated learning training task for session {session['name']} with "
        f"{partition.get('strategy', '')} data partitioning",
        "type": "federated_learning",
        "status": "running",
        "config": {
            "round_id": lease.id,
            "model_type": spec.model_type,
            "session_id": held.group.value.id,
            "data_format": spec.data_format,
            "dataset_cid": spec.dataset_cid,
            "global_model": None if layers is None else {"aggregated_model": layers},
            "model_config": settings,
            # A forest has no use for them, and the old runner demands them.
            "train_config": {
                name: spec.train_config.get(name, 1) for name in ("epochs", "batch_size", "learning_rate")
            },
            "output_format": "json",
            "partition_config": {
                "alpha": partition.get("alpha", 0),
                "strategy": partition.get("strategy", ""),
                "part_index": task.part,
                "min_samples": partition.get("min_samples", 0),
                "total_parts": task.parts,
                "overlap_ratio": partition.get("overlap_ratio", 0),
            },
        },
        "environment": None,
        "creator_address": session["creator_address"],
        "creator_device_id": "fl-coordinator",
        "runner_id": device,
        "nonce": sha256(lease.id.encode()).hexdigest(),
        "image_hash": "",
        "command_hash": "",
        "created_at": created,
        "updated_at": updated,
        "completed_at": None,
    }


def _time(micros: int) -> str:
    return from_us(micros).isoformat().replace("+00:00", "Z")


async def take_update(state: MarketState, body: bytes, header_device: str) -> bool:
    """Take a device's update to a round; it is on disk when this returns. A repetition changes nothing.

    Args:
        body: The request's, JSON.
        header_device: Who sends it; empty when it does not say, as old runners do not.

    Returns:
        Whether it was new.

    Raises:
        InvalidInput: It is no update of this model; ``field`` names the place.
        NotFound: The device is not known, or was given no such part.
        Conflict: It is late, or not wanted; ``StaleFence`` and ``TaskCancelled`` likewise.
    """
    names = await anyio.to_thread.run_sync(_names_of, body)
    session_id, lease_id, device = names
    if header_device and header_device != device:
        raise InvalidInput("runner_id is not the device that sends it", field="runner_id")

    def read(tx: ReadTx) -> tuple[str, _Named]:
        node_id = legacy.known_device(tx, device)
        task, lease, number = legacy.find_lease(tx, session_id, lease_id, node_id)
        return node_id, _Named(task, lease, number, legacy.was_taken(tx, task, lease, number))

    node_id, found = await state.store.read(read)
    if found.was_taken:
        return False
    group = await state.store.read(partial(groups.load, group_id=session_id))
    if group.value.state is not GroupState.RUNNING:
        raise Conflict(f"the session is {group.value.state}")
    if rounds_of(group.value.spec):
        created = await _take_round(state, group, node_id, found, names, body)
    else:
        created = await _take_forest(state, group, found, body)
    log.info("legacy_update_taken", device=device, group_id=session_id, part=found.task.part, round=found.number)
    return created


async def _take_forest(state: MarketState, group: Group, found: _Named, body: bytes) -> bool:
    """Take a part's trees; what arrives in their leaves is counted here."""
    if not found.lease.live or found.task.fence != found.lease.fence:
        raise Conflict("late: the part is not this runner's any more")
    cid, size = await state.federation.old_forest(group, found.task.part, body)
    now = state.clock.now()
    await state.store.write(
        lambda tx: legacy.complete(tx, state.market, found.task.id, int(found.lease.fence), cid, size, now)
    )
    state.federation.wake()
    return True


async def _take_round(
    state: MarketState, group: Group, node_id: str, found: _Named, names: tuple[str, str, str], body: bytes
) -> bool:
    session_id, lease = group.value.id, found.lease
    new = NewUpdate(found.number, 0, found.task.part, lease.id, int(lease.fence), lease.manifest_hash, "", 0, {})
    await state.store.read(partial(rounds.examine, group_id=session_id, node_id=node_id, new=new))
    done = await _convert(state, group, new, names, body)
    now = state.clock.now()
    created = await state.store.write(lambda tx: legacy.take(tx, state.market, node_id, done, session_id, now))
    state.rounds.wake(session_id)
    return created


def _names_of(body: bytes) -> tuple[str, str, str]:
    """Return session_id, round_id and runner_id of an update."""
    try:
        raw = strict_json.loads(body, max_bytes=MAX_UPDATE_BODY, max_depth=8, max_values=MAX_UPDATE_VALUES)
    except InvalidInput as exc:
        raise InvalidInput(f"Invalid request body: {exc.message}", field=exc.field) from exc
    if not isinstance(raw, dict):
        raise InvalidInput("Invalid request body: expected an object", field="body")
    found = []
    for name in ("session_id", "round_id", "runner_id"):
        value = raw.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= MAX_ID or not value.isprintable():
            raise InvalidInput(f"Invalid request body: {name} is required", field=name)
        found.append(value)
    return found[0], found[1], found[2]


async def _convert(
    state: MarketState, group: Group, new: NewUpdate, names: tuple[str, str, str], body: bytes
) -> NewUpdate:
    """Have the worker write an update as every other one lies; returns it with its digest, size and numbers."""
    name = state.market.make_id()
    raw = update_file(state.rounds.folder(group.value.id), new.number, new.phase, new.part, f".{name}.json")
    try:
        await on_disk(append, raw, [body])
        done = await state.rounds.work(
            group,
            {
                "do": "old_update",
                "round": new.number,
                "phase": new.phase,
                "part": new.part,
                "update": str(raw),
                "name": name,
            },
        )
    finally:
        with suppress(FileNotFoundError):
            raw.unlink()
    if tuple(done["names"]) != names:
        raise BadField("session_id, round_id or runner_id is not what it was", field="session_id")
    return replace(new, sha256=done["sha256"], size=done["size"], metrics=done["numbers"])
