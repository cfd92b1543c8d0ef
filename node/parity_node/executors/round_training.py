"""One part's training round after round, inside the process that ``parity_node.fl_child`` starts.

Standard input is one end of a socket pair: a JSON line asks for a round, one answers. The model is read from, and the
update written to, the execution's folder. The process ends when the node hangs up.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

from parity_fl.plan import PartitionPlan
from parity_fl.rounds_config import UpdateFormat
from parity_fl.spec import FlSpec, ForestConfig
from parity_node.executors.rounds import MODEL, UPDATE
from parity_protocol.errors import ExecutionFailed, FailureReason

__all__ = ["train_rounds"]

_FORMATS: dict[str, UpdateFormat] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}


def train_rounds(
    spec: FlSpec, plan: PartitionPlan, data: bytes, part: int, folder: Path, *, say: Callable[..., None]
) -> dict[str, object]:
    """Answer the node until it hangs up; return what the last round said.

    Raises:
        ExecutionFailed: The data cannot be used, or training diverges; ends the process.
    """
    from parity_fl.forest_rounds import ForestTrainer  # NumPy comes with it, after the limits
    from parity_fl.rounds import RoundTrainer

    is_forest = isinstance(spec.model, ForestConfig)
    trainer = ForestTrainer(spec, plan, data, part) if is_forest else RoundTrainer(spec, plan, data, part)
    say(event="ready", rows=plan.part_size(part))
    said: dict[str, object] = {}
    with socket.socket(fileno=0) as line, line.makefile("rwb") as stream:
        for question in stream:
            asked = json.loads(question)
            update_format = _FORMATS.get(str(asked["format"]))
            if update_format is None:
                raise ExecutionFailed(
                    FailureReason.SPEC_INVALID, f"this node cannot send updates as {str(asked['format'])[:32]!a}"
                )
            trained = trainer.train(
                (folder / MODEL).read_bytes(),
                number=int(asked["round"]),
                proximal_mu=float(asked["mu"]),
                update_format=update_format,
            )
            (folder / UPDATE).write_bytes(trained.update)  # read back by the node as soon as we answer
            said = dict(trained.metrics)
            say(event="round", round=asked["round"], **said)
            stream.write(json.dumps(said).encode() + b"\n")
            stream.flush()
    return said
