"""Signed permission for one node to run one spec, and the pure check that a node makes before it claims.

A manifest is a compact JWS of type ``manifest+jws`` by the market's manifest key. It carries the submitter's spec and
order verbatim, so the node verifies the consent to pay itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from parity_protocol.errors import BadField, PolicyDenied, WrongAudience
from parity_protocol.ids import NodeId, TaskId, WireAddress, WireBytes32, WireNodeId, WireUuid
from parity_protocol.order import Order, check_order
from parity_protocol.quantities import WireTokenAmount
from parity_protocol.shards import MAX_SEALED_CHARS, open_shard
from parity_protocol.signing import jws
from parity_protocol.signing.eip712 import Eip712Domain
from parity_protocol.signing.keys import Ed25519PublicKey
from parity_protocol.task import (
    MAX_SPEC_BYTES,
    CommandSpec,
    DockerSpec,
    FederatedLearningSpec,
    LlmSpec,
    parse_spec,
    parts_of,
    share_of,
)
from parity_protocol.wire import JsonObject, SignedDocument, parse_as

__all__ = ["MANIFEST_TYPE", "ChainRef", "Manifest", "VerifiedManifest", "spec_of", "verify_manifest", "version_tuple"]

MANIFEST_TYPE = "manifest+jws"


class ChainRef(SignedDocument):
    """Which chain and vault the money is on; a node refuses work that would be paid elsewhere."""

    chain_id: int = Field(ge=1, lt=2**63)
    genesis: WireBytes32
    vault: WireAddress


class Manifest(SignedDocument):
    """The payload of a manifest."""

    iss: Annotated[str, StringConstraints(max_length=128)]
    aud: WireNodeId
    sub: WireUuid  # task id
    jti: WireUuid
    iat: int
    nbf: int
    exp: int
    spec: Annotated[str, StringConstraints(max_length=MAX_SPEC_BYTES)]  # exactly as submitted
    order: Order
    reward: WireTokenAmount  # this task's share
    total_reward: WireTokenAmount  # of everything the order covers
    group_id: WireUuid | None = None
    part: int = Field(ge=0)
    parts: int = Field(ge=1)
    attempt: int = Field(ge=1)
    ttl_s: float = Field(gt=0, le=86_400)  # of the lease that a claim gives
    shard: Annotated[str, StringConstraints(max_length=MAX_SEALED_CHARS)] | None = None  # this part's sealed source
    plan: JsonObject | None = None  # what the market computed for the group (partition plan); checked by its hash
    min_node_version: Annotated[str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$", max_length=20)] = "0.0.0"
    chain: ChainRef


@dataclass(frozen=True, slots=True)
class VerifiedManifest:
    """A manifest that passed every check, with the spec it permits."""

    manifest: Manifest
    spec: CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec  # of a sharded part with its own source as input
    token: str  # the compact JWS, sent back verbatim in the claim
    hash: str  # hex sha256 of the token, what receipts name
    order_hash: str  # 0x and 64 hex digits

    @property
    def task_id(self) -> TaskId:
        """The task that it permits."""
        return TaskId(self.manifest.sub)


def verify_manifest(
    token: str,
    keys: Mapping[str, Ed25519PublicKey],
    *,
    issuer: str,
    node_id: NodeId,
    chain: ChainRef,
    node_version: str,
    now: datetime,
) -> VerifiedManifest:
    """Check a received manifest completely: signature, window, audience, chain, order, spec, share and version.

    Args:
        keys: The market's manifest keys by key id, from its signed JWKS.
        issuer: The pinned market's identity thumbprint, base64url.
        chain: The chain that was pinned at enrolment.
        now: Current time, UTC.

    Raises:
        Untrusted: Signature, type, window, audience, digest or chain is wrong (a subclass says which).
        InvalidInput: The document or the spec is not acceptable.
        PolicyDenied: The reward or the share does not follow from the order, or this node is too old.
    """
    verified = jws.verify(token, keys, MANIFEST_TYPE, now=now, audience=node_id, issuer=issuer)
    manifest = parse_as(Manifest, verified.raw_payload)
    pinned, named = (chain.chain_id, chain.genesis, chain.vault), manifest.chain
    if (named.chain_id, named.genesis, named.vault) != pinned:
        raise WrongAudience(f"the manifest pays on {named.chain_id}/{named.vault}, pinned is {pinned[0]}/{pinned[2]}")
    if version_tuple(manifest.min_node_version) > version_tuple(node_version):
        raise PolicyDenied(f"the task needs node {manifest.min_node_version} or newer, this is {node_version}")
    domain = Eip712Domain.market(chain.chain_id, chain.vault)
    check_order(
        manifest.order,
        manifest.spec,
        manifest.total_reward,
        domain=domain,
        market=jws.thumbprint_bytes(issuer),
        now=now,
    )
    spec = spec_of(manifest)
    parts = parts_of(spec)
    if manifest.parts != parts or manifest.part >= parts:
        raise PolicyDenied(f"the spec has {parts} parts, the manifest names part {manifest.part} of {manifest.parts}")
    if manifest.reward != share_of(manifest.total_reward, manifest.part, parts):
        raise PolicyDenied("the manifest's reward is not this part's share of the order's reward")
    return VerifiedManifest(
        manifest=manifest,
        spec=spec,
        token=token,
        hash=verified.token_sha256,
        order_hash="0x" + manifest.order.digest(domain).hex(),
    )


def spec_of(manifest: Manifest) -> CommandSpec | DockerSpec | LlmSpec | FederatedLearningSpec:
    """Return what a manifest permits: the signed spec, and for a part of a sharded session its source as only input.

    Raises:
        InvalidInput: The spec or the shard is not acceptable.
        DigestMismatch: The shard is not the one that was signed for this part.
    """
    spec = parse_spec(manifest.spec)
    if not isinstance(spec, FederatedLearningSpec) or spec.data_mode != "sharded":
        return spec
    if manifest.shard is None or manifest.part >= len(spec.shards):
        raise BadField(f"a manifest of a sharded session names the source of its part {manifest.part}", field="shard")
    return spec.model_copy(update={"inputs": (open_shard(manifest.shard, spec.shards[manifest.part]).source,)})


def version_tuple(text: str) -> tuple[int, int, int]:
    """Return a version such as ``1.4.2`` as numbers that compare.

    Raises:
        BadField: It is not three numbers.
    """
    numbers = text.split(".")
    if len(numbers) != 3 or not all(part.isascii() and part.isdigit() and len(part) <= 5 for part in numbers):
        raise BadField(f"expected a version such as '1.4.2', got {text[:40]!r}", field="version")
    return int(numbers[0]), int(numbers[1]), int(numbers[2])
