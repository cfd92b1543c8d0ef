"""64 nodes claim at once, each on its own connection, one task a request: what the market grants in a second."""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256
from statistics import median
from urllib.parse import urlsplit
from uuid import uuid4

import anyio

from benchmarks.figures import Figure, percentile
from benchmarks.raw_http import exchange, signed_post
from benchmarks.stage import NOOP, REWARD, Stage, open_stage
from parity_cli.demo.stack import StackSettings
from parity_market.testing.builders import capability
from parity_protocol.api import paths
from parity_protocol.api.leases import ClaimItem, ClaimsRequest, PollRequest
from parity_protocol.api.nodes import EnrolRequest, enrolment_statement
from parity_protocol.clock import SystemClock
from parity_protocol.join import TrustedMarket
from parity_protocol.signing.eip191 import sign_personal
from parity_protocol.signing.keys import Ed25519PrivateKey, EvmKey, node_id_of

__all__ = ["measure"]

CLIENTS = 64
CLAIMS_EACH = 20
QUICK_CLAIMS_EACH = 6
SUBMITTED_AT_ONCE = 32


class _Claimant:
    """A node that does nothing but claim."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.id = node_id_of(self.key.public_key)
        self.instance = sha256(self.id.encode()).hexdigest()
        self.manifests: tuple[str, ...] = ()

    def enrolment(self, market: TrustedMarket) -> bytes:
        """Return the request that introduces it."""
        operator, chain = EvmKey.generate(), market.document.chain
        device_key, issued_at = self.key.public_key.jwk()["x"], int(SystemClock().now().timestamp())
        statement = enrolment_statement(
            node_id=self.id,
            device_key=device_key,
            operator=operator.address,
            market=market.thumbprint,
            chain_id=chain.chain_id,
            vault=chain.vault,
            issued_at=issued_at,
        )
        body = EnrolRequest(
            node_id=self.id,
            device_key=device_key,
            operator=operator.address,
            issued_at=issued_at,
            operator_signature="0x" + sign_personal(statement, operator).hex(),
            instance=self.instance,
            hostname="bench",
            capability=capability(slots=CLAIMS_EACH),
        )
        return self._post(market, paths.ENROL, body)

    def poll(self, market: TrustedMarket, slots: int) -> bytes:
        """Return a request for ``slots`` manifests."""
        return self._post(market, paths.LEASE_POLL, PollRequest(instance=self.instance, slots=slots, wait_s=5.0))

    def claims(self, market: TrustedMarket) -> list[bytes]:
        """Return a request for each manifest."""
        return [
            self._post(
                market,
                paths.LEASE_CLAIMS,
                ClaimsRequest(instance=self.instance, claims=(ClaimItem(manifest=manifest, claim_id=str(uuid4())),)),
            )
            for manifest in self.manifests
        ]

    def _post(self, market: TrustedMarket, path: str, body: object) -> bytes:
        return signed_post(path, body, authority=market.document.authority, key=self.key, keyid=self.id)  # type: ignore[arg-type]  # models


async def measure(*, quick: bool) -> list[Figure]:
    """Return claims granted a second under 64 concurrent clients."""
    each = QUICK_CLAIMS_EACH if quick else CLAIMS_EACH
    async with open_stage(settings=StackSettings(min_bond="0", idle_interval="4s")) as stage:
        async with stage.client() as client:
            market = client.trusted
        place = urlsplit(stage.stack.join.url)
        host, port = str(place.hostname), int(place.port or 80)
        nodes = [_Claimant() for _ in range(CLIENTS)]
        enrolled, _ = await exchange(host, port, [[node.enrolment(market) for node in nodes]])
        assert all(answer.status == 201 for answer in enrolled[0]), enrolled[0][0].body
        await _submit(stage, CLIENTS * each)
        polled, _ = await exchange(host, port, [[node.poll(market, each)] for node in nodes])
        for node, (answer,) in zip(nodes, polled, strict=True):
            node.manifests = tuple(json.loads(answer.body)["manifests"])
        requests = await asyncio.to_thread(lambda: [node.claims(market) for node in nodes])
        before = stage.cpu()
        answers, took = await exchange(host, port, requests)
        spent = stage.cpu()["market"] - before["market"]
    took_ms = [1000 * answer.took_s for each_client in answers for answer in each_client]
    granted = sum(b'"status":200' in answer.body for each_client in answers for answer in each_client)
    if granted < CLIENTS * each * 0.95:
        raise AssertionError(f"{granted} of {CLIENTS * each} claims were granted")
    note = (
        f"{granted} claims on {CLIENTS} connections, one a request: p50 {median(took_ms):.0f}, "
        f"p99 {percentile(took_ms, 0.99):.0f} ms; market CPU {1000 * spent / granted:.2f} ms a claim"
    )
    return [Figure("claims, 64 clients", granted / took, "claims/s", note=note)]


async def _submit(stage: Stage, count: int) -> None:
    left = iter(range(count))
    async with stage.client() as client, anyio.create_task_group() as group:

        async def some() -> None:
            for _ in left:
                await client.submit(NOOP, REWARD)

        for _ in range(SUBMITTED_AT_ONCE):
            group.start_soon(some)
