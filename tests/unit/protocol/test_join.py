"""The join string, and the check of what a market says of itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from parity_protocol.api.market import JWKS_TYPE
from parity_protocol.errors import BadField, Expired, ParityError, Untrusted
from parity_protocol.join import JoinString, is_loopback, parse_join, parse_market_url, verify_market
from parity_protocol.signing import jws
from parity_protocol.signing.keys import Ed25519PrivateKey
from parity_protocol.testing.keys import deterministic_ed25519

NOW = datetime(2026, 1, 1, tzinfo=UTC)
IDENTITY, MANIFEST = deterministic_ed25519("identity"), deterministic_ed25519("manifest")
PIN = IDENTITY.public_key.thumbprint()


def jwks(
    signer: Ed25519PrivateKey = IDENTITY,
    *,
    typ: str = JWKS_TYPE,
    ttl: timedelta = timedelta(days=90),
    **changes: object,
) -> bytes:
    keys = [
        {**IDENTITY.public_key.jwk(), "use": "identity"},
        {**MANIFEST.public_key.jwk(), "use": "manifest"},
    ]
    document = {
        **jws.claims(PIN, "market", "*", jti=str(uuid4()), now=NOW, ttl=ttl),
        "keys": keys,
        "authority": "market.example",
        "version": "0.1.0",
        "chain": {"chain_id": 31337, "genesis": "0x" + "11" * 32, "vault": "0x" + "22" * 20},
        "token": "0x" + "33" * 20,
        "token_decimals": 18,
        "spender": "0x" + "44" * 20,
        "min_bond": "10",
        "confirmations": 1,
        "lease_ttl_s": 30.0,
        "heartbeat_s": 30.0,
        **changes,
    }
    return json.dumps({"keys": keys, "signed": jws.sign(document, signer, typ)}).encode()


def test_join_string_survives_a_round_trip() -> None:
    for join in (
        JoinString("https://market.example:8443", PIN, "0" * 64),
        JoinString("http://127.0.0.1:8080", PIN),
        JoinString("http://[::1]:8080", PIN),
    ):
        assert parse_join(f" {join}\n") == join


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://market.example",
        f"https://market.example/#market={PIN[:-1]}",
        f"https://market.example/#market={PIN}&cert=00",
        f"https://market.example/#market={PIN}&cert=" + "G" * 64,
        f"https://market.example/#market={PIN}&trust=all",
        f"https://market.example/path#market={PIN}",
        f"https://user@market.example/#market={PIN}",
        f"http://market.example/#market={PIN}",
        f"http://127.0.0.1.market.example/#market={PIN}",
        f"ftp://market.example/#market={PIN}",
        f"https://market.example:99999/#market={PIN}",
        f"https:///#market={PIN}",
        "https://market.example/#market=" + "A" * 2_000,
    ],
)
def test_anything_else_is_not_a_join_string(text: str) -> None:
    with pytest.raises(BadField):
        parse_join(text)


@pytest.mark.parametrize("text", ["http://localhost:8080/api", "http://localhost:8080/", "http://localhost:8080/api/"])
def test_address_as_the_parity_network_writes_it_is_read(text: str) -> None:
    assert parse_market_url(text) == "http://localhost:8080"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.8.9.1", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.1", False), ("x", False)],
)
def test_loopback_is_told_by_its_spelling(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_document_signed_by_the_pinned_identity_is_trusted() -> None:
    trusted = verify_market(jwks(), PIN, now=NOW)

    assert trusted.thumbprint == PIN
    assert trusted.manifest_keys == {MANIFEST.public_key.thumbprint(): MANIFEST.public_key}


def test_first_contact_takes_the_identity_that_is_named() -> None:
    assert verify_market(jwks(), None, now=NOW).thumbprint == PIN


@pytest.mark.parametrize(
    "reply",
    [
        jwks(MANIFEST),
        jwks(typ="manifest+jws"),
        jwks(iss="B" * 43),
        jwks(aud="somebody"),
        jwks(keys=[{**IDENTITY.public_key.jwk(), "use": "identity"}]),
        jwks(keys=[{**MANIFEST.public_key.jwk(), "kid": PIN, "use": "manifest"}]),
        jwks(keys=[{**MANIFEST.public_key.jwk(), "kty": "EC", "use": "manifest"}]),
        jwks(ttl=timedelta(days=401)),
        b"{}",
        b"[]",
        b"not json",
        jwks().replace(b'"use"', b'"use": "manifest", "use"', 1),
    ],
)
def test_document_that_differs_in_anything_that_matters_is_refused(reply: bytes) -> None:
    with pytest.raises(ParityError):
        verify_market(reply, PIN, now=NOW)


def test_other_market_than_the_pinned_one_is_refused() -> None:
    with pytest.raises(Untrusted, match="not the pinned one"):
        verify_market(jwks(), "A" * 43, now=NOW)


def test_document_ends() -> None:
    with pytest.raises(Expired):
        verify_market(jwks(ttl=timedelta(days=1)), PIN, now=NOW + timedelta(days=2))
