"""What a runner of the old network says of its part in a federated session (parity-protocol.md §1.6, §1.9).

It registers, finds a part in ``GET …/sessions/{id}/rounds/{n}``, starts it, and sends result and update. Its name is in
``X-Device-ID``, which proves nothing: see ``operations.legacy`` for what bounds it.
"""

from __future__ import annotations

import re
from functools import partial

import structlog
from starlette.responses import Response

from parity_market.auth import Access
from parity_market.legacy import device_of, old_json
from parity_market.old_rounds import MAX_UPDATE_BODY, start_round, take_update
from parity_market.operations import legacy
from parity_market.routes.legacy_training import read_json
from parity_market.routing import Call, Endpoint
from parity_market.store.rows import from_us
from parity_protocol.api import paths
from parity_protocol.errors import Forbidden, InvalidInput, ParityError

__all__ = ["ENDPOINTS"]

log = structlog.get_logger(__name__)

MAX_SMALL = 64 << 10  # bytes of a registration
MAX_ERROR = 500  # characters of what a failed run says
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")


async def register(call: Call) -> Response:
    """Bind a device to the first wallet that it names."""
    body = read_json(call.raw, max_bytes=MAX_SMALL)
    wallet, device = body.get("wallet_address"), device_of(call.request)
    if not isinstance(wallet, str) or not _ADDRESS.fullmatch(wallet):
        raise InvalidInput("Invalid request body: wallet_address must be 0x and 40 hex digits", field="wallet_address")
    now = call.state.clock.now()
    row = await call.state.store.write(lambda tx: legacy.register(tx, device, wallet.lower(), now))
    log.info("legacy_device_registered", device=device, wallet=row.wallet)
    seen, first = (from_us(value).isoformat().replace("+00:00", "Z") for value in (row.last_seen_us, row.first_seen_us))
    reply = {
        "id": 0,
        "device_id": device,
        "wallet_address": wallet,
        "status": "online",
        "webhook": "",
        "last_heartbeat": seen,
        "created_at": first,
        "updated_at": seen,
    }
    return old_json(reply, 201)


def _round_task(call: Call) -> str:
    found = call.path("task_id").lower()
    if not _UUID.fullmatch(found):
        raise InvalidInput("Invalid task ID", field="task_id")
    return found


async def start(call: Call) -> Response:
    """Lease a part for the open round; the answer is the whole task."""
    return old_json(await start_round(call.state, device_of(call.request), _round_task(call)))


async def result(call: Call) -> Response:
    """Take note of how a run ended; what it learned comes as a model update."""
    round_task, device = _round_task(call), device_of(call.request)
    body = read_json(call.raw, max_bytes=MAX_UPDATE_BODY, max_values=1_000)
    code, error = body.get("exit_code", 0), body.get("error", "")
    if type(code) is not int or not isinstance(error, str):
        raise InvalidInput("Invalid request body: exit_code must be a whole number, error a text", field="exit_code")
    state, now = call.state, call.state.clock.now()
    node_id = await state.store.read(partial(legacy.known_device, device=device))
    await state.store.read(partial(legacy.held_by, node_id=node_id, round_task=round_task))
    if code != 0 or error:
        detail = "".join(char if char.isprintable() else " " for char in error)[:MAX_ERROR] or f"exit code {code}"
        await state.store.write(
            partial(legacy.fail, market=state.market, node_id=node_id, round_task=round_task, detail=detail, now=now)
        )
        log.info("legacy_round_failed", device=device, task=round_task, detail=detail)
    return Response(status_code=200)


async def update(call: Call) -> Response:
    """Take a part's update; 400 with the cause when it does not count."""
    device = device_of(call.request) if "x-device-id" in call.request.headers else ""
    try:
        await take_update(call.state, call.raw, device)
    except Forbidden:
        raise
    except ParityError as exc:
        if exc.status >= 500:
            raise
        raise InvalidInput(exc.message, field=exc.field) from exc
    return old_json({"message": "Model update submitted successfully"})


ENDPOINTS = (
    Endpoint(
        "POST",
        paths.RUNNERS,
        register,
        Access.LEGACY,
        "Register a runner of the old network",
        max_body=MAX_SMALL,
        status=201,
    ),
    Endpoint("POST", paths.runner_task_path("{task_id}", "start"), start, Access.LEGACY, "Start a part for one round"),
    Endpoint(
        "POST",
        paths.runner_task_path("{task_id}", "result"),
        result,
        Access.LEGACY,
        "Say how a run ended",
        max_body=MAX_UPDATE_BODY,
    ),
    Endpoint(
        "POST",
        paths.FL_MODEL_UPDATES,
        update,
        Access.LEGACY,
        "Send an update as JSON",
        max_body=MAX_UPDATE_BODY,
    ),
)
