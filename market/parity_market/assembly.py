"""A market's parts put together, for ``parity market serve`` and for tests alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from parity_blobs.local import LocalBlobStore
from parity_contracts.chain.base import Chain
from parity_contracts.deployment import Deployment
from parity_fl.settings import FlSettings, load_fl_settings
from parity_market.auth import Authenticator
from parity_market.federation import Federation, Offload, run_in_process
from parity_market.flower import Fleets, FlowerSessions
from parity_market.identity import Identity
from parity_market.keys import MarketKeys
from parity_market.legacy import LegacyTier
from parity_market.operations import money
from parity_market.operations.context import Market
from parity_market.round_engine import RoundEngine
from parity_market.round_worker import RoundWork, RoundWorkers
from parity_market.scheduler import Scheduler
from parity_market.settings import MarketSettings
from parity_market.state import ChainHealth, MarketState
from parity_market.store.sqlite import open_sqlite
from parity_protocol.clock import Clock
from parity_protocol.signing.eip712 import Eip712Domain

__all__ = ["DATABASE", "assemble"]

log = structlog.get_logger(__name__)

DATABASE = "market.sqlite"


@asynccontextmanager
async def assemble(
    settings: MarketSettings,
    *,
    port: int,
    version: str,
    keys: MarketKeys,
    identity: Identity,
    deployment: Deployment,
    chain: Chain,
    clock: Clock,
    offload: Offload = run_in_process,
    round_work: RoundWork | None = None,
    training: FlSettings | None = None,
) -> AsyncIterator[MarketState]:
    """Open database and blobs in the state folder and put the parts together; no loop runs yet.

    Args:
        port: That is listened on.
        version: This program's.
        chain: Stays open; it is the caller's.
        offload: As of ``Federation``.
        round_work: As of ``RoundEngine``; None starts processes for it when they are needed.
        training: What holds for sessions that say nothing themselves; None reads the environment.

    Raises:
        ConfigInvalid: The database is malformed, in use, or belongs to another chain.
    """
    folder = settings.state_dir()
    training = training or load_fl_settings()
    for note in training.notes():
        log.warning("training_setting", note=note)
    async with AsyncExitStack() as stack:
        store = await open_sqlite(folder / DATABASE)
        stack.push_async_callback(store.close)
        pinned = await store.write(
            lambda tx: money.pin_chain(
                tx, chain_id=deployment.chain_id, genesis=deployment.genesis_hash, vault=deployment.vault
            )
        )
        blobs = await stack.enter_async_context(LocalBlobStore(folder / "blobs", max_bytes=settings.market_storage))
        scheduler = Scheduler(
            store,
            clock,
            lease_ttl=settings.market_lease_ttl,
            heartbeat=settings.market_heartbeat,
            min_bond=settings.market_min_bond,
            chain=pinned,
            spender=keys.spender.address,
        )
        market = Market(
            chain=pinned,
            spender=keys.spender.address,
            signals=scheduler,
            min_bond=settings.market_min_bond,
            lease_ttl=settings.market_lease_ttl,
            chain_grace=settings.market_chain_grace,
        )
        fleets = Fleets(
            folder / "flower", clock, address=settings.market_flower_address, most=settings.market_flower_sessions
        )
        federation = Federation(
            store,
            blobs,
            market,
            clock,
            gateways=settings.market_gateways,
            quota=settings.market_upload_quota,
            fleet_of=fleets.prepare,
            check_fleet=fleets.check_installed,
            offload=offload,
            settings=training,
        )
        if round_work is None:
            round_work = workers = RoundWorkers()
            stack.push_async_callback(workers.aclose)
        rounds = RoundEngine(
            store, federation, market, clock, folder=folder / "rounds", work=round_work, settings=training
        )
        yield MarketState(
            settings=settings,
            version=version,
            keys=keys,
            identity=identity,
            deployment=deployment,
            domain=Eip712Domain.market(deployment.chain_id, deployment.vault),
            store=store,
            market=market,
            scheduler=scheduler,
            authenticator=Authenticator(store, clock, settings.authority(port)),
            blobs=blobs,
            chain=chain,
            chain_health=ChainHealth(),
            federation=federation,
            rounds=rounds,
            flower=FlowerSessions(store, rounds, fleets, scheduler, clock),
            legacy=LegacyTier(settings.market_legacy_parity, clock),
            clock=clock,
            public_url=settings.public_url(port),
            started_at=clock.now(),
        )
