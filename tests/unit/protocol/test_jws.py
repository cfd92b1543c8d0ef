from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from joserfc import jws as oracle
from joserfc.jwk import OKPKey

from parity_protocol.errors import (
    BadDocument,
    BadField,
    BadSignature,
    Expired,
    InvalidInput,
    NotYetValid,
    UnknownKey,
    Untrusted,
    WrongAudience,
    WrongType,
)
from parity_protocol.signing import jws
from parity_protocol.signing.keys import Ed25519PublicKey
from parity_protocol.testing.keys import deterministic_ed25519

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/jws/tokens.json").read_text(encoding="utf-8"))
TYPES = [vector["typ"] for vector in VECTORS]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
AT = int(NOW.timestamp())
KEY = deterministic_ed25519("market-manifest")
KID = KEY.public_key.thumbprint()
KEYS = {KID: KEY.public_key}
HEADER = {"alg": "Ed25519", "kid": KID, "typ": "manifest+jws"}
CLAIMS: dict[str, Any] = dict(
    jws.claims("market", "task", "node", jti="1", now=NOW, ttl=timedelta(hours=1)), reward="1000"
)

by_type = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["typ"])


def verify(token: str, **changes: Any) -> jws.Verified:
    expected: dict[str, Any] = {"issuer": "market", "audience": "node", "now": NOW}
    return jws.verify(token, changes.pop("keys", KEYS), changes.pop("typ", "manifest+jws"), **(expected | changes))


