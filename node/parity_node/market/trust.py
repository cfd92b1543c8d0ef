"""Which market this node works for: pinned once, checked at every start, its keys fetched again when one is unknown."""

from __future__ import annotations

import structlog

from parity_node.market.base import MarketDirectory
from parity_node.settings import NodeSettings
from parity_node.store.base import NodeStore
from parity_protocol import strict_json
from parity_protocol.api.leases import ClaimReply
from parity_protocol.clock import Clock
from parity_protocol.errors import ConfigInvalid, DigestMismatch, Internal, ParityError, Unavailable, UnknownKey
from parity_protocol.ids import NodeId
from parity_protocol.join import TrustedMarket
from parity_protocol.lease import LEASE_TYPE, LeaseDocument
from parity_protocol.manifest import VerifiedManifest, verify_manifest
from parity_protocol.signing import jws
from parity_protocol.wire import parse_as

__all__ = ["REFRESH_INTERVAL_S", "MarketTrust"]

REFRESH_INTERVAL_S = 60.0  # an unknown key fetches the key set at most this often: a forger must not make us hammer
KEYS_AGE_S = 3_600.0  # after which the key set is fetched again: a key that was withdrawn must stop counting
MAX_KEYS_AGE_S = 86_400.0  # after which nothing counts until it could be fetched
MARKET_PIN = "market"

log = structlog.get_logger(__name__)


class MarketTrust:
    """The pinned market and the check of what it sends."""

    def __init__(
        self, directory: MarketDirectory, store: NodeStore, settings: NodeSettings, *, node_id: NodeId, clock: Clock
    ) -> None:
        self._directory = directory
        self._store = store
        self._settings = settings
        self._node_id = node_id
        self._clock = clock
        self._market: TrustedMarket | None = None
        self._refreshed_at = float("-inf")
        self._established_at = float("-inf")

    @property
    def market(self) -> TrustedMarket:
        """What is trusted.

        Raises:
            Internal: ``establish`` has not succeeded yet.
        """
        if self._market is None:
            raise Internal("the market is not known yet")
        return self._market

    @property
    def is_established(self) -> bool:
        """Whether the market's keys are known."""
        return self._market is not None

    async def establish(self) -> TrustedMarket:
        """Fetch and check the market's key set; pin identity, chain and vault at the first contact.

        Raises:
            ConfigInvalid: It is another market, chain or vault than was pinned here, or than the settings name.
            Unreachable: The market does not answer.
            Untrusted: Its document is not acceptable.
        """
        self._refreshed_at = self._clock.monotonic()
        found = await self._directory.trust()
        problems = _contradictions(found, self._settings)
        chain = found.document.chain
        pin = strict_json.dumps(
            {"identity": found.thumbprint, "chain": chain.chain_id, "genesis": chain.genesis, "vault": chain.vault}
        ).decode()
        if not problems:
            kept = await self._store.pin(MARKET_PIN, pin)
            if kept != pin:
                problems = [f"this state folder belongs to the market {kept}, {pin} answers now; use another folder"]
        if problems:
            raise ConfigInvalid(problems)
        self._market = found
        self._established_at = self._clock.monotonic()
        return found

    async def verify(self, token: str, *, node_version: str) -> VerifiedManifest:
        """Check a manifest completely; see ``verify_manifest``.

        The key set is fetched again once an hour, and when a key is unknown, at most once a minute.
        """
        await self._refresh_old_keys()
        try:
            return self._verify(token, node_version)
        except UnknownKey as exc:
            if self._is_just_refreshed():
                raise
            log.info("market_keys_refreshed", unknown_kid=exc.kid)
            try:
                await self.establish()
            except ParityError as failure:
                log.warning("market_keys_refresh_failed", error=failure.message)
                raise exc from failure
            return self._verify(token, node_version)

    async def _refresh_old_keys(self) -> None:
        age_s = self._clock.monotonic() - self._established_at
        if age_s < KEYS_AGE_S or (age_s < MAX_KEYS_AGE_S and self._is_just_refreshed()):
            return
        try:
            await self.establish()
        except Unavailable as failure:
            log.warning("market_keys_refresh_failed", error=failure.message)
            if age_s >= MAX_KEYS_AGE_S:
                raise
        except ParityError:  # an answer that is not the pinned market's must not buy the old keys another minute
            self._refreshed_at = float("-inf")
            raise

    def _is_just_refreshed(self) -> bool:
        return self._clock.monotonic() - self._refreshed_at < REFRESH_INTERVAL_S

    def check_lease(self, reply: ClaimReply, *, task_id: str, claim_id: str, manifest_hash: str) -> None:
        """Check that a granted lease is signed, ours, and for exactly this claim.

        Raises:
            Untrusted: It is not (a subclass says what).
            InvalidInput: It is not a lease.
        """
        market = self.market
        verified = jws.verify(
            reply.lease,
            market.manifest_keys,
            LEASE_TYPE,
            issuer=market.thumbprint,
            audience=self._node_id,
            now=self._clock.now(),
        )
        lease = parse_as(LeaseDocument, verified.raw_payload)
        signed = (lease.sub, lease.claim_id, lease.manifest_hash, lease.jti, lease.fence, lease.ttl_s)
        if signed != (task_id, claim_id, manifest_hash, reply.lease_id, reply.fence, reply.ttl_s):
            raise DigestMismatch("the lease that the market signed is not the one it answered with")

    def _verify(self, token: str, node_version: str) -> VerifiedManifest:
        market = self.market
        return verify_manifest(
            token,
            market.manifest_keys,
            issuer=market.thumbprint,
            node_id=self._node_id,
            chain=market.document.chain,
            node_version=node_version,
            now=self._clock.now(),
        )


def _contradictions(market: TrustedMarket, settings: NodeSettings) -> list[str]:
    document = market.document
    checks = (
        ("BLOCKCHAIN_CHAIN_ID", settings.blockchain_chain_id, document.chain.chain_id),
        ("BLOCKCHAIN_STAKE_WALLET_ADDRESS", settings.blockchain_stake_wallet_address.lower(), document.chain.vault),
        ("BLOCKCHAIN_TOKEN_ADDRESS", settings.blockchain_token_address.lower(), document.token),
    )
    return [f"{key}={wanted}: the market names {came}" for key, wanted, came in checks if wanted and wanted != came]
