"""Signed orders, nodes and reports by deterministic keys, and a bench that plays a market on a real store."""

from __future__ import annotations

import base64
import json
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from itertools import count

from parity_blobs import cid_of_bytes
from parity_market.domain.dispatch import Needs
from parity_market.domain.verification import CheckedReport, check_final, is_file_of
from parity_market.operations import leases, money, nodes, reports, tasks
from parity_market.operations.context import Market
from parity_market.operations.leases import ClaimRequest
from parity_market.operations.nodes import NewNode
from parity_market.operations.tasks import NewSubmission
from parity_market.store import MarketStore, sql
from parity_market.store.rows import TaskRow
from parity_protocol.api.leases import FinalReport, ReportItem
from parity_protocol.api.tasks import SubmitReply
from parity_protocol.capability import Capability, ExecutorState
from parity_protocol.errors import Blame, FailureReason, ParityError
from parity_protocol.ids import Address
from parity_protocol.lease import Lease
from parity_protocol.order import Order, spec_hash
from parity_protocol.receipt import Receipt, Usage, result_hash
from parity_protocol.report import Outcome, Report, ReportKind, report_id
from parity_protocol.signing.eip712 import Eip712Domain, OrderMessage, ReceiptMessage, sign_order, sign_receipt
from parity_protocol.signing.keys import EvmKey, node_id_of
from parity_protocol.task import IsolationTier, TaskKind, parse_spec
from parity_protocol.testing.keys import deterministic_ed25519, deterministic_evm_key

__all__ = [
    "CHAIN_KEY",
    "DOMAIN",
    "MARKET_THUMBPRINT",
    "SPENDER",
    "Bench",
    "SignalLog",
    "capability",
    "checked_report",
    "command_submission",
    "final_report",
    "fl_submission",
    "new_node",
    "signed_submission",
]

CHAIN_ID = 31_337
GENESIS = "0x" + "ab" * 32
VAULT = Address("0x" + "11" * 20)
DOMAIN = Eip712Domain.market(CHAIN_ID, VAULT)
CHAIN_KEY = f"{CHAIN_ID}:{GENESIS}:{VAULT}"
SPENDER = deterministic_evm_key("spender").address
MARKET_THUMBPRINT = sha256(b"test market").digest()
START = datetime(2026, 1, 1, tzinfo=UTC)
TOKEN = 10**18

_nonces = count(1)


def _submission(spec_text: str, reward: int, creator: EvmKey, nonce: int | None, deadline: datetime) -> NewSubmission:
    number = next(_nonces) if nonce is None else nonce
    message = OrderMessage(
        creator=creator.address,
        spec_hash=spec_hash(spec_text),
        max_reward=reward,
        market=MARKET_THUMBPRINT,
        deadline=int(deadline.timestamp()),
        nonce=number.to_bytes(32, "big"),
    )
    order = Order(
        creator=creator.address,
        spec_hash="0x" + message.spec_hash.hex(),
        max_reward=reward,
        market="0x" + message.market.hex(),
        deadline=message.deadline,
        nonce="0x" + message.nonce.hex(),
        signature="0x" + sign_order(DOMAIN, message, creator).hex(),
    )
    digest = "0x" + order.digest(DOMAIN).hex()
    return NewSubmission(creator.address, spec_text, parse_spec(spec_text), order, digest, reward)


def signed_submission(
    spec_text: str, *, reward: int, deadline: datetime, creator: str = "creator", nonce: int | None = None
) -> NewSubmission:
    """Return a signed submission of any spec's text."""
    return _submission(spec_text, reward, deterministic_evm_key(creator), nonce, deadline)


def command_submission(
    *,
    reward: int = TOKEN,
    creator: str = "creator",
    nonce: int | None = None,
    deadline: datetime = START + timedelta(days=1),
    **spec: object,
) -> NewSubmission:
    """Return a signed submission of one command; ``spec`` replaces fields of the spec."""
    text = json.dumps({"type": "command", "command": ["true"], **spec})
    return _submission(text, reward, deterministic_evm_key(creator), nonce, deadline)


def fl_submission(
    *, parts: int = 3, reward: int = 3 * TOKEN, creator: str = "creator", deadline: datetime = START + timedelta(days=1)
) -> NewSubmission:
    """Return a signed submission of a federated session with ``parts`` parts."""
    spec = {
        "type": "federated_learning",
        "model_type": "random_forest",
        "dataset_cid": str(cid_of_bytes(b"a,b\n1,2\n")),
        "partition_config": {"total_parts": parts},
    }
    return _submission(json.dumps(spec), reward, deterministic_evm_key(creator), None, deadline)


