"""Training in rounds: what nodes ask and send, and what a session's submitter sees and does."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import TypeAlias

import anyio.to_thread
from starlette.responses import FileResponse, Response

from parity_market.auth import Access
from parity_market.bodies import checked_body
from parity_market.flower import Holder, is_carried, public_key_of
from parity_market.operations import groups, round_control, round_steps, round_views, rounds
from parity_market.operations.context import Market
from parity_market.operations.groups import Group
from parity_market.operations.rounds import NewUpdate
from parity_market.round_engine import rounds_of
from parity_market.routes import legacy_training
from parity_market.routing import CURSOR, FORM, LIMIT, WAIT, Call, Endpoint, Query, whole_number
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import FlSessionRow
from parity_protocol.api import paths
from parity_protocol.api.rounds import FlCheckpointReply, FlSessionReply, FlSessionsReply, RoundStep, UpdateTaken
from parity_protocol.errors import BadField, NotFound, TaskCancelled, Unavailable
from parity_protocol.task import GroupState

__all__ = ["ENDPOINTS"]

_MAX_PART = 1 << 20
_MAX_FENCE = 1 << 31
_MAX_ROUND = 1 << 20
_HASH_CHARS = 64
_ID_CHARS = 32

SAID = {
    "loss": "Mean loss of the training",
    "samples": "Rows trained on",
    "steps": "Optimiser steps",
    "train_s": "Seconds of training",
}
"""What a node may say of an update, in its query."""


class _LargeFile(FileResponse):
    """A file in pieces that are worth a thread's while."""

    chunk_size = 128 << 10


async def _group(call: Call) -> Group:
    """Return the session that the path names, for its submitter or a node that holds a part of it.

    Raises:
        NotFound: It is not there, or not for this caller: the answers are the same on purpose.
    """
    group_id, caller = call.path("session_id"), call.caller

    def read(tx: ReadTx) -> Group | None:
        group = groups.load(tx, group_id)
        if caller.is_node:
            is_theirs = rounds_of(group.value.spec) and rounds.holds_part(group.tasks, caller.id)
        else:
            is_theirs = group.row.kind == round_views.SESSION_KIND and group.row.creator == caller.id
        return group if is_theirs else None

    with suppress(NotFound):
        group = await call.state.store.read(read)
        if group is not None:
            return group
    raise NotFound(f"there is no session {group_id} of yours here")


async def _running(call: Call) -> Group:
    """Return the session as ``_group`` does, while it runs.

    Raises:
        TaskCancelled: It has ended; so has every lease of it.
    """
    group = await _group(call)
    if group.value.state is not GroupState.RUNNING:
        raise TaskCancelled(f"session {group.value.id} has ended: {group.value.state}")
    return group


async def next_step(call: Call) -> RoundStep:
    """Say what a part does now; with ``wait_s`` once that is more than waiting."""
    state, node_id = call.state, call.caller.id
    group = await _running(call)
    known = state.rounds.known(group)
    ask = partial(
        round_steps.next_step,
        group_id=call.path("session_id"),
        part=call.whole("part", 0, low=0, high=_MAX_PART),
        node_id=node_id,
        lease_id=call.text("lease_id"),
        fence=call.whole("fence", 0, low=0, high=_MAX_FENCE),
        config=known.config,
        mu=known.strategy.mu,
    )
    holder = _holder(call, node_id) if is_carried(group) else None
    has = call.text("flower_node", max_chars=_ID_CHARS)

    async def read() -> RoundStep:
        step = await state.store.read(partial(ask, now=state.clock.now()))
        return step if holder is None else state.flower.step(group.value.id, holder, step)

    step = await state.scheduler.followers.until(
        group.value.id,
        read,
        lambda step: step.state != "wait" or (holder is not None and step.flower_node not in ("", has)),
        wait_s=call.wait_s(),
    )
    return await state.rounds.intake.with_model(group.value.id, step)


