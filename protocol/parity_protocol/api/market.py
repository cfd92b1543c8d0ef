"""What a market says of itself, signed by its identity key."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from parity_protocol.ids import WireAddress
from parity_protocol.manifest import ChainRef
from parity_protocol.quantities import WireTokenAmount
from parity_protocol.wire import SignedDocument

__all__ = ["JWKS_TYPE", "Health", "JwksReply", "MarketDocument", "MarketKey", "MarketStatus"]

JWKS_TYPE = "jwks+jws"


class MarketKey(SignedDocument):
    """One of the market's Ed25519 keys, as a JWK (RFC 8037)."""

    kty: str
    crv: str
    x: str
    kid: str
    use: Annotated[str, StringConstraints(pattern=r"^(identity|manifest)$")]


class MarketDocument(SignedDocument):
    """The payload of the signed JWKS: keys, chain and terms. ``iss`` is the identity's thumbprint, base64url."""

    iss: str
    aud: str = "*"
    sub: str = "market"
    jti: str
    iat: int
    nbf: int
    exp: int
    keys: tuple[MarketKey, ...] = Field(min_length=1, max_length=16)
    authority: str  # host[:port] that request signatures cover
    name: str = ""
    version: str
    chain: ChainRef
    rpc_hint: str = ""
    token: WireAddress
    token_symbol: str = ""
    token_decimals: int = Field(ge=0, le=36)
    spender: WireAddress
    min_bond: WireTokenAmount
    confirmations: int = Field(ge=0, le=1000)
    lease_ttl_s: float = Field(gt=0, le=86_400)
    heartbeat_s: float = Field(gt=0, le=3600)


class JwksReply(BaseModel):
    """Answer of ``/.well-known/jwks.json``: the keys for JWKS readers, and the document that vouches for them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    keys: tuple[MarketKey, ...]
    signed: Annotated[str, StringConstraints(max_length=65_536)]  # compact JWS of type jwks+jws


class Health(BaseModel):
    """Answer of ``/api/health``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    status: str  # ok | degraded
    version: str
    uptime_s: float
    checks: dict[str, str] = {}  # store, chain, blobs → ok or what is wrong


class MarketStatus(BaseModel):
    """Answer of ``/api/status``: counts for people and dashboards."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    version: str
    time: str
    nodes_online: int
    nodes_total: int
    tasks: dict[str, int]  # by state
    leases_live: int
    chain_head: int | None = None
    chain_ok: bool
    unsettled: WireTokenAmount = 0  # earned and not yet confirmed on chain, base units
