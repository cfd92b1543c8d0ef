from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct

from parity_protocol.errors import (
    BadDocument,
    BadField,
    BadSignature,
    Expired,
    InvalidInput,
    NotYetValid,
    Replayed,
    Untrusted,
    WrongAudience,
)
from parity_protocol.ids import Address
from parity_protocol.signing.eip191 import sign_personal
from parity_protocol.signing.keys import checksum_address
from parity_protocol.signing.siwe import SiweMessage, session_key_resource, verify_siwe
from parity_protocol.testing.keys import deterministic_ed25519, deterministic_evm_key

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/siwe/messages.json").read_text(encoding="utf-8"))
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEY = deterministic_evm_key("submitter")
SESSION = deterministic_ed25519("session").public_key
EXPECTED: dict[str, Any] = {
    "domain": "market.example:8443",
    "uri": "https://market.example:8443/api/v1/auth/verify",
    "chain_id": 31_337,
    "nonce": "k3J9s0Qm2XbT7aLz",
    "now": NOW,
}
FULL = (  # every line that the standard knows
    "https://market.example:8443 wants you to sign in with your Ethereum account:\n"
    f"{checksum_address(KEY.address)}\n"
    "\n"
    "I accept the terms: https://market.example/terms (v1.2).\n"
    "\n"
    "URI: https://market.example:8443/api/v1/auth/verify\n"
    "Version: 1\n"
    "Chain ID: 31337\n"
    "Nonce: k3J9s0Qm2XbT7aLz\n"
    "Issued At: 2026-01-02T04:04:05.123+01:00\n"
    "Expiration Time: 2026-01-02T03:34:05Z\n"
    "Not Before: 2026-01-02T03:04:05Z\n"
    "Request ID: a:b@c%20d\n"
    "Resources:\n"
    "- ipfs://bafkqaaa\n"
    f"- {session_key_resource(SESSION)}"
)
PLAIN = next(vector["text"] for vector in VECTORS if vector["name"] == "plain")


def message(**changes: Any) -> SiweMessage:
    return replace(SiweMessage.parse(PLAIN), **changes)


def sign_in(text: str, **changes: Any) -> Address:
    return verify_siwe(text, sign_personal(text, KEY), **(EXPECTED | changes))


# -- golden vectors and the oracle -------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_recorded_sign_ins_are_accepted_and_written_again(vector: dict[str, Any]) -> None:
    signature = bytes.fromhex(vector["signature"][2:])

    assert verify_siwe(vector["text"], signature, **EXPECTED) == vector["address"] == KEY.address
    assert SiweMessage.parse(vector["text"]).text() == vector["text"]
    assert sign_personal(vector["text"], KEY) == signature


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_eth_account_signs_recorded_sign_ins_alike(vector: dict[str, Any]) -> None:
    signed = Account.from_key(KEY.reveal_secret()).sign_message(encode_defunct(text=vector["text"]))

    assert "0x" + bytes(signed.message_hash).hex() == vector["digest"]
    assert "0x" + bytes(signed.signature).hex() == vector["signature"]


def test_every_line_of_the_standard_is_read_and_written_again() -> None:
    parsed = SiweMessage.parse(FULL)

    assert parsed.text() == FULL
    assert parsed.scheme == "https"
    assert parsed.address == KEY.address
    assert parsed.statement == "I accept the terms: https://market.example/terms (v1.2)."
    assert parsed.request_id == "a:b@c%20d"
    assert parsed.resources == ("ipfs://bafkqaaa", session_key_resource(SESSION))
    assert parsed.expires() == datetime(2026, 1, 2, 3, 34, 5, tzinfo=UTC)
    assert sign_in(FULL) == KEY.address


