"""Whether a report may be believed: everything that can be checked without the store, and what is left for it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from parity_blobs import Cid, cid_of_bytes
from parity_blobs.cid import CODEC_RAW
from parity_protocol.api.leases import FinalReport
from parity_protocol.errors import BadField, BadSignature, DigestMismatch, NotYetValid
from parity_protocol.ids import Address
from parity_protocol.receipt import Receipt, match_receipt
from parity_protocol.report import MAX_INLINE_RESULT_BYTES, Outcome, Report, ReportKind
from parity_protocol.signing.eip712 import Eip712Domain, receipt_digest, recover_receipt
from parity_protocol.task import TaskKind

__all__ = ["VERIFIED_INLINE", "CheckedReport", "check_final", "check_proof", "is_file_of"]

VERIFIED_INLINE = frozenset({TaskKind.COMMAND, TaskKind.DOCKER, TaskKind.LLM})
"""Kinds whose report is accepted in the transaction that takes it; the others need work outside the writer."""

CLOCK_LEEWAY_S = 60  # between a node's clock and ours, as for every signed document


@dataclass(frozen=True, slots=True)
class CheckedReport:
    """A report that passed ``check_final``, for ``operations.reports.take``."""

    node_id: str
    report: Report
    receipt: Receipt | None
    signer: Address | None  # of the receipt
    receipt_digest: str  # 0x and 64 hex digits; empty without a receipt
    digest: str  # hex sha256 of all that came, to tell a repetition from another report
    inline: bytes | None  # a small result; hashes to the report's CID


def check_final(
    final: FinalReport, *, node_id: str, domain: Eip712Domain, has_cid: Callable[[str, bytes], bool]
) -> CheckedReport:
    """Do every check of a report that needs no store: 0.1 ms, so before the writer.

    Args:
        node_id: Who signed the request.
        domain: Of the market.
        has_cid: Whether bytes are the file of a CID.

    Raises:
        BadField: The report, its receipt and its result do not belong together.
        DigestMismatch: The result is not what its CID names.
        BadSignature: The receipt's signature is not one.
    """
    report, receipt = final.report, final.receipt
    succeeded = report.kind is ReportKind.FINAL and report.outcome is Outcome.SUCCEEDED
    if succeeded != (receipt is not None):
        raise BadField("a successful final report needs a receipt, any other has none", field="receipt")
    if final.result is not None and not succeeded:
        raise BadField("only a successful final report has a result", field="result")
    inline = _decode(final.result) if final.result is not None else None
    if inline is not None:
        cid = report.result_cid or ""
        if len(inline) != report.result_size:
            raise BadField(
                f"the result has {len(inline)} bytes, result_size says {report.result_size}", field="result_size"
            )
        if not has_cid(cid, inline):
            raise DigestMismatch(f"the result that came is not {cid}", field="result")
    signer, digest = None, ""
    if receipt is not None:
        if receipt.usage != report.usage:
            raise BadField("the receipt and the report state different usage", field="receipt.usage")
        message = receipt.message()
        signer = recover_receipt(domain, message, bytes.fromhex(receipt.signature[2:]))
        digest = "0x" + receipt_digest(domain, message).hex()
    content = sha256(node_id.encode() + final.model_dump_json().encode()).hexdigest()
    return CheckedReport(node_id, report, receipt, signer, digest, content, inline)


def check_proof(
    checked: CheckedReport,
    *,
    operator: str,
    order_hash: str,
    manifest_hash: str,
    stored_size: int | None,
    granted_s: float,
    now_s: float,
) -> None:
    """Check a successful report against the task, the lease and what is stored.

    Args:
        operator: Address that signed the node's enrolment.
        order_hash: Of the task's order, 0x and 64 hex digits.
        manifest_hash: Of the lease, 64 hex digits.
        stored_size: Bytes of the result that the node uploaded before; None when it did not.
        granted_s: When the lease was granted, unix seconds of our clock; ``now_s`` likewise.

    Raises:
        BadField: The report has no receipt, names no result, or states more wall time than the lease has lasted.
        NotYetValid: The receipt says that the work ended later than now.
        DigestMismatch: The receipt is about something else, or the result is not here in the size it should have.
        BadSignature: Another key than the operator's signed the receipt.
    """
    report, receipt = checked.report, checked.receipt
    if receipt is None or report.result_cid is None or report.result_size is None:
        raise BadField("a successful report needs a receipt and a result", field="receipt")
    match_receipt(
        receipt,
        task_id=report.task_id,
        node_id=checked.node_id,
        fence=report.fence,
        order_hash=order_hash,
        manifest_hash="0x" + manifest_hash,
        result_cid=report.result_cid,
    )
    if receipt.finished_at > now_s + CLOCK_LEEWAY_S:
        raise NotYetValid(f"the receipt says that the work ended at {receipt.finished_at}, it is {int(now_s)}")
    lasted_s = now_s - granted_s
    if receipt.usage.wall_ms > (lasted_s + CLOCK_LEEWAY_S) * 1000:
        raise BadField(
            f"the receipt states {receipt.usage.wall_ms} ms of wall time, the lease was granted {lasted_s:.0f} s ago",
            field="receipt.usage.wall_ms",
        )
    if checked.signer != operator:
        raise BadSignature(f"the receipt is signed by {checked.signer}, expected the node's operator {operator}")
    size = len(checked.inline) if checked.inline is not None else stored_size
    if size != report.result_size:
        there = "not here" if size is None else f"{size} bytes"
        raise DigestMismatch(f"the result {report.result_cid} is {there}, the report says {report.result_size} bytes")


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadField("the result is not base64", field="result") from exc
    if len(data) > MAX_INLINE_RESULT_BYTES:
        raise BadField(f"an inline result has at most {MAX_INLINE_RESULT_BYTES} bytes, got {len(data)}", field="result")
    return data


def is_file_of(cid: str, data: bytes) -> bool:
    """Return whether ``data`` imports to ``cid`` as ``ipfs add`` would import it in that CID's version and codec.

    Raises:
        BadCid: ``cid`` is not a CID.
    """
    wanted = Cid.parse(cid)
    return cid_of_bytes(data, version=wanted.version, raw=wanted.codec == CODEC_RAW) == wanted
