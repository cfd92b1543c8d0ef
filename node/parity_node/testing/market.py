"""A whole market in memory: signs with real keys, decides by the protocol's own rules, and misbehaves when told to."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import anyio

from parity_blobs.importer import FileImporter, cid_of_bytes
from parity_node.market.base import MarketClient, MarketDirectory
from parity_node.waiting import event_within
from parity_protocol.api import leases as wire
from parity_protocol.api.market import JWKS_TYPE, JwksReply, MarketKey
from parity_protocol.api.nodes import EnrolReply, EnrolRequest, Heartbeat, HeartbeatReply, enrolment_statement
from parity_protocol.api.problem import problem_of
from parity_protocol.api.storage import UploadReply
from parity_protocol.clock import Clock
from parity_protocol.errors import BadSignature, Blame, DigestMismatch, NodeInUse, NotFound, ParityError, Unreachable
from parity_protocol.ids import Address, ClaimId, Fence, LeaseId, NodeId, TaskId
from parity_protocol.join import JoinString, TrustedMarket, verify_market
from parity_protocol.lease import LEASE_TYPE, Lease, ReportDecision, TaskView, decide_claim, decide_renew, decide_report
from parity_protocol.manifest import MANIFEST_TYPE, ChainRef
from parity_protocol.order import Order, spec_hash
from parity_protocol.receipt import check_receipt
from parity_protocol.report import Outcome
from parity_protocol.signing import jws
from parity_protocol.signing.eip191 import recover_personal
from parity_protocol.signing.eip712 import Eip712Domain, OrderMessage, sign_order
from parity_protocol.signing.keys import Ed25519PublicKey
from parity_protocol.task import FINAL_STATES, TaskEvent, TaskState, advance
from parity_protocol.testing.keys import deterministic_ed25519, deterministic_evm_key

__all__ = ["MarketSimulator", "SimulatedTask", "command_spec"]

SOFT_RESERVATION_S = 2.0
MANIFEST_TTL = timedelta(minutes=5)
_VAULT = Address("0x" + "5a" * 20)
_GENESIS = "0x" + "9e" * 32

T = TypeVar("T")


@dataclass(slots=True)
class SimulatedTask:
    """One task as the simulator keeps it."""

    id: str
    spec: str
    order: Order
    reward: int
    max_attempts: int
    state: TaskState = TaskState.PENDING
    fence: int = 0
    attempts: int = 0
    lease: Lease | None = None
    last_holder: str | None = None
    order_hash: str = ""
    reserved_until: float = 0.0
    events: list[str] = field(default_factory=list)
    log: str = ""
    reports: dict[str, wire.FinalReport] = field(default_factory=dict)  # every final one that was taken, by id
    earnings: int = 0  # how often it was paid: must never exceed 1
    manifest_hashes: dict[int, str] = field(default_factory=dict)  # by fence


def command_spec(*command: str, **fields: Any) -> str:
    """Return the JSON text of a command task."""
    return json.dumps({"type": "command", "command": list(command) or ["true"], **fields})


class MarketSimulator(MarketClient, MarketDirectory):
    """A market that one test drives.

    Faults: ``go_offline``, ``lose_replies`` (the effect happens, the answer does not come), ``tamper`` (changes the
    payload of the manifests that it signs), ``tamper_token`` (changes signed tokens), ``fail_next`` (answers with an
    error).

    Args:
        ttl_s: Of leases.
        authority: Host that request signatures cover, for ``simulator_app``.
    """

    def __init__(self, clock: Clock, *, ttl_s: float = 30.0, authority: str = "market.test", name: str = "sim") -> None:
        self.clock = clock
        self.ttl_s = ttl_s
        self.authority = authority
        self.identity = deterministic_ed25519(f"{name} identity")
        self.manifest_key = deterministic_ed25519(f"{name} manifest")
        self.submitter = deterministic_evm_key(f"{name} submitter")
        self.spender = deterministic_evm_key(f"{name} spender")
        self.chain = ChainRef(chain_id=31337, genesis=_GENESIS, vault=_VAULT)
        self.domain = Eip712Domain.market(self.chain.chain_id, self.chain.vault)
        self.tasks: dict[str, SimulatedTask] = {}
        self.nodes: dict[str, EnrolRequest] = {}
        self.last_seen: dict[str, float] = {}
        self.goodbyes: list[str] = []  # instances
        self.heartbeats: list[Heartbeat] = []
        self.blobs: dict[str, bytes] = {}
        self.calls: dict[str, int] = {}
        self.problems: tuple[str, ...] = ()  # why nodes are not eligible
        self.eligible = True
        self.heartbeat_s = 30.0
        self.tamper: Callable[[dict[str, Any]], None] | None = None
        self.tamper_token: Callable[[str], str] | None = None
        self.is_online = True
        self._lost_replies: dict[str, int] = {}
        self._failures: dict[str, list[ParityError]] = {}
        self._changed = anyio.Event()

    @property
    def thumbprint(self) -> str:
        """The identity that nodes pin."""
        return self.identity.public_key.thumbprint()

    def join(self, url: str) -> JoinString:
        """Return the join string for an address."""
        return JoinString(url, self.thumbprint)

    # -- driving it ----------------------------------------------------------------------------------------------

    def offer(self, spec: str | None = None, *, reward: int = 1_000, max_attempts: int = 3) -> SimulatedTask:
        """Add a task that is submitted and signed as a submitter would."""
        text = spec if spec is not None else command_spec("true")
        message = OrderMessage(
            creator=self.submitter.address,
            spec_hash=spec_hash(text),
            max_reward=reward,
            market=self.identity.public_key.thumbprint_bytes(),
            deadline=int(self.clock.now().timestamp()) + 86_400,
            nonce=uuid4().bytes * 2,
        )
        order = Order(
            creator=message.creator,
            spec_hash="0x" + message.spec_hash.hex(),
            max_reward=reward,
            market="0x" + message.market.hex(),
            deadline=message.deadline,
            nonce="0x" + message.nonce.hex(),
            signature="0x" + sign_order(self.domain, message, self.submitter).hex(),
        )
        task = SimulatedTask(str(uuid4()), text, order, reward, max_attempts)
        task.order_hash = "0x" + order.digest(self.domain).hex()
        self.tasks[task.id] = task
        self._notify()
        return task

    def cancel(self, task: SimulatedTask) -> None:
        """Cancel a task."""
        self._advance(task, TaskEvent.CANCEL)
        task.lease = None

    def go_offline(self) -> None:
        """Stop answering."""
        self.is_online = False
        self._notify()

    def come_back(self) -> None:
        """Answer again; live leases are extended first, as a market's start does (design §6)."""
        self.is_online = True
        for task in self.tasks.values():
            if task.lease is not None:
                task.lease = replace(task.lease, expires_at=self.clock.now() + task.lease.ttl)
        self._notify()

    def lose_replies(self, call: str, count: int = 1) -> None:
        """Let the next ``count`` calls of a method have their effect and no answer."""
        self._lost_replies[call] = count

    def fail_next(self, call: str, *errors: ParityError) -> None:
        """Answer the next calls of a method with errors, without effect."""
        self._failures.setdefault(call, []).extend(errors)

    def reap(self) -> list[str]:
        """Take back the leases that have run out; return their tasks."""
        freed = []
        for task in self.tasks.values():
            if task.lease is not None and task.lease.expires_at <= self.clock.now():
                self._free(task, TaskEvent.LEASE_LOST)
                freed.append(task.id)
        return freed

    def unfinished(self) -> list[SimulatedTask]:
        """Return the tasks that have not ended."""
        return [task for task in self.tasks.values() if task.state not in FINAL_STATES]

    # -- directory -----------------------------------------------------------------------------------------------

    def jwks(self) -> bytes:
        """Return the body of ``/.well-known/jwks.json``."""
        keys = [
            MarketKey(**self.identity.public_key.jwk(), use="identity"),
            MarketKey(**self.manifest_key.public_key.jwk(), use="manifest"),
        ]
        payload = {
            **jws.claims(
                self.thumbprint, "market", "*", jti=str(uuid4()), now=self.clock.now(), ttl=timedelta(hours=12)
            ),
            "keys": [key.model_dump() for key in keys],
            "authority": self.authority,
            "name": "simulated market",
            "version": "0.1.0",
            "chain": self.chain.model_dump(),
            "token": "0x" + "70" * 20,
            "token_symbol": "TOK",
            "token_decimals": 18,
            "spender": self.spender.address,
            "min_bond": "0",
            "confirmations": 1,
            "lease_ttl_s": self.ttl_s,
            "heartbeat_s": self.heartbeat_s,
        }
        signed = jws.sign(payload, self.identity, JWKS_TYPE)
        return JwksReply(keys=tuple(keys), signed=signed).model_dump_json().encode()

    async def trust(self) -> TrustedMarket:
        """Answer with the signed key set; see the port."""
        return await self._call("trust", lambda: verify_market(self.jwks(), self.thumbprint, now=self.clock.now()))

    async def enrol(self, request: EnrolRequest) -> EnrolReply:
        """Enrol a node; see the port."""
        return await self._call("enrol", lambda: self._enrol(request))

    async def upload(self, path: Path) -> UploadReply:
        """Store a file; see the port."""
        data = await anyio.Path(path).read_bytes()
        return await self._call("upload", lambda: self.store_blob(data))

    # -- client --------------------------------------------------------------------------------------------------

    async def poll(self, request: wire.PollRequest, *, node_id: str | None = None) -> wire.PollReply:
        """Wait for work; see the port."""
        end = self.clock.monotonic() + request.wait_s
        while True:
            changed = self._changed
            self._check("poll")
            node = self._node(request.instance, node_id)
            tokens = tuple(self._manifest(task, node) for task in self._pending(request.slots))
            left_s = end - self.clock.monotonic()
            if tokens or left_s <= 0:
                return self._reply("poll", wire.PollReply(manifests=tokens))
            await event_within(changed, self.clock, min(left_s, 1.0))

    async def claim(self, request: wire.ClaimsRequest, *, node_id: str | None = None) -> wire.ClaimsReply:
        """Claim leases; see the port."""
        return await self._call(
            "claim",
            lambda: wire.ClaimsReply(
                claims=tuple(self._claim(item, self._node(request.instance, node_id)) for item in request.claims)
            ),
        )

    async def renew(self, request: wire.RenewRequest) -> wire.RenewsReply:
        """Renew leases; see the port."""
        return await self._call(
            "renew", lambda: wire.RenewsReply(renewals=tuple(self._renew(item) for item in request.renewals))
        )

    async def start(self, request: wire.StartRequest) -> wire.WriteReply:
        """Take note of starts; see the port."""
        return await self._call(
            "start", lambda: wire.WriteReply(items=tuple(self._start(item) for item in request.starts))
        )

    async def release(self, request: wire.ReleaseRequest) -> wire.WriteReply:
        """Take leases back; see the port."""
        return await self._call(
            "release", lambda: wire.WriteReply(items=tuple(self._release(item) for item in request.releases))
        )

    async def report(self, request: wire.ReportsRequest) -> wire.ReportReply:
        """Take reports; see the port."""
        return await self._call(
            "report", lambda: wire.ReportReply(reports=tuple(self._report(item) for item in request.reports))
        )

    async def logs(self, request: wire.LogsRequest) -> wire.WriteReply:
        """Append to logs; see the port."""
        return await self._call(
            "logs", lambda: wire.WriteReply(items=tuple(self._log(item) for item in request.chunks))
        )

    async def heartbeat(self, request: Heartbeat) -> HeartbeatReply:
        """Take note of a living node; see the port."""
        return await self._call("heartbeat", lambda: self._heartbeat(request))

    # -- decisions -----------------------------------------------------------------------------------------------

    def store_blob(self, data: bytes) -> UploadReply:
        """Keep a blob and return its CID."""
        importer = FileImporter()
        importer.feed(data)
        cid = str(importer.finish().cid)
        self.blobs[cid] = data
        return UploadReply(cid=cid, size=len(data), visibility="private")

    def _enrol(self, request: EnrolRequest) -> EnrolReply:
        statement = enrolment_statement(
            node_id=request.node_id,
            device_key=request.device_key,
            operator=request.operator,
            market=self.thumbprint,
            chain_id=self.chain.chain_id,
            vault=self.chain.vault,
            issued_at=request.issued_at,
        )
        signer = recover_personal(statement, bytes.fromhex(request.operator_signature[2:]))
        if signer != request.operator:
            raise BadSignature("the operator did not sign this enrolment")
        Ed25519PublicKey(jws.b64url_decode(request.device_key))
        known = self.nodes.get(request.node_id)
        if known is not None and known.instance != request.instance and known.instance not in self.goodbyes:
            quiet_s = self.clock.monotonic() - self.last_seen[request.node_id]
            if quiet_s < 2 * self.heartbeat_s:
                raise NodeInUse(f"this node runs on {known.hostname}, seen {quiet_s:.0f} s ago")
        self.nodes[request.node_id] = request
        self.last_seen[request.node_id] = self.clock.monotonic()
        return EnrolReply(
            node_id=request.node_id,
            bond=0,
            min_bond=0,
            eligible=self.eligible,
            problems=self.problems,
            heartbeat_s=self.heartbeat_s,
            lease_ttl_s=self.ttl_s,
            time=self.clock.now(),
        )

    def _heartbeat(self, request: Heartbeat) -> HeartbeatReply:
        node = self._node(request.instance, None)
        self.last_seen[node] = self.clock.monotonic()
        self.heartbeats.append(request)
        if request.going_offline:
            self.goodbyes.append(request.instance)
        return HeartbeatReply(time=self.clock.now(), bond=0, eligible=self.eligible, problems=self.problems)

    def _node(self, instance: str, node_id: str | None) -> str:
        for known, request in self.nodes.items():
            if request.instance == instance and node_id in (None, known):
                return known
        raise NotFound("this node is not enrolled here")

    def _pending(self, slots: int) -> list[SimulatedTask]:
        self.reap()
        now = self.clock.monotonic()
        found = [t for t in self.tasks.values() if t.state is TaskState.PENDING and t.reserved_until <= now][:slots]
        for task in found:
            task.reserved_until = now + SOFT_RESERVATION_S
        return found

    def _manifest(self, task: SimulatedTask, node_id: str) -> str:
        payload: dict[str, Any] = {
            **jws.claims(self.thumbprint, task.id, node_id, jti=str(uuid4()), now=self.clock.now(), ttl=MANIFEST_TTL),
            "spec": task.spec,
            "order": task.order.model_dump(mode="json"),
            "reward": str(task.reward),
            "total_reward": str(task.reward),
            "part": 0,
            "parts": 1,
            "attempt": task.attempts + 1,
            "ttl_s": self.ttl_s,
            "chain": self.chain.model_dump(),
        }
        if self.tamper is not None:
            self.tamper(payload)
        token = jws.sign(payload, self.manifest_key, MANIFEST_TYPE)
        return token if self.tamper_token is None else self.tamper_token(token)

    def _claim(self, item: wire.ClaimItem, node_id: str) -> wire.ClaimReply:
        try:
            verified = jws.verify(
                item.manifest,
                {self.manifest_key.public_key.thumbprint(): self.manifest_key.public_key},
                MANIFEST_TYPE,
                issuer=self.thumbprint,
                audience=node_id,
                now=self.clock.now(),
            )
            task = self._task(str(verified.payload["sub"]))
            decision = decide_claim(
                self._view(task),
                node_id=NodeId(node_id),
                claim_id=ClaimId(item.claim_id),
                manifest_hash=verified.token_sha256,
                lease_id=LeaseId(str(uuid4())),
                ttl=timedelta(seconds=self.ttl_s),
                now=self.clock.now(),
            )
        except ParityError as exc:
            return wire.ClaimReply(status=exc.status, claim_id=item.claim_id, problem=problem_of(exc))
        lease = decision.lease
        if decision.is_new:
            self._advance(task, TaskEvent.CLAIM)
            task.lease, task.fence, task.last_holder = lease, lease.fence, node_id
            task.attempts += 1
            task.manifest_hashes[lease.fence] = lease.manifest_hash
        payload = {
            **jws.claims(self.thumbprint, task.id, node_id, jti=lease.lease_id, now=self.clock.now(), ttl=MANIFEST_TTL),
            "fence": lease.fence,
            "claim_id": lease.claim_id,
            "manifest_hash": lease.manifest_hash,
            "ttl_s": self.ttl_s,
        }
        return wire.ClaimReply(
            status=200,
            claim_id=item.claim_id,
            lease=jws.sign(payload, self.manifest_key, LEASE_TYPE),
            lease_id=lease.lease_id,
            fence=lease.fence,
            ttl_s=self.ttl_s,
        )

    def _renew(self, item: wire.RenewItem) -> wire.RenewReply:
        try:
            task = self._task(item.task_id)
            task.lease = self._held(task, item)
        except ParityError as exc:
            return wire.RenewReply(status=exc.status, lease_id=item.lease_id, problem=problem_of(exc))
        return wire.RenewReply(status=200, lease_id=item.lease_id, ttl_s=self.ttl_s)

    def _start(self, item: wire.StartItem) -> wire.WriteItem:
        try:
            task = self._task(item.task_id)
            self._held(task, item)
            if task.state is TaskState.LEASED:
                self._advance(task, TaskEvent.START)
        except ParityError as exc:
            return wire.WriteItem(status=exc.status, problem=problem_of(exc))
        return wire.WriteItem(status=200)

    def _release(self, item: wire.ReleaseItem) -> wire.WriteItem:
        try:
            task = self._task(item.task_id)
            self._held(task, item)
            self._free(task, TaskEvent.RELEASE)
        except ParityError as exc:
            return wire.WriteItem(status=exc.status, problem=problem_of(exc))
        return wire.WriteItem(status=200)

    def _log(self, item: wire.LogChunk) -> wire.WriteItem:
        try:
            task = self._task(item.task_id)
            self._held(task, item)
            data = task.log.encode()
            if item.offset <= len(data):
                task.log = (data[: item.offset] + item.text.encode()).decode()
        except ParityError as exc:
            return wire.WriteItem(status=exc.status, problem=problem_of(exc))
        return wire.WriteItem(status=200)

    def _report(self, item: wire.FinalReport) -> wire.ReportItem:
        report = item.report
        try:
            task = self._task(report.task_id)
            holder = NodeId(task.last_holder or "")
            decision = decide_report(
                self._view(task), node_id=holder, fence=Fence(report.fence), already_taken=report.id in task.reports
            )
            if decision is ReportDecision.VERIFY:
                self._take(task, item)
            elif task.reports[report.id] != item:
                raise DigestMismatch("the report was taken before with other content")
        except ParityError as exc:
            return wire.ReportItem(id=report.id, status=exc.status, problem=problem_of(exc))
        return wire.ReportItem(id=report.id, status=200, task_state=task.state.value)

    def _take(self, task: SimulatedTask, item: wire.FinalReport) -> None:
        """Check a report completely and move its task."""
        report = item.report
        if report.outcome is Outcome.SUCCEEDED:
            self._check_success(task, item)
            self._advance(task, TaskEvent.REPORT)
            self._advance(task, TaskEvent.ACCEPT)
            task.lease = None
            task.earnings += 1
        elif report.blame is Blame.TASK:
            self._advance(task, TaskEvent.TASK_FAULT)
            task.lease = None
        elif task.state is not TaskState.PENDING:
            self._free(task, TaskEvent.NODE_FAULT)
        task.reports[report.id] = item
        self._notify()

    def _check_success(self, task: SimulatedTask, item: wire.FinalReport) -> None:
        report, cid = item.report, item.report.result_cid or ""
        if item.receipt is None:
            raise DigestMismatch("a success needs a receipt")
        if item.result is not None and str(cid_of_bytes(b64decode(item.result, validate=True))) != cid:
            raise DigestMismatch("the result does not match its CID")
        if item.result is None and cid not in self.blobs:
            raise NotFound("the result was not uploaded")
        node_id = task.last_holder or ""
        check_receipt(
            item.receipt,
            domain=self.domain,
            operator=self.nodes[node_id].operator,
            task_id=task.id,
            node_id=node_id,
            fence=report.fence,
            order_hash=task.order_hash,
            manifest_hash="0x" + task.manifest_hashes[report.fence],
            result_cid=cid,
        )

    # -- small things --------------------------------------------------------------------------------------------

    async def _call(self, name: str, act: Callable[[], T]) -> T:
        await anyio.lowlevel.checkpoint()
        self._check(name)
        return self._reply(name, act())

    def _check(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        if not self.is_online:
            raise Unreachable("the market is offline")
        if self._failures.get(name):
            raise self._failures[name].pop(0)

    def _reply(self, name: str, reply: T) -> T:
        if self._lost_replies.get(name, 0) > 0:
            self._lost_replies[name] -= 1
            raise Unreachable("the answer was lost")
        return reply

    def _held(self, task: SimulatedTask, item: wire.RenewItem) -> Lease:
        holder = NodeId(task.last_holder or "")
        return decide_renew(
            self._view(task),
            node_id=holder,
            lease_id=LeaseId(item.lease_id),
            fence=Fence(item.fence),
            now=self.clock.now(),
        )

    def _view(self, task: SimulatedTask) -> TaskView:
        self.reap()
        return TaskView(
            task_id=TaskId(task.id),
            state=task.state,
            fence=Fence(task.fence),
            attempts=task.attempts,
            max_attempts=task.max_attempts,
            lease=task.lease,
            deadline=None,
            last_holder=NodeId(task.last_holder) if task.last_holder else None,
        )

    def _task(self, task_id: str) -> SimulatedTask:
        if task_id not in self.tasks:
            raise NotFound("there is no such task")
        return self.tasks[task_id]

    def _free(self, task: SimulatedTask, event: TaskEvent) -> None:
        self._advance(task, event)
        task.lease, task.reserved_until = None, 0.0
        if task.attempts >= task.max_attempts:
            self._advance(task, TaskEvent.ATTEMPTS_EXHAUSTED)
        self._notify()

    def _advance(self, task: SimulatedTask, event: TaskEvent) -> None:
        task.state = advance(task.state, event)
        task.events.append(event.value)

    def _notify(self) -> None:
        event, self._changed = self._changed, anyio.Event()
        event.set()


def outcomes(tasks: Mapping[str, SimulatedTask]) -> dict[str, int]:
    """Return how many tasks are in each state."""
    found: dict[str, int] = {}
    for task in tasks.values():
        found[task.state.value] = found.get(task.state.value, 0) + 1
    return found
