"""A part of a session that trains in rounds: ask, fetch the model, have the child train, send the update, ask again.

The child has no network. It waits on a socket pair for one JSON line a round and answers with one; models and updates are
files in the execution's folder.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Protocol

import anyio
import anyio.to_thread
from pydantic import JsonValue

from parity_fl.limits import MAX_UPDATE_BYTES
from parity_node.executors.base import ExecutionResult
from parity_node.waiting import Backoff
from parity_protocol.api.rounds import RoundStep, UpdateTaken
from parity_protocol.clock import Clock
from parity_protocol.disk import failure_of
from parity_protocol.errors import (
    Conflict,
    ExecutionFailed,
    FailureReason,
    NotFound,
    ParityError,
    StaleFence,
    TaskCancelled,
)
from parity_protocol.receipt import Usage
from parity_protocol.report import Outcome

__all__ = ["MODEL", "UPDATE", "Ended", "Place", "RoundLoop", "RoundsMarket", "new_file", "place_of"]

MODEL = "model.safetensors"
UPDATE = "update.safetensors"
FORMAT = "parity.rounds/1"
POLL_S = 25.0  # that one question waits at the market
_MAX_LINE = 1 << 16
_MAX_PAUSE_S = 15.0
_MODEL_SLACK = 1 << 16


@dataclass(frozen=True, slots=True)
class Place:
    """Which part of which session this is, and by which lease."""

    group_id: str
    part: int
    lease_id: str
    fence: int


class RoundsMarket(Protocol):
    """What the market offers to a part of a session."""

    async def next_step(self, place: Place, *, wait_s: float) -> RoundStep:
        """Return what to do now; waits up to ``wait_s`` seconds for more than "wait".

        Raises:
            StaleFence: The part is somebody else's now; ``TaskCancelled``: nobody's.
            Unavailable: No answer; ask again.
        """
        ...

    async def flower_step(self, place: Place, *, key: str, known: str, wait_s: float) -> RoundStep:
        """Return whether a session that Flower carries is done, and under which id the part's key is registered.

        Args:
            key: Public key of the lease's SuperNode, a compressed point of P-384, hex.
            known: The id that is known; waits up to ``wait_s`` seconds for another one or the end.

        Raises:
            StaleFence: As ``next_step``; so the others.
        """
        ...

    async def model(self, place: Place, step: RoundStep, into: Path, *, max_bytes: int) -> None:
        """Write the model that ``step`` names to a file, with ``new_file``.

        Raises:
            DigestMismatch: Another one came: the session has moved on, ask again.
            TooLarge: It is over ``max_bytes``.
        """
        ...

    async def send(
        self, place: Place, step: RoundStep, update: bytes, metrics: Mapping[str, float], *, digest: bytes
    ) -> UpdateTaken:
        """Hand in the part's update to a round; repeating it changes nothing.

        Args:
            digest: The update's SHA-256.

        Raises:
            Conflict: It is late or not wanted; ask again.
        """
        ...


@dataclass(frozen=True, slots=True)
class Ended:
    """How the part's rounds ended."""

    reason: FailureReason | None
    message: str
    document: bytes = b""
    metrics: Mapping[str, float] | None = None

    def result(self, usage: Usage, *, log: Path) -> ExecutionResult:
        """Return what the executor reports."""
        if self.reason is None:
            return ExecutionResult(
                Outcome.SUCCEEDED,
                exit_code=0,
                result_bytes=self.document,
                usage=usage,
                metrics=dict(self.metrics or {}),
                log_path=log,
            )
        return ExecutionResult(Outcome.FAILED, self.reason, self.message[:2_000], usage=usage, log_path=log)


def place_of(members: Mapping[str, JsonValue]) -> Place:
    """Return the place that ``prepare`` wrote down.

    Raises:
        ExecutionFailed: It did not.
    """
    lease, part = members.get("lease"), members.get("part")
    if isinstance(lease, dict) and isinstance(part, int):
        group_id, lease_id, fence = lease.get("group_id"), lease.get("lease_id"), lease.get("fence")
        if isinstance(group_id, str) and isinstance(lease_id, str) and isinstance(fence, int):
            return Place(group_id, part, lease_id, fence)
    raise ExecutionFailed(FailureReason.NODE_RESTARTED, "the execution's folder was lost: no lease")


