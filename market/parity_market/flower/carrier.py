"""Sessions that Flower carries: a supervised SuperLink each, and between it and the market's own rounds nothing but this.

Rounds, quorum, deadlines, rules, checkpoints, scores and pay stay where they are for every session. What is here is in
memory: after a restart of the market or of a SuperLink, nodes name their keys again with their next question.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from parity_market.flower.bridge import Body, serve_bridge
from parity_market.flower.fleets import Fleets
from parity_market.flower.processes import Control, Processes, SuperLinkLost, Talker
from parity_market.operations import groups, round_steps, rounds
from parity_market.operations.context import Signals
from parity_market.operations.groups import Group
from parity_market.operations.rounds import NewUpdate
from parity_market.round_engine import AFTER_RESTART, RoundEngine
from parity_market.store.base import MarketStore, ReadTx, Tx
from parity_market.store.rows import to_us
from parity_protocol.api.rounds import RoundStep
from parity_protocol.clock import Clock
from parity_protocol.errors import BadField, Conflict, NotFound, StaleFence, TaskCancelled, Unavailable
from parity_protocol.task import FederatedLearningSpec, GroupState

__all__ = ["FlowerSessions", "Holder", "is_carried", "public_key_of"]

log = structlog.get_logger(__name__)

MAX_STARTS = 4  # of a SuperLink in a row
FIRST_DELAY_S = 1.0
CALM_S = 120.0  # a SuperLink that lived so long has recovered
CONNECT_S = 60.0  # for its ServerApp to ask its first question
KEY = re.compile(r"0[23][0-9a-f]{96}")
SAID = frozenset({"loss", "samples", "steps", "train_s"})


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a part, and by which key its SuperNode speaks."""

    part: int
    node_id: str
    lease_id: str
    fence: int
    key: str


def is_carried(group: Group) -> bool:
    """Return whether Flower carries a session's rounds."""
    spec = group.value.spec
    return isinstance(spec, FederatedLearningSpec) and spec.engine == "flower"


def public_key_of(text: str) -> str:
    """Return a SuperNode's public key as PEM.

    Args:
        text: A compressed point of P-384, hex.

    Raises:
        BadField: It is none.
    """
    if not KEY.fullmatch(text):
        raise BadField("flower_key: expected a compressed point of P-384, hex", field="flower_key")
    try:
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), bytes.fromhex(text))
    except ValueError as exc:
        raise BadField("flower_key: not a point of P-384", field="flower_key") from exc
    pem = point.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


class _Carriage:
    """One session under way: its holders, and the ids that its present SuperLink gave their keys."""

    def __init__(self) -> None:
        self.holders: dict[int, Holder] = {}
        self.ids: dict[str, str] = {}  # key → the SuperLink's node id
        self.changed = asyncio.Event()
        self.ended = False

    def admit(self, holder: Holder) -> None:
        """Note who holds a part; a lease has one key, and a key one lease.

        Raises:
            Conflict: It is not so.
        """
        known = self.holders.get(holder.part)
        if known == holder:
            return
        if known is not None and known.lease_id == holder.lease_id and known.fence == holder.fence:
            raise Conflict(f"the lease of part {holder.part} has another key already")
        if any(one.key == holder.key for one in self.holders.values()):
            raise Conflict("this key is another lease's")
        self.holders[holder.part] = holder
        self.changed.set()