def capability(*, slots: int = 8, kinds: AbstractSet[TaskKind] = frozenset(TaskKind), **fields: object) -> Capability:
    """Return the capability of a node that can run ``kinds``; ``fields`` replace the rest."""
    executors = {kind: ExecutorState(available=True, isolation=IsolationTier.BWRAP) for kind in kinds}
    given: dict[str, object] = {
        "node_version": "0.1.0",
        "executors": executors,
        "slots": slots,
        "cpus": 8.0,
        "memory_bytes": 16 << 30,
        "disk_free_bytes": 100 << 30,
        "model_types": ("random_forest", "linear_regression"),
        "measured_at": START.timestamp(),
    }
    return Capability.model_validate({**given, **fields})


@lru_cache(maxsize=256)
def _identity(name: str) -> tuple[str, str, Address]:
    key = deterministic_ed25519(name).public_key
    return node_id_of(key), key.jwk()["x"], deterministic_evm_key(name).address


def new_node(name: str, *, instance: str = "", offers: Capability | None = None) -> NewNode:
    """Return the enrolment of the node that tests call ``name``."""
    node_id, device_key, operator = _identity(name)
    return NewNode(
        node_id=node_id,
        device_key=device_key,
        operator=operator,
        instance=instance or sha256(name.encode()).hexdigest(),
        hostname=f"{name}.test",
        capability=offers or capability(),
    )


def final_report(
    name: str,
    lease: Lease,
    *,
    order_hash: str,
    result: bytes = b"done",
    failed: FailureReason | None = None,
    at: datetime = START,
    inline: bool = True,
    metrics: dict[str, float] | None = None,
    message: str = "",
    usage: Usage = Usage(wall_ms=5),  # noqa: B008 - frozen
) -> FinalReport:
    """Return the final report of node ``name`` on its lease, with a receipt when it succeeded."""
    cid = str(cid_of_bytes(result))
    report = Report(
        id=report_id(lease.lease_id, lease.fence, ReportKind.FINAL, 0),
        task_id=lease.task_id,
        lease_id=lease.lease_id,
        fence=lease.fence,
        kind=ReportKind.FINAL,
        seq=0,
        outcome=Outcome.SUCCEEDED if failed is None else Outcome.FAILED,
        reason=None if failed is None else str(failed),
        blame=None if failed is None else Blame(failed.blame),
        message=message,
        started_at=at.timestamp(),
        finished_at=at.timestamp(),
        usage=usage,
        metrics=metrics or {},
        result_cid=cid if failed is None else None,
        result_size=len(result) if failed is None else None,
    )
    if failed is not None:
        return FinalReport(report=report)
    proof = ReceiptMessage(
        task_id=lease.task_id,
        node_id=lease.node_id,
        fence=lease.fence,
        order_hash=bytes.fromhex(order_hash[2:]),
        manifest_hash=bytes.fromhex(lease.manifest_hash),
        result_hash=result_hash(cid),
        wall_ms=usage.wall_ms,
        cpu_ms=usage.cpu_ms,
        peak_memory_bytes=usage.peak_memory_bytes,
        tokens=usage.tokens,
        joules=usage.joules,
        finished_at=int(at.timestamp()),
    )
    receipt = Receipt(
        task_id=lease.task_id,
        node_id=lease.node_id,
        fence=lease.fence,
        order_hash=order_hash,
        manifest_hash="0x" + lease.manifest_hash,
        result_hash="0x" + proof.result_hash.hex(),
        usage=usage,
        finished_at=proof.finished_at,
        signature="0x" + sign_receipt(DOMAIN, proof, deterministic_evm_key(name)).hex(),
    )
    return FinalReport(report=report, receipt=receipt, result=base64.b64encode(result).decode() if inline else None)


def checked_report(final: FinalReport, node_id: str) -> CheckedReport:
    """Return what the market makes of a report before its writer sees it."""
    return check_final(final, node_id=node_id, domain=DOMAIN, has_cid=is_file_of)


