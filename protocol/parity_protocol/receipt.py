"""Proof for settlement: what a node did (receipt) and what a spender owes for it (voucher)."""

from __future__ import annotations

from hashlib import sha256

from pydantic import Field

from parity_protocol.errors import BadSignature, DigestMismatch
from parity_protocol.ids import Address, WireAddress, WireBytes32, WireNodeId, WireUuid
from parity_protocol.quantities import WireTokenAmount
from parity_protocol.signing.eip712 import (
    Eip712Domain,
    ReceiptMessage,
    VoucherMessage,
    receipt_digest,
    recover_receipt,
    recover_voucher,
    voucher_digest,
)
from parity_protocol.wire import Request, SignedDocument

NO_ENVIRONMENT = "0x" + "00" * 32

__all__ = [
    "NO_ENVIRONMENT",
    "Receipt",
    "Usage",
    "Voucher",
    "check_receipt",
    "check_voucher",
    "match_receipt",
    "result_hash",
]


class Usage(Request):
    """What an execution used, as whole numbers."""

    wall_ms: int = Field(default=0, ge=0, lt=2**53)
    cpu_ms: int = Field(default=0, ge=0, lt=2**53)
    peak_memory_bytes: int = Field(default=0, ge=0, lt=2**53)
    tokens: int = Field(default=0, ge=0, lt=2**53)
    joules: int = Field(default=0, ge=0, lt=2**53)


class Receipt(SignedDocument):
    """EIP-712 ``Receipt`` signed by the node's operator key over the market domain."""

    task_id: WireUuid
    node_id: WireNodeId
    fence: int = Field(ge=1, lt=2**63)
    order_hash: WireBytes32
    manifest_hash: WireBytes32
    result_hash: WireBytes32
    usage: Usage
    finished_at: int = Field(ge=0, lt=2**63)  # unix seconds
    environment_hash: WireBytes32 = NO_ENVIRONMENT  # digest of the image or model that ran
    signature: str = Field(pattern=r"^0x[0-9a-f]{130}$", max_length=132)

    def message(self) -> ReceiptMessage:
        """Return the typed message that the signature covers."""
        return ReceiptMessage(
            task_id=self.task_id,
            node_id=self.node_id,
            fence=self.fence,
            order_hash=bytes.fromhex(self.order_hash[2:]),
            manifest_hash=bytes.fromhex(self.manifest_hash[2:]),
            result_hash=bytes.fromhex(self.result_hash[2:]),
            wall_ms=self.usage.wall_ms,
            cpu_ms=self.usage.cpu_ms,
            peak_memory_bytes=self.usage.peak_memory_bytes,
            tokens=self.usage.tokens,
            joules=self.usage.joules,
            finished_at=self.finished_at,
            environment_hash=bytes.fromhex(self.environment_hash[2:]),
        )

    def digest(self, domain: Eip712Domain) -> bytes:
        """Return the EIP-712 digest, 32 bytes: what a voucher's hash chain is extended with."""
        return receipt_digest(domain, self.message())


class Voucher(SignedDocument):
    """EIP-712 ``Voucher`` signed by the spender over the vault domain: everything owed to ``solver`` so far."""

    creator: WireBytes32  # keccak256 of the account id
    solver: WireBytes32
    spender: WireAddress
    cumulative: WireTokenAmount
    count: int = Field(ge=0, lt=2**63)
    receipts_head: WireBytes32
    signature: str = Field(pattern=r"^0x[0-9a-f]{130}$", max_length=132)

    def message(self) -> VoucherMessage:
        """Return the typed message that the signature covers."""
        return VoucherMessage(
            creator=bytes.fromhex(self.creator[2:]),
            solver=bytes.fromhex(self.solver[2:]),
            spender=self.spender,
            cumulative=self.cumulative,
            count=self.count,
            receipts_head=bytes.fromhex(self.receipts_head[2:]),
        )

    def digest(self, domain: Eip712Domain) -> bytes:
        """Return the EIP-712 digest, 32 bytes."""
        return voucher_digest(domain, self.message())


def result_hash(result_cid: str) -> bytes:
    """Return the hash of a result's CID text that receipts carry, 32 bytes."""
    return sha256(result_cid.encode()).digest()


def match_receipt(
    receipt: Receipt,
    *,
    task_id: str,
    node_id: str,
    fence: int,
    order_hash: str,
    manifest_hash: str,
    result_cid: str,
) -> None:
    """Check that a receipt is about exactly this task, lease and result; who signed it is ``check_receipt``'s part.

    Raises:
        DigestMismatch: A field is not that of the task, lease or result; the message names it.
    """
    expected = {
        "task_id": (receipt.task_id, task_id),
        "node_id": (receipt.node_id, node_id),
        "fence": (receipt.fence, fence),
        "order_hash": (receipt.order_hash, order_hash),
        "manifest_hash": (receipt.manifest_hash, manifest_hash),
        "result_hash": (receipt.result_hash, "0x" + result_hash(result_cid).hex()),
    }
    for name, (came, wanted) in expected.items():
        if came != wanted:
            raise DigestMismatch(f"receipt.{name} is {came}, expected {wanted}", field=f"receipt.{name}")


def check_receipt(
    receipt: Receipt,
    *,
    domain: Eip712Domain,
    operator: Address,
    task_id: str,
    node_id: str,
    fence: int,
    order_hash: str,
    manifest_hash: str,
    result_cid: str,
) -> None:
    """Check a receipt completely; needs no server, so a submitter can do it years later.

    Args:
        operator: Address that signed the node's enrolment.
        order_hash: 0x and 64 hex digits; ``manifest_hash`` likewise.

    Raises:
        DigestMismatch: A field is not that of the task, lease or result; the message names it.
        BadSignature: Another key than the operator's signed it.
    """
    match_receipt(
        receipt,
        task_id=task_id,
        node_id=node_id,
        fence=fence,
        order_hash=order_hash,
        manifest_hash=manifest_hash,
        result_cid=result_cid,
    )
    signer = recover_receipt(domain, receipt.message(), bytes.fromhex(receipt.signature[2:]))
    if signer != operator:
        raise BadSignature(f"the receipt is signed by {signer}, expected the node's operator {operator}")


def check_voucher(voucher: Voucher, *, domain: Eip712Domain, spender: Address) -> None:
    """Check that ``spender`` signed this voucher for this vault.

    Raises:
        BadSignature: Another key signed it, or it names another spender.
    """
    signer = recover_voucher(domain, voucher.message(), bytes.fromhex(voucher.signature[2:]))
    if signer != spender or voucher.spender != spender:
        raise BadSignature(f"the voucher is signed by {signer} for {voucher.spender}, expected {spender}")