class FlowerSessions:
    """Carries sessions; ``carry`` is called by the training loop, ``step`` by the nodes' route."""

    def __init__(self, store: MarketStore, rounds: RoundEngine, fleets: Fleets, signals: Signals, clock: Clock) -> None:
        self._store = store
        self._rounds = rounds
        self._signals = signals
        self._clock = clock
        self._carriages: dict[str, _Carriage] = {}
        self.fleets = fleets

    # -- the nodes' side ------------------------------------------------------------------------------------------

    def step(self, group_id: str, holder: Holder, step: RoundStep) -> RoundStep:
        """Return what a holder is told: it never trains by itself, but gets the id that its key is registered under.

        Args:
            holder: Its lease is current; a key that it names for the first time is registered as soon as may be.
            step: What a node that trains without Flower would be told.

        Raises:
            Conflict: The lease has another key already, or the key is another lease's.
        """
        carriage = self._carriages.get(group_id)
        if carriage is not None:
            carriage.admit(holder)
        state = "wait" if step.state == "train" else step.state
        found = "" if carriage is None else carriage.ids.get(holder.key, "")
        return step.model_copy(update={"state": state, "model": "", "flower_node": found})

    # -- the loop's side ------------------------------------------------------------------------------------------

    async def carry(self, group: Group) -> None:
        """Keep a session's SuperLink running until this is cancelled, or the session ends.

        Raises:
            Unavailable: Flower is not installed here any more, or the SuperLink ended too often; says what it said.
        """
        group_id, failures = group.value.id, 0
        carriage = self._carriages.setdefault(group_id, _Carriage())
        try:
            while not carriage.ended:
                began = self._clock.monotonic()
                try:
                    await self._once(group, carriage)
                except SuperLinkLost as exc:
                    failures = 1 if self._clock.monotonic() - began >= CALM_S else failures + 1
                    log.warning("superlink_lost", group_id=group_id, failures=failures, problem=exc.message)
                    if failures >= MAX_STARTS:
                        raise
                    await self._clock.sleep(FIRST_DELAY_S * 2 ** (failures - 1))
                finally:
                    carriage.ids.clear()
        finally:
            self._carriages.pop(group_id, None)

    async def remove(self, group: Group) -> None:
        """Remove the files of a session that has ended."""
        await self.fleets.remove(self._session_id(group))

    def _session_id(self, group: Group) -> str:
        return self._rounds.known(group).session.spec.session_id

    async def _once(self, group: Group, carriage: _Carriage) -> None:
        """Run one SuperLink until something of it ends."""
        group_id = group.value.id
        session_id = self._session_id(group)
        fleet, folder = self.fleets.begin(session_id), self.fleets.folder(session_id)
        if fleet is None:
            raise Unavailable(f"the files of session {group_id}'s SuperLink are gone")
        port = str(fleet.port)
        await self._put_off(group_id)
        carried = _Carried(self._store, self._rounds, self._clock, group_id, carriage)
        async with serve_bridge(folder, carried) as bridge, Processes(folder) as processes:
            host = self.fleets.listen_host
            superlink = await processes.start("superlink", [str(folder / "control.secret"), host, port, str(folder)])
            control = Control(await processes.start("control", [str(folder), port], talks=True))
            try:
                async with asyncio.TaskGroup() as turn:
                    others = (
                        turn.create_task(_ended(superlink)),
                        turn.create_task(self._serve(group_id, carriage, control, str(bridge.path))),
                    )
                    await _within(bridge.connected, CONNECT_S, superlink)
                    await self._put_off(group_id)
                    log.info("superlink_started", group_id=group_id, superlink=fleet.superlink)
                    await bridge.hung_up.wait()
                    if not carriage.ended:
                        raise SuperLinkLost(f"the ServerApp ended before the session: {superlink.last_words}")
                    for task in others:
                        task.cancel()
            except ExceptionGroup as failed:
                lost = failed.subgroup(SuperLinkLost)
                if lost is None:
                    raise
                raise lost.exceptions[0] from failed

    async def _put_off(self, group_id: str) -> None:
        """Give the open round time from now on: nodes could not be reached while there was no SuperLink."""
        now = self._clock.now()
        later = now + AFTER_RESTART

        def write(tx: Tx) -> None:
            session = rounds.session_of(tx, group_id) if rounds.has_session(tx, group_id) else None
            if session is not None and session.deadline_us is not None and session.deadline_us < to_us(later):
                rounds.set_clock(tx, group_id, later, session.message, now)

        await self._store.write(write)

    async def _serve(self, group_id: str, carriage: _Carriage, control: Control, bridge: str) -> None:
        """Start the run, then register keys as they come."""
        try:
            await control.ask({"do": "start", "bridge": bridge})
        except Conflict as exc:
            raise SuperLinkLost(exc.message) from exc
        while True:
            carriage.changed.clear()
            for holder in [one for one in carriage.holders.values() if one.key not in carriage.ids]:
                try:
                    answer = await control.ask({"do": "register", "key": public_key_of(holder.key)})
                except Conflict as exc:  # one node's key must not end the others' session
                    log.warning("supernode_refused", group_id=group_id, part=holder.part, problem=exc.message)
                    carriage.ids[holder.key] = ""
                    continue
                carriage.ids[holder.key] = str(int(answer["node_id"]))
                log.info("supernode_registered", group_id=group_id, part=holder.part, node_id=holder.node_id)
                self._signals.task_changed(group_id)
            await self._forget(group_id, carriage, control)
            await carriage.changed.wait()

    async def _forget(self, group_id: str, carriage: _Carriage, control: Control) -> None:
        """Shut out the SuperNodes of leases that are over."""
        held = {holder.key for holder in carriage.holders.values()}
        for key in [key for key in carriage.ids if key not in held]:
            node = carriage.ids.pop(key)
            if node:
                with suppress(Conflict):
                    await control.ask({"do": "unregister", "node_id": node})
                log.info("supernode_shut_out", group_id=group_id, superlink_node=node)


