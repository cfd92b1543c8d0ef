"""What a node checks before it claims: every wrong thing in a manifest and in the order inside it is one refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from parity_protocol.errors import (
    BadField,
    BadSignature,
    DigestMismatch,
    Expired,
    NotYetValid,
    ParityError,
    PolicyDenied,
    UnknownKey,
    WrongAudience,
    WrongType,
)
from parity_protocol.manifest import MANIFEST_TYPE, ChainRef, VerifiedManifest, verify_manifest, version_tuple
from parity_protocol.needs import ShardInput
from parity_protocol.order import spec_hash
from parity_protocol.shards import seal_shard, shard_digest
from parity_protocol.signing import jws
from parity_protocol.signing.eip712 import Eip712Domain, OrderMessage, sign_order
from parity_protocol.signing.keys import Ed25519PrivateKey, node_id_of
from parity_protocol.testing.keys import deterministic_ed25519, deterministic_evm_key

NOW = datetime(2026, 3, 1, tzinfo=UTC)
IDENTITY, KEY = deterministic_ed25519("market"), deterministic_ed25519("market manifest")
ISSUER = IDENTITY.public_key.thumbprint()
NODE = node_id_of(deterministic_ed25519("node").public_key)
SUBMITTER = deterministic_evm_key("submitter")
CHAIN = ChainRef(chain_id=31_337, genesis="0x" + "ab" * 32, vault="0x" + "11" * 20)
DOMAIN = Eip712Domain.market(CHAIN.chain_id, CHAIN.vault)
SPEC = json.dumps({"type": "command", "command": ["echo", "a b"]})
FOREST = json.dumps({"type": "federated_learning", "dataset_cid": "bafy", "partition_config": {"total_parts": 3}})


def order(**changes: Any) -> dict[str, Any]:
    """Return a signed order; ``changes`` are made before it is signed."""
    message = OrderMessage(
        creator=SUBMITTER.address,
        spec_hash=spec_hash(SPEC),
        max_reward=1_000,
        market=jws.thumbprint_bytes(ISSUER),
        deadline=int(NOW.timestamp()) + 3600,
        nonce=b"\x01" * 32,
    )
    signer = changes.pop("signer", SUBMITTER)
    message = replace(message, **changes)
    return {
        "creator": message.creator,
        "spec_hash": "0x" + message.spec_hash.hex(),
        "max_reward": str(message.max_reward),
        "market": "0x" + message.market.hex(),
        "deadline": message.deadline,
        "nonce": "0x" + message.nonce.hex(),
        "signature": "0x" + sign_order(DOMAIN, message, signer).hex(),
    }


def payload(**changes: Any) -> dict[str, Any]:
    made = {
        **jws.claims(ISSUER, "3f2b8c1e-6a5d-4f0b-9c7e-2d1a0b3c4d5e", NODE, jti="3f2b8c1e-6a5d-4f0b-9c7e-2d1a0b3c4d5f", now=NOW, ttl=timedelta(minutes=10)),
        "spec": SPEC,
        "order": order(),
        "reward": "1000",
        "total_reward": "1000",
        "group_id": None,
        "part": 0,
        "parts": 1,
        "attempt": 1,
        "ttl_s": 30,
        "plan": None,
        "min_node_version": "0.0.0",
        "chain": CHAIN.model_dump(),
    }  # fmt: skip
    return made | changes


def verify(token: str, *, now: datetime = NOW, version: str = "0.1.0", issuer: str = ISSUER) -> VerifiedManifest:
    return verify_manifest(
        token,
        {KEY.public_key.thumbprint(): KEY.public_key},
        issuer=issuer,
        node_id=NODE,
        chain=CHAIN,
        node_version=version,
        now=now,
    )


def signed(key: Ed25519PrivateKey = KEY, typ: str = MANIFEST_TYPE, **changes: Any) -> str:
    return jws.sign(payload(**changes), key, typ)


def test_a_manifest_that_is_right_is_accepted_with_what_receipts_name() -> None:
    token = signed()

    verified = verify(token)

    assert verified.token == token
    assert verified.task_id == "3f2b8c1e-6a5d-4f0b-9c7e-2d1a0b3c4d5e"
    assert verified.order_hash == "0x" + verified.manifest.order.digest(DOMAIN).hex()
    assert verified.spec.type == "command"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"aud": "f" * 64}, WrongAudience),
        ({"iss": "A" * 43}, ParityError),
        ({"exp": int(NOW.timestamp()) - 61, "nbf": int(NOW.timestamp()) - 600, "iat": int(NOW.timestamp()) - 600}, Expired),
        ({"nbf": int(NOW.timestamp()) + 61, "exp": int(NOW.timestamp()) + 600}, NotYetValid),
        ({"chain": {**CHAIN.model_dump(), "chain_id": 1}}, WrongAudience),
        ({"chain": {**CHAIN.model_dump(), "vault": "0x" + "22" * 20}}, WrongAudience),
        ({"chain": {**CHAIN.model_dump(), "genesis": "0x" + "cd" * 32}}, WrongAudience),
        ({"spec": json.dumps({"type": "command", "command": ["echo", "a", "b"]})}, DigestMismatch),
        ({"spec": SPEC + " "}, DigestMismatch),
        ({"total_reward": "1001", "reward": "1001"}, PolicyDenied),
        ({"reward": "999"}, PolicyDenied),
        ({"parts": 2}, PolicyDenied),
        ({"part": 1}, PolicyDenied),
        ({"min_node_version": "0.1.1"}, PolicyDenied),
        ({"min_node_version": "latest"}, BadField),
        ({"min_node_version": "٠.١.١"}, BadField),
        ({"reward": 1000}, BadField),
        ({"ttl_s": 0}, BadField),
        ({"order": {**order(), "signature": "0x" + "00" * 65}}, ParityError),
        ({"order": order(market=b"\x09" * 32)}, WrongAudience),
        ({"order": order(deadline=int(NOW.timestamp()) - 1)}, Expired),
        ({"order": order(signer=deterministic_evm_key("mallory"))}, BadSignature),
        ({"order": {**order(), "nonce": "0x" + "02" * 32}}, BadSignature),
        ({"order": {**order(), "max_reward": "2000"}}, BadSignature),
        ({"order": {**order(), "deadline": int(NOW.timestamp()) + 7200}}, BadSignature),
        ({"order": {**order(), "creator": deterministic_evm_key("mallory").address}}, BadSignature),
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_with_anything_wrong_is_refused(changes: dict[str, Any], error: type[ParityError]) -> None:
    with pytest.raises(error):
        verify(signed(**changes))


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "jti", "iat", "nbf", "exp", "spec", "order", "reward", "chain"])
def test_a_manifest_without_one_of_its_claims_is_refused(claim: str) -> None:
    rest = {name: value for name, value in payload().items() if name != claim}

    with pytest.raises(ParityError):
        verify(jws.sign(rest, KEY, MANIFEST_TYPE))


@pytest.mark.parametrize("at", range(0, 130, 13))
def test_an_order_changed_by_one_bit_is_refused(at: int) -> None:
    good = order()
    digits = good["signature"][2:]
    flipped = digits[:at] + format(int(digits[at], 16) ^ 1, "x") + digits[at + 1 :]

    with pytest.raises(ParityError):
        verify(signed(order={**good, "signature": "0x" + flipped}))


def test_every_bit_of_a_manifests_token_counts() -> None:
    head, body, signature = signed().split(".")
    for part, text in enumerate((head, body, signature)):
        for at in range(0, len(text), 7):
            changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
            parts = [head, body, signature]
            parts[part] = changed
            with pytest.raises(ParityError):
                verify(".".join(parts))


@pytest.mark.parametrize("header", [{"alg": "none"}, {"alg": "HS256"}, {"alg": "RS256"}, {"alg": "EdDSA"}], ids=str)
def test_another_algorithm_in_the_header_is_refused(header: dict[str, str]) -> None:
    _, body, signature = signed().split(".")
    named = {**header, "typ": MANIFEST_TYPE, "kid": KEY.public_key.thumbprint()}
    head = jws.b64url_encode(json.dumps(named, separators=(",", ":")).encode())

    for token in (f"{head}.{body}.{signature}", f"{head}.{body}."):
        with pytest.raises(ParityError):
            verify(token)


def test_another_key_another_type_and_another_issuer_are_refused() -> None:
    with pytest.raises(UnknownKey):
        verify(signed(deterministic_ed25519("mallory")))
    with pytest.raises(WrongType):
        verify(signed(typ="lease+jws"))
    with pytest.raises(ParityError):
        verify(signed(), issuer=deterministic_ed25519("other market").public_key.thumbprint())


def test_a_part_gets_exactly_its_share() -> None:
    total = order(spec_hash=spec_hash(FOREST), max_reward=1_000)
    for part, share in enumerate((334, 333, 333)):
        right: dict[str, Any] = {"spec": FOREST, "order": total, "parts": 3, "part": part, "reward": str(share)}
        assert verify(signed(**right)).manifest.part == part
        with pytest.raises(PolicyDenied):
            verify(signed(**{**right, "reward": str(share + 1)}))


def test_words_that_run_together_are_another_spec() -> None:
    assert spec_hash('{"type":"command","command":["a b"]}') != spec_hash('{"type":"command","command":["a","b"]}')


@pytest.mark.parametrize("text", ["1.2", "1.2.3.4", "1.2.x", "1.2.²", "1.2.٣", "999999.0.0", "", "-1.0.0"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(BadField):
        version_tuple(text)


def sharded(part: int, shard: str | None, **changes: Any) -> str:
    sealed = [seal_shard(ShardInput(shard=name), bytes(16)) for name in ("a", "b")]
    spec = json.dumps(
        {
            "type": "federated_learning",
            "data_mode": "sharded",
            "shards": [shard_digest(each) for each in sealed],
            **changes,
        }
    )
    members = {} if shard is None else {"shard": shard}
    return signed(spec=spec, order=order(spec_hash=spec_hash(spec)), reward="500", parts=2, part=part, **members)


def test_a_sharded_part_gets_its_own_source_as_its_only_input() -> None:
    own, other = (seal_shard(ShardInput(shard=name), bytes(16)) for name in ("a", "b"))

    found = verify(sharded(0, own))

    assert found.spec.inputs == (ShardInput(shard="a"),)
    assert other not in found.token


@pytest.mark.parametrize(
    ("shard", "error"),
    [(None, BadField), (seal_shard(ShardInput(shard="b"), bytes(16)), DigestMismatch), ("{}", DigestMismatch)],
)
def test_a_sharded_part_without_its_own_source_is_refused(shard: str | None, error: type[ParityError]) -> None:
    with pytest.raises(error):
        verify(sharded(0, shard))