def _holder(call: Call, node_id: str) -> Holder:
    """Return who asks on behalf of a part whose rounds Flower carries, with the key of its SuperNode."""
    key = call.text("flower_key", max_chars=_HASH_CHARS * 2)
    public_key_of(key)
    return Holder(
        part=call.whole("part", 0, low=0, high=_MAX_PART),
        node_id=node_id,
        lease_id=call.text("lease_id"),
        fence=call.whole("fence", 0, low=0, high=_MAX_FENCE),
        key=key,
    )


async def model(call: Call) -> Response:
    """Return the newest global model, a safetensors file; 304 when the caller has it."""
    await _group(call)
    path, digest, size = await call.state.rounds.intake.model(call.path("session_id"))
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, no-cache"}
    if call.request.headers.get("if-none-match", "") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    headers["Content-Length"] = str(size)
    try:
        found = await anyio.to_thread.run_sync(path.stat)
    except FileNotFoundError as exc:  # else the answer would be a 500
        raise Unavailable("the round has just closed, ask again for its model") from exc
    return _LargeFile(path, media_type="application/octet-stream", headers=headers, stat_result=found)


async def send(call: Call) -> UpdateTaken:
    """Take a part's update to a round; it is on disk when this answers."""
    new = NewUpdate(
        number=_whole_of(call, "round", _MAX_ROUND),
        phase=_whole_of(call, "phase", _MAX_ROUND),
        part=_whole_of(call, "part", _MAX_PART),
        lease_id=call.text("lease_id"),
        fence=call.whole("fence", 0, low=0, high=_MAX_FENCE),
        base=call.text("base", max_chars=_HASH_CHARS),
        sha256="",
        size=0,
        metrics=_said(call),
    )
    group, digest = await _running(call), sha256()
    body = checked_body(call.request, call.signature, what="update", digest=digest)
    return await call.state.rounds.intake.take(group, call.caller.id, new, body, digest=digest)


def _whole_of(call: Call, name: str, high: int) -> int:
    text = call.path(name)
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= high):
        raise BadField(f"{name}: expected a whole number up to {high}", field=name)
    return int(text)


def _said(call: Call) -> dict[str, float]:
    """Return what a node says of its training: shown, never used to weigh or pay."""
    said: dict[str, float] = {}
    for name in SAID:
        text = call.text(name, max_chars=32)
        if text:
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise BadField(f"{name}: expected a finite number", field=name)
            said[name] = value
    return said


# -- for people ---------------------------------------------------------------------------------------------------


async def show(call: Call) -> FlSessionReply:
    """Return a session with its rounds; with ``wait_s`` once it is past a round, or a phase of it, or has ended."""
    state, group_id = call.state, call.path("session_id")
    await _group(call)
    after = (
        call.whole("after_round", 0, low=0, high=_MAX_ROUND),
        call.whole("after_phase", _MAX_ROUND, low=0, high=_MAX_ROUND),
    )
    first = call.whole("from_round", 1, low=0, high=_MAX_ROUND)
    first_phase = call.whole("from_phase", 0, low=0, high=_MAX_ROUND)

    def read(tx: ReadTx) -> FlSessionReply:
        return round_views.session(tx, group_id, first=first, first_phase=first_phase)

    return await state.scheduler.followers.until(
        group_id,
        lambda: state.store.read(read),
        lambda found: (found.round, found.phase) > after or found.state in ("completed", "failed", "cancelled"),
        wait_s=call.wait_s(),
    )


async def listing(call: Call) -> FlSessionsReply:
    """Return the caller's sessions, newest first."""
    before, limit, me = call.text("cursor"), call.limit(), call.caller.id
    return await call.state.store.read(lambda tx: round_views.sessions(tx, me, before=before, limit=limit))


async def checkpoint(call: Call) -> FlCheckpointReply:
    """Return the caller's session's newest checkpoint, or the one after ``round``; also of a session of a lost market."""
    number = call.whole("round", 0, low=0, high=_MAX_ROUND) or None
    return await call.state.rounds.checkpoints.find(call.path("session_id"), call.caller.id, number=number)


Change: TypeAlias = Callable[[Tx, Market, str, datetime], FlSessionRow | None]


async def _change(call: Call, change: Change) -> FlSessionReply:
    await _group(call)
    state, group_id, now = call.state, call.path("session_id"), call.state.clock.now()
    await state.store.write(lambda tx: change(tx, state.market, group_id, now))
    state.rounds.wake(group_id)
    return await state.store.read(lambda tx: round_views.session(tx, group_id, first=1))


