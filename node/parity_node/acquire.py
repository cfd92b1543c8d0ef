"""Getting work: poll, verify, admit, journal the intent, claim, hand over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from uuid import uuid4

import structlog

from parity_node.admission import Committed, admit
from parity_node.cache import NodeCache
from parity_node.crashpoints import crashpoint
from parity_node.disk import DiskGuard
from parity_node.disk_need import need_of
from parity_node.execution import Work
from parity_node.giving_back import give_back
from parity_node.market.base import MarketClient
from parity_node.market.trust import MarketTrust
from parity_node.operator_policy import OperatorPolicy
from parity_node.store.base import Execution, IntentState, NodeStore, Phase
from parity_node.waiting import Backoff, within
from parity_protocol.api.leases import (
    MAX_BATCH,
    MAX_REFUSED,
    ClaimItem,
    ClaimReply,
    ClaimsReply,
    ClaimsRequest,
    OfferRefusal,
    PollRequest,
)
from parity_protocol.capability import Capability
from parity_protocol.clock import Clock
from parity_protocol.errors import FailureReason, ParityError, Replayed, Unavailable
from parity_protocol.lease import local_deadline
from parity_protocol.manifest import VerifiedManifest
from parity_protocol.policy import Denial
from parity_protocol.signing.jws import LEEWAY
from parity_protocol.task import CommandSpec, DockerSpec, FederatedLearningSpec, LlmSpec

__all__ = ["Acquirer", "Answer", "Granted"]

POLL_WAIT_S = 20.0
CLAIM_TIMEOUT_S = 5.0  # of one try
CLAIM_WINDOW_S = 15.0  # in which a claim without an answer is repeated with the same id
MAX_TOLD = 200  # characters of a refusal's message
SHORTEST_POLL_S = 0.25  # a market that answers at once with nothing must not make us spin

_ROOM_RULES = frozenset(
    {"memory", "disk", "disk.inputs_do_not_fit", "disk.results_do_not_fit"}
)  # what ends with the tasks that run

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease that a claim gave."""

    execution: Execution
    work: Work
    sent_at: float  # Clock.monotonic() before the claim was sent


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of some offers."""

    leases: int
    ahead: tuple[str, ...] = ()  # offers that came with the claims' answer
    is_cramped: bool = False  # an early one does not fit beside what runs


@dataclass(frozen=True, slots=True)
class _NoRoom:
    """An early offer does not fit beside what runs."""


class Acquirer:
    """Turns offers into leases.

    Args:
        policy: The operator's own; it is looked at again before each poll and each offer.
        on_refused: Told of each rule that refused an offer, with the task's id.
        node_version: Three numbers.
    """

    def __init__(
        self,
        *,
        market: MarketClient,
        trust: MarketTrust,
        store: NodeStore,
        clock: Clock,
        policy: OperatorPolicy,
        instance: str,
        node_version: str,
        boot_id: str,
        disk: DiskGuard,
        cache: NodeCache,
        capability: Callable[[], Capability],
        committed: Callable[[], Committed],
        on_refused: Callable[[Denial, str], None],
    ) -> None:
        self._market = market
        self._trust = trust
        self._store = store
        self._clock = clock
        self._policy = policy
        self._instance = instance
        self._node_version = node_version
        self._boot_id = boot_id
        self._disk = disk
        self._cache = cache
        self._capability = capability
        self._committed = committed
        self._on_refused = on_refused
        self._under_way = Committed()  # what the offers whose claims are on their way would use
        self._untold: dict[tuple[str, str], OfferRefusal] = {}  # refusals that the market has not heard of
        self.claimed = 0

    async def poll(self, slots: int) -> tuple[str, ...]:
        """Wait for offers; empty when there were none. Cancelling it loses nothing: reservations lapse by themselves.

        Raises:
            ParityError: As the market raised it.
        """
        asked_at = self._clock.monotonic()
        self._policy.refresh()
        told = dict(self._untold)
        request = PollRequest(
            instance=self._instance,
            slots=min(slots, MAX_BATCH),
            wait_s=POLL_WAIT_S,
            policy=self._policy.digest,
            refused=tuple(told.values()),
        )
        reply = await self._market.poll(request)
        for key, refusal in told.items():
            if self._untold.get(key) is refusal:
                del self._untold[key]
        if not reply.manifests:
            took_s = self._clock.monotonic() - asked_at
            await self._clock.sleep(max(min(reply.retry_after_s, 60.0), SHORTEST_POLL_S - took_s, 0.0))
        return reply.manifests[:slots]

    async def take(
        self,
        manifests: tuple[str, ...],
        answered: Callable[[Answer], None],
        hand_over: Callable[[Granted], Awaitable[FailureReason | None]],
        *,
        ahead: int = 0,
        early: int = 0,
    ) -> None:
        """Verify, admit and claim offers; what is refused is counted and logged, never raised.

        Args:
            answered: Told what came of them, before the first lease is handed over.
            hand_over: Begins a lease's execution, when there is a slot for it, or says why the lease goes back. Until
                then what it may use stays counted here, so that no other offer is promised the same room.
            ahead: How many offers to ask for with the claims, for when their work is done.
            early: For so many of the offers, the last ones, there is no slot yet. One that has no room beside what runs
                is left to itself: it was not asked too much.

        Raises:
            StorageFull: The intent cannot be journalled; nothing was claimed.
        """
        mine = Committed()
        is_cramped = False
        try:
            wanted = []
            for index, token in enumerate(manifests):
                is_early = index >= len(manifests) - early
                verified = await self._check(token, self._committed() + self._under_way, is_early=is_early)
                if isinstance(verified, _NoRoom):
                    is_cramped = True
                    break
                if verified is not None:
                    asked = _asked(verified.spec)
                    mine, self._under_way = mine + asked, self._under_way + asked
                    wanted.append(verified)
            granted, offers = await self._take(wanted, ahead)
            answered(Answer(len(granted), offers, is_cramped))
            unused: dict[FailureReason, list[Granted]] = {}
            for lease in granted:
                reason = await hand_over(lease)
                asked = _asked(lease.work.spec)
                mine, self._under_way = mine - asked, self._under_way - asked
                if reason is not None:
                    unused.setdefault(reason, []).append(lease)
            for reason, leases in unused.items():
                await self._give_back([lease.execution for lease in leases], reason)
        finally:
            self._under_way -= mine

    async def _give_back(self, rows: list[Execution], reason: FailureReason) -> None:
        """Give leases back under which nothing was begun, and forget them; their manifests stay used."""
        for row in rows:
            log.info("lease_handed_back", task_id=row.task_id, fence=row.fence, reason=reason.value)
        await give_back(self._market, self._clock, rows, reason, message="the node had no slot free for it in time")
        for row in rows:
            self._store.forget(row.id)

    async def _take(self, wanted: list[VerifiedManifest], ahead: int) -> tuple[list[Granted], tuple[str, ...]]:
        if not wanted:
            return [], ()
        now = int(self._clock.now().timestamp())
        intents = await self._store.record_intents([self._intent(verified) for verified in wanted], now=now)
        crashpoint("claim.intent.journalled")
        claims: list[tuple[Execution, VerifiedManifest]] = []
        for verified, intent in zip(wanted, intents, strict=True):
            if intent.state is IntentState.USED:
                self._refuse(Denial(Replayed.code, "its manifest was used before"), verified.task_id)
            else:
                claims.append((intent.execution, verified))
        return await self._claim(claims, ahead) if claims else ([], ())

    async def _check(
        self, token: str, committed: Committed, *, is_early: bool = False
    ) -> VerifiedManifest | _NoRoom | None:
        try:
            verified = await self._trust.verify(token, node_version=self._node_version)
        except ParityError as exc:
            # Nothing in it can be trusted, the task's id included.
            self._refuse(Denial(f"manifest.{exc.code}", exc.message), "")
            return None
        self._policy.refresh()
        denials = admit(
            verified,
            policy=self._policy.current,
            capability=self._capability(),
            committed=committed,
            now=self._clock.now(),
        )
        denials += await self._cache.denials(verified.spec, self._disk, committed.disk)
        if is_early and denials and all(denial.rule in _ROOM_RULES for denial in denials):
            return _NoRoom()
        for denial in denials:
            self._refuse(denial, verified.task_id)
            self._tell(denial, verified.task_id)
        return None if denials else verified

    def _refuse(self, denial: Denial, task_id: str) -> None:
        log.warning("offer_refused", task_id=task_id, rule=denial.rule, reason=denial.message)
        self._on_refused(denial, task_id)

    def _tell(self, denial: Denial, task_id: str) -> None:
        """Let the next poll say what was refused; the oldest is left out when there is too much to say."""
        refusal = OfferRefusal(task_id=task_id, rule=denial.rule, message=denial.message[:MAX_TOLD])
        self._untold.pop((task_id, denial.rule), None)
        self._untold[task_id, denial.rule] = refusal
        while len(self._untold) > MAX_REFUSED:
            del self._untold[next(iter(self._untold))]

    def _intent(self, verified: VerifiedManifest) -> Execution:
        manifest = verified.manifest
        return Execution(
            id=str(uuid4()),
            task_id=manifest.sub,
            jti=manifest.jti,
            jti_expires_at=manifest.exp + int(LEEWAY.total_seconds()),
            claim_id=str(uuid4()),
            kind=verified.spec.type,
            manifest=verified.token,
            manifest_hash=verified.hash,
            order_hash=verified.order_hash,
            reward=manifest.reward,
        )

    async def _claim(
        self, claims: list[tuple[Execution, VerifiedManifest]], ahead: int
    ) -> tuple[list[Granted], tuple[str, ...]]:
        request = ClaimsRequest(
            instance=self._instance,
            claims=tuple(ClaimItem(manifest=row.manifest, claim_id=row.claim_id) for row, _ in claims),
            ahead=ahead,
        )
        sent_at, reply = await self._send(request)
        crashpoint("claim.sent")
        granted = []
        for index, (row, verified) in enumerate(claims):
            lease = reply.claims[index] if reply is not None else None
            if lease is None or not self._is_granted(row, lease):
                self._store.forget(row.id)
                continue
            taken = replace(
                row,
                phase=Phase.CLAIMED,
                lease_id=lease.lease_id,
                fence=lease.fence,
                ttl_s=lease.ttl_s,
                deadline=local_deadline(sent_at, lease.ttl_s),
                boot_id=self._boot_id,
            )
            self._store.note(
                row.id,
                phase=taken.phase,
                lease_id=taken.lease_id,
                fence=taken.fence,
                ttl_s=taken.ttl_s,
                deadline=taken.deadline,
                boot_id=taken.boot_id,
            )
            crashpoint("claim.journalled")
            log.info("lease_claimed", task_id=row.task_id, fence=taken.fence, ttl_s=taken.ttl_s, kind=row.kind)
            granted.append(Granted(taken, Work(verified.manifest, verified.spec), sent_at))
        self.claimed += len(granted)
        return granted, reply.manifests[:ahead] if reply is not None else ()

    async def _send(self, request: ClaimsRequest) -> tuple[float, ClaimsReply | None]:
        """Send claims until they are answered or their time is over; the same ids get the same leases."""
        backoff = Backoff(0.1, 2.0)
        end = self._clock.monotonic() + CLAIM_WINDOW_S
        first_sent_at = self._clock.monotonic()
        while True:
            try:
                # A repeated claim returns the lease that the first one made, so time counts from the first.
                return first_sent_at, await within(self._clock, CLAIM_TIMEOUT_S, lambda: self._market.claim(request))
            except (Unavailable, TimeoutError) as exc:
                pause_s = backoff.after(exc if isinstance(exc, ParityError) else None)
                if self._clock.monotonic() + pause_s >= end:
                    log.warning("claims_not_answered", claims=len(request.claims), error=str(exc))
                    return first_sent_at, None
                await self._clock.sleep(pause_s)
            except ParityError as exc:
                log.warning("claims_refused", claims=len(request.claims), code=exc.code, error=exc.message)
                return first_sent_at, None

    def _is_granted(self, row: Execution, reply: ClaimReply) -> bool:
        if reply.status != 200 or reply.claim_id != row.claim_id:
            code = reply.problem.code if reply.problem is not None else str(reply.status)
            detail = reply.problem.detail if reply.problem is not None else ""
            self._refuse(Denial(f"claim.{code}", detail), row.task_id)
            return False
        try:
            self._trust.check_lease(reply, task_id=row.task_id, claim_id=row.claim_id, manifest_hash=row.manifest_hash)
        except ParityError as exc:
            self._refuse(Denial(f"lease.{exc.code}", exc.message), row.task_id)
            return False
        return True


def _asked(spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec) -> Committed:
    return Committed(spec.resources.memory_bytes, need_of(spec))
