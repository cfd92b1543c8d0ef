from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from parity_protocol.errors import (
    BadField,
    BadSignature,
    ClockSkew,
    DigestMismatch,
    InvalidInput,
    Overloaded,
    Replayed,
    Unauthenticated,
    Untrusted,
)
from parity_protocol.signing.http_signatures import NonceCache, parse_signature, sign_request, verify_request
from parity_protocol.signing.keys import Ed25519PublicKey, node_id_of
from parity_protocol.testing.keys import deterministic_ed25519

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/http_signatures/requests.json").read_text(encoding="utf-8"))
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEY = deterministic_ed25519("device")
KEYID = node_id_of(KEY.public_key)
NONCE = "AAAABBBBCCCCDDDD"
REQUEST: dict[str, Any] = {
    "method": "POST",
    "path": "/api/v1/tasks",
    "query": "dry_run=1",
    "authority": "market.example:8443",
    "body": b'{"a":1}',
}


def signed(**changes: Any) -> dict[str, str]:
    values = REQUEST | {"key": KEY, "keyid": KEYID, "now": NOW, "nonce": NONCE} | changes
    return sign_request(**values)


def verify(headers: Mapping[str, str], **changes: Any) -> None:
    values = REQUEST | {"key": KEY.public_key, "now": NOW} | changes
    verify_request(signature=parse_signature(headers), **values)


# -- golden vectors and the standard -----------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_recorded_requests_are_accepted_and_signed_again(vector: dict[str, Any]) -> None:
    request = {name: vector[name] for name in ("method", "path", "query", "authority")}
    request["body"] = bytes.fromhex(vector["body_hex"])
    now = datetime.fromtimestamp(vector["now"], UTC)
    parsed = parse_signature(vector["headers"])

    verify(vector["headers"], **request, now=now, key=Ed25519PublicKey(bytes.fromhex(vector["public_key"])))
    assert signed(**request, now=now, nonce=parsed.nonce) == vector["headers"]
    assert (parsed.keyid, parsed.created) == (KEYID, now)


def test_signature_base_is_that_of_rfc_9421() -> None:
    headers = signed()
    digest = base64.b64encode(sha256(b'{"a":1}').digest()).decode()
    base = (
        '"@method": POST\n'
        '"@path": /api/v1/tasks\n'
        '"@query": ?dry_run=1\n'
        '"@authority": market.example:8443\n'
        f'"content-digest": sha-256=:{digest}:\n'
        '"@signature-params": ("@method" "@path" "@query" "@authority" "content-digest")'
        f';created=1767323045;keyid="{KEYID}";nonce="{NONCE}";alg="ed25519";tag="parity"'
    )

    assert headers["Signature-Input"] == "sig1=" + base.rpartition('"@signature-params": ')[2]
    KEY.public_key.verify(base64.b64decode(headers["Signature"][6:-1]), base.encode())


def test_empty_body_has_its_digest_too() -> None:
    headers = signed(body=b"", query="")

    assert headers["Content-Digest"] == "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"
    verify(headers, body=b"", query="")


def test_authority_is_compared_without_case_and_an_empty_path_is_the_root() -> None:
    verify(signed(authority="Market.Example:8443", path="/"), path="")


# -- what is covered ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "PUT"},
        {"method": "post"},
        {"path": "/api/v1/tasks/"},
        {"path": "/api/v1/%74asks"},
        {"path": "/API/v1/tasks"},
        {"query": ""},
        {"query": "dry_run=0"},
        {"query": "dry_run=1&x=2"},
        {"authority": "market.example"},
        {"authority": "other.example:8443"},
        {"path": '/api/v1/tasks\n"@query": ?dry_run=1'},
        {"path": "/api/v1/tasks "},
        {"path": "/" + "x" * 9_000},
        {"query": "ä"},
        {"key": deterministic_ed25519("attacker").public_key},
    ],
    ids=lambda changes: ascii(changes)[:40],
)
def test_request_other_than_the_signed_one_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadSignature):
        verify(signed(), **changes)


@pytest.mark.parametrize("body", [b"", b'{"a":2}', b'{"a":1} ', b'{"a": 1}'])
def test_body_other_than_the_signed_one_is_refused(body: bytes) -> None:
    with pytest.raises(DigestMismatch):
        verify(signed(), body=body)


def test_digest_of_another_body_does_not_help() -> None:
    with pytest.raises(BadSignature):
        verify(signed() | {"Content-Digest": signed(body=b"other")["Content-Digest"]}, body=b"other")


