"""A whole market without its HTTP side: real store and blobs, any chain, a clock of the test's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from parity_blobs.local import LocalBlobStore
from parity_contracts.chain.base import Chain
from parity_contracts.chain.calls import AddFunds, Allow, Approve, Call, Faucet, Stake
from parity_contracts.chain.sending import send
from parity_contracts.deployment import Deployment
from parity_market.auth import Authenticator
from parity_market.federation import Federation, Offload, run_in_process
from parity_market.federation_worker import execute
from parity_market.identity import sign_document
from parity_market.keys import MarketKeys
from parity_market.operations import blobs, money
from parity_market.operations.context import Market
from parity_market.operations.steps import load_task
from parity_market.scheduler import Scheduler
from parity_market.settings import MarketSettings
from parity_market.state import ChainHealth, MarketState
from parity_market.store.migrate import upgrade_sqlite
from parity_market.store.sqlite import SqliteStore, open_sqlite
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
from parity_protocol.api.leases import ReportItem
from parity_protocol.api.tasks import SubmitReply
from parity_protocol.clock import Clock
from parity_protocol.ids import Address
from parity_protocol.signing.eip712 import Eip712Domain
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

    async def submit_session(self, spec: Mapping[str, object], *, reward: int = 3 * TOKEN) -> SubmitReply:
        """Plan and submit a federated session as the route does."""
        self.bench.now = self.state.clock.now()
        deadline = self.bench.now + timedelta(hours=1)
        text = json.dumps({"type": "federated_learning", **spec})
        new = signed_submission(text, reward=reward, deadline=deadline)
        assert isinstance(new.spec, FederatedLearningSpec)
        plan = await self.state.federation.plan(new.spec, creator=new.creator, order_hash=new.order_hash)
        return await self.bench.submit(replace(new, plan=plan))

    async def deliver(self, name: str, task_id: str, result: bytes) -> ReportItem:
        """Have the node called ``name`` claim a task and report ``result``, whatever it is worth."""
        self.bench.now = self.state.clock.now()
        lease = await self.bench.lease(name, task_id)
        task = await self.store.read(lambda tx: load_task(tx, task_id))
        done = final_report(name, lease, order_hash=task.order_hash, result=result, at=self.bench.now)
        return await self.bench.report(name, done)


@cache
def _empty_database() -> bytes:
    """Return a database without a row: running the migrations costs more than most tests."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "market.sqlite"
        upgrade_sqlite(path)
        return path.read_bytes()


@asynccontextmanager
async def open_rig(
    folder: Path,
    chain: Chain,
    clock: Clock,
    *,
    settings: Mapping[str, Any] | None = None,
    gateways: Sequence[str] = (),
    offload: Offload | None = None,
) -> AsyncIterator[Rig]:
    """Open a market on ``folder``; opening it again on the same folder is a restart.

    Args:
        settings: Replaces some, by field name.
        gateways: As of ``Federation``.
        offload: As of ``Federation``; None is a child process.
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
    deployment = chain.deployment
    database = folder / "market.sqlite"
    if not database.exists():
        database.write_bytes(_empty_database())
    store = await open_sqlite(database)
    try:
        pinned = await store.write(
            lambda tx: money.pin_chain(
                tx, chain_id=deployment.chain_id, genesis=deployment.genesis_hash, vault=deployment.vault
            )
        )
        scheduler = Scheduler(
            store,
            clock,
            lease_ttl=made.market_lease_ttl,
            heartbeat=made.market_heartbeat,
            min_bond=made.market_min_bond,
            chain=pinned,
            spender=keys.spender.address,
        )
        bench = Bench(store, lease_ttl=made.market_lease_ttl)
        bench.now = clock.now()
        market: Market = replace(
            bench.market, chain=pinned, spender=keys.spender.address, signals=scheduler, min_bond=made.market_min_bond
        )
        bench.market = market
        async with LocalBlobStore(folder / "blobs", max_bytes=1 << 28) as blob_store:
            state = MarketState(
                settings=made,
                version="0.1.0",
                keys=keys,
                identity=sign_document(
                    identity_key, keys, made, deployment, port=_PORT, version="0.1.0", now=clock.now()
                ),
                deployment=deployment,
                domain=Eip712Domain.market(deployment.chain_id, deployment.vault),
                store=store,
                market=market,
                scheduler=scheduler,
                authenticator=Authenticator(store, clock, made.authority(_PORT)),
                blobs=blob_store,
                chain=chain,
                chain_health=ChainHealth(),
                federation=Federation(
                    store, blob_store, market, clock, gateways=gateways, offload=offload or run_in_process
                ),
                clock=clock,
                public_url=made.public_url(_PORT),
                started_at=clock.now(),
            )
            await scheduler.load()
            yield Rig(state, bench, store)
    finally:
        await store.close()
