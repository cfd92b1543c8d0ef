"""A part of a session whose rounds Flower carries: to the trainer, Flower is just another market to ask.

The market tells when the session is done and under which id it registered this lease's key; models and updates come
and go through a supervised SuperNode, whose ClientApp asks for training here.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final

import anyio
import structlog
from pydantic import ValidationError

from parity_node.executors.flower_links import Asked, relay, serve_trainer, superlink_address
from parity_node.executors.flower_process import REFUSED, SuperNode
from parity_node.executors.folder import printable_tail
from parity_node.executors.process import Child, Exit, OutputLog
from parity_node.executors.rounds import POLL_S, Place, RoundsMarket, new_file
from parity_node.waiting import Backoff, Signal
from parity_protocol.api.rounds import RoundStep, UpdateTaken
from parity_protocol.clock import Clock
from parity_protocol.errors import (
    DigestMismatch,
    ExecutionFailed,
    FailureReason,
    NotFound,
    ParityError,
    PolicyDenied,
    StaleFence,
    TaskCancelled,
    TooLarge,
)

__all__ = ["FlowerRounds"]

log = structlog.get_logger(__name__)

MAX_STARTS: Final = 6  # of a SuperNode for one registration of its key
MAX_LOG_BYTES: Final = 256 << 10
_MAX_PAUSE_S: Final = 15.0
_END_S: Final = 2.0
_COLOUR: Final = re.compile(rb"\x1b\[[0-9;]*m")
_EXIT: Final = re.compile(rb"Exit Code: [0-9]+\s(.+?)\s*(?:For more information|\Z)", re.DOTALL)  # how flwr says why
_LEAST_PAUSE_S: Final = 0.05  # between two questions to a market that does not wait


class FlowerRounds(RoundsMarket):
    """Implements ``RoundsMarket`` for one part; ``around`` runs what it needs while the rounds run.

    Args:
        market: Where the lease, the key's registration and the session's end are asked for.
        super_node: Of this lease.
        market_host: A SuperLink there is talked to wherever that is, one elsewhere at a public address.
    """

    def __init__(
        self, market: RoundsMarket, place: Place, super_node: SuperNode, *, clock: Clock, market_host: str = ""
    ) -> None:
        self._market = market
        self._place = place
        self._super_node = super_node
        self._clock = clock
        self._market_host = market_host
        self._inbox: deque[Asked | RoundStep | ParityError] = deque()
        self._came = Signal()
        self._current: Asked | None = None
        self._registered = ""  # the id that the SuperLink gave the key
        self._renewed = Signal()
        self._child: Child | None = None
        self._log = super_node.folder / "supernode.log"

    async def around(self, rounds: Callable[[], Awaitable[None]]) -> None:
        """Run ``rounds``, and beside it the sockets, the questions to the market and the SuperNode.

        Raises:
            ExecutionFailed: The sockets cannot be made (``node_fault``).
        """
        try:
            await self._around(rounds)
        except ExceptionGroup as exc:
            first = exc.exceptions[0]
            raise ExecutionFailed(FailureReason.NODE_FAULT, f"the SuperNode cannot be kept: {first}") from exc
        finally:
            self.kill()

    async def _around(self, rounds: Callable[[], Awaitable[None]]) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(serve_trainer, self._super_node.trainer, self._take)
            if self._super_node.bwrap is not None:
                fleet = self._super_node.fleet
                group.start_soon(
                    partial(relay, self._super_node.link, fleet.host, fleet.port, market_host=self._market_host)
                )
            group.start_soon(self._follow)
            group.start_soon(self._keep_running)
            await rounds()
            group.cancel_scope.cancel()

    def kill(self) -> None:
        """End the SuperNode at once; idempotent."""
        if self._child is not None:
            self._child.kill()

    def close(self) -> None:
        """End it, and remove its sockets; idempotent."""
        self.kill()
        self._super_node.remove()

    # -- what the rounds ask --------------------------------------------------------------------------------------

    async def next_step(self, place: Place, *, wait_s: float) -> RoundStep:
        """See the port: what a ClientApp was asked, or the session's end."""
        del place, wait_s
        if self._current is not None:
            self._current.answer({"error": "the round was not trained"})
            self._current = None
        while not self._inbox:
            await self._came.wait()
        found = self._inbox.popleft()
        if isinstance(found, ParityError):
            raise found
        if isinstance(found, RoundStep):
            return found
        self._current = found
        try:
            return _step_of(found)
        except ExecutionFailed as exc:
            found.answer({"error": exc.message})
            raise

    async def model(self, place: Place, step: RoundStep, into: Path, *, max_bytes: int) -> None:
        """See the port."""
        del place
        assert self._current is not None
        data = self._current.body
        if len(data) > max_bytes:
            raise TooLarge(f"the model has {len(data)} bytes, at most {max_bytes} are read")
        if sha256(data).hexdigest() != step.base:
            raise DigestMismatch(f"the model of round {step.round} is not {step.base[:16]}")
        with new_file(into) as file:
            file.write(data)

    async def send(
        self, place: Place, step: RoundStep, update: bytes, metrics: Mapping[str, float], *, digest: bytes
    ) -> UpdateTaken:
        """See the port: the ClientApp carries it on."""
        del place, step
        assert self._current is not None
        said = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._current.answer({"metrics": said}, update)
        self._current = None
        return UpdateTaken(sha256=digest.hex(), size=len(update), created=True)

    async def flower_step(self, place: Place, *, key: str, known: str, wait_s: float) -> RoundStep:
        """See the port."""
        return await self._market.flower_step(place, key=key, known=known, wait_s=wait_s)

    # -- beside them ----------------------------------------------------------------------------------------------

    async def _take(self, asked: Asked) -> None:
        self._put(asked)

    def _put(self, item: Asked | RoundStep | ParityError) -> None:
        self._inbox.append(item)
        self._came.set()

    async def _follow(self) -> None:
        """Ask the market until the session is done or the part is not ours any more."""
        backoff = Backoff(0.1, _MAX_PAUSE_S)
        while True:
            try:
                step = await self.flower_step(
                    self._place, key=self._super_node.public_key, known=self._registered, wait_s=POLL_S
                )
                backoff.reset()
            except (StaleFence, TaskCancelled, NotFound) as exc:
                self._put(exc)
                return
            except ParityError as exc:
                await self._clock.sleep(backoff.after(exc))
                continue
            if step.state == "done":
                self._put(step)
                return
            if step.flower_node not in ("", self._registered):
                self._registered = step.flower_node
                self._renewed.set()
            await self._clock.sleep(_LEAST_PAUSE_S)

    async def _keep_running(self) -> None:
        """Start the SuperNode once its key is registered, and again when it ends, a bounded number of times."""
        await self._renewed.wait()
        starts, backoff = 0, Backoff(1.0, _MAX_PAUSE_S)
        while True:
            if starts >= MAX_STARTS:
                self._put(ExecutionFailed(FailureReason.NETWORK_FAULT, f"the SuperNode ends: {self._last_words()}"))
                return
            starts += 1
            try:
                ended = await self._one_life()
            except ExecutionFailed as exc:
                self._put(exc)
                return
            if ended is None:  # the SuperLink is another one now
                starts, backoff = 0, Backoff(1.0, _MAX_PAUSE_S)
                continue
            if ended.status == REFUSED:
                self._put(ExecutionFailed(FailureReason.SPEC_INVALID, self._last_words() or "another bundle came"))
                return
            log.warning("supernode_ended", group_id=self._place.group_id, part=self._place.part, status=ended.status)
            await self._clock.sleep(backoff.after())

    async def _one_life(self) -> Exit | None:
        """Run the SuperNode; return how it ended, or None when it was ended because its key was registered anew."""
        fleet = self._super_node.fleet
        try:
            await superlink_address(fleet.host, fleet.port, market_host=self._market_host)
        except PolicyDenied as exc:
            raise ExecutionFailed(FailureReason.NETWORK_FAULT, f"the SuperLink is refused: {exc.message}") from exc
        except ParityError:  # the SuperNode says itself that it finds nobody
            log.info("superlink_not_found", superlink=fleet.superlink)
        argv, env = self._super_node.command()
        output = OutputLog(self._log, MAX_LOG_BYTES)
        try:
            child = self._child = Child(argv, env=env, cwd=self._super_node.folder, output=output, new_group=True)
        except BaseException:
            output.close()
            raise
        found: list[Exit] = []
        try:
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    found.append(await child.wait())
                    group.cancel_scope.cancel()

                group.start_soon(watch)
                await self._renewed.wait()
                group.cancel_scope.cancel()
        finally:
            child.kill()
            with anyio.move_on_after(_END_S, shield=True):
                await child.wait()
                await output.finish()
            output.close()
        return found[0] if found else None

    def _last_words(self) -> str:
        """The end of what it printed: flwr says there why it ends."""
        try:
            data = self._log.read_bytes()
        except OSError:
            return ""
        data = _COLOUR.sub(b"", data)
        refusals = [line for line in data.splitlines() if line.startswith(b"refused: ")]
        said = _EXIT.search(data)
        return printable_tail(refusals[-1] if refusals else said[1] if said is not None else data)


def _step_of(asked: Asked) -> RoundStep:
    """Read what the ServerApp passed on; the market made it."""
    try:
        step = RoundStep.model_validate_json(str(asked.header.get("step", "")))
    except ValidationError as exc:
        raise ExecutionFailed(
            FailureReason.NETWORK_FAULT, "the ClientApp asked for something else than a round"
        ) from exc
    return step.model_copy(update={"state": "train"})
