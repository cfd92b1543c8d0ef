"""JSON-RPC 2.0 over HTTP: one small ASGI application. It reads bytes from strangers and answers nothing but JSON-RPC."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, TypeAlias

import structlog

from parity_contracts.devnet.methods import METHODS, ExecutionReverted, Method
from parity_contracts.devnet.node import Accepted
from parity_protocol import strict_json
from parity_protocol.errors import (
    BadDocument,
    InvalidInput,
    ParityError,
    StorageFull,
    TooLarge,
)

__all__ = ["MAX_BATCH", "MAX_BODY_BYTES", "RpcApp", "Worker"]

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_BATCH = 200  # calls in one request
_MAX_DEPTH = 16
_MAX_DRAIN_BYTES = 4 * MAX_BODY_BYTES
_PARSE_ERROR, _INVALID_REQUEST, _NO_METHOD, _INVALID_PARAMS, _INTERNAL = -32700, -32600, -32601, -32602, -32603
_SERVER_ERROR, _LIMIT_EXCEEDED, _REVERTED = -32000, -32005, 3

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


class Worker(Protocol):
    """Where the chain's work is done: one call at a time, off the event loop."""

    async def run(self, method: Method, params: list[Any]) -> Any:
        """Return what ``method`` returns, after everything asked for before it."""
        ...

    async def durable(self, accepted: Accepted) -> None:
        """Return once an accepted transaction cannot be lost any more."""
        ...


class RpcApp:
    """The ASGI application.

    A page in a browser must not reach the chain: requests have to name a loopback host (else a name that was made to
    point here would do) and to say ``application/json``, which a page cannot send without asking first.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if scope["method"] != "POST":
            await _respond(send, 405, _failure(None, _INVALID_REQUEST, "expected POST"), {b"allow": b"POST"})
            return
        if not _is_loopback_host(headers.get(b"host", "")):
            await _respond(send, 403, _failure(None, _INVALID_REQUEST, "invalid host specified"))
            return
        if headers.get(b"content-type", "").split(";")[0].strip().lower() != "application/json":
            await _respond(send, 415, _failure(None, _INVALID_REQUEST, "expected content type application/json"))
            return
        body = await _read(receive, headers.get(b"content-length"))
        if body is None:
            message = f"the request is longer than {MAX_BODY_BYTES} bytes"
            await _respond(send, 413, _failure(None, _INVALID_REQUEST, message), {b"connection": b"close"})
            return
        await _respond(send, 200, await self.answer(body))

    async def answer(self, body: bytes) -> Any:
        """Return the answer to a request body: one response, a list of them, or None where none is wanted."""
        try:
            asked = strict_json.loads(body, max_bytes=MAX_BODY_BYTES, max_depth=_MAX_DEPTH)
        except BadDocument as exc:
            return _failure(None, _PARSE_ERROR, f"parse error: {exc.message}")
        items = asked if isinstance(asked, list) else [asked]
        if not items:
            return _failure(None, _INVALID_REQUEST, "empty batch")
        if len(items) > MAX_BATCH:
            return _failure(None, _INVALID_REQUEST, f"a batch has at most {MAX_BATCH} calls, got {len(items)}")
        answers = await self._settled([await self._one(item) for item in items])
        # A call without an id is a notification: done, and not answered.
        wanted = [
            answer
            for item, answer in zip(items, answers, strict=True)
            if not isinstance(item, dict) or "id" in item or "method" not in item
        ]
        if isinstance(asked, list):
            return wanted or None
        return wanted[0] if wanted else None

    async def _settled(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Wait until what was accepted is durable (one fsync for a whole batch), and write its hashes."""
        accepted = [answer for answer in answers if isinstance(answer.get("result"), Accepted)]
        if not accepted:
            return answers
        try:
            await self._worker.durable(max((answer["result"] for answer in accepted), key=lambda one: one.position))
        except StorageFull as exc:
            log.exception("chain_storage_failed", reason=exc.message)
            for answer in accepted:
                del answer["result"]
                answer["error"] = {"code": _SERVER_ERROR, "message": exc.message}
        else:
            for answer in accepted:
                answer["result"] = "0x" + answer["result"].tx_hash.hex()
        return answers

    async def _one(self, asked: object) -> dict[str, Any]:
        if not isinstance(asked, dict) or not isinstance(asked.get("method"), str):
            return _failure(None, _INVALID_REQUEST, "expected an object with a method")
        if asked.get("jsonrpc") != "2.0":
            return _failure(None, _INVALID_REQUEST, "expected jsonrpc 2.0")
        request_id = asked.get("id")
        if request_id is not None and (isinstance(request_id, bool) or not isinstance(request_id, int | float | str)):
            return _failure(None, _INVALID_REQUEST, "expected a number or a text as id")
        return await self._call(request_id, asked["method"], asked.get("params"))

    async def _call(self, request_id: Any, name: str, params: object) -> dict[str, Any]:
        method = METHODS.get(name)
        if method is None:
            return _failure(request_id, _NO_METHOD, f"the method {name[:80]} does not exist/is not available")
        if params is not None and not isinstance(params, list):
            return _failure(request_id, _INVALID_PARAMS, "expected params as a list")
        try:
            result = await self._worker.run(method, params or [])
        except ExecutionReverted as exc:
            return _failure(request_id, _REVERTED, str(exc), "0x" + exc.data.hex())
        except TooLarge as exc:
            return _failure(request_id, _LIMIT_EXCEEDED, exc.message)
        except ParityError as exc:
            # go-ethereum tells bad parameters from a state that does not allow it, and clients match on both.
            code = _INVALID_PARAMS if isinstance(exc, InvalidInput) and exc.field in _PARAM_FIELDS else _SERVER_ERROR
            if isinstance(exc, StorageFull):
                log.exception("chain_storage_failed", reason=exc.message)
            return _failure(request_id, code, exc.message)
        except Exception:
            log.exception("chain_rpc_failed", method=name)
            return _failure(request_id, _INTERNAL, "internal error")
        return {"jsonrpc": "2.0", "id": request_id, "result": result}


_PARAM_FIELDS = frozenset(
    [
        "address",
        "block",
        "blockCount",
        "blockHash",
        "data",
        "from",
        "fromBlock",
        "gas",
        "hash",
        "input",
        "params",
        "position",
        "rewardPercentiles",
        "to",
        "toBlock",
        "topics",
        "value",
    ]
)


def _failure(request_id: Any, code: int, message: str, data: str | None = None) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "id": request_id, "error": error}


def _is_loopback_host(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


async def _read(receive: Receive, content_length: str | None) -> bytes | None:
    """Return the body, or None if it is too long.

    What is too long is still read, up to a bound, and thrown away: a client that is answered while it sends sees a
    broken connection instead of the answer.
    """
    too_long = content_length is not None and content_length.isdecimal() and int(content_length) > MAX_BODY_BYTES
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            too_long = True
            parts.clear()
        if not too_long:
            parts.append(part)
        if not message.get("more_body", False) or size > _MAX_DRAIN_BYTES:
            return None if too_long else b"".join(parts)


async def _respond(send: Send, status: int, answer: Any, headers: dict[bytes, bytes] | None = None) -> None:
    body = b"" if answer is None else json.dumps(answer, separators=(",", ":")).encode()
    listed = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": listed + list((headers or {}).items())})
    await send({"type": "http.response.body", "body": body})
