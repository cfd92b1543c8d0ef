"""Being known to the market: introduction, heartbeats, and what the market says of this node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import anyio
import structlog

from parity_node.keys import NodeKeys
from parity_node.market.base import MarketClient, MarketDirectory
from parity_node.market.trust import MarketTrust
from parity_node.supervise import FATAL
from parity_node.waiting import Backoff, Comeback, Signal, within
from parity_protocol.api.nodes import EnrolRequest, Heartbeat, enrolment_statement
from parity_protocol.capability import Capability
from parity_protocol.clock import Clock
from parity_protocol.errors import ClockSkew, Forbidden, NotFound, ParityError, Unauthenticated, Unreachable, Untrusted
from parity_protocol.signing.eip191 import sign_personal
from parity_protocol.signing.jws import b64url_encode

__all__ = ["Load", "Presence", "Standing"]

CALL_TIMEOUT_S = 15.0
CAPABILITY_INTERVAL_S = 100.0  # the market forgets one after 300 s
SKEW_WARN_S = 30.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Load:
    """What a heartbeat says of the node's work."""

    free_slots: int
    running: tuple[str, ...]  # task ids
    is_draining: bool
    outbox_rows: int


@dataclass(frozen=True, slots=True)
class Standing:
    """The market's view of this node, as it said last."""

    is_enrolled: bool = False
    is_eligible: bool = False
    problems: tuple[str, ...] = ()  # why it gets no work, in words
    bond: int = 0  # base units
    min_bond: int = 0
    heard_at: datetime | None = None  # our clock, UTC
    clock_offset_s: float = 0.0  # the market's clock minus ours