async def pause(call: Call) -> FlSessionReply:
    """Let the open round wait."""
    return await _change(call, round_control.pause)


async def resume(call: Call) -> FlSessionReply:
    """Go on with a paused session."""
    return await _change(call, round_control.resume)


async def stop(call: Call) -> FlSessionReply:
    """Make the open round the session's last; one that has none yet is cancelled, its money is free."""
    return await _change(call, round_control.stop)


SESSION = "{session_id}"
PART = whole_number("part", "The part that is asked for", high=_MAX_PART)
FENCE = whole_number("fence", "The lease's", high=_MAX_FENCE)
LEASE = Query("lease_id", {"type": "string", "maxLength": 128}, "The lease that the part is held by")
BASE = Query(
    "base", {"type": "string", "maxLength": _HASH_CHARS}, "SHA-256, hex, of the model that training began with"
)
FLOWER_KEY = Query(
    "flower_key",
    {"type": "string", "maxLength": 2 * _HASH_CHARS},
    "Where Flower carries the session: public key of the part's SuperNode, a compressed point of P-384, hex",
)
FLOWER_NODE = Query(
    "flower_node",
    {"type": "string", "maxLength": _ID_CHARS},
    "The id that the node knows for this key; waits for another",
)
AFTER = whole_number("after_round", "Wait until the session is past it", high=_MAX_ROUND)
AFTER_PHASE = whole_number("after_phase", "Wait until it is past this phase of the round", high=_MAX_ROUND)
FROM = whole_number("from_round", "Rounds are listed from this one on", high=_MAX_ROUND)
FROM_PHASE = whole_number("from_phase", "And of that round, phases from this one on", high=_MAX_ROUND)

ROUND = whole_number("round", "The checkpoint after this round; the newest without it", high=_MAX_ROUND)

ENDPOINTS = (
    Endpoint(
        "GET",
        paths.fl_session_path(SESSION, "next"),
        next_step,
        Access.NODE,
        "What a part does now",
        RoundStep,
        query=(PART, LEASE, FENCE, FLOWER_KEY, FLOWER_NODE, WAIT),
    ),
    Endpoint(
        "GET",
        paths.fl_session_path(SESSION, "model"),
        model,
        Access.SIGNED,
        "The newest global model",
        query=(FORM,),
        old=legacy_training.model,
    ),
    Endpoint(
        "PUT",
        paths.fl_part_path(SESSION, "{round}", "{phase}", "{part}"),
        send,
        Access.NODE,
        "Send an update",
        UpdateTaken,
        streams_body=True,
        query=(LEASE, FENCE, BASE, *(Query(name, {"type": "number"}, text) for name, text in SAID.items())),
    ),
    Endpoint(
        "GET",
        paths.FL_SESSIONS,
        listing,
        Access.SUBMITTER,
        "Your sessions",
        FlSessionsReply,
        query=(LIMIT, CURSOR, FORM, legacy_training.CREATOR),
        old=legacy_training.listing,
    ),
    Endpoint(
        "GET",
        paths.fl_session_path(SESSION),
        show,
        Access.SUBMITTER,
        "A session and its rounds",
        FlSessionReply,
        query=(AFTER, AFTER_PHASE, FROM, FROM_PHASE, WAIT, FORM),
        old=legacy_training.show,
    ),
    Endpoint(
        "GET",
        paths.fl_session_path(SESSION, "checkpoint"),
        checkpoint,
        Access.SUBMITTER,
        "A session's newest checkpoint",
        FlCheckpointReply,
        query=(ROUND,),
    ),
    Endpoint("POST", paths.fl_session_path(SESSION, "pause"), pause, Access.SUBMITTER, "Pause", FlSessionReply),
    Endpoint("POST", paths.fl_session_path(SESSION, "resume"), resume, Access.SUBMITTER, "Resume", FlSessionReply),
    Endpoint("POST", paths.fl_session_path(SESSION, "stop"), stop, Access.SUBMITTER, "Stop", FlSessionReply),
)
