"""One part's training round after round, inside the process that ``parity_node.fl_child`` starts.

Standard input is one end of a socket pair: a JSON line asks for a round, one answers. The model is read from, and the
update written to, the execution's folder. The process ends when the node hangs up.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes
from typing import TYPE_CHECKING, Protocol

from parity_fl.plan import PartitionPlan
from parity_fl.rounds_config import UpdateFormat
from parity_fl.session import ShardTerms
from parity_fl.spec import FlSpec, ForestConfig
from parity_node.executors.rounds import MODEL, UPDATE
from parity_protocol.errors import ExecutionFailed, FailureReason

if TYPE_CHECKING:
    from parity_fl.averaging import TrainedRound

__all__ = ["Trainer", "train_rounds", "trainer_of"]

_FORMATS: dict[str, UpdateFormat] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}


class Trainer(Protocol):
    """Answers what a phase asks of one part."""

    def __call__(
        self, asks: str, base: bytes | memoryview, *, number: int, proximal_mu: float, update_format: UpdateFormat
    ) -> TrainedRound:
        """Return the answer to a phase that starts from the file ``base``."""


def _nothing() -> Collection[str]:
    return ()


@dataclass(frozen=True, slots=True)
class Answering:
    """What answers for a part.

    Attributes:
        opened: Tells what the part has added to secure sums that it helped to open.
    """

    train: Trainer
    opened: Callable[[], Collection[str]] = _nothing


def trainer_of(
    spec: FlSpec, plan: object, data: bytes, part: int, *, salt: bytes, opened: Iterable[str] = ()
) -> Answering:
    """Return what answers for a part.

    Args:
        plan: The session's, as the market published it: a cut, or the terms of shards.
        data: The session's data set, or the part's own.
        salt: Secret of a part of a sharded session.
        opened: What this part has added to secure sums that were opened before.

    Raises:
        ExecutionFailed: The data cannot be used.
        BadField: The plan is none.
    """
    from parity_fl.forest_rounds import ForestTrainer  # NumPy comes with it, after the limits
    from parity_fl.rounds import RoundTrainer
    from parity_fl.sharded import ShardedTrainer

    if spec.is_sharded:
        terms = ShardTerms.from_dict(plan)
        sharded = ShardedTrainer(spec, terms, data, part, salt=salt, randomness=token_bytes, opened=opened)
        return Answering(sharded.answer, lambda: sharded.opened)
    cut = PartitionPlan.from_dict(plan)
    is_forest = isinstance(spec.model, ForestConfig)
    trainer = ForestTrainer(spec, cut, data, part) if is_forest else RoundTrainer(spec, cut, data, part)

    def train(
        asks: str, base: bytes | memoryview, *, number: int, proximal_mu: float, update_format: UpdateFormat
    ) -> TrainedRound:
        if asks != "train":
            raise ExecutionFailed(FailureReason.SPEC_INVALID, f"this session's parts cannot answer {asks[:32]!a}")
        return trainer.train(base, number=number, proximal_mu=proximal_mu, update_format=update_format)

    return Answering(train)


def train_rounds(part: Answering, folder: Path, *, say: Callable[..., None]) -> None:
    """Answer the node until it hangs up.

    Raises:
        ExecutionFailed: The data cannot be used, or training diverges; ends the process.
    """
    from parity_fl.spool import map_file

    told = set(part.opened())
    with socket.socket(fileno=0) as line, line.makefile("rwb") as stream:
        for question in stream:
            asked = json.loads(question)
            update_format = _FORMATS.get(str(asked["format"]))
            if update_format is None:
                raise ExecutionFailed(
                    FailureReason.SPEC_INVALID, f"this node cannot send updates as {str(asked['format'])[:32]!a}"
                )
            trained = part.train(
                str(asked.get("asks", "train")),
                map_file(folder / MODEL),  # the node replaces it and never writes into it
                number=int(asked["round"]),
                proximal_mu=float(asked["mu"]),
                update_format=update_format,
            )
            (folder / UPDATE).write_bytes(trained.update)  # read back by the node as soon as we answer
            said = dict(trained.metrics)
            say(event="round", round=asked["round"], **said)
            opened = set(part.opened()) - told
            told |= opened
            answer = {**said, "opened": sorted(opened)} if opened else said
            stream.write(json.dumps(answer).encode() + b"\n")
            stream.flush()
