"""A whole market in memory: signs with real keys, decides by the protocol's own rules, and misbehaves when told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import anyio

from parity_blobs.car_files import put_car, weight_of
from parity_blobs.importer import FileImporter
from parity_blobs.memory import MemoryBlobStore
from parity_node.market.base import PACKED_SUFFIX, MarketClient, MarketDirectory
from parity_node.testing.book import MANIFEST_TTL, SimulatedTask, TaskBook, command_spec
from parity_node.waiting import event_within
from parity_protocol.api import leases as wire
from parity_protocol.api.market import JWKS_TYPE, JwksReply, MarketKey
from parity_protocol.api.nodes import EnrolReply, EnrolRequest, Heartbeat, HeartbeatReply, enrolment_statement
from parity_protocol.api.storage import UploadReply
from parity_protocol.clock import Clock
from parity_protocol.errors import BadSignature, NodeInUse, NotFound, ParityError, Unreachable
from parity_protocol.join import JoinString, TrustedMarket, verify_market
from parity_protocol.manifest import MANIFEST_TYPE
from parity_protocol.signing import jws
from parity_protocol.signing.eip191 import recover_personal
from parity_protocol.signing.keys import Ed25519PublicKey
from parity_protocol.task import TaskState
from parity_protocol.testing.keys import deterministic_evm_key

__all__ = ["MarketSimulator", "SimulatedTask", "command_spec"]

SOFT_RESERVATION_S = 2.0
AHEAD_RESERVATION_S = 0.3  # of offers that come with the answer to claims

T = TypeVar("T")


class MarketSimulator(MarketClient, MarketDirectory):
    """A market that one test drives.

    Faults: ``go_offline``, ``lose_replies`` (the effect happens, the answer does not come), ``tamper`` (changes the
    payload of the manifests that it signs), ``tamper_token`` (changes signed tokens), ``fail_next`` (answers with an
    error).

    Args:
        ttl_s: Of leases.
        authority: Host that request signatures cover, for ``simulator_app``.
    """

    def __init__(self, clock: Clock, *, ttl_s: float = 30.0, authority: str = "market.test", name: str = "sim") -> None:
        self.clock = clock
        self.authority = authority
        self.book = TaskBook(clock, ttl_s=ttl_s, name=name, on_changed=self._notify)
        self.tasks, self.nodes, self.blobs = self.book.tasks, self.book.nodes, self.book.blobs
        self.identity, self.manifest_key = self.book.identity, self.book.manifest_key
        self.chain, self.thumbprint = self.book.chain, self.book.thumbprint
        self.spender = deterministic_evm_key(f"{name} spender")
        self.last_seen: dict[str, float] = {}
        self.goodbyes: list[str] = []  # instances
        self.heartbeats: list[Heartbeat] = []
        self.refused: list[wire.OfferRefusal] = []  # what nodes said that they refused
        self.policies: list[str] = []  # digests that polls named, each when it changed
        self.calls: dict[str, int] = {}
        self.problems: tuple[str, ...] = ()  # why nodes are not eligible
        self.eligible = True
        self.heartbeat_s = 30.0
        self.tamper: Callable[[dict[str, Any]], None] | None = None
        self.tamper_token: Callable[[str], str] | None = None
        self.is_online = True
        self._lost_replies: dict[str, int] = {}
        self._failures: dict[str, list[ParityError]] = {}
        self._changed = anyio.Event()

    def join(self, url: str) -> JoinString:
        """Return the join string for an address."""
        return JoinString(url, self.thumbprint)

    # -- driving it ----------------------------------------------------------------------------------------------

    def offer(self, spec: str | None = None, *, reward: int = 1_000, max_attempts: int = 3) -> SimulatedTask:
        """Add a task that is submitted and signed as a submitter would."""
        return self.book.offer(spec, reward=reward, max_attempts=max_attempts)

    def cancel(self, task: SimulatedTask) -> None:
        """Cancel a task."""
        self.book.cancel(task)

    def reap(self) -> list[str]:
        """Take back the leases that have run out; return their tasks."""
        return self.book.reap()

    def unfinished(self) -> list[SimulatedTask]:
        """Return the tasks that have not ended."""
        return self.book.unfinished()

    def go_offline(self) -> None:
        """Stop answering."""
        self.is_online = False
        self._notify()

    def come_back(self) -> None:
        """Answer again; live leases are extended first, as a market's start does (design §6)."""
        self.is_online = True
        for task in self.tasks.values():
            if task.lease is not None:
                task.lease = replace(task.lease, expires_at=self.clock.now() + task.lease.ttl)
        self._notify()

    def lose_replies(self, call: str, count: int = 1) -> None:
        """Let the next ``count`` calls of a method have their effect and no answer."""
        self._lost_replies[call] = count

    def fail_next(self, call: str, *errors: ParityError) -> None:
        """Answer the next calls of a method with errors, without effect."""
        self._failures.setdefault(call, []).extend(errors)

    # -- directory -----------------------------------------------------------------------------------------------

    def jwks(self) -> bytes:
        """Return the body of ``/.well-known/jwks.json``."""
        keys = [
            MarketKey(**self.identity.public_key.jwk(), use="identity"),
            MarketKey(**self.manifest_key.public_key.jwk(), use="manifest"),
        ]
        payload = {
            **jws.claims(
                self.thumbprint, "market", "*", jti=str(uuid4()), now=self.clock.now(), ttl=timedelta(hours=12)
            ),
            "keys": [key.model_dump() for key in keys],
            "authority": self.authority,
            "name": "simulated market",
            "version": "0.1.0",
            "chain": self.chain.model_dump(),
            "token": "0x" + "70" * 20,
            "token_symbol": "TOK",
            "token_decimals": 18,
            "spender": self.spender.address,
            "min_bond": "0",
            "confirmations": 1,
            "lease_ttl_s": self.book.ttl_s,
            "heartbeat_s": self.heartbeat_s,
        }
        signed = jws.sign(payload, self.identity, JWKS_TYPE)
        return JwksReply(keys=tuple(keys), signed=signed).model_dump_json().encode()

    async def trust(self) -> TrustedMarket:
        """Answer with the signed key set; see the port."""
        return await self._call("trust", lambda: verify_market(self.jwks(), self.thumbprint, now=self.clock.now()))

    async def enrol(self, request: EnrolRequest) -> EnrolReply:
        """Enrol a node; see the port."""
        return await self._call("enrol", lambda: self._enrol(request))

    async def upload(self, path: Path) -> UploadReply:
        """Store a file; see the port."""
        data = await anyio.Path(path).read_bytes()
        if path.suffix != PACKED_SUFFIX:
            return await self._call("upload", lambda: self.store_blob(data))
        self._check("upload")
        return self._reply("upload", await self.store_packed(data))

    async def store_packed(self, data: bytes) -> UploadReply:
        """Keep a CAR under its root's CID, once it is verified."""
        stat = await put_car(MemoryBlobStore(max_bytes=1 << 30), _whole(data))
        self.blobs[str(stat.cid)] = data
        return UploadReply(cid=str(stat.cid), size=weight_of(stat), visibility="private")

    # -- client --------------------------------------------------------------------------------------------------

    async def poll(self, request: wire.PollRequest, *, node_id: str | None = None) -> wire.PollReply:
        """Wait for work; see the port."""
        self._hear_of_policy(request)
        end = self.clock.monotonic() + request.wait_s
        while True:
            changed = self._changed
            self._check("poll")
            node = self._node(request.instance, node_id)
            tokens = tuple(self._manifest(task, node) for task in self._pending(request.slots))
            left_s = end - self.clock.monotonic()
            if tokens or left_s <= 0:
                return self._reply("poll", wire.PollReply(manifests=tokens))
            await event_within(changed, self.clock, min(left_s, 1.0))

    async def claim(self, request: wire.ClaimsRequest, *, node_id: str | None = None) -> wire.ClaimsReply:
        """Claim leases; see the port."""
        return await self._call(
            "claim",
            lambda: wire.ClaimsReply(
                claims=tuple(self.book.claim(item, self._node(request.instance, node_id)) for item in request.claims),
                manifests=tuple(
                    self._manifest(task, self._node(request.instance, node_id))
                    for task in self._pending(
                        min(request.ahead, wire.AHEAD_A_CLAIM * len(request.claims)), hold_s=AHEAD_RESERVATION_S
                    )
                ),
            ),
        )

    async def renew(self, request: wire.RenewRequest) -> wire.RenewsReply:
        """Renew leases; see the port."""
        return await self._call(
            "renew", lambda: wire.RenewsReply(renewals=tuple(self.book.renew(item) for item in request.renewals))
        )

    async def start(self, request: wire.StartRequest) -> wire.WriteReply:
        """Take note of starts; see the port."""
        return await self._call(
            "start", lambda: wire.WriteReply(items=tuple(self.book.start(item) for item in request.starts))
        )

    async def release(self, request: wire.ReleaseRequest) -> wire.WriteReply:
        """Take leases back; see the port."""
        return await self._call(
            "release", lambda: wire.WriteReply(items=tuple(self.book.release(item) for item in request.releases))
        )

    async def report(self, request: wire.ReportsRequest) -> wire.ReportReply:
        """Take reports; see the port."""
        return await self._call(
            "report", lambda: wire.ReportReply(reports=tuple(self.book.report(item) for item in request.reports))
        )

    async def logs(self, request: wire.LogsRequest) -> wire.WriteReply:
        """Append to logs; see the port."""
        return await self._call(
            "logs", lambda: wire.WriteReply(items=tuple(self.book.log(item) for item in request.chunks))
        )

    async def heartbeat(self, request: Heartbeat) -> HeartbeatReply:
        """Take note of a living node; see the port."""
        return await self._call("heartbeat", lambda: self._heartbeat(request))

    # -- decisions -----------------------------------------------------------------------------------------------

    def store_blob(self, data: bytes) -> UploadReply:
        """Keep a blob and return its CID."""
        importer = FileImporter()
        importer.feed(data)
        cid = str(importer.finish().cid)
        self.blobs[cid] = data
        return UploadReply(cid=cid, size=len(data), visibility="private")

    def _enrol(self, request: EnrolRequest) -> EnrolReply:
        statement = enrolment_statement(
            node_id=request.node_id,
            device_key=request.device_key,
            operator=request.operator,
            market=self.thumbprint,
            chain_id=self.chain.chain_id,
            vault=self.chain.vault,
            issued_at=request.issued_at,
        )
        signer = recover_personal(statement, bytes.fromhex(request.operator_signature[2:]))
        if signer != request.operator:
            raise BadSignature("the operator did not sign this enrolment")
        Ed25519PublicKey(jws.b64url_decode(request.device_key))
        known = self.nodes.get(request.node_id)
        if known is not None and known.instance != request.instance and known.instance not in self.goodbyes:
            quiet_s = self.clock.monotonic() - self.last_seen[request.node_id]
            if quiet_s < 2 * self.heartbeat_s:
                raise NodeInUse(f"this node runs on {known.hostname}, seen {quiet_s:.0f} s ago")
        self.goodbyes = [instance for instance in self.goodbyes if instance != request.instance]
        self.nodes[request.node_id] = request
        self.last_seen[request.node_id] = self.clock.monotonic()
        return EnrolReply(
            node_id=request.node_id,
            bond=0,
            min_bond=0,
            eligible=self.eligible,
            problems=self.problems,
            heartbeat_s=self.heartbeat_s,
            lease_ttl_s=self.book.ttl_s,
            time=self.clock.now(),
        )

    def _heartbeat(self, request: Heartbeat) -> HeartbeatReply:
        node = self._node(request.instance, None)
        self.last_seen[node] = self.clock.monotonic()
        self.heartbeats.append(request)
        if request.going_offline:
            self.goodbyes.append(request.instance)
        return HeartbeatReply(time=self.clock.now(), bond=0, eligible=self.eligible, problems=self.problems)

    def _node(self, instance: str, node_id: str | None) -> str:
        for known, request in self.nodes.items():
            if request.instance == instance and node_id in (None, known):
                return known
        raise NotFound("this node is not enrolled here")

    def _hear_of_policy(self, request: wire.PollRequest) -> None:
        if not self.is_online:
            return
        self.refused += request.refused
        if request.policy is not None and self.policies[-1:] != [request.policy]:
            self.policies.append(request.policy)

    def _pending(self, slots: int, *, hold_s: float = SOFT_RESERVATION_S) -> list[SimulatedTask]:
        self.reap()
        now = self.clock.monotonic()
        found = [t for t in self.tasks.values() if t.state is TaskState.PENDING and t.reserved_until <= now][:slots]
        for task in found:
            task.reserved_until = now + hold_s
        return found

    def _manifest(self, task: SimulatedTask, node_id: str) -> str:
        payload: dict[str, Any] = {
            **jws.claims(self.thumbprint, task.id, node_id, jti=str(uuid4()), now=self.clock.now(), ttl=MANIFEST_TTL),
            "spec": task.spec,
            "order": task.order.model_dump(mode="json"),
            "reward": str(task.reward),
            "total_reward": str(task.reward),
            "part": 0,
            "parts": 1,
            "attempt": task.attempts + 1,
            "ttl_s": self.book.ttl_s,
            "chain": self.chain.model_dump(),
        }
        if self.tamper is not None:
            self.tamper(payload)
        token = jws.sign(payload, self.manifest_key, MANIFEST_TYPE)
        return token if self.tamper_token is None else self.tamper_token(token)

    # -- small things --------------------------------------------------------------------------------------------

    async def _call(self, name: str, act: Callable[[], T]) -> T:
        await anyio.lowlevel.checkpoint()
        self._check(name)
        return self._reply(name, act())

    def _check(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        if not self.is_online:
            raise Unreachable("the market is offline")
        if self._failures.get(name):
            raise self._failures[name].pop(0)

    def _reply(self, name: str, reply: T) -> T:
        if self._lost_replies.get(name, 0) > 0:
            self._lost_replies[name] -= 1
            raise Unreachable("the answer was lost")
        return reply

    def _notify(self) -> None:
        event, self._changed = self._changed, anyio.Event()
        event.set()


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data