# -- the grammar -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Version: 1", "Version: 2"),
        ("Version: 1", "Version: 11"),
        ("Version: 1\n", ""),
        ("\n", "\r\n"),
        ("https://market.example:8443 wants", "https:// wants"),
        ("market.example:8443 wants", "user@market.example:8443 wants"),
        ("market.example:8443 wants", "market.example/path wants"),
        ("Ethereum account", "ethereum account"),
        ("\n\nI accept", "\nI accept"),
        ("(v1.2).\n", "(v1.2).\nsecond line\n"),
        ("I accept", 'I "accept"'),
        ("I accept", "I accept\x00"),
        ("I accept", "Ich müsste"),
        ("Nonce: k3J9s0Qm2XbT7aLz", "Nonce: short12"),
        ("Nonce: k3J9s0Qm2XbT7aLz", "Nonce: with-dash-0123"),
        ("Nonce: k3J9s0Qm2XbT7aLz", "Nonce: "),
        ("Nonce: k3J9s0Qm2XbT7aLz", "Nonce: " + "a" * 129),
        ("Chain ID: 31337", "Chain ID: 031337"),
        ("Chain ID: 31337", "Chain ID: 0x7a69"),
        ("Chain ID: 31337", "Chain ID: -1"),
        ("Chain ID: 31337", "Chain ID: ٣١٣٣٧"),
        ("Chain ID: 31337", "Chain ID: " + "1" * 5_000),
        ("URI: https://market.example", "URI: //market.example"),
        ("URI: https", "URI: https://a b"),
        ("URI: https://", "URI: https://%zz"),
        ("Expiration Time: 2026-01-02T03:34:05Z\n", ""),
        ("Expiration Time: 2026-01-02T03:34:05Z", "Expiration Time: 2026-01-02T03:34:05"),
        ("Expiration Time: 2026-01-02T03:34:05Z", "Expiration Time: 2026-01-02 03:34:05Z"),
        ("Expiration Time: 2026-01-02T03:34:05Z", "Expiration Time: 2026-13-02T03:34:05Z"),
        ("Expiration Time: 2026-01-02T03:34:05Z", "Expiration Time: 2026-01-02T03:34:60Z"),
        ("Expiration Time: 2026-01-02T03:34:05Z", "Expiration Time: 0001-01-01T00:00:00+23:59"),
        ("Not Before: 2026-01-02T03:04:05Z", "Not Before: 2026-02-30T03:04:05Z"),
        ("Issued At: 2026-01-02T04:04:05.123+01:00", "Issued At: 2026-01-02T04:04:05.123+99:00"),
        ("Issued At", "Issued at"),
        ("Request ID: a:b@c%20d", "Request ID: a b"),
        ("Request ID: a:b@c%20d\n", "Request ID: a\nRequest ID: b\n"),
        ("Resources:\n- ipfs", "Resources:\n-ipfs"),
        ("- ipfs://bafkqaaa", "- no uri"),
        ("- ipfs://bafkqaaa\n", "- ipfs://bafkqaaa\n" * 16),
        ("- ipfs://bafkqaaa", "- ipfs://" + "a" * 4_096),
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_text_outside_the_grammar_is_refused(old: str, new: str) -> None:
    assert old in FULL

    with pytest.raises(BadDocument):
        sign_in(FULL.replace(old, new))


@pytest.mark.parametrize("end", ["\n", " ", "\n- ", "\nextra", "\x00"])
def test_nothing_may_follow_or_lead(end: str) -> None:
    for text in (PLAIN + end, end + PLAIN):
        with pytest.raises(BadDocument):
            sign_in(text)


@pytest.mark.parametrize("case", [str.lower, str.upper, str.swapcase], ids=["lower", "upper", "swapped"])
def test_address_without_its_checksum_is_refused(case: Callable[[str], str]) -> None:
    shown = checksum_address(KEY.address)

    with pytest.raises(BadDocument, match="EIP-55"):
        sign_in(PLAIN.replace(shown, "0x" + case(shown[2:])))


