"""The simulated market's tasks and leases: every decision is the protocol's own."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

from parity_blobs.importer import cid_of_bytes
from parity_protocol.api import leases as wire
from parity_protocol.api.nodes import EnrolRequest
from parity_protocol.api.problem import problem_of
from parity_protocol.clock import Clock
from parity_protocol.errors import Blame, DigestMismatch, NotFound, ParityError
from parity_protocol.ids import Address, ClaimId, Fence, LeaseId, NodeId, TaskId
from parity_protocol.lease import (
    LEASE_TYPE,
    Lease,
    ReportDecision,
    TaskView,
    attempts_after_release,
    decide_claim,
    decide_renew,
    decide_report,
)
from parity_protocol.manifest import MANIFEST_TYPE, ChainRef
from parity_protocol.order import Order, spec_hash
from parity_protocol.receipt import check_receipt
from parity_protocol.report import Outcome
from parity_protocol.signing import jws
from parity_protocol.signing.eip712 import Eip712Domain, OrderMessage, sign_order
from parity_protocol.task import FINAL_STATES, TaskEvent, TaskState, advance
from parity_protocol.testing.keys import deterministic_ed25519, deterministic_evm_key

__all__ = ["MANIFEST_TTL", "SimulatedTask", "TaskBook", "command_spec", "outcomes"]

MANIFEST_TTL = timedelta(minutes=5)
_VAULT = Address("0x" + "5a" * 20)
_GENESIS = "0x" + "9e" * 32


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
    hand_backs: int = 0  # leases that were given back with nothing started
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


class TaskBook:
    """Tasks, and what nodes may do with them.

    Args:
        ttl_s: Of leases.
        on_changed: Told when a task may have become available.
    """

    def __init__(self, clock: Clock, *, ttl_s: float, name: str, on_changed: Callable[[], None]) -> None:
        self.clock = clock
        self.ttl_s = ttl_s
        self.identity = deterministic_ed25519(f"{name} identity")
        self.manifest_key = deterministic_ed25519(f"{name} manifest")
        self.submitter = deterministic_evm_key(f"{name} submitter")
        self.chain = ChainRef(chain_id=31337, genesis=_GENESIS, vault=_VAULT)
        self.domain = Eip712Domain.market(self.chain.chain_id, self.chain.vault)
        self.tasks: dict[str, SimulatedTask] = {}
        self.nodes: dict[str, EnrolRequest] = {}
        self.blobs: dict[str, bytes] = {}
        self._notify = on_changed

    @property
    def thumbprint(self) -> str:
        """The identity that nodes pin."""
        return self.identity.public_key.thumbprint()

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

    def claim(self, item: wire.ClaimItem, node_id: str) -> wire.ClaimReply:
        """Answer one claim."""
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

    def renew(self, item: wire.RenewItem) -> wire.RenewReply:
        """Answer one renewal."""
        try:
            task = self._task(item.task_id)
            task.lease = self._held(task, item)
        except ParityError as exc:
            return wire.RenewReply(status=exc.status, lease_id=item.lease_id, problem=problem_of(exc))
        return wire.RenewReply(status=200, lease_id=item.lease_id, ttl_s=self.ttl_s)

    def start(self, item: wire.StartItem) -> wire.WriteItem:
        """Answer one start."""
        try:
            task = self._task(item.task_id)
            self._held(task, item)
            if task.state is TaskState.LEASED:
                self._advance(task, TaskEvent.START)
        except ParityError as exc:
            return wire.WriteItem(status=exc.status, problem=problem_of(exc))
        return wire.WriteItem(status=200)

    def release(self, item: wire.ReleaseItem) -> wire.WriteItem:
        """Answer one release."""
        try:
            task = self._task(item.task_id)
            self._held(task, item)
            task.attempts = attempts_after_release(self._view(task), hand_backs=task.hand_backs)
            if task.state is TaskState.LEASED:
                task.hand_backs += 1
                task.last_holder = None
            self._free(task, TaskEvent.RELEASE)
        except ParityError as exc:
            return wire.WriteItem(status=exc.status, problem=problem_of(exc))
        return wire.WriteItem(status=200)

    def log(self, item: wire.LogChunk) -> wire.WriteItem:
        """Answer one chunk of a log."""
        try:
            task = self._task(item.task_id)
            self._held(task, item)
            data = task.log.encode()
            if item.offset <= len(data):
                task.log = (data[: item.offset] + item.text.encode()).decode()
        except ParityError as exc:
            return wire.WriteItem(status=exc.status, problem=problem_of(exc))
        return wire.WriteItem(status=200)

    def report(self, item: wire.FinalReport) -> wire.ReportItem:
        """Answer one report."""
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


def outcomes(tasks: Mapping[str, SimulatedTask]) -> dict[str, int]:
    """Return how many tasks are in each state."""
    found: dict[str, int] = {}
    for task in tasks.values():
        found[task.state.value] = found.get(task.state.value, 0) + 1
    return found
