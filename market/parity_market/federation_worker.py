"""Federated mathematics in a process of its own: it reads a job from standard input and writes the answer.

A job parses what strangers sent and may take seconds; here it can neither block the market's event loop nor take its
memory along. Messages are one JSON header and raw blobs; nothing is ever unpickled.

::

    message = u32 length of the header, big-endian | header, JSON | blobs, one after the other
    header  = {"do": "plan" | "check" | "finish" | "old_model" | "old_forest", ..., "sizes": [bytes of each blob]}
    answer  = {"doc": {...}, "sizes": [...]}  or  {"error": {"code", "message", "field", "reason"}, "sizes": []}
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from parity_protocol.errors import (
    BadDocument,
    BadField,
    ExecutionFailed,
    FailureReason,
    ParityError,
    TooLarge,
    error_for_code,
)

if TYPE_CHECKING:
    from parity_fl.checkpoint import Checkpoint

__all__ = ["decode_message", "encode_message", "error_of", "execute", "main"]

MAX_MEMORY_BYTES = 6 << 30  # of address space
MAX_CPU_S = 600
NICE = 5  # requests come first
_LENGTH_BYTES = 4


def encode_message(header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """Return a message of a header and blobs."""
    text = json.dumps({**header, "sizes": [len(blob) for blob in blobs]}, separators=(",", ":")).encode()
    return b"".join([len(text).to_bytes(_LENGTH_BYTES, "big"), text, *blobs])


def decode_message(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Return a message's header and blobs.

    Raises:
        BadDocument: It is cut off or not one.
    """
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
    try:
        header = json.loads(data[_LENGTH_BYTES:start])
        sizes = header["sizes"]
    except (ValueError, KeyError, TypeError) as exc:
        raise BadDocument("not a message of the federation's worker") from exc
    if len(data) != start + sum(sizes):
        raise BadDocument(f"a worker's message has {len(data)} bytes, expected {start + sum(sizes)}")
    blobs = []
    for size in sizes:
        blobs.append(data[start : start + size])
        start += size
    return header, blobs


def error_of(described: Mapping[str, Any]) -> ParityError:
    """Return the error that a worker described."""
    message, field = str(described["message"]), str(described["field"])
    if described.get("reason"):
        return ExecutionFailed(FailureReason.parse(str(described["reason"])), message, field=field)
    return error_for_code(str(described["code"]))(message, field=field)


def execute(message: bytes) -> bytes:
    """Do one job and return the answer; an error of ours is an answer too."""
    try:
        header, blobs = decode_message(message)
        doc, out = _do(header, blobs)
    except ParityError as exc:
        reason = str(exc.reason) if isinstance(exc, ExecutionFailed) else ""
        described = {"code": exc.code, "message": exc.message, "field": exc.field, "reason": reason}
        return encode_message({"error": described})
    return encode_message({"doc": doc}, out)


def _do(header: Mapping[str, Any], blobs: Sequence[bytes]) -> tuple[Mapping[str, Any], list[bytes]]:
    from parity_fl import runner  # NumPy: only the process that computes loads it
    from parity_fl.plan import PartitionPlan
    from parity_fl.spec import resolve_fl_spec

    if header["do"] == "old_model":
        return {}, [_old_model(*blobs)]
    spec = resolve_fl_spec(header["spec"])
    if header["do"] == "resume_shards":
        return {"seed": _checkpoint_of(header, *blobs).seed}, []
    dataset, *updates = blobs
    if header["do"] == "plan" and "resume" in header:
        return _resumed(header, dataset, updates[0]), []
    if header["do"] == "plan":
        return runner.plan_session(spec, dataset, header["seed"]).to_dict(), []
    plan = PartitionPlan.from_dict(header["plan"])
    if header["do"] == "check":
        [update] = updates
        runner.audit_update(spec, plan, dataset, update, header["part"])
        return {}, []
    if header["do"] == "old_forest":
        from parity_fl.old_forest import refitted_update

        [update] = updates
        return {}, [refitted_update(spec, plan, dataset, update, header["part"])]
    merged = runner.finish(spec, plan, dataset, updates)
    return merged.metrics, [merged.model_bytes]


def _resumed(header: Mapping[str, Any], dataset: bytes, file: bytes) -> Mapping[str, Any]:
    """Return the plan of a session that goes on from a checkpoint: cut as the one before it was."""
    from parity_fl import runner
    from parity_fl.resuming import RESUME_FIELD
    from parity_fl.rounds import RoundServer
    from parity_fl.spec import resolve_fl_spec
    from parity_fl.strategy import read_strategy

    spec, strategy = resolve_fl_spec(header["spec"]), read_strategy(header["resume"]["strategy"])
    checkpoint = _checkpoint_of(header, file)
    try:
        plan = runner.plan_session(spec, dataset, checkpoint.seed)
        RoundServer(spec, plan, dataset, strategy).resume(checkpoint)
    except BadDocument as exc:
        raise BadField(f"resume_from: {exc.message}", field=RESUME_FIELD) from exc
    if plan.assignment_hash != checkpoint.assignment_hash:
        raise BadField("resume_from: the checkpoint's rows were dealt to its parts in another way", field=RESUME_FIELD)
    return plan.to_dict()


def _checkpoint_of(header: Mapping[str, Any], file: bytes) -> Checkpoint:
    """Return a checkpoint that a session may go on from.

    Raises:
        BadField: It is none, or of another session.
    """
    from parity_fl.checkpoint import decode_checkpoint
    from parity_fl.resuming import RESUME_FIELD, check_checkpoint
    from parity_fl.spec import resolve_fl_spec
    from parity_fl.strategy import read_strategy

    spec, strategy = resolve_fl_spec(header["spec"]), read_strategy(header["resume"]["strategy"])
    try:
        checkpoint = decode_checkpoint(file)
        check_checkpoint(checkpoint, spec, strategy, total_rounds=header["resume"]["total_rounds"])
    except BadDocument as exc:
        raise BadField(f"resume_from: {exc.message}", field=RESUME_FIELD) from exc
    return checkpoint


def _old_model(data: bytes) -> bytes:
    """Return a finished model's lists in the old network's form, JSON."""
    from parity_fl.model import decode_model
    from parity_fl.old_model import write_old_layers_of
    from parity_fl.old_rounds import MAX_OLD_VALUES

    layers = write_old_layers_of(decode_model(data))
    count = sum(len(values) for values in layers.values())
    if count > MAX_OLD_VALUES:
        raise TooLarge(f"the model has {count} numbers, at most {MAX_OLD_VALUES} travel as JSON: use `parity fl model`")
    return json.dumps(layers, separators=(",", ":"), allow_nan=False).encode()


def main() -> int:
    """Answer the job on standard input; what libraries print goes to standard error."""
    answers = os.dup(1)
    os.dup2(2, 1)
    os.nice(NICE)
    with suppress(ValueError, OSError):  # not every system can bound the address space
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    answer = execute(sys.stdin.buffer.read())
    with os.fdopen(answers, "wb") as out:
        out.write(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