@dataclass
class SignalLog:
    """Signals that are only remembered; ``others`` answers whether another node could run a task."""

    others: bool = False
    pending: list[str] = field(default_factory=list)
    taken: list[tuple[str, str]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    ended: list[tuple[str, str]] = field(default_factory=list)

    def task_pending(self, task: TaskRow) -> None:
        """Remember it."""
        self.pending.append(task.id)

    def task_taken(self, task_id: str, node_id: str) -> None:
        """Remember it."""
        self.taken.append((task_id, node_id))

    def task_gone(self, task_id: str) -> None:
        """Remember it."""
        self.gone.append(task_id)

    def task_changed(self, task_id: str) -> None:
        """Remember it."""
        self.changed.append(task_id)

    def lease_ended(self, task_id: str, node_id: str) -> None:
        """Remember it."""
        self.ended.append((task_id, node_id))

    def other_can_run(self, needs: Needs, excluded: AbstractSet[str]) -> bool:  # noqa: ARG002  # the port's signature
        """Return what ``others`` says."""
        return self.others


class Bench:
    """A market's store with enrolled nodes and a funded creator; each method is one operation."""

    def __init__(
        self, store: MarketStore, *, signals: SignalLog | None = None, lease_ttl: timedelta = timedelta(seconds=30)
    ) -> None:
        self.store = store
        self.signals = signals or SignalLog()
        self.now = START
        self.market = Market(
            chain=CHAIN_KEY, spender=SPENDER, signals=self.signals, min_bond=TOKEN, lease_ttl=lease_ttl
        )
        self._claims = count(1)

    async def open(self, *names: str, escrow: int = 1_000 * TOKEN) -> None:
        """Pin the chain, enrol the nodes ``names`` with a bond, and fund the creator."""
        await self.store.write(lambda tx: money.pin_chain(tx, chain_id=CHAIN_ID, genesis=GENESIS, vault=VAULT))
        await self.store.write(lambda tx: money.record_head(tx, CHAIN_KEY, 1, self.now))
        await self.fund("creator", escrow)
        for name in names:
            await self.enrol(name)

    async def fund(self, creator: str, escrow: int, *, releasing: int = 0, redeemed: int = 0) -> None:
        """Let the chain say that ``creator`` has set ``escrow`` aside."""
        address = deterministic_evm_key(creator).address
        await self.store.write(
            lambda tx: money.record_escrow(
                tx,
                CHAIN_KEY,
                address,
                SPENDER,
                escrow=escrow,
                releasing=releasing,
                redeemed=redeemed,
                block=1,
                now=self.now,
            )
        )

    async def enrol(self, name: str, *, bond: int = TOKEN) -> NewNode:
        """Enrol a node with a bond."""
        node = new_node(name)
        await self.store.write(lambda tx: nodes.enrol(tx, node, self.now, heartbeat=timedelta(seconds=10)))
        await self.store.write(
            lambda tx: money.record_account(
                tx, CHAIN_KEY, node.node_id, bond=bond, operator=node.operator, opened=True, block=1, now=self.now
            )
        )
        return node

    async def submit(self, new: NewSubmission) -> SubmitReply:
        """Submit."""
        return await self.store.write(lambda tx: tasks.submit(tx, self.market, new, self.now))

    async def claim(
        self,
        name: str,
        task_id: str,
        *,
        claim_id: str | None = None,
        jti: str | None = None,
        attempt: int | None = None,
    ) -> Lease | ParityError:
        """Claim one task for node ``name`` with a manifest of its own, or with those of an earlier claim."""
        task = await self.store.read(lambda tx: tx.one(sql.TASK, id=task_id))
        node = new_node(name)
        number = next(self._claims)
        item = ClaimRequest(
            task_id=task_id,
            claim_id=claim_id or f"00000000-0000-4000-8000-{number:012d}",
            jti=jti or f"00000000-0000-4000-9000-{number:012d}",
            manifest_hash=sha256(f"{node.node_id} {task_id}".encode()).hexdigest(),
            attempt=attempt or (1 if task is None else task.attempts + 1),
        )
        answers = await self.store.write(
            lambda tx: leases.claim(tx, self.market, node.node_id, node.instance, [item], self.now)
        )
        return answers[0]

    async def lease(self, name: str, task_id: str) -> Lease:
        """Claim and return the lease."""
        found = await self.claim(name, task_id)
        if isinstance(found, ParityError):
            raise found
        return found

    async def report(self, name: str, final: FinalReport) -> ReportItem:
        """Report for node ``name``."""
        checked = checked_report(final, new_node(name).node_id)
        return await self.store.write(lambda tx: reports.take(tx, self.market, checked, self.now))
