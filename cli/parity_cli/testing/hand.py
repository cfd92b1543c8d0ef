"""A node without an agent: driven by hand, it does what no agent would."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from parity_blobs import cid_of_bytes
from parity_node.fingerprint.machine import measure
from parity_node.keys import NodeKeys
from parity_node.market.http import HttpMarket
from parity_node.version import node_version
from parity_protocol.api.leases import ClaimItem, ClaimReply, ClaimsRequest, FinalReport, PollRequest
from parity_protocol.api.nodes import EnrolReply, EnrolRequest, enrolment_statement
from parity_protocol.capability import ExecutorState
from parity_protocol.clock import Clock
from parity_protocol.errors import Blame
from parity_protocol.join import TrustedMarket
from parity_protocol.manifest import VerifiedManifest, verify_manifest
from parity_protocol.receipt import Receipt, Usage, result_hash
from parity_protocol.report import Outcome, Report, ReportKind, report_id
from parity_protocol.signing.eip191 import sign_personal
from parity_protocol.signing.eip712 import Eip712Domain, ReceiptMessage, sign_receipt
from parity_protocol.signing.jws import b64url_encode
from parity_protocol.signing.keys import EvmKey
from parity_protocol.task import IsolationTier, TaskKind

__all__ = ["HandNode", "Taken"]


@dataclass(frozen=True, slots=True)
class Taken:
    """A manifest and the lease that was claimed with it."""

    manifest: VerifiedManifest
    lease: ClaimReply

    @property
    def task_id(self) -> str:
        """The task."""
        return self.manifest.manifest.sub


class HandNode:
    """A node without an agent."""

    def __init__(self, market: HttpMarket, keys: NodeKeys, clock: Clock, trusted: TrustedMarket) -> None:
        self.market = market
        self.keys = keys
        self.trusted = trusted
        self._clock = clock

    async def enrol(
        self, *, instance: str | None = None, slots: int = 4, model_types: tuple[str, ...] = ()
    ) -> EnrolReply:
        """Enrol as a node that runs ``command`` tasks, and trains the models that are named."""
        document, now = self.trusted.document, self._clock.now()
        chain = document.chain
        device_key = b64url_encode(self.keys.device.public_key.raw)
        issued_at = int(now.timestamp())
        statement = enrolment_statement(
            node_id=self.keys.node_id,
            device_key=device_key,
            operator=self.keys.operator.address,
            market=self.trusted.thumbprint,
            chain_id=chain.chain_id,
            vault=chain.vault,
            issued_at=issued_at,
        )
        state = ExecutorState(available=True, isolation=IsolationTier.PROCESS)
        capability = measure(
            node_version=node_version(),
            slots=slots,
            folder=Path("/"),
            executors=dict.fromkeys([TaskKind.COMMAND, *([TaskKind.FEDERATED_LEARNING] if model_types else [])], state),
            model_types=model_types,
            now=now,
        )
        return await self.market.enrol(
            EnrolRequest(
                node_id=self.keys.node_id,
                device_key=device_key,
                operator=self.keys.operator.address,
                issued_at=issued_at,
                operator_signature="0x" + sign_personal(statement, self.keys.operator).hex(),
                instance=instance or self.keys.instance,
                hostname="by hand",
                capability=capability,
            )
        )

    async def offers(self, *, slots: int = 1, wait_s: float = 5.0) -> list[VerifiedManifest]:
        """Poll, and verify what comes."""
        request = PollRequest(instance=self.keys.instance, slots=slots, wait_s=wait_s)
        return [self.read(token) for token in (await self.market.poll(request)).manifests]

    def read(self, token: str) -> VerifiedManifest:
        """Verify a manifest as an agent does."""
        return verify_manifest(
            token,
            self.trusted.manifest_keys,
            issuer=self.trusted.thumbprint,
            node_id=self.keys.node_id,
            chain=self.trusted.document.chain,
            node_version=node_version(),
            now=self._clock.now(),
        )

    async def claim(self, manifest: VerifiedManifest, *, claim_id: str | None = None) -> ClaimReply:
        """Claim a task."""
        item = ClaimItem(manifest=manifest.token, claim_id=claim_id or str(uuid4()))
        reply = await self.market.claim(ClaimsRequest(instance=self.keys.instance, claims=(item,)))
        return reply.claims[0]

    async def take(self, *, slots: int = 1, wait_s: float = 5.0) -> list[Taken]:
        """Poll and claim all that comes."""
        return [Taken(offer, await self.claim(offer)) for offer in await self.offers(slots=slots, wait_s=wait_s)]

    def report(
        self,
        taken: Taken,
        data: bytes = b"ok",
        *,
        fence: int | None = None,
        metrics: dict[str, float] | None = None,
        operator: EvmKey | None = None,
    ) -> FinalReport:
        """Return a report of success with a signed receipt; the arguments make it one that no agent would send."""
        manifest, lease = taken.manifest, taken.lease
        fence, now = fence or lease.fence, int(self._clock.now().timestamp())
        cid = str(cid_of_bytes(data))
        chain = self.trusted.document.chain
        usage = Usage(wall_ms=1)
        message = ReceiptMessage(
            task_id=taken.task_id,
            node_id=self.keys.node_id,
            fence=fence,
            order_hash=bytes.fromhex(manifest.order_hash[2:]),
            manifest_hash=bytes.fromhex(manifest.hash),
            result_hash=result_hash(cid),
            wall_ms=usage.wall_ms,
            cpu_ms=0,
            peak_memory_bytes=0,
            tokens=0,
            joules=0,
            finished_at=now,
        )
        domain = Eip712Domain.market(chain.chain_id, chain.vault)
        signature = sign_receipt(domain, message, operator or self.keys.operator)
        receipt = Receipt(
            task_id=taken.task_id,
            node_id=self.keys.node_id,
            fence=fence,
            order_hash=manifest.order_hash,
            manifest_hash="0x" + manifest.hash,
            result_hash="0x" + result_hash(cid).hex(),
            usage=usage,
            finished_at=now,
            signature="0x" + signature.hex(),
        )
        report = Report(
            id=report_id(lease.lease_id, fence, ReportKind.FINAL, 0),
            task_id=taken.task_id,
            lease_id=lease.lease_id,
            fence=fence,
            kind=ReportKind.FINAL,
            seq=0,
            outcome=Outcome.SUCCEEDED,
            exit_code=0,
            started_at=float(now),
            finished_at=float(now),
            usage=usage,
            metrics=metrics or {},
            result_cid=cid,
            result_size=len(data),
        )
        return FinalReport(report=report, receipt=receipt, result=b64encode(data).decode())

    def failure(self, taken: Taken, reason: str, blame: Blame, message: str = "") -> FinalReport:
        """Return a report of failure."""
        lease, now = taken.lease, self._clock.now().timestamp()
        report = Report(
            id=report_id(lease.lease_id, lease.fence, ReportKind.FINAL, 0),
            task_id=taken.task_id,
            lease_id=lease.lease_id,
            fence=lease.fence,
            kind=ReportKind.FINAL,
            seq=0,
            outcome=Outcome.FAILED,
            reason=reason,
            blame=blame,
            message=message,
            started_at=now,
            finished_at=now,
        )
        return FinalReport(report=report)
