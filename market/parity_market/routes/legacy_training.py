"""Federated sessions in the old network's form (parity-protocol.md §1.9): described, started, looked at, fetched.

A submitter who signs may bring an order, and then nodes take part and are paid. Without one a session is for the old
network's devices, unpaid. Who does not sign has no account here: what is made so belongs to ``legacy:0x…``, which is
nobody's, and whoever knows a session's id may look at it.
"""

from __future__ import annotations

import json
import re
from functools import partial
from hashlib import sha256
from typing import Any

import structlog
from starlette.responses import Response

from parity_market.auth import Access
from parity_market.domain.rounds import LEGACY
from parity_market.legacy import device_of, old_json
from parity_market.operations import legacy, old_sessions, rounds, tasks
from parity_market.operations.old_sessions import PENDING, Shown
from parity_market.operations.tasks import NewSubmission
from parity_market.round_engine import rounds_of
from parity_market.routes.tasks import submit_order
from parity_market.routing import Call, Endpoint, Query
from parity_market.state import MarketState
from parity_market.store.base import ReadTx, Tx
from parity_market.store.rows import OldSessionRow, to_us
from parity_protocol import strict_json
from parity_protocol.api import paths
from parity_protocol.api.tasks import SubmitRequest
from parity_protocol.errors import BadField, Conflict, Forbidden, InvalidInput, NotFound, ParityError
from parity_protocol.parity_session import OldSession, read_old_session
from parity_protocol.task import FederatedLearningSpec, GroupState, parse_spec, parts_of
from parity_protocol.wire import parse_as

__all__ = ["CREATOR", "ENDPOINTS", "listing", "model", "read_json", "session_id_of", "show"]

log = structlog.get_logger(__name__)

MAX_BODY = 64 << 10  # bytes of a session's description
MAX_ROUND = 1 << 20
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NO_MODEL = "no trained model available - session may not be completed or no training rounds completed"


def read_json(raw: bytes, *, max_bytes: int, max_values: int = 10_000) -> dict[str, Any]:
    """Read a body whatever its Content-Type says, as the old server does.

    Raises:
        InvalidInput: It is no JSON object; in the old server's words, with the reason.
    """
    try:
        found = strict_json.loads(raw, max_bytes=max_bytes, max_depth=16, max_values=max_values)
    except InvalidInput as exc:
        raise InvalidInput(f"Invalid request body: {exc.message}", field=exc.field) from exc
    if not isinstance(found, dict):
        raise InvalidInput("Invalid request body: expected an object", field="body")
    return found


def session_id_of(call: Call) -> str:
    """Return the path's session.

    Raises:
        InvalidInput: It is no UUID.
    """
    found = call.path("session_id").lower()
    if not _UUID.fullmatch(found):
        raise InvalidInput("Invalid session ID", field="session_id")
    return found


def _is_theirs(call: Call, creator: str) -> bool:
    return creator == call.caller.id if call.caller.id else creator.startswith(LEGACY)


async def _find(call: Call, missing: str) -> Shown:
    """Return the session that the path names, if it is the caller's.

    Raises:
        NotFound: It is not, or not the caller's: the answers are the same on purpose.
    """
    session_id = session_id_of(call)
    try:
        shown = await call.state.store.read(partial(old_sessions.find, session_id=session_id))
    except NotFound:
        raise NotFound(missing) from None
    if not _is_theirs(call, shown.creator):
        raise NotFound(missing)
    return shown


# -- describing ---------------------------------------------------------------------------------------------------


async def create(call: Call) -> Response:
    """Keep a session until it is started; what is wrong with it is said now."""
    body = read_json(call.raw, max_bytes=MAX_BODY)
    try:
        asked = read_old_session(body)
    except BadField as exc:
        raise InvalidInput(f"Invalid request body: {exc.message}", field=exc.field) from exc
    creator, now = _creator(call, asked), call.state.clock.now()
    if "order" in body and not call.caller.id:
        raise Forbidden("a session with an order must be signed", field="order")
    try:
        spec = _spec_of(asked)
        parts_of(spec)
        call.state.federation.check_settings(spec)
    except InvalidInput as exc:
        raise InvalidInput(f"Failed to create session: {exc.message}", field=exc.field) from exc
    session_id, now_us = call.state.market.make_id(), to_us(now)
    row = OldSessionRow(session_id, creator, PENDING, call.raw.decode(), now_us, now_us)
    await call.state.store.write(lambda tx: old_sessions.create(tx, row, now))
    log.info("old_session_described", session_id=session_id, creator=creator)
    shown = await call.state.store.read(partial(old_sessions.find, session_id=session_id))
    return old_json(old_sessions.session_reply(shown), 201)


def _creator(call: Call, asked: OldSession) -> str:
    if not call.caller.id:
        return LEGACY + asked.creator
    if asked.creator != call.caller.id:
        raise Forbidden("creator_address is not the account that signed in", field="creator_address")
    return call.caller.id


def _spec_of(asked: OldSession) -> FederatedLearningSpec:
    spec = parse_spec(strict_json.dumps(asked.spec).decode())
    assert isinstance(spec, FederatedLearningSpec)
    return spec


# -- starting -----------------------------------------------------------------------------------------------------


async def start(call: Call) -> Response:
    """Make a submission of it; 400 with the cause when that cannot be done."""
    try:
        shown = await _find(call, "failed to get session: record not found")
        if shown.described is None or shown.described.state != PENDING:
            raise Conflict("session must be in pending status to start")
        await _start(call.state, shown.described)
    except ParityError as exc:
        if exc.status >= 500:
            raise
        raise InvalidInput(exc.message, field=exc.field) from exc
    return old_json({"message": "Session started successfully"})


