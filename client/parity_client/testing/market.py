"""A market in memory, for tests of programs that use ``Client``: it checks signatures and orders as a real one does.

``FakeMarket`` is an HTTP transport: ``Client(market.join, key, transport=market, clock=market.clock)``. Nothing runs in
it: the test moves tasks with ``finish`` and ``step``, and ``fail_next`` makes it answer as a market in trouble does.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx

from parity_client.testing.clock import JumpClock
from parity_client.testing.storage import FakeStorage
from parity_client.testing.training import FakeTraining
from parity_fl.rounds_config import is_in_rounds
from parity_protocol.api import paths
from parity_protocol.api.market import JWKS_TYPE
from parity_protocol.api.problem import problem_of
from parity_protocol.api.tasks import CheckRequest, SignInRequest, SubmitRequest
from parity_protocol.errors import (
    Forbidden,
    NotFound,
    ParityError,
    Unauthenticated,
    Unavailable,
)
from parity_protocol.join import JoinString
from parity_protocol.order import check_order
from parity_protocol.receipt import Receipt, Usage, result_hash
from parity_protocol.report import MAX_INLINE_RESULT_BYTES
from parity_protocol.shards import open_shards
from parity_protocol.signing import jws
from parity_protocol.signing.eip712 import Eip712Domain, ReceiptMessage, sign_receipt
from parity_protocol.signing.http_signatures import parse_signature, verify_request
from parity_protocol.signing.keys import Ed25519PrivateKey, Ed25519PublicKey, EvmKey, node_id_of
from parity_protocol.signing.siwe import SiweMessage, verify_siwe
from parity_protocol.task import FINAL_STATES, FederatedLearningSpec, TaskState, parse_spec, parts_of, public_state

__all__ = ["FakeMarket", "FakeTask"]

CHAIN_ID = 31337
VAULT = "0x" + "bb" * 20
TOKEN = "0x" + "aa" * 20
SPENDER = "0x" + "cc" * 20
SESSION_TTL = timedelta(hours=1)
_FINAL = frozenset(str(state) for state in FINAL_STATES)


@dataclass
class FakeTask:
    """A task as the market has it. Change what a test needs to lie about."""

    id: str
    creator: str
    request: SubmitRequest
    part: int
    parts: int
    group_id: str | None
    created_at: datetime
    state: str = "pending"
    failure: str | None = None
    message: str = ""
    result: bytes | None = None
    size: int | None = None
    cid: str | None = None
    fence: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    log: str = ""
    receipt: Receipt | None = None
    manifest_hash: str = "0x" + "11" * 32
    events: list[dict[str, Any]] = field(default_factory=list)


class FakeMarket(httpx.AsyncBaseTransport):
    """See the module. Attributes are there to be looked at and changed.

    Attributes:
        requests: (method, path) of everything that came, in order.
        sessions: Session id → (account, key, expires at).
        nonce_domain: Told to those who sign in; another market's makes this one a relay.
        sealed: Sources of the sharded session that was submitted last, as they came.
        finish_after: Long polls that a task stands before ``finish`` is called for it; None never does.
    """

    def __init__(self, *, url: str = "http://127.0.0.1:8080", clock: JumpClock | None = None) -> None:
        self.url = url
        self.authority = url.partition("://")[2]
        self.clock = clock or JumpClock()
        self.identity = Ed25519PrivateKey(sha256(b"fake market identity").digest())
        self.manifest_key = Ed25519PrivateKey(sha256(b"fake market manifest").digest())
        self.operator = EvmKey(sha256(b"fake market operator").digest())
        self.node_id = node_id_of(self.manifest_key.public_key)
        self.domain = Eip712Domain.market(CHAIN_ID, VAULT)  # type: ignore[arg-type]  # a literal of its form
        self.nonce_domain = self.authority
        self.requests: list[tuple[str, str]] = []
        self.sessions: dict[str, tuple[str, Ed25519PublicKey, datetime]] = {}
        self.nonces: set[str] = set()
        self.tasks: dict[str, FakeTask] = {}
        self.groups: dict[str, dict[str, Any]] = {}
        self.storage = FakeStorage()
        self.training = FakeTraining(self.storage, self.clock, self.node_id)
        self.visibility = self.storage.visibility
        self.sealed: tuple[str, ...] = ()
        self.finish_after: int | None = 0
        self.finish_with = b"hello\n"
        self._failures: list[tuple[ParityError, bool, str]] = []
        self._polls: dict[str, int] = {}

    @property
    def join(self) -> JoinString:
        """What a client pins."""
        return JoinString(self.url, self.identity.public_key.thumbprint())

    def document(self, **changes: Any) -> dict[str, Any]:
        """Return what the identity signs."""
        thumbprint = self.identity.public_key.thumbprint()
        keys = [
            {**key.public_key.jwk(), "use": use}
            for key, use in ((self.identity, "identity"), (self.manifest_key, "manifest"))
        ]
        return {
            **jws.claims(
                thumbprint, "market", "*", jti="fake", now=self.clock.now() - timedelta(days=1), ttl=timedelta(days=365)
            ),
            "keys": keys,
            "authority": self.authority,
            "name": "fake market",
            "version": "0.0.0",
            "chain": {"chain_id": CHAIN_ID, "genesis": "0x" + "00" * 32, "vault": VAULT},
            "rpc_hint": "http://127.0.0.1:8545",
            "token": TOKEN,
            "token_symbol": "PDEV",
            "token_decimals": 18,
            "spender": SPENDER,
            "min_bond": str(10 * 10**18),
            "confirmations": 1,
            "lease_ttl_s": 30.0,
            "heartbeat_s": 10.0,
            **changes,
        }

    # -- what tests do -------------------------------------------------------------------------------------------

    def fail_next(self, error: ParityError, *, times: int = 1, after_acting: bool = False, path: str = "") -> None:
        """Answer the next requests whose path starts with ``path`` with ``error``.

        Args:
            after_acting: Do what was asked first: the answer is lost, not the request.
        """
        self._failures += [(error, after_acting, path)] * times

    def step(self, task: FakeTask, event: str, state: str, *, detail: str = "") -> None:
        """Move a task."""
        task.state = state
        if event == "claim":
            task.fence += 1
        task.events.append(
            {
                "seq": len(task.events) + 1,
                "event": event,
                "state": state,
                "at": self.clock.now().isoformat(),
                "node_id": None if event == "submit" else self.node_id,
                "fence": task.fence,
                "detail": detail,
            }
        )

    async def finish(self, task: FakeTask, content: bytes | Path | None = None) -> None:
        """Have a task claimed, done and accepted, with a receipt; a path is a folder that it left."""
        if isinstance(content, Path):
            task.cid, task.size = await self.storage.put_folder(content)
        else:
            task.result = self.finish_with if content is None else content
            task.cid, task.size = await self.storage.put(task.result), len(task.result)
        self.step(task, "claim", "leased")
        self.step(task, "report", "verifying")
        message = ReceiptMessage(
            task_id=task.id,
            node_id=self.node_id,
            fence=task.fence,
            order_hash=task.request.order.digest(self.domain),
            manifest_hash=bytes.fromhex(task.manifest_hash[2:]),
            result_hash=result_hash(task.cid),
            wall_ms=12,
            cpu_ms=3,
            peak_memory_bytes=1 << 20,
            tokens=0,
            joules=0,
            finished_at=int(self.clock.now().timestamp()),
        )
        task.receipt = Receipt(
            task_id=task.id,
            node_id=self.node_id,
            fence=task.fence,
            order_hash="0x" + message.order_hash.hex(),
            manifest_hash=task.manifest_hash,
            result_hash="0x" + message.result_hash.hex(),
            usage=Usage(wall_ms=12, cpu_ms=3, peak_memory_bytes=1 << 20),
            finished_at=message.finished_at,
            signature="0x" + sign_receipt(self.domain, message, self.operator).hex(),
        )
        self.step(task, "accept", "completed")
        group = self.groups.get(task.group_id or "")
        if group is not None and all(each.state in _FINAL for each in self.tasks_of(group["id"])):
            group["state"] = "completed"
            group["result_cid"] = await self.storage.put(b"merged")

    def tasks_of(self, group_id: str) -> list[FakeTask]:
        """Return a group's tasks."""
        return [each for each in self.tasks.values() if each.group_id == group_id]

    # -- the transport -------------------------------------------------------------------------------------------

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        path = request.url.path
        body = b"".join([piece async for piece in request.stream])  # type: ignore[union-attr]  # asynchronous here
        self.requests.append((request.method, path))
        failure = next((each for each in self._failures if path.startswith(each[2])), None)
        if failure is not None:
            self._failures.remove(failure)
            if not failure[1]:
                return _problem(failure[0])
        try:
            answer = await self._answer(request, path, body)
        except ParityError as exc:
            answer = _problem(exc)
        return answer if failure is None else _problem(failure[0])

    async def _answer(self, request: httpx.Request, path: str, body: bytes) -> httpx.Response:
        query = {name: values[0] for name, values in parse_qs(request.url.query.decode()).items()}
        if path == paths.JWKS:
            document = self.document()
            return _json({"keys": document["keys"], "signed": jws.sign(document, self.identity, JWKS_TYPE)})
        if path == paths.SIWE_NONCE:
            return _json(self._nonce())
        if path == paths.SIWE:
            return _json(self._sign_in(SignInRequest.model_validate_json(body)))
        account = self._caller(request, body)
        if path == paths.TASKS and request.method == "POST":
            return _json(self._submit(SubmitRequest.model_validate_json(body), account), 201)
        if path == paths.TASK_CHECK and request.method == "POST":
            spec = parse_spec(CheckRequest.model_validate_json(body).spec)
            return _json({"type": spec.type, "parts": parts_of(spec)})
        stored = await self.storage.answer(request, path, query, body, account)
        if stored is not None:
            return stored if isinstance(stored, httpx.Response) else _json(stored)
        trained = await self.training.answer(request, path, query, account)
        if trained is not None:
            return trained if isinstance(trained, httpx.Response) else _json(trained)
        if path == paths.account_path(account):
            amounts = ("escrow", "releasing", "reserved", "owed", "available", "spent")
            return _json({"account": account, "spender": SPENDER, **dict.fromkeys(amounts, "0")})
        return _json(await self._about_task(request.method, path.removeprefix(paths.API), query, account))

    # -- sessions ------------------------------------------------------------------------------------------------

    def _nonce(self) -> dict[str, Any]:
        nonce = sha256(str(len(self.requests)).encode()).hexdigest()[:16]
        self.nonces.add(nonce)
        return {
            "nonce": nonce,
            "domain": self.nonce_domain,
            "uri": f"http://{self.nonce_domain}{paths.SIWE}",
            "chain_id": CHAIN_ID,
            "expires_at": (self.clock.now() + timedelta(minutes=5)).isoformat(),
        }

    def _sign_in(self, request: SignInRequest) -> dict[str, Any]:
        message = SiweMessage.parse(request.message)
        if message.nonce not in self.nonces:
            raise Unauthenticated("unknown nonce")
        self.nonces.remove(message.nonce)
        account = verify_siwe(
            request.message,
            bytes.fromhex(request.signature[2:]),
            domain=self.authority,
            uri=f"http://{self.authority}{paths.SIWE}",
            chain_id=CHAIN_ID,
            nonce=message.nonce,
            now=self.clock.now(),
        )
        session_id = f"session-{len(self.sessions) + 1}"
        expires = self.clock.now() + SESSION_TTL
        self.sessions[session_id] = (account, message.session_key(), expires)
        return {"session_id": session_id, "account": account, "expires_at": expires.isoformat()}

    def _caller(self, request: httpx.Request, body: bytes) -> str:
        signature = parse_signature(request.headers)
        known = self.sessions.get(signature.keyid)
        if known is None or known[2] <= self.clock.now():
            raise Unauthenticated("the session is unknown or has expired; sign in again")
        path, _, query = request.url.raw_path.decode().partition("?")
        method, now = request.method, self.clock.now()
        verify_request(method, path, query, self.authority, body, signature, key=known[1], now=now)
        return known[0]

    # -- tasks ---------------------------------------------------------------------------------------------------

    def _submit(self, request: SubmitRequest, account: str) -> dict[str, Any]:
        if request.order.creator != account:
            raise Forbidden("the order's creator is not the account that signed in")
        market = self.identity.public_key.thumbprint_bytes()
        now = self.clock.now()
        check_order(request.order, request.spec, request.reward, domain=self.domain, market=market, now=now)
        known = [each for each in self.tasks.values() if each.request.order.nonce == request.order.nonce]
        if known:
            return _submitted(known, created=False)
        spec = parse_spec(request.spec)
        parts = parts_of(spec)
        if isinstance(spec, FederatedLearningSpec):
            open_shards(request.shards, spec.shards)
            self.sealed = request.shards
        group_id = f"group-{len(self.groups) + 1}" if isinstance(spec, FederatedLearningSpec) else None
        if isinstance(spec, FederatedLearningSpec) and group_id is not None:
            self.groups[group_id] = {"id": group_id, "state": "running", "result_cid": None, "metrics": {}}
            told, in_rounds = json.loads(request.spec), is_in_rounds(spec.session())
            self.training.begin(group_id, account, told, parts, in_rounds=in_rounds)
        made = []
        for part in range(parts):
            task_id = f"00000000-0000-4000-8000-{len(self.tasks):012d}"
            task = FakeTask(task_id, account, request, part, parts, group_id, now)
            self.step(task, "submit", "pending")
            self.tasks[task_id] = task
            made.append(task)
        return _submitted(made, created=True)

    async def _about_task(self, method: str, path: str, query: dict[str, str], account: str) -> dict[str, Any]:
        kind, _, rest = path.strip("/").partition("/")
        root_id, _, leaf = rest.partition("/")
        if kind == "tasks" and not root_id:
            mine = [self._task(each) for each in self.tasks.values() if each.creator == account]
            return {"tasks": mine[: int(query["limit"])], "next_cursor": None}
        if kind == "groups" and not root_id:
            last, limit = query.get("cursor", "~"), int(query["limit"])
            found = [row for row in map(self._group, reversed(self.groups)) if row["creator_address"] == account]
            found = [row for row in found if row["id"] < last]
            return {"groups": found[:limit], "next_cursor": found[limit - 1]["id"] if found[limit:] else None}
        if kind == "groups" and root_id in self.groups:
            for each in self.tasks_of(root_id):
                await self._polled(each, query)
            return self._group(root_id)
        task = self.tasks.get(root_id)
        if kind != "tasks" or task is None or task.creator != account:
            raise NotFound(f"there is no {root_id or path} of yours here")
        if leaf in ("status", "result"):
            await self._polled(task, query if leaf == "status" else query | {"after_seq": str(len(task.events))})
        leaves: dict[str, Callable[[], dict[str, Any]]] = {
            "": lambda: self._task(task),
            "status": lambda: self._status(task),
            "events": lambda: {"id": task.id, "events": [e for e in task.events if e["seq"] > int(query["after_seq"])]},
            "result": lambda: self._result(task),
            "receipt": lambda: self._proof(task),
            "logs": lambda: _logs(task, int(query["offset"])),
            "cancel": lambda: self._cancel(task),
            "why-pending": lambda: _why(task),
        }
        if leaf not in leaves or (method == "POST") != (leaf == "cancel"):
            raise NotFound("there is no such path here")
        return leaves[leaf]()

    async def _polled(self, task: FakeTask, query: dict[str, str]) -> None:
        """Let the time of a long poll pass, or end the task that it waits for."""
        if task.state in _FINAL or "wait_s" not in query or int(query.get("after_seq", 1)) < len(task.events):
            return
        polls = self._polls[task.id] = self._polls.get(task.id, 0) + 1
        if self.finish_after is not None and polls > self.finish_after:
            await self.finish(task)
        else:
            self.clock.advance(float(query["wait_s"]))

    def _task(self, task: FakeTask) -> dict[str, Any]:
        spec = json.loads(task.request.spec)
        now = self.clock.now().isoformat()
        return {
            "id": task.id,
            "group_id": task.group_id,
            "part": task.part,
            "parts": task.parts,
            "title": spec.get("title", ""),
            "type": spec["type"],
            "status": public_state(TaskState(task.state)),
            "state": task.state,
            "spec": spec,
            "reward": str(task.request.reward),
            "creator_address": task.creator,
            "runner_id": self.node_id if task.fence else None,
            "attempts": task.fence,
            "max_attempts": 3,
            "fence": task.fence,
            "created_at": task.created_at.isoformat(),
            "updated_at": now,
            "result_cid": task.cid,
            "failure": task.failure,
            "message": task.message,
        }

    def _status(self, task: FakeTask) -> dict[str, Any]:
        fields = ("id", "status", "state", "attempts", "runner_id", "result_cid", "failure", "message")
        found = self._task(task)
        return {name: found[name] for name in fields} | {"seq": len(task.events)}

    def _group(self, group_id: str) -> dict[str, Any]:
        members = self.tasks_of(group_id)
        return {**self.groups[group_id], "parts": len(members)} | {
            "kind": "federated_learning",
            "creator_address": members[0].creator,
            "reward": str(members[0].request.reward),
            "created_at": members[0].created_at.isoformat(),
            "tasks": [self._task(each) for each in members],
        }

    def _result(self, task: FakeTask) -> dict[str, Any]:
        if task.state not in _FINAL:
            raise NotFound(f"task {task.id} is {task.state}: it has no result yet")
        data = task.result
        return {
            "task_id": task.id,
            "state": task.state,
            "cid": task.cid,
            "size": task.size,
            "inline": base64.b64encode(data).decode()
            if data is not None and len(data) <= MAX_INLINE_RESULT_BYTES
            else None,
            "exit_code": 0,
            "metrics": task.metrics,
            "failure": task.failure,
            "message": task.message,
            "node_id": self.node_id,
        }

    def _proof(self, task: FakeTask) -> dict[str, Any]:
        if task.receipt is None:
            raise NotFound(f"task {task.id} has no accepted result yet")
        return {
            "task_id": task.id,
            "receipt": task.receipt.model_dump(mode="json"),
            "order": task.request.order.model_dump(mode="json"),
            "spec": task.request.spec,
            "manifest_hash": task.manifest_hash,
            "result_cid": task.cid,
            "operator": self.operator.address,
            "node_id": self.node_id,
            "fence": task.fence,
        }

    def _cancel(self, task: FakeTask) -> dict[str, Any]:
        self.step(task, "cancel", "cancelled")
        return {"id": task.id, "state": task.state, "cancelled": [task.id]}