class RoundLoop:
    """One part's rounds.

    Args:
        line: Our end of the socket pair to the child; owned from here on.
        folder: The execution's.
        keep_opened: Makes durable which secure sums the part helps to open now; called before the answer that opens one
            is sent. Without it no such answer is sent.

    Attributes:
        ended: How it ended; None while it runs, or when the child ended first.
    """

    def __init__(
        self,
        market: RoundsMarket,
        place: Place,
        line: socket.socket,
        folder: Path,
        *,
        clock: Clock,
        keep_opened: Callable[[list[str]], None] | None = None,
    ) -> None:
        self._market = market
        self._place = place
        self._line = line
        self._folder = folder
        self._clock = clock
        self._keep_opened = keep_opened
        self._sent: set[tuple[int, int, str]] = set()
        self._rest = b""
        self._held = ""  # which model the child's file holds
        self.ended: Ended | None = None
        line.settimeout(0)

    def close(self) -> None:
        """Hang up; idempotent."""
        self._line.close()

    async def run(self) -> None:
        """Take part until the session is done, the lease is lost, or the child has ended."""
        backoff = Backoff(0.1, _MAX_PAUSE_S)
        while self.ended is None:
            try:
                if not await self._turn():
                    return
                backoff = Backoff(0.1, _MAX_PAUSE_S)
            except (StaleFence, TaskCancelled, NotFound) as exc:
                self.ended = Ended(FailureReason.INTERRUPTED, exc.message)
            except ExecutionFailed as exc:
                self.ended = Ended(exc.reason, exc.message)
            except ParityError as exc:  # late, or the market is away: the rounds go on without us until it answers
                await self._clock.sleep(backoff.after(exc))

    async def _turn(self) -> bool:
        """Do what comes next; returns whether the child lives."""
        step = await self._market.next_step(self._place, wait_s=POLL_S)
        if step.state == "done":
            self.ended = self._finished(step)
        if step.state != "train":
            return True
        if step.base != self._held:  # what was scored is what the next round trains from
            most = min(step.base_size + _MODEL_SLACK, MAX_UPDATE_BYTES)
            await self._market.model(self._place, step, self._folder / MODEL, max_bytes=most)
            self._held = step.base
        began = self._clock.monotonic()
        answer = await self._ask(
            {
                "asks": step.asks,
                "round": step.round,
                "phase": step.phase,
                "mu": step.proximal_mu,
                "format": step.update_format,
            }
        )
        if answer is None:
            return False
        opened = answer.get("opened")
        if isinstance(opened, list):
            await self._note_opened([str(name) for name in opened])
        update = await anyio.to_thread.run_sync((self._folder / UPDATE).read_bytes)
        metrics = {
            name: float(value)
            for name, value in answer.items()
            if name in {"loss", "samples", "steps"} and isinstance(value, int | float)
        }
        metrics["train_s"] = self._clock.monotonic() - began
        digest = sha256(update).digest()
        self._sent.add((step.round, step.phase, digest.hex()))
        await self._hand_in(step, update, metrics, digest)
        return True

    async def _note_opened(self, names: list[str]) -> None:
        if self._keep_opened is None:
            raise ExecutionFailed(FailureReason.NODE_FAULT, "this node keeps no list of the sums that it opened")
        await anyio.to_thread.run_sync(self._keep_opened, names)

    async def _hand_in(self, step: RoundStep, update: bytes, metrics: Mapping[str, float], digest: bytes) -> None:
        """Send an update until there is an answer; a late one is the market's to refuse."""
        backoff = Backoff(0.1, _MAX_PAUSE_S)
        while True:
            try:
                await self._market.send(self._place, step, update, metrics, digest=digest)
            except (StaleFence, TaskCancelled, NotFound):
                raise
            except Conflict:
                return
            except ParityError as exc:
                if not exc.retryable:
                    raise ExecutionFailed(FailureReason.NODE_FAULT, f"the update was refused: {exc.message}") from exc
                await self._clock.sleep(backoff.after(exc))
            else:
                return

    def _finished(self, step: RoundStep) -> Ended:
        """Return the part's result: the updates of this lease that are in the model."""
        pairs = [{"round": one.round, "phase": one.phase, "sha256": one.sha256} for one in step.accepted]
        if not pairs:
            why = f": {step.message}" if step.message else ""
            return Ended(FailureReason.INTERRUPTED, f"the session is done, without an update of this lease{why}")
        if not {(one.round, one.phase, one.sha256) for one in step.accepted} <= self._sent:
            return Ended(FailureReason.NODE_FAULT, "the market lists updates that this node did not send")
        document = {"format": FORMAT, "session": self._place.group_id, "part": self._place.part, "updates": pairs}
        data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
        return Ended(None, "", data, {"rounds": float(step.round - 1), "updates_accepted": float(len(pairs))})

    async def _ask(self, question: Mapping[str, object]) -> dict[str, object] | None:
        """Return the child's answer, or None when it has ended."""
        await self._write(json.dumps(question).encode() + b"\n")
        while b"\n" not in self._rest:
            piece = await self._read()
            if not piece or len(self._rest) > _MAX_LINE:
                return None
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            return None
        return answer if isinstance(answer, dict) else None

    async def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[self._line.send(data) :]
            except BlockingIOError:
                await anyio.wait_writable(self._line)
            except OSError:
                return  # it has ended, as the next read says

    async def _read(self) -> bytes:
        while True:
            try:
                return self._line.recv(_MAX_LINE)
            except BlockingIOError:
                await anyio.wait_readable(self._line)
            except OSError:
                return b""


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file anew: it has its name when the block ends well, and a child that has mapped the one before keeps it.

    Raises:
        ExecutionFailed: The disk is full, or cannot be used.
    """
    temporary = path.with_name(f".{path.name}")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except OSError as exc:
        raise ExecutionFailed(failure_of(exc), f"the round's model cannot be written: {exc.strerror}") from exc
    finally:
        temporary.unlink(missing_ok=True)
