"""Checking a task's receipt without believing the market: what a submitter can do years later."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from parity_protocol.api.tasks import ProofReply
from parity_protocol.errors import BadSignature, DigestMismatch, WrongAudience
from parity_protocol.ids import Address
from parity_protocol.order import spec_hash
from parity_protocol.receipt import Usage, check_receipt
from parity_protocol.signing import jws
from parity_protocol.signing.eip712 import Eip712Domain, recover_order

__all__ = ["VerifiedReceipt", "verify_proof"]


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """What was proven: this operator's key signed that this node did this task, with this result."""

    task_id: str
    node_id: str
    operator: Address
    creator: Address
    result_cid: str
    usage: Usage
    finished_at: datetime  # UTC, the node's clock


def verify_proof(
    proof: ProofReply, *, domain: Eip712Domain, market: str, operator: Address | None = None
) -> VerifiedReceipt:
    """Check order, spec and receipt of a completed task. No server is asked.

    Args:
        domain: The pinned market's; see ``orders.market_domain``.
        market: The pinned identity's thumbprint, base64url.
        operator: Whose signature it must be, as the chain's ``operatorOf`` names it. None takes the proof's own word
            for who the operator is, and still proves that this key signed.

    Raises:
        DigestMismatch: The receipt is about another task, node, lease, spec or result; the message names the field.
        BadSignature: The order or the receipt is not signed by whom it names.
        WrongAudience: The order is for another market.
    """
    order, receipt = proof.order, proof.receipt
    wanted_spec = "0x" + spec_hash(proof.spec).hex()
    if order.spec_hash != wanted_spec:
        raise DigestMismatch(f"the order signs a spec with hash {order.spec_hash}, this one has {wanted_spec}")
    if order.market != "0x" + jws.thumbprint_bytes(market).hex():
        raise WrongAudience(f"the order is for market {order.market}, not for the pinned one")
    signer = recover_order(domain, order.message(), bytes.fromhex(order.signature[2:]))
    if signer != order.creator:
        raise BadSignature(f"the order names {order.creator} as its creator, but {signer} signed it")
    if operator is not None and proof.operator != operator:
        raise BadSignature(f"the proof names the operator {proof.operator}, the chain names {operator}")
    check_receipt(
        receipt,
        domain=domain,
        operator=operator or Address(proof.operator),
        task_id=proof.task_id,
        node_id=proof.node_id,
        fence=proof.fence,
        order_hash="0x" + order.digest(domain).hex(),
        manifest_hash=proof.manifest_hash,
        result_cid=proof.result_cid,
    )
    return VerifiedReceipt(
        task_id=proof.task_id,
        node_id=proof.node_id,
        operator=Address(proof.operator),
        creator=order.creator,
        result_cid=proof.result_cid,
        usage=receipt.usage,
        finished_at=datetime.fromtimestamp(receipt.finished_at, UTC),
    )
