"""The market's signed document: who it is, which keys work for it, which chain and terms hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

from parity_contracts.deployment import Deployment
from parity_contracts.files import write_file
from parity_market.keys import CERTIFICATE, MarketKeys, certificate_fingerprint
from parity_market.settings import MarketSettings
from parity_protocol.api.market import JWKS_TYPE, MarketDocument
from parity_protocol.errors import ConfigInvalid, ParityError
from parity_protocol.join import JoinString, verify_market
from parity_protocol.signing import jws
from parity_protocol.signing.keys import Ed25519PrivateKey

__all__ = ["Identity", "chain_ref", "load_identity", "sign_document"]

DOCUMENT = "market.jwks.json"
DOCUMENT_LIFE = timedelta(days=365)  # the identity may be off line for that long


@dataclass(frozen=True, slots=True)
class Identity:
    """The market as others verify it."""

    thumbprint: str  # base64url; the issuer of everything that the market signs
    document: MarketDocument
    reply: bytes  # body of /.well-known/jwks.json

    @property
    def market_bytes(self) -> bytes:
        """The thumbprint as orders carry it, 32 bytes."""
        return jws.thumbprint_bytes(self.thumbprint)

    def join(self, settings: MarketSettings, port: int) -> JoinString:
        """Return what nodes and submitters pin."""
        folder = settings.state_dir()
        pinned = settings.serves_tls() and (folder / CERTIFICATE).exists()
        return JoinString(
            settings.public_url(port), self.thumbprint, certificate_fingerprint(folder) if pinned else None
        )


def chain_ref(deployment: Deployment) -> dict[str, object]:
    """Return a deployment as documents name it."""
    return {"chain_id": deployment.chain_id, "genesis": deployment.genesis_hash, "vault": deployment.vault}


def sign_document(
    identity: Ed25519PrivateKey,
    keys: MarketKeys,
    settings: MarketSettings,
    deployment: Deployment,
    *,
    port: int,
    version: str,
    now: datetime,
) -> Identity:
    """Make and store the document that vouches for the working keys and the terms."""
    thumbprint = identity.public_key.thumbprint()
    published = [
        {**key.public_key.jwk(), "kid": key.public_key.thumbprint(), "use": use}
        for key, use in ((identity, "identity"), (keys.manifest, "manifest"))
    ]
    payload = {
        **jws.claims(thumbprint, "market", "*", jti=str(uuid4()), now=now, ttl=DOCUMENT_LIFE),
        "keys": published,
        "authority": settings.authority(port),
        "name": settings.market_name,
        "version": version,
        "chain": chain_ref(deployment),
        "rpc_hint": settings.blockchain_rpc,
        "token": deployment.token,
        "token_symbol": deployment.symbol,
        "token_decimals": deployment.decimals,
        "spender": keys.spender.address,
        "min_bond": str(settings.market_min_bond),
        "confirmations": settings.market_confirmations,
        "lease_ttl_s": settings.market_lease_ttl.total_seconds(),
        "heartbeat_s": settings.market_heartbeat.total_seconds(),
    }
    signed = jws.sign(payload, identity, JWKS_TYPE)
    body = json.dumps({"keys": published, "signed": signed}, separators=(",", ":")).encode()
    write_file(settings.state_dir() / DOCUMENT, body, mode=0o644)
    return _read(body, thumbprint, now)


def load_identity(
    keys: MarketKeys, settings: MarketSettings, deployment: Deployment, *, port: int, version: str, now: datetime
) -> Identity:
    """Return the market's identity, re-signed when its key is here, else as it was signed last.

    Raises:
        ConfigInvalid: The stored document has expired, or names other keys, another chain or other terms.
    """
    if keys.identity is not None:
        return sign_document(keys.identity, keys, settings, deployment, port=port, version=version, now=now)
    path = settings.state_dir() / DOCUMENT
    try:
        found = _read(path.read_bytes(), None, now)
    except (OSError, ParityError) as exc:
        raise ConfigInvalid([f"{path} cannot be used and identity.key is not here to sign a new one: {exc}"]) from exc
    _check_same(found.document, keys, settings, deployment, port)
    return found


def _read(body: bytes, thumbprint: str | None, now: datetime) -> Identity:
    trusted = verify_market(body, thumbprint, now=now)
    return Identity(trusted.thumbprint, trusted.document, body)


def _check_same(
    document: MarketDocument, keys: MarketKeys, settings: MarketSettings, deployment: Deployment, port: int
) -> None:
    published = {key.kid for key in document.keys}
    expected = {
        "manifest key": keys.manifest.public_key.thumbprint() in published,
        f"spender {document.spender}": document.spender == keys.spender.address,
        f"vault {document.chain.vault}": document.chain.vault == deployment.vault,
        f"genesis {document.chain.genesis}": document.chain.genesis == deployment.genesis_hash,
        f"authority {document.authority}": document.authority == settings.authority(port),
        f"minimum bond {document.min_bond}": document.min_bond == settings.market_min_bond,
    }
    problems = [
        f"the signed document's {name} is not what is configured now: bring identity.key back and run `parity market init`"
        for name, is_same in expected.items()
        if not is_same
    ]
    if problems:
        raise ConfigInvalid(problems)
