"""A whole market without its HTTP side: real store and blobs, any chain, a clock of the test's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from parity_contracts.chain.base import Chain
from parity_contracts.chain.calls import AddFunds, Allow, Approve, Call, Faucet, Stake
from parity_contracts.chain.sending import send
from parity_contracts.deployment import Deployment
from parity_market.assembly import DATABASE, assemble
from parity_market.federation import Offload, run_in_process
from parity_market.federation_worker import execute
from parity_market.identity import sign_document
from parity_market.keys import MarketKeys
from parity_market.operations import blobs
from parity_market.operations.steps import load_task
from parity_market.round_worker import work_here
from parity_market.settings import MarketSettings
from parity_market.state import MarketState
from parity_market.store.sqlite import SqliteStore
from parity_market.testing.builders import (
    CHAIN_ID,
    GENESIS,
    TOKEN,
    VAULT,
    Bench,
    command_submission,
    final_report,
    new_node,
    signed_submission,
)
from parity_market.testing.database import ensure_database
from parity_protocol.api.leases import ReportItem
from parity_protocol.api.tasks import SubmitReply
from parity_protocol.clock import Clock
from parity_protocol.ids import Address
from parity_protocol.shards import open_shards
from parity_protocol.signing.keys import EvmKey
from parity_protocol.task import FederatedLearningSpec
from parity_protocol.testing.keys import deterministic_ed25519, deterministic_evm_key

__all__ = ["DEPLOYMENT", "Rig", "inline", "open_rig"]

DEPLOYMENT = Deployment(
    chain_id=CHAIN_ID,
    genesis_hash=GENESIS,
    token=Address("0x" + "22" * 20),
    vault=VAULT,
    unbonding_s=60,
    symbol="PDEV",
    decimals=18,
)
"""What a chain in memory must be made with so that the builders' signatures hold on it."""

_PORT = 8080
VERSION = "0.1.0"


async def inline(message: bytes) -> bytes:
    """Do a federation's job at once, in this process."""
    return execute(message)


@dataclass
class Rig:
    """A market's parts, and shortcuts for what happens outside it."""

    state: MarketState
    bench: Bench
    store: SqliteStore

    async def on_chain(self, key: EvmKey, *calls: Call) -> None:
        """Do ``calls`` for ``key`` and wait until they are mined."""
        await send(self.state.chain, calls, key, clock=self.state.clock)

    async def stake(self, name: str, amount: int = TOKEN) -> str:
        """Bond ``amount`` for the node called ``name``; its owner is ``<name> owner``. Returns the node's id."""
        owner, node = deterministic_evm_key(f"{name} owner"), new_node(name)
        deposit = Stake(amount, node.node_id, owner.address, Address(node.operator))
        await self.on_chain(owner, Faucet(owner.address, amount), Approve(amount), deposit)
        return node.node_id

    async def allow(self, amount: int, *, creator: str = "creator") -> Address:
        """Deposit ``amount`` and set it aside for this market. Returns the creator's address."""
        key = deterministic_evm_key(creator)
        account, spender = key.address, self.state.keys.spender.address
        deposit = AddFunds(amount, account, account)
        await self.on_chain(key, Faucet(account, amount), Approve(amount), deposit, Allow(account, spender, amount))
        return account

    async def earn(self, name: str, reward: int = TOKEN, *, creator: str = "creator") -> str:
        """Have the node called ``name`` do a task for ``reward``; returns the task's id."""
        self.bench.now = self.state.clock.now()
        submission = command_submission(reward=reward, creator=creator, deadline=self.bench.now + timedelta(hours=1))
        task_id = (await self.bench.submit(submission)).id
        lease = await self.bench.lease(name, task_id)
        done = final_report(name, lease, order_hash=submission.order_hash, at=self.bench.now)
        item = await self.bench.report(name, done)
        assert item.task_state == "completed", item
        return task_id

    async def upload(self, data: bytes, *, owner: str = "creator") -> str:
        """Store a private file of ``owner``; returns its CID."""
        cid = str(await self.state.blobs.put_bytes(data))
        account, now = deterministic_evm_key(owner).address, self.state.clock.now()
        await self.store.write(
            lambda tx: blobs.add_ref(tx, cid, account, visibility="private", size=len(data), now=now)
        )
        return cid

    async def submit_session(
        self, spec: Mapping[str, object], *, reward: int = 3 * TOKEN, shards: Sequence[str] = ()
    ) -> SubmitReply:
        """Plan and submit a federated session as the route does; of a sharded one with its sealed sources."""
        self.bench.now = self.state.clock.now()
        deadline = self.bench.now + timedelta(hours=1)
        text = json.dumps({"type": "federated_learning", **spec})
        new = signed_submission(text, reward=reward, deadline=deadline)
        assert isinstance(new.spec, FederatedLearningSpec)
        plan = await self.state.federation.plan(new.spec, creator=new.creator, order_hash=new.order_hash)
        sources = tuple(shard.source for shard in open_shards(shards, new.spec.shards))
        return await self.bench.submit(replace(new, plan=plan, shards=tuple(shards), sources=sources))

    async def deliver(self, name: str, task_id: str, result: bytes) -> ReportItem:
        """Have the node called ``name`` claim a task and report ``result``, whatever it is worth."""
        self.bench.now = self.state.clock.now()
        lease = await self.bench.lease(name, task_id)
        task = await self.store.read(lambda tx: load_task(tx, task_id))
        done = final_report(name, lease, order_hash=task.order_hash, result=result, at=self.bench.now)
        return await self.bench.report(name, done)


@asynccontextmanager
async def open_rig(
    folder: Path,
    chain: Chain,
    clock: Clock,
    *,
    settings: Mapping[str, Any] | None = None,
    offload: Offload | None = None,
) -> AsyncIterator[Rig]:
    """Open a market on ``folder``; opening it again on the same folder is a restart.

    Args:
        settings: Replaces some, by field name.
        offload: As of ``Federation``; None is a child process. With one, rounds are closed in this process too.
    """
    values = {"market_state_dir": folder, "market_min_bond": "1", "server_port": _PORT, **(settings or {})}
    made = MarketSettings(_env_file=None, **values)
    identity_key = deterministic_ed25519("market identity")
    keys = MarketKeys(
        identity_key,
        deterministic_ed25519("market manifest"),
        deterministic_evm_key("spender"),
        deterministic_evm_key("transaction"),
    )
    identity = sign_document(identity_key, keys, made, chain.deployment, port=_PORT, version=VERSION, now=clock.now())
    ensure_database(made.state_dir() / DATABASE)
    async with assemble(
        made,
        port=_PORT,
        version=VERSION,
        keys=keys,
        identity=identity,
        deployment=chain.deployment,
        chain=chain,
        clock=clock,
        offload=offload or run_in_process,
        round_work=None if offload is None else work_here,
    ) as state:
        assert isinstance(state.store, SqliteStore)
        bench = Bench(state.store)
        bench.now, bench.market = clock.now(), state.market
        await state.scheduler.load()
        yield Rig(state, bench, state.store)