@pytest.mark.parametrize("name", ["Content-Digest", "Signature-Input", "Signature"])
def test_every_single_bit_of_a_header_counts(name: str) -> None:
    headers = signed()
    verify(headers)

    accepted = []
    for index, char in enumerate(headers[name]):
        for bit in range(8):
            altered = headers[name][:index] + chr(ord(char) ^ 1 << bit) + headers[name][index + 1 :]
            try:
                verify(headers | {name: altered})
            except (Untrusted, InvalidInput):
                continue
            accepted.append((index, bit))
    assert accepted == []


@pytest.mark.parametrize("component", ['"@method"', '"@path"', '"@query"', '"@authority"', '"content-digest"'])
def test_signature_without_one_component_is_refused(component: str) -> None:
    """The signer leaves the component out of the base too, so that only the profile can refuse it."""
    headers = signed()
    params = headers["Signature-Input"].removeprefix("sig1=")
    fewer = params.replace(component + " ", "").replace(" " + component, "")
    lines = {
        '"@method"': REQUEST["method"],
        '"@path"': REQUEST["path"],
        '"@query"': "?" + REQUEST["query"],
        '"@authority"': REQUEST["authority"],
        '"content-digest"': headers["Content-Digest"],
    }
    base = "".join(f"{name}: {value}\n" for name, value in lines.items() if name != component)
    signature = base64.b64encode(KEY.sign(f'{base}"@signature-params": {fewer}'.encode())).decode()
    assert fewer != params

    with pytest.raises(BadSignature, match="not in the expected form"):
        verify(headers | {"Signature-Input": f"sig1={fewer}", "Signature": f"sig1=:{signature}:"})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sig1=", "sig2="),
        ("sig1=", " sig1="),
        ("sig1=(", "sig1=( "),
        ('"@method" "@path"', '"@path" "@method"'),
        ('"@method"', '"@method" "@method"'),
        ('"@query"', '"@query";req'),
        ('"@method"', '"@target-uri"'),
        (';alg="ed25519"', ""),
        (';alg="ed25519"', ';alg="hmac-sha256"'),
        (';alg="ed25519"', ';alg="none"'),
        (';alg="ed25519"', ';alg="ed25519";alg="ed25519"'),
        (';tag="parity"', ""),
        (';tag="parity"', ';tag="other"'),
        (';tag="parity"', ';tag="parity";expires=99999999999'),
        (';tag="parity"', ';tag="parity", sig2=("@method");created=1'),
        (";created=1767323045", ""),
        (";created=1767323045", ";created=-1"),
        (";created=1767323045", ";created=1767323045.0"),
        (";created=1767323045", ";created=01767323045"),
        (";created=1767323045", ";created=" + "9" * 400),
        (f';nonce="{NONCE}"', ""),
        (f';nonce="{NONCE}"', ';nonce="short"'),
        (f';nonce="{NONCE}"', f';nonce="{"n" * 65}"'),
        (f';keyid="{KEYID}"', ""),
        (f';keyid="{KEYID}"', ';keyid=""'),
        (f';keyid="{KEYID}"', ';keyid="a\\"b"'),
        (f';keyid="{KEYID}"', f';keyid="{"k" * 129}"'),
        (";", "; "),
    ],
    ids=lambda text: text[:30],
)
def test_signature_input_in_another_form_is_refused(old: str, new: str) -> None:
    headers = signed()
    assert old in headers["Signature-Input"]

    with pytest.raises(BadSignature):
        verify(headers | {"Signature-Input": headers["Signature-Input"].replace(old, new)})


@pytest.mark.parametrize(
    "value",
    [
        "",
        "sig1=::",
        "sig1=:" + base64.b64encode(bytes(63)).decode() + ":",
        "sig1=:" + base64.b64encode(bytes(65)).decode() + ":",
        "sig1=:" + "A" * 85 + "B==:",  # stray bits
        "sig1=:" + "A" * 86 + "==:, sig2=:" + "A" * 86 + "==:",
        "sig1=:" + "A" * 86 + "==:\n",
        "sig1=:" + "_" * 86 + "==:",
        "A" * 5_000,
    ],
)
def test_signature_header_in_another_form_is_refused(value: str) -> None:
    with pytest.raises(BadSignature):
        verify(signed() | {"Signature": value})


@pytest.mark.parametrize("value", ["", "sha-512=:AAAA:", "sha-256=::", "md5=:AAAA:", "sha-256=AAAA"])
def test_content_digest_in_another_form_is_refused(value: str) -> None:
    headers = signed()

    for digest in (value, f"{headers['Content-Digest']}, {value}", f"{value}, {headers['Content-Digest']}"):
        with pytest.raises(BadSignature, match="content-digest"):
            verify(headers | {"Content-Digest": digest})


