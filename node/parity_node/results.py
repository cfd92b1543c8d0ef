"""From an execution's end to a durable, signed report."""

from __future__ import annotations

import os
import re
import shutil
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG

import anyio
import anyio.to_thread

from parity_blobs.car_files import pack_car, weight_of
from parity_blobs.importer import FileImporter, cid_of_bytes
from parity_contracts.files import sync_dir, sync_file, write_file
from parity_node.executors.base import ExecutionResult
from parity_node.market.base import PACKED_SUFFIX
from parity_node.store.base import Execution, OutboxEntry
from parity_protocol.api.leases import FinalReport
from parity_protocol.disk import is_full
from parity_protocol.errors import ExecutionFailed, FailureReason, ParityError, StorageFull
from parity_protocol.ids import NodeId
from parity_protocol.manifest import ChainRef
from parity_protocol.receipt import Receipt, result_hash
from parity_protocol.report import MAX_INLINE_RESULT_BYTES, MAX_MESSAGE_CHARS, Outcome, Report, ReportKind, report_id
from parity_protocol.signing.eip712 import Eip712Domain, ReceiptMessage, sign_receipt
from parity_protocol.signing.keys import EvmKey

__all__ = ["StoredResult", "build_report", "failure_of", "store_result"]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\ud800-\udfff]")
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A result that survives a crash once its report is journalled: inside it, or in a synced file.

    A folder lies in a CAR, whose name ends in ``PACKED_SUFFIX``.
    """

    cid: str
    size: int  # bytes; of a folder ``parity_blobs.car_files.weight_of``
    inline: bytes | None
    path: Path | None


async def store_result(result: ExecutionResult, folder: Path, execution_id: str) -> StoredResult:
    """Make a successful execution's result durable.

    Args:
        folder: Where large results wait for their upload.

    Raises:
        ExecutionFailed: The executor brought no result, or it cannot be read (the node's fault).
        StorageFull: No room.
    """
    data, path = result.result_bytes, result.result_path
    try:
        if data is None and path is not None:
            found = path.lstat()
            if S_ISDIR(found.st_mode):
                return await anyio.to_thread.run_sync(_store_folder, path, folder, execution_id)
            if not S_ISREG(found.st_mode):
                raise ExecutionFailed(
                    FailureReason.NODE_FAULT, "the executor's result is neither a plain file nor a folder"
                )
            if found.st_size <= MAX_INLINE_RESULT_BYTES:
                data = path.read_bytes()
        if data is not None and len(data) <= MAX_INLINE_RESULT_BYTES:
            return StoredResult(str(cid_of_bytes(data)), len(data), data, None)
        if data is None and path is None:
            raise ExecutionFailed(FailureReason.NODE_FAULT, "the executor brought no result")
        return await anyio.to_thread.run_sync(_store_large, data, path, folder, execution_id)
    except OSError as exc:
        if is_full(exc):
            raise StorageFull("no room for a result") from exc
        raise ExecutionFailed(FailureReason.NODE_FAULT, f"the result cannot be read: {exc.strerror}") from exc


def failure_of(error: Exception) -> ExecutionResult:
    """Return the failed result that an executor's error stands for; an error that is not ours is the node's fault."""
    if isinstance(error, ExecutionFailed):
        return ExecutionResult(Outcome.FAILED, error.reason, error.message)
    if isinstance(error, StorageFull) or is_full(error):
        return ExecutionResult(Outcome.FAILED, FailureReason.DISK_FULL, str(error))
    if isinstance(error, ParityError):
        reason = FailureReason.DEPENDENCY_UNAVAILABLE if error.retryable else FailureReason.NODE_FAULT
        return ExecutionResult(Outcome.FAILED, reason, error.message)
    return ExecutionResult(Outcome.FAILED, FailureReason.NODE_FAULT, f"the executor failed: {type(error).__name__}")


def build_report(
    execution: Execution,
    result: ExecutionResult,
    stored: StoredResult | None,
    *,
    chain: ChainRef,
    node_id: NodeId,
    operator: EvmKey,
    finished_at: float,
) -> tuple[OutboxEntry, FinalReport]:
    """Return the final report and its outbox entry; a success has a receipt signed by the operator key.

    Args:
        stored: The durable result of a success; None with a failure.
        finished_at: Unix seconds.
    """
    reason = result.reason if result.reason is not None else FailureReason.NODE_FAULT
    is_success = result.outcome is Outcome.SUCCEEDED and stored is not None
    report = Report(
        id=report_id(execution.lease_id, execution.fence, ReportKind.FINAL, 0),
        task_id=execution.task_id,
        lease_id=execution.lease_id,
        fence=execution.fence,
        kind=ReportKind.FINAL,
        seq=0,
        outcome=Outcome.SUCCEEDED if is_success else Outcome.FAILED,
        reason=None if is_success else reason.value,
        blame=None if is_success else reason.blame,
        message=_CONTROL.sub("�", result.message)[:MAX_MESSAGE_CHARS],
        exit_code=result.exit_code,
        started_at=min(execution.started_at or finished_at, finished_at),
        finished_at=finished_at,
        usage=result.usage,
        metrics=dict(result.metrics),
        result_cid=stored.cid if stored is not None else None,
        result_size=stored.size if stored is not None else None,
    )
    receipt = None
    if stored is not None and is_success:
        receipt = _receipt(execution, result, stored.cid, chain, node_id, operator, int(finished_at))
    inline = b64encode(stored.inline).decode() if stored is not None and stored.inline is not None else None
    final = FinalReport(report=report, receipt=receipt, result=inline)
    entry = OutboxEntry(
        id=report.id,
        execution_id=execution.id,
        body=final.model_dump_json(by_alias=True).encode(),
        is_final=True,
        result_path=str(stored.path) if stored is not None and stored.path is not None else "",
        result_cid=stored.cid if stored is not None else "",
    )
    return entry, final


def _receipt(
    execution: Execution,
    result: ExecutionResult,
    cid: str,
    chain: ChainRef,
    node_id: NodeId,
    operator: EvmKey,
    finished_at: int,
) -> Receipt:
    usage = result.usage
    message = ReceiptMessage(
        task_id=execution.task_id,
        node_id=node_id,
        fence=execution.fence,
        order_hash=bytes.fromhex(execution.order_hash[2:]),
        manifest_hash=bytes.fromhex(execution.manifest_hash),
        result_hash=result_hash(cid),
        wall_ms=usage.wall_ms,
        cpu_ms=usage.cpu_ms,
        peak_memory_bytes=usage.peak_memory_bytes,
        tokens=usage.tokens,
        joules=usage.joules,
        finished_at=finished_at,
        environment_hash=bytes.fromhex(result.environment.removeprefix("sha256:")) or bytes(32),
    )
    signature = sign_receipt(Eip712Domain.market(chain.chain_id, chain.vault), message, operator)
    return Receipt(
        task_id=message.task_id,
        node_id=node_id,
        fence=message.fence,
        order_hash=execution.order_hash,
        manifest_hash="0x" + execution.manifest_hash,
        result_hash="0x" + message.result_hash.hex(),
        usage=usage,
        finished_at=finished_at,
        environment_hash="0x" + message.environment_hash.hex(),
        signature="0x" + signature.hex(),
    )


def _store_folder(path: Path, folder: Path, execution_id: str) -> StoredResult:
    """Pack a folder that ``parity_node.outputs`` made; its own copy goes with the execution's folder."""
    temp = folder / f".{execution_id}.tmp"
    temp.unlink(missing_ok=True)
    packed = pack_car(path, temp)
    sync_file(temp)
    target = temp.rename(folder / f"{execution_id}{PACKED_SUFFIX}")
    sync_dir(folder)
    return StoredResult(str(packed.root), weight_of(packed), None, target)


def _store_large(data: bytes | None, path: Path | None, folder: Path, execution_id: str) -> StoredResult:
    target = folder / execution_id
    if data is not None:
        write_file(target, data)
    elif path is not None:
        temp = folder / f".{execution_id}.tmp"
        try:
            os.replace(path, temp)  # noqa: PTH105 - atomic, and across links of one file system only
        except OSError:  # the execution's folder is on another file system, or not ours
            shutil.copyfile(path, temp, follow_symlinks=False)
        temp.chmod(0o600)
        sync_file(temp)
        temp.rename(target)
        sync_dir(folder)
    importer, size = FileImporter(), 0
    with target.open("rb") as file:
        while chunk := file.read(_COPY_BYTES):
            importer.feed(chunk)
            size += len(chunk)
    return StoredResult(str(importer.finish().cid), size, None, target)