# -- what is checked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("domain", "market.example", WrongAudience),
        ("domain", "MARKET.example:8443", WrongAudience),
        ("domain", "attacker.example", WrongAudience),
        ("uri", "https://market.example:8443/api/v1/auth/verify/", WrongAudience),
        ("uri", "http://market.example:8443/api/v1/auth/verify", WrongAudience),
        ("chain_id", 1, WrongAudience),
        ("nonce", "k3J9s0Qm2XbT7aLy", Replayed),
        ("nonce", "K3J9s0Qm2XbT7aLz", Replayed),
        ("issued_at", "2026-01-02T03:05:06Z", NotYetValid),
        ("not_before", "2026-01-02T03:05:06Z", NotYetValid),
        ("expiration_time", "2026-01-02T04:04:06Z", BadDocument),
        ("expiration_time", "2026-01-02T03:04:05Z", BadDocument),
        ("expiration_time", "2026-01-01T03:04:05Z", BadDocument),
    ],
)
def test_sign_in_made_for_something_else_is_refused(field: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        sign_in(message(**{field: value}).text())


def test_sign_in_ends_exactly_at_its_expiry() -> None:
    end = NOW + timedelta(hours=1)

    assert sign_in(PLAIN, now=end - timedelta(microseconds=1)) == KEY.address
    with pytest.raises(Expired):
        sign_in(PLAIN, now=end)


def test_clocks_may_differ_by_a_minute() -> None:
    assert sign_in(PLAIN, now=NOW - timedelta(seconds=60)) == KEY.address
    with pytest.raises(NotYetValid):
        sign_in(PLAIN, now=NOW - timedelta(seconds=61))


def test_signature_of_somebody_else_is_refused() -> None:
    with pytest.raises(BadSignature):
        verify_siwe(PLAIN, sign_personal(PLAIN, deterministic_evm_key("attacker")), **EXPECTED)


def test_every_single_bit_of_a_signature_counts() -> None:
    signature = sign_personal(PLAIN, KEY)

    for bit in range(len(signature) * 8):
        altered = bytearray(signature)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadSignature):
            verify_siwe(PLAIN, bytes(altered), **EXPECTED)


def test_every_single_bit_of_a_text_counts() -> None:
    signature = sign_personal(FULL, KEY)
    verify_siwe(FULL, signature, **EXPECTED)

    accepted = []
    for index, char in enumerate(FULL):
        for bit in range(8):
            altered = FULL[:index] + chr(ord(char) ^ 1 << bit) + FULL[index + 1 :]
            try:
                verify_siwe(altered, signature, **EXPECTED)
            except (Untrusted, InvalidInput):
                continue
            accepted.append((index, bit))
    assert accepted == []


# -- building and the session key --------------------------------------------------------------------------------


def build(**changes: Any) -> SiweMessage:
    values = {name: EXPECTED[name] for name in ("domain", "uri", "chain_id", "nonce", "now")}
    return SiweMessage.build(**(values | {"address": KEY.address, "ttl": timedelta(minutes=30)} | changes))


def test_sign_in_carries_one_session_key() -> None:
    built = build(session_key=SESSION)

    assert sign_in(built.text()) == KEY.address
    assert SiweMessage.parse(built.text()).session_key() == SESSION


@pytest.mark.parametrize(
    "resources",
    [
        None,
        (),
        ("https://market.example",),
        (session_key_resource(SESSION),) * 2,
        (session_key_resource(SESSION), session_key_resource(deterministic_ed25519("other").public_key)),
        ("urn:parity:session-key:ed25519:",),
        ("urn:parity:session-key:ed25519:AAAA",),
        ("urn:parity:session-key:ed25519:" + "A" * 43,),  # y = 0: anybody can sign
        (session_key_resource(SESSION) + "=",),
        ("urn:parity:session-key:ed25519:" + "%41" * 43,),
        ("urn:parity:session-key:rsa:AAAA",),
    ],
)
def test_sign_in_without_exactly_one_good_session_key_is_refused(resources: tuple[str, ...] | None) -> None:
    with pytest.raises(BadDocument) as refused:
        SiweMessage.parse(message(resources=resources).text()).session_key()

    assert refused.value.field in ("resources", "")


@pytest.mark.parametrize(
    "changes",
    [
        {"statement": "two\nlines"},
        {"statement": ""},
        {"statement": "x\n\nURI: https://attacker.example\nVersion: 1"},
        {"nonce": "short"},
        {"nonce": "k3J9s0Qm2XbT7aLz\nIssued At: 2020-01-01T00:00:00Z"},
        {"domain": "market.example wants"},
        {"domain": ""},
        {"domain": "https://market.example"},
        {"uri": "no uri"},
        {"chain_id": -1},
        {"address": "0x" + "g" * 40},
    ],
    ids=str,
)
def test_sign_in_is_not_built_from_what_would_read_otherwise(changes: dict[str, Any]) -> None:
    with pytest.raises(BadField):
        build(**changes)