@pytest.mark.parametrize("name", ["Content-Digest", "Signature-Input", "Signature"])
def test_request_without_a_header_is_not_authenticated(name: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        verify({key: value for key, value in signed().items() if key != name})

    assert refused.value.field == name.lower()


@pytest.mark.parametrize("name", ["content-digest", "signature-input", "signature"])
def test_repeated_header_is_refused_though_both_say_the_same(name: str) -> None:
    raw = [(key.lower().encode(), value.encode()) for key, value in signed().items()]
    again = [pair for pair in raw if pair[0] == name.encode()]

    verify(Headers(raw=raw))
    with pytest.raises(BadSignature, match="repeated"):
        verify(Headers(raw=raw + again))


# -- time and replay ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [-60, 0, 60])
def test_clocks_may_differ_by_a_minute(apart: int) -> None:
    verify(signed(), now=NOW + timedelta(seconds=apart))


@pytest.mark.parametrize("apart", [-61, 61, 600, -600, 10**9])
def test_request_of_another_time_is_told_the_markets_time(apart: int) -> None:
    now = NOW + timedelta(seconds=apart)

    with pytest.raises(ClockSkew) as refused:
        verify(signed(), now=now)

    assert now.strftime("the market's time is %Y-%m-%dT%H:%M:%SZ") in refused.value.message
    assert f"{abs(apart)} s apart" in refused.value.message


def test_created_at_the_end_of_time_is_no_crash() -> None:
    created = signed()["Signature-Input"].replace("created=1767323045", "created=99999999999")

    with pytest.raises(ClockSkew):
        verify(signed() | {"Signature-Input": created})


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": ""},
        {"nonce": 'quote"quote"quote"'},
        {"keyid": ""},
        {"keyid": 'a"b'},
        {"path": "/with space"},
        {"query": "a\nb"},
        {"authority": "host\r\nevil"},
    ],
    ids=str,
)
def test_request_that_could_not_be_verified_is_not_signed(changes: dict[str, str]) -> None:
    with pytest.raises(BadField):
        signed(**changes)


def test_nonce_is_taken_once_by_each_key() -> None:
    seen = NonceCache()

    seen.use("node", NONCE, created=NOW, now=NOW)
    seen.use("other", NONCE, created=NOW, now=NOW)
    seen.use("node", NONCE + "2", created=NOW, now=NOW)
    for created in (NOW - timedelta(seconds=60), NOW, NOW + timedelta(seconds=60)):
        with pytest.raises(Replayed):
            seen.use("node", NONCE, created=created, now=NOW)


@pytest.mark.parametrize("ahead", [-60, -1, 0, 9, 60])
def test_nonce_is_remembered_as_long_as_its_request_is_fresh(ahead: int) -> None:
    seen, created = NonceCache(), NOW + timedelta(seconds=ahead)
    seen.use("node", NONCE, created=created, now=NOW)

    with pytest.raises(Replayed):
        seen.use("node", NONCE, created=created, now=created + timedelta(seconds=60))


def test_nonces_are_forgotten_when_their_requests_are_stale() -> None:
    seen = NonceCache()
    for second in range(1_000):
        now = NOW + timedelta(seconds=second)
        seen.use("node", f"{NONCE}{second}", created=now, now=now)

    assert len(seen) <= 75  # 60 s of skew, and a slice of 10 s


def test_one_key_cannot_fill_the_cache_for_the_others() -> None:
    seen = NonceCache(max_entries=100)
    for number in range(50):
        seen.use("noisy", f"{NONCE}{number}", created=NOW, now=NOW)

    with pytest.raises(Overloaded) as refused:
        seen.use("noisy", NONCE, created=NOW, now=NOW)
    seen.use("quiet", NONCE, created=NOW, now=NOW)

    assert refused.value.retry_after_s == 60


def test_full_cache_refuses_rather_than_forgets() -> None:
    seen = NonceCache(max_entries=4)
    for name in ("a", "b", "c", "d"):
        seen.use(name, NONCE, created=NOW, now=NOW)

    with pytest.raises(Overloaded):
        seen.use("e", NONCE, created=NOW, now=NOW)
    with pytest.raises(Replayed):
        seen.use("a", NONCE, created=NOW, now=NOW)
    seen.use("e", NONCE, created=NOW + timedelta(seconds=100), now=NOW + timedelta(seconds=100))