async def _start(state: MarketState, row: OldSessionRow) -> None:
    body = json.loads(row.doc)
    asked, now = read_old_session(body), state.clock.now()
    if "order" in body:
        text = strict_json.dumps(asked.spec).decode()
        wanted = {"spec": text, "order": body["order"], "reward": body.get("reward", "0")}
        await submit_order(state, row.creator, parse_as(SubmitRequest, json.dumps(wanted)), session_id=row.id)
        await state.store.write(lambda tx: old_sessions.mark_started(tx, row.id, now))
        return
    spec, text = _spec_of(asked), strict_json.dumps(asked.spec).decode()
    order_hash = "0x" + sha256(f"parity-node session without an order {row.id}".encode()).hexdigest()
    plan = await state.federation.plan(spec, creator=row.creator, order_hash=order_hash)
    new = NewSubmission(row.creator, text, spec, None, order_hash, 0, plan, id=row.id)

    def submit(tx: Tx) -> tuple[str, ...]:
        old_sessions.check_room(tx, row.creator)
        old_sessions.mark_started(tx, row.id, now)
        return tasks.submit(tx, state.market, new, now).task_ids

    task_ids = await state.store.write(submit)
    await state.store.write(lambda tx: tasks.link_data(tx, new, task_ids, now))
    state.rounds.wake(row.id)
    log.info("old_session_started", session_id=row.id, creator=row.creator, parts=len(task_ids))


# -- looking ------------------------------------------------------------------------------------------------------


async def listing(call: Call) -> Response:
    """Return a creator's sessions, newest first."""
    asked = call.text("creator", max_chars=42).lower()
    if call.caller.id and asked not in ("", call.caller.id):
        raise Forbidden("sessions are shown to who made them", field="creator")
    creator = call.caller.id or LEGACY + asked
    found = await call.state.store.read(lambda tx: [*map(old_sessions.session_reply, old_sessions.listed(tx, creator))])
    return old_json({"sessions": found, "count": len(found)})


async def show(call: Call) -> Response:
    """Return a session."""
    return old_json(old_sessions.session_reply(await _find(call, "Session not found")))


async def model(call: Call) -> Response:
    """Return a finished session's model as lists by layer."""
    shown = await _find(call, "session not found: record not found")
    group = shown.group
    if group is None or group.value.state is not GroupState.COMPLETED or group.row.result_cid is None:
        raise NotFound(_NO_MODEL)
    headers = {"ETag": f'"{group.row.result_cid}"', "Cache-Control": "private, no-cache"}
    if call.request.headers.get("if-none-match", "") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    layers = await call.state.federation.old_layers(group.row.result_cid, group.row.creator)
    reply = await call.state.store.read(
        lambda tx: old_sessions.model_reply(tx, shown, {"": call.state.market.make_id()})
    )
    # The lists come as text, and go as text, three times: reading and writing them would hold everybody else up.
    mark = json.dumps(reply["model_data"]["weights"], separators=(",", ":"))
    text = json.dumps(reply, separators=(",", ":")).replace(mark, layers.decode())
    return Response(text, media_type="application/json; charset=utf-8", headers=headers)


async def show_round(call: Call) -> Response:
    """Return a round; a registered device sees the parts that it may start."""
    session_id, text = session_id_of(call), call.path("number")
    if not (text.isascii() and text.isdigit() and len(text) <= 7 and 1 <= int(text) <= MAX_ROUND):
        raise InvalidInput("Invalid round number", field="number")
    device = device_of(call.request) if "x-device-id" in call.request.headers else ""

    def read(tx: ReadTx) -> dict[str, Any]:
        shown = old_sessions.find(tx, session_id)
        if device:
            legacy.known_device(tx, device)
        if (device and shown.described is None) or (not device and not _is_theirs(call, shown.creator)):
            raise NotFound("Session not found")
        return _round(tx, shown, int(text))

    return old_json(await call.state.store.read(read))


def _round(tx: ReadTx, shown: Shown, number: int) -> dict[str, Any]:
    reply: dict[str, Any] = {"session_id": shown.id, "round_number": number, "status": "pending", "tasks": []}
    group = shown.group
    found = None if group is None else rounds.load(tx, group.value.id)
    if group is None or (found is None and rounds_of(group.value.spec)):
        return {**reply, "message": "the session has not begun"}
    current = 1 if found is None else found.row.round
    is_over = group.value.state is not GroupState.RUNNING or (found is not None and not found.cohort)
    if number != current or is_over:
        status = "completed" if number < current or is_over else "pending"
        return {**reply, "status": status, "message": f"the session is in round {current}"}
    reply["tasks"] = [
        {"id": one.id, "part_index": one.part, "total_parts": len(group.tasks), "status": one.state}
        for one in legacy.round_tasks(tx, group, found)
    ]
    if found is None:
        return {**reply, "status": "open", "message": "every part trains once"}
    return {**reply, "status": str(found.row.state), "message": found.session.message}


SESSION = "{session_id}"
CREATOR = Query("creator", {"type": "string", "maxLength": 42}, "Address whose sessions are listed")

ENDPOINTS = (
    Endpoint(
        "POST",
        paths.FL_SESSIONS,
        create,
        Access.LEGACY,
        "Describe a session, as the old network does",
        max_body=MAX_BODY,
        status=201,
    ),
    Endpoint(
        "POST", paths.fl_session_path(SESSION, "start"), start, Access.LEGACY, "Start a session that was described"
    ),
    Endpoint(
        "GET", paths.fl_session_path(SESSION, "rounds/{number}"), show_round, Access.LEGACY, "A round, for a device"
    ),
)