class _Carried:
    """Implements the bridge's side of one session; see ``bridge.Carried``."""

    def __init__(
        self, store: MarketStore, rounds: RoundEngine, clock: Clock, group_id: str, carriage: _Carriage
    ) -> None:
        self._store = store
        self._rounds = rounds
        self._clock = clock
        self._group_id = group_id
        self._carriage = carriage

    async def next(self) -> dict[str, Any]:
        """See the port."""
        group = await self._group()
        if group.value.state is not GroupState.RUNNING:
            self._carriage.ended = True
            return {"state": "end"}
        known = self._rounds.known(group)
        ask = partial(round_steps.next_step, config=known.config, mu=known.strategy.mu, now=self._clock.now())
        holders = [holder for holder in self._carriage.holders.values() if self._carriage.ids.get(holder.key)]

        def read(tx: ReadTx) -> list[tuple[Holder, RoundStep]]:
            found = []
            for holder in holders:
                with suppress(StaleFence, TaskCancelled, NotFound):  # somebody else's now
                    step = ask(
                        tx,
                        self._group_id,
                        holder.part,
                        node_id=holder.node_id,
                        lease_id=holder.lease_id,
                        fence=holder.fence,
                    )
                    found.append((holder, step))
            return found

        steps = await self._store.read(read)
        if any(step.state == "done" for _, step in steps):
            self._carriage.ended = True
            return {"state": "end"}
        asked = [(holder, step) for holder, step in steps if step.state == "train"]
        if not asked:
            return {"state": "wait"}
        first = asked[0][1]
        nodes = [
            {
                "part": holder.part,
                "fence": holder.fence,
                "node_id": self._carriage.ids[holder.key],
                "step": step.model_copy(update={"model": ""}).model_dump_json(),  # it comes as the message's own
            }
            for holder, step in asked
        ]
        return {"state": "train", "round": first.round, "phase": first.phase, "base": first.base, "nodes": nodes}

    async def model(self, base: str) -> bytes:
        """See the port."""
        path, digest, _ = await self._rounds.intake.model(self._group_id)
        if digest != base:
            raise NotFound(f"the model {base[:16]} is no longer the newest")
        return await asyncio.to_thread(path.read_bytes)

    async def update(self, asked: Mapping[str, Any], body: Body) -> None:
        """See the port."""
        holder = self._holder(asked)
        said = asked.get("metrics")
        metrics = {
            name: float(value)
            for name, value in (said.items() if isinstance(said, dict) else ())
            if name in SAID and isinstance(value, int | float) and math.isfinite(value)
        }
        new = NewUpdate(
            number=int(asked["round"]),
            phase=int(asked["phase"]),
            part=holder.part,
            lease_id=holder.lease_id,
            fence=holder.fence,
            base=str(asked["base"]),
            sha256="",
            size=0,
            metrics=metrics,
        )
        await self._rounds.intake.take(await self._group(), holder.node_id, new, body)

    async def failed(self, asked: Mapping[str, Any]) -> None:
        """See the port."""
        reason = str(asked.get("reason", ""))[:500]
        log.info("supernode_failed", group_id=self._group_id, part=asked.get("part"), problem=reason)

    def _holder(self, asked: Mapping[str, Any]) -> Holder:
        holder = self._carriage.holders.get(int(asked.get("part", -1)))
        if holder is None or holder.fence != asked.get("fence"):
            raise Conflict(f"part {asked.get('part')} is held by another node now")
        return holder

    async def _group(self) -> Group:
        return await self._store.read(partial(groups.load, group_id=self._group_id))


async def _ended(superlink: Talker) -> None:
    raise SuperLinkLost(await superlink.ended())


async def _within(event: asyncio.Event, seconds: float, superlink: Talker) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError as exc:
        raise SuperLinkLost(f"the ServerApp did not come within {seconds:g} s: {superlink.last_words}") from exc
