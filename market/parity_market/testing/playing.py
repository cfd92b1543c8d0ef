"""A session that trains in rounds and the nodes that hold its parts, played by hand without HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from parity_fl.rounds import RoundTrainer
from parity_market.operations import groups, round_steps, round_views
from parity_market.operations.groups import Group
from parity_market.operations.rounds import NewUpdate
from parity_market.testing.builders import final_report
from parity_market.testing.rig import Rig
from parity_protocol.api.rounds import FlSessionReply, RoundStep
from parity_protocol.lease import Lease

__all__ = ["DATA", "NODES", "TIMEOUT_S", "Play", "next_step", "pieces", "spec"]

ROWS = 90
DATA = "a,b,target\n" + "".join(f"{i / 10},{(i * 7) % 13},{3 * i / 10 - (i * 7) % 13 + 1}\n" for i in range(ROWS))
"""Ninety rows of a line with two features."""
NODES = ("n1", "n2", "n3")
TIMEOUT_S = 60.0


def spec(cid: str, **changes: Any) -> dict[str, Any]:
    """Return a session over three parts of ``DATA``, in three rounds; ``changes`` replaces members."""
    return {
        "model_type": "linear_regression",
        "dataset_cid": cid,
        "data_format": "csv",
        "model_config": {"input_size": 2},
        "train_config": {"epochs": 3, "batch_size": 8, "learning_rate": 0.05},
        "partition_config": {"strategy": "random", "total_parts": 3, "min_samples": 2},
        "total_rounds": 3,
        "strategy_config": {"strategy": "FedAdam", "server_lr": 0.3},
        "rounds_config": {"round_timeout_s": TIMEOUT_S, "quorum": 2, "update_format": "fp32"},
        **changes,
    }


async def next_step(rig: Rig, group: Group, part: int, lease: Lease) -> RoundStep:
    """Ask what a part does now, as the node that holds ``lease``."""
    return await rig.store.read(
        partial(
            round_steps.next_step,
            group_id=group.row.id,
            part=part,
            node_id=lease.node_id,
            lease_id=lease.lease_id,
            fence=lease.fence,
            config=rig.state.rounds.known(group).config,
            mu=0.0,
            now=rig.state.clock.now(),
        )
    )


class Play:
    """A session and nodes that hold its parts, driven by hand."""

    def __init__(self, rig: Rig, group_id: str) -> None:
        self.rig = rig
        self.id = group_id
        self.leases: dict[int, Lease] = {}
        self.holders: dict[int, str] = {}  # names of nodes
        self.trainers: dict[int, RoundTrainer] = {}

    @classmethod
    async def begin(cls, rig: Rig, *, hold: tuple[int, ...] = (0, 1, 2), **changes: Any) -> Play:
        """Submit a session, begin it, and let nodes hold the parts ``hold``."""
        cid = await rig.upload(DATA.encode())
        play = cls(rig, (await rig.submit_session(spec(cid, **changes))).id)
        await play.step()
        for part in hold:
            await play.hold(part, NODES[part])
        await play.step()
        return play

    async def group(self) -> Group:
        """Return the session's group as it is now."""
        return await self.rig.store.read(partial(groups.load, group_id=self.id))

    async def hold(self, part: int, node: str) -> None:
        """Let a node claim a part."""
        self.rig.bench.now = self.rig.state.clock.now()
        self.holders[part] = node
        self.leases[part] = await self.rig.bench.lease(node, (await self.group()).tasks[part].id)

    async def step(self) -> bool:
        """Take the session as far as it goes; returns whether it moved."""
        return await self.rig.state.rounds.step(await self.group())

    async def next(self, part: int) -> RoundStep:
        """Ask what a part does now, as its node."""
        return await next_step(self.rig, await self.group(), part, self.leases[part])

    async def body(self, part: int) -> tuple[RoundStep, bytes]:
        """Train a part; returns what was asked, and the update."""
        step = await self.next(part)
        path, _, _ = await self.rig.state.rounds.intake.model(self.id)
        if part not in self.trainers:
            session = self.rig.state.rounds.known(await self.group()).session
            self.trainers[part] = RoundTrainer(session.spec, session.plan, DATA.encode(), part)
        return step, self.trainers[part].train(path.read_bytes(), number=step.round).update

    async def send(self, part: int, step: RoundStep | None = None, body: bytes | None = None, base: str = "") -> bool:
        """Send a part's update; returns whether it was new."""
        if step is None or body is None:
            step, body = await self.body(part)
        lease = self.leases[part]
        new = NewUpdate(step.round, step.phase, part, lease.lease_id, lease.fence, base or step.base, "", 0, {})
        return (await self.rig.state.rounds.intake.take(await self.group(), lease.node_id, new, pieces(body))).created

    async def round(self, *parts: int) -> None:
        """Train and send these parts, and close the round."""
        for part in parts:
            await self.send(part)
        assert await self.step()

    async def show(self) -> FlSessionReply:
        """Return what people are shown."""
        return await self.rig.store.read(partial(round_views.session, group_id=self.id, first=1))

    async def report(self, part: int, document: dict[str, Any] | bytes | None = None) -> None:
        """Report the session's end for a part, with ``document`` in place of the true list of updates."""
        step = await self.next(part)
        listed = [update.model_dump() for update in step.accepted]
        result = document if isinstance(document, bytes) else json.dumps(document or {"updates": listed}).encode()
        order_hash = (await self.group()).tasks[part].order_hash
        self.rig.bench.now = self.rig.state.clock.now()
        node, now = self.holders[part], self.rig.bench.now
        done = final_report(node, self.leases[part], order_hash=order_hash, result=result, at=now)
        item = await self.rig.bench.report(node, done)
        assert item.task_state == "verifying", item


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    """Yield a body as it comes over a connection."""
    for at in range(0, len(body), 100):
        yield body[at : at + 100]
