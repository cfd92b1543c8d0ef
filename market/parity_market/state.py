"""Everything the running market holds, made once at start-up and handed to each route."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from parity_blobs.local import LocalBlobStore
from parity_contracts.chain.base import Chain
from parity_contracts.deployment import Deployment
from parity_market.auth import Authenticator
from parity_market.bodies import BodyBudget
from parity_market.federation import Federation
from parity_market.flower import FlowerSessions
from parity_market.identity import Identity
from parity_market.issued import IssuedManifests
from parity_market.keys import MarketKeys
from parity_market.legacy import LegacyTier
from parity_market.operations.context import Market
from parity_market.operations.vouchers import Paid
from parity_market.round_engine import RoundEngine
from parity_market.scheduler import Scheduler
from parity_market.settings import MarketSettings
from parity_market.store.base import MarketStore
from parity_protocol.clock import Clock
from parity_protocol.signing.eip712 import Eip712Domain

__all__ = ["ChainHealth", "MarketState"]


@dataclass(slots=True)
class ChainHealth:
    """What the loops last saw of the chain; None before the first look."""

    head: int | None = None
    seen_at: datetime | None = None
    problem: str = "not read yet"
    unfunded: dict[Paid, str] = field(default_factory=dict)  # why a payout does not go through


@dataclass(frozen=True, slots=True)
class MarketState:
    """The market's parts."""

    settings: MarketSettings
    version: str
    keys: MarketKeys
    identity: Identity
    deployment: Deployment
    domain: Eip712Domain  # of orders and receipts
    store: MarketStore
    market: Market
    scheduler: Scheduler
    authenticator: Authenticator
    blobs: LocalBlobStore
    chain: Chain
    chain_health: ChainHealth
    federation: Federation
    rounds: RoundEngine
    flower: FlowerSessions
    legacy: LegacyTier
    clock: Clock
    public_url: str
    started_at: datetime
    bodies: BodyBudget = field(default_factory=BodyBudget)
    issued: IssuedManifests = field(default_factory=IssuedManifests)