def _submitted(tasks: list[FakeTask], *, created: bool) -> dict[str, Any]:
    root = tasks[0].group_id or tasks[0].id
    kind = "group" if tasks[0].group_id else "task"
    return {"id": root, "kind": kind, "task_ids": [each.id for each in tasks], "created": created}


def _logs(task: FakeTask, offset: int) -> dict[str, Any]:
    text = task.log.encode()[offset:].decode()
    return {
        "task_id": task.id,
        "attempt": task.fence,
        "offset": offset,
        "next_offset": offset + len(text.encode()),
        "text": text,
        "done": task.state in _FINAL,
    }


def _why(task: FakeTask) -> dict[str, Any]:
    refusal = {"rule": "capability.kind", "message": "no node runs this kind", "count": 2}
    return {
        "task_id": task.id,
        "state": task.state,
        "nodes_seen": 2,
        "nodes_fit": 0,
        "refusals": [refusal],
        "summary": "no node fits",
    }


def _json(document: dict[str, Any], status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=document)


def _problem(error: ParityError) -> httpx.Response:
    headers = {"content-type": "application/problem+json"}
    if isinstance(error, Unavailable) and error.retry_after_s is not None:
        headers["retry-after"] = str(round(error.retry_after_s))
    return httpx.Response(error.status, content=problem_of(error).model_dump_json(), headers=headers)