def token_of(header: object, payload: object, sign: Callable[[bytes], bytes] = KEY.sign) -> str:
    """Write any header and payload, given as JSON values or as bytes, and sign them."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signed = ".".join(jws.b64url_encode(part) for part in parts)
    return f"{signed}.{jws.b64url_encode(sign(signed.encode()))}"


def verify_vector(vector: dict[str, Any], typ: str | None = None) -> jws.Verified:
    return jws.verify(
        vector["token"],
        {vector["kid"]: Ed25519PublicKey(bytes.fromhex(vector["public_key"]))},
        vector["typ"] if typ is None else typ,
        issuer=vector["issuer"],
        audience=vector["audience"],
        now=datetime.fromtimestamp(vector["now"], UTC),
    )


# -- golden vectors and the oracle -------------------------------------------------------------------------------


@by_type
def test_recorded_tokens_are_accepted_and_written_again(vector: dict[str, Any]) -> None:
    verified = verify_vector(vector)

    assert verified.payload == vector["payload"]
    assert verified.token_sha256 == vector["sha256"] == sha256(vector["token"].encode()).hexdigest()
    assert jws.sign(vector["payload"], deterministic_ed25519(vector["key"]), vector["typ"]) == vector["token"]


@by_type
def test_joserfc_accepts_recorded_tokens(vector: dict[str, Any]) -> None:
    public: dict[str, str | list[str]] = {**Ed25519PublicKey(bytes.fromhex(vector["public_key"])).jwk()}

    read = oracle.deserialize_compact(vector["token"], OKPKey.import_key(public), algorithms=["Ed25519"])

    assert read.headers() == {"alg": "Ed25519", "kid": vector["kid"], "typ": vector["typ"]}
    assert json.loads(read.payload) == vector["payload"]


def test_tokens_by_joserfc_are_accepted() -> None:
    secret: dict[str, str | list[str]] = {**KEY.public_key.jwk(), "d": jws.b64url_encode(KEY.reveal_seed())}
    token = oracle.serialize_compact(HEADER, json.dumps(CLAIMS), OKPKey.import_key(secret), algorithms=["Ed25519"])

    assert verify(token).payload == CLAIMS


# -- the signature covers every bit ------------------------------------------------------------------------------


def test_every_single_bit_of_a_token_counts() -> None:
    token = jws.sign(CLAIMS, KEY, "manifest+jws")
    verify(token)

    accepted = []
    for index, char in enumerate(token):
        for bit in range(8):
            altered = token[:index] + chr(ord(char) ^ 1 << bit) + token[index + 1 :]
            try:
                verify(altered)
            except (Untrusted, InvalidInput):
                continue
            accepted.append((index, bit))
    assert accepted == []


def test_hash_and_payload_are_of_the_received_bytes_and_never_rewritten() -> None:
    spaced = json.dumps(CLAIMS, indent=4).encode()
    compact, wide = verify(jws.sign(CLAIMS, KEY, "manifest+jws")), verify(token_of(HEADER, spaced))

    assert wide.payload == compact.payload
    assert wide.raw_payload == spaced
    assert wide.token_sha256 != compact.token_sha256


@pytest.mark.parametrize(
    "alter",
    [
        lambda t: t + "=",
        lambda t: t + "\n",
        lambda t: " " + t,
        lambda t: t + ".",
        lambda t: t[:-1],
        lambda t: t.replace(".", "=."),
        lambda t: t.replace(".", ".\n"),
        lambda t: t + "AA",
        lambda t: "",
        lambda t: "..",
        lambda t: t.rsplit(".", 1)[0],
        lambda t: t.rsplit(".", 1)[0] + ".",
    ],
)
def test_other_writings_of_the_same_token_are_refused(alter: Callable[[str], str]) -> None:
    with pytest.raises((BadDocument, BadSignature)):
        verify(alter(jws.sign(CLAIMS, KEY, "manifest+jws")))


def test_standard_base64_and_stray_bits_are_refused() -> None:
    header, payload, signature = jws.sign(CLAIMS, KEY, "manifest+jws").split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    stray = signature[:-1] + alphabet[alphabet.index(signature[-1]) | 1]  # 64 bytes leave 4 bits of the last character
    standard = signature.replace("-", "+").replace("_", "/")

    assert standard != signature != stray
    for other in (stray, standard):
        with pytest.raises(BadDocument, match="canonical"):
            verify(f"{header}.{payload}.{other}")


# -- the header decides nothing (RFC 8725 §3.1, §3.11) -----------------------------------------------------------


@pytest.mark.parametrize(
    "alg",
    [
        "none",
        "None",
        "NONE",
        "",
        "HS256",
        "HS512",
        "RS256",
        "PS256",
        "ES256",
        "ES256K",
        "EdDSA",
        "ed25519",
        "Ed448",
        None,
        1,
        ["Ed25519"],
    ],
)
def test_algorithm_is_the_keys_whatever_the_header_says(alg: object) -> None:
    for signer in (KEY.sign, lambda _: b"", lambda _: bytes(64)):
        with pytest.raises(BadSignature, match="algorithm must be Ed25519"):
            verify(token_of(HEADER | {"alg": alg}, CLAIMS, signer))


@pytest.mark.parametrize("secret", [KEY.public_key.raw, KID.encode(), json.dumps(KEY.public_key.jwk()).encode()])
@pytest.mark.parametrize("alg", ["HS256", "Ed25519"])
def test_hmac_with_the_public_key_as_its_secret_is_refused(secret: bytes, alg: str) -> None:
    for digest in ("sha256", "sha512"):
        with pytest.raises(BadSignature):
            verify(token_of(HEADER | {"alg": alg}, CLAIMS, lambda data, name=digest: hmac.digest(secret, data, name)))  # type: ignore[misc]


@pytest.mark.parametrize("alg", ["RS256", "Ed25519"])
def test_rsa_signature_is_refused(alg: str) -> None:
    key = rsa.generate_private_key(65537, 2048)

    with pytest.raises(BadSignature):
        verify(
            token_of(HEADER | {"alg": alg}, CLAIMS, lambda data: key.sign(data, padding.PKCS1v15(), hashes.SHA256()))
        )


ATTACKER = deterministic_ed25519("attacker")


@pytest.mark.parametrize(
    "extra",
    [
        {"jwk": ATTACKER.public_key.jwk()},
        {"jku": "https://attacker.example/jwks.json"},
        {"x5u": "https://attacker.example/cert.pem"},
        {"x5c": ["MIIB"]},
        {"x5t": "AAAA"},
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": ["b64"], "b64": False},
        {"b64": False},
        {"zip": "DEF"},
        {"cty": "JWT"},
        {"anything": 1},
    ],
    ids=str,
)
def test_header_with_anything_more_is_refused(extra: dict[str, object]) -> None:
    for signer in (KEY, ATTACKER):
        with pytest.raises(BadDocument, match="exactly alg, kid and typ"):
            verify(token_of(HEADER | extra, CLAIMS, signer.sign))


@pytest.mark.parametrize("name", ["alg", "kid", "typ"])
def test_header_with_anything_less_is_refused(name: str) -> None:
    with pytest.raises(BadDocument, match="exactly alg, kid and typ"):
        verify(token_of({key: value for key, value in HEADER.items() if key != name}, CLAIMS))


@pytest.mark.parametrize(
    "header",
    [
        b'{"alg":"none","alg":"Ed25519","kid":"%s","typ":"manifest+jws"}' % KID.encode(),
        b'{"alg":"Ed25519","kid":"%s","typ":"manifest+jws"}x' % KID.encode(),
        b"[]",
        b'"Ed25519"',
        b"\xff",
        b"",
        b'{"a":' * 400,
    ],
)
def test_header_that_is_no_strict_document_is_refused(header: bytes) -> None:
    with pytest.raises(BadDocument):
        verify(token_of(header, CLAIMS))


@pytest.mark.parametrize("kid", [1, None, [], {}, ""])
def test_key_id_is_text(kid: object) -> None:
    with pytest.raises(BadDocument, match="kid"):
        verify(token_of(HEADER | {"kid": kid}, CLAIMS))


def test_unknown_key_is_named_so_that_a_key_set_can_be_refreshed() -> None:
    token = jws.sign(CLAIMS, ATTACKER, "manifest+jws")

    with pytest.raises(UnknownKey) as refused:
        verify(token)

    assert refused.value.kid == ATTACKER.public_key.thumbprint()


def test_known_key_id_does_not_help_another_key() -> None:
    with pytest.raises(BadSignature):
        verify(token_of(HEADER, CLAIMS, ATTACKER.sign))


@pytest.mark.parametrize("typ", [*TYPES, "JWT", "manifest+JWS", "application/manifest+jws", "manifest", ""])
@by_type
def test_token_works_only_as_its_own_type(vector: dict[str, Any], typ: str) -> None:
    if typ == vector["typ"]:
        verify_vector(vector, typ)
    else:
        with pytest.raises(WrongType):
            verify_vector(vector, typ)


@pytest.mark.parametrize("typ", [None, 1, ["manifest+jws"], "Manifest+jws", "manifest+jws "])
def test_type_is_compared_exactly(typ: object) -> None:
    with pytest.raises(WrongType):
        verify(token_of(HEADER | {"typ": typ}, CLAIMS))


# -- the payload -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"null",
        b'{"iss":"market","iss":"market"}',
        b'{"exp":NaN}',
        b'{"exp":1e999}',
        b"\xff",
        b'{"a":"\\ud800"}',
        b'{"a":' * 33 + b"0" + b"}" * 33,
        b'{"exp":' + b"9" * 5000 + b"}",
    ],
    ids=lambda payload: repr(payload[:20]),
)
def test_signed_payload_is_read_strictly_all_the_same(payload: bytes) -> None:
    with pytest.raises(BadDocument):
        verify(token_of(HEADER, payload))


@pytest.mark.parametrize("size", [262_145, 1_000_000])
def test_oversized_token_is_refused(size: int) -> None:
    with pytest.raises(BadDocument, match="are allowed"):
        verify(token_of(HEADER, b" " * size))


def test_payload_of_256_kib_is_accepted() -> None:
    body = json.dumps(CLAIMS).encode()

    assert verify(token_of(HEADER, body + b" " * (262_144 - len(body)))).payload == CLAIMS


@pytest.mark.parametrize("name", ["iss", "sub", "jti", "iat", "nbf", "exp"])
def test_required_claim_that_is_missing_or_of_another_type_is_refused(name: str) -> None:
    without = {key: value for key, value in CLAIMS.items() if key != name}
    wrong: list[Any] = [None, True, [], {}, "", 1.5, -1, 10**12, "x" * 257, ["market"]]

    for payload in (without, *(CLAIMS | {name: value} for value in wrong)):
        with pytest.raises(BadDocument) as refused:
            verify(token_of(HEADER, payload))
        assert refused.value.field == name
        with pytest.raises(BadField):
            jws.sign(payload, KEY, "manifest+jws")


@pytest.mark.parametrize("audience", ["another", "node ", "Node", "", None, 1, ["node"], ["node", "another"], {}])
def test_token_for_somebody_else_is_refused(audience: object) -> None:
    with pytest.raises(WrongAudience):
        verify(token_of(HEADER, CLAIMS | {"aud": audience}))


def test_token_for_nobody_in_particular_is_refused_where_somebody_is_expected() -> None:
    with pytest.raises(WrongAudience):
        verify(token_of(HEADER, {key: value for key, value in CLAIMS.items() if key != "aud"}))


@pytest.mark.parametrize("audience", ["node", "", None])
def test_token_for_somebody_is_refused_where_nobody_is_expected(audience: object) -> None:
    with pytest.raises(WrongAudience):
        verify(token_of(HEADER, CLAIMS | {"aud": audience}), audience=None)


def test_token_by_another_issuer_is_refused() -> None:
    with pytest.raises(Untrusted, match="issuer"):
        verify(jws.sign(CLAIMS | {"iss": "market2"}, KEY, "manifest+jws"))


# -- the window --------------------------------------------------------------------------------------------------


def at(**changes: int) -> str:
    """Sign the claims with times given as seconds from ``NOW``."""
    return jws.sign(CLAIMS | {name: AT + offset for name, offset in changes.items()}, KEY, "manifest+jws")


def test_token_is_accepted_up_to_the_leeway_before_and_after() -> None:
    verify(at(nbf=60, iat=60))
    verify(at(iat=-100, nbf=-100, exp=-59))


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_token_from_the_future_is_not_yet_valid(name: str) -> None:
    with pytest.raises(NotYetValid, match="61 s ahead"):
        verify(at(**{name: 61}))


def test_token_is_expired_from_its_end_and_the_leeway_on() -> None:
    with pytest.raises(Expired):
        verify(at(iat=-100, nbf=-100, exp=-60))


@pytest.mark.parametrize(
    "times",
    [
        {"iat": 0, "nbf": 0, "exp": 86_401},
        {"iat": -10, "nbf": 0, "exp": 86_395},
        {"iat": 0, "nbf": -10, "exp": 86_395},
        {"iat": 0, "nbf": 0, "exp": 0},
        {"iat": 0, "nbf": 0, "exp": -1},
        {"iat": 20, "nbf": 0, "exp": 10},
    ],
)
def test_window_is_above_zero_and_at_most_a_day(times: dict[str, int]) -> None:
    with pytest.raises(BadDocument, match="window"):
        verify(at(**times))


def test_window_of_a_day_is_accepted_and_can_be_set_shorter() -> None:
    token = at(iat=0, nbf=0, exp=86_400)

    verify(token)
    with pytest.raises(BadDocument, match="at most 1 h"):
        verify(token, max_window=timedelta(hours=1))


def test_leeway_can_be_taken_away() -> None:
    with pytest.raises(NotYetValid):
        verify(at(nbf=1), leeway=timedelta(0))


# -- thumbprints -------------------------------------------------------------------------------------------------


def test_thumbprint_is_read_as_its_bytes() -> None:
    assert jws.thumbprint_bytes(KID) == KEY.public_key.thumbprint_bytes()


@pytest.mark.parametrize("text", ["", "AAAA", KID + "=", KID[:-1], KID + "A", KID[:-1] + "é", "*" * 43])
def test_other_text_is_no_thumbprint(text: str) -> None:
    with pytest.raises(BadField):
        jws.thumbprint_bytes(text)