class Presence:
    """Introduces the node and keeps it known.

    Args:
        interval_s: Longest time between two heartbeats; the market's own wins if shorter.
        capability: Measures the node now.
        load: Returns what it is doing now.
        comeback: Told of each answer and of each try without one.
    """

    def __init__(
        self,
        *,
        market: MarketClient,
        directory: MarketDirectory,
        trust: MarketTrust,
        keys: NodeKeys,
        clock: Clock,
        hostname: str,
        interval_s: float,
        capability: Callable[[], Capability],
        load: Callable[[], Load],
        comeback: Comeback | None = None,
    ) -> None:
        self._market = market
        self._directory = directory
        self._trust = trust
        self._keys = keys
        self._clock = clock
        self._hostname = hostname
        self._own_interval_s = interval_s
        self._interval_s = interval_s
        self._capability = capability
        self._load = load
        self._comeback = comeback or Comeback()
        self._eligible = anyio.Event()
        self._beat_now = Signal()
        self._capability_sent_at = float("-inf")
        self.standing = Standing()

    async def wait_eligible(self) -> None:
        """Return when the market gives this node work."""
        await self._eligible.wait()

    def doubt(self) -> None:
        """Ask the market again soon: it has just refused us."""
        self._set(is_eligible=False)
        self._beat_now.set()

    def hurry(self) -> None:
        """Send a heartbeat now, since something about the node changed."""
        self._beat_now.set()

    def announce(self) -> None:
        """Send a heartbeat with the node's capability now, since that changed."""
        self._capability_sent_at = float("-inf")
        self._beat_now.set()

    async def introduce(self) -> None:
        """Check the market's identity and enrol.

        Raises:
            NodeInUse: Another machine runs with this key.
            ConfigInvalid: It is not the market that was pinned.
            ParityError: As the market raised it, or it does not answer.
        """
        await within(self._clock, CALL_TIMEOUT_S, self._trust.establish)
        market = self._trust.market
        now = self._clock.now()
        device_key = b64url_encode(self._keys.device.public_key.raw)
        chain = market.document.chain
        statement = enrolment_statement(
            node_id=self._keys.node_id,
            device_key=device_key,
            operator=self._keys.operator.address,
            market=market.thumbprint,
            chain_id=chain.chain_id,
            vault=chain.vault,
            issued_at=int(now.timestamp()),
        )
        request = EnrolRequest(
            node_id=self._keys.node_id,
            device_key=device_key,
            operator=self._keys.operator.address,
            issued_at=int(now.timestamp()),
            operator_signature="0x" + sign_personal(statement, self._keys.operator).hex(),
            instance=self._keys.instance,
            hostname=self._hostname[:64],
            capability=self._capability(),
        )
        sent_at = self._clock.now()
        reply = await within(self._clock, CALL_TIMEOUT_S, lambda: self._directory.enrol(request))
        self._capability_sent_at = self._clock.monotonic()
        self._interval_s = min(self._own_interval_s, reply.heartbeat_s)
        self._hear(sent_at, reply.time)
        self._set(
            is_enrolled=True,
            is_eligible=reply.eligible,
            problems=reply.problems,
            bond=reply.bond,
            min_bond=reply.min_bond,
        )
        log.info("node_enrolled", node_id=self._keys.node_id, eligible=reply.eligible, market=market.document.name)

    async def run(self) -> None:
        """Enrol, then send heartbeats, until cancelled.

        Raises:
            NodeInUse, ConfigInvalid: No retry can help.
        """
        backoff = Backoff(0.5, 30.0)
        while True:
            try:
                if not self.standing.is_enrolled:
                    await self.introduce()
                else:
                    await self._beat()
                backoff.reset()
                self._comeback.answered()
                pause_s = self._interval_s
            except FATAL:
                raise
            except (ParityError, TimeoutError) as exc:
                if isinstance(exc, Unreachable | TimeoutError):
                    self._comeback.failed()
                pause_s = min(backoff.after(exc), self._interval_s)
                self._complain(exc, pause_s)
            await self._beat_now.wait_within(self._clock, pause_s)

    async def say_goodbye(self, timeout_s: float) -> None:
        """Send the last heartbeat, which frees this instance at once; best effort."""
        if not self.standing.is_enrolled:
            return
        beat = Heartbeat(instance=self._keys.instance, free_slots=0, draining=True, going_offline=True)
        try:
            await within(self._clock, timeout_s, lambda: self._market.heartbeat(beat))
        except (ParityError, TimeoutError) as exc:
            log.info("goodbye_not_sent", error=str(exc))

    async def _beat(self) -> None:
        load = self._load()
        is_due = self._clock.monotonic() - self._capability_sent_at >= CAPABILITY_INTERVAL_S
        beat = Heartbeat(
            instance=self._keys.instance,
            free_slots=load.free_slots,
            running=load.running,
            draining=load.is_draining,
            outbox=load.outbox_rows,
            capability=self._capability() if is_due else None,
        )
        sent_at = self._clock.now()
        reply = await within(self._clock, CALL_TIMEOUT_S, lambda: self._market.heartbeat(beat))
        if is_due:
            self._capability_sent_at = self._clock.monotonic()
        self._hear(sent_at, reply.time)
        self._set(is_eligible=reply.eligible, problems=reply.problems, bond=reply.bond)

    def _hear(self, sent_at: datetime, market_time: datetime) -> None:
        now = self._clock.now()
        offset_s = (market_time - (sent_at + (now - sent_at) / 2)).total_seconds()
        if abs(offset_s) > SKEW_WARN_S and abs(self.standing.clock_offset_s) <= SKEW_WARN_S:
            log.warning(
                "clock_differs",
                market_time=market_time.isoformat(timespec="seconds"),
                own_time=now.isoformat(timespec="seconds"),
                difference_s=round(offset_s, 1),
                hint=ClockSkew.next_step,
            )
        self._set(heard_at=now, clock_offset_s=offset_s)

    def _complain(self, exc: Exception, pause_s: float) -> None:
        code = exc.code if isinstance(exc, ParityError) else "timeout"
        hint = exc.hint() if isinstance(exc, ParityError) else ""
        text = str(exc)
        if isinstance(exc, ClockSkew):
            text += f" (this machine's time is {self._clock.now().isoformat(timespec='seconds')})"
        log.warning("market_refuses" if code != "unreachable" else "market_unreachable", code=code, error=text, hint=hint, retry_in_s=round(pause_s, 1))  # fmt: skip
        is_unknown_here = isinstance(exc, NotFound | Unauthenticated | Forbidden | Untrusted)
        if is_unknown_here and not isinstance(exc, ClockSkew):
            self._set(is_enrolled=False, is_eligible=False, problems=(text,))
        elif not self.standing.is_enrolled or not isinstance(exc, TimeoutError):
            self._set(problems=(text,))

    def _set(self, **changes: object) -> None:
        before = self.standing
        self.standing = replace(before, **changes)  # type: ignore[arg-type]  # our own field names
        if self.standing.is_eligible:
            self._eligible.set()
        elif self._eligible.is_set():
            self._eligible = anyio.Event()
        if self.standing.problems and self.standing.problems != before.problems and not self.standing.is_eligible:
            log.warning("no_work_yet", problems=list(self.standing.problems))
