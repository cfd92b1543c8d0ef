from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct, encode_typed_data
from eth_utils.crypto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_protocol.errors import BadField, BadSignature
from parity_protocol.ids import Address
from parity_protocol.signing import eip191, eip712
from parity_protocol.signing.eip712 import Eip712Domain, OrderMessage, ReceiptMessage, VoucherMessage
from parity_protocol.signing.keys import recover_address
from parity_protocol.testing.keys import deterministic_evm_key

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/eip712/documents.json").read_text(encoding="utf-8"))
VAULT = Address("0x5fbdb2315678afecb367f032d93f642f64180aa3")
MARKET_DOMAIN = Eip712Domain.market(31_337, VAULT)
VAULT_DOMAIN = Eip712Domain.stake_vault(31_337, VAULT)

FIELDS = {
    "EIP712Domain": [
        ("name", "string"),
        ("version", "string"),
        ("chainId", "uint256"),
        ("verifyingContract", "address"),
    ],
    "Order": [
        ("creator", "address"),
        ("specHash", "bytes32"),
        ("maxReward", "uint256"),
        ("market", "bytes32"),
        ("deadline", "uint64"),
        ("nonce", "bytes32"),
    ],
    "Receipt": [
        ("taskId", "string"),
        ("nodeId", "string"),
        ("fence", "uint64"),
        ("orderHash", "bytes32"),
        ("manifestHash", "bytes32"),
        ("resultHash", "bytes32"),
        ("wallMs", "uint64"),
        ("cpuMs", "uint64"),
        ("peakMemoryBytes", "uint64"),
        ("tokens", "uint64"),
        ("joules", "uint64"),
        ("finishedAt", "uint64"),
        ("environmentHash", "bytes32"),
    ],
    "Voucher": [
        ("creator", "bytes32"),
        ("solver", "bytes32"),
        ("spender", "address"),
        ("cumulative", "uint256"),
        ("count", "uint64"),
        ("receiptsHead", "bytes32"),
    ],
}
MESSAGES: dict[str, Any] = {"Order": OrderMessage, "Receipt": ReceiptMessage, "Voucher": VoucherMessage}
DIGESTS: dict[str, Any] = {
    "Order": eip712.order_digest,
    "Receipt": eip712.receipt_digest,
    "Voucher": eip712.voucher_digest,
}
SIGNERS: dict[str, Any] = {"Order": eip712.sign_order, "Receipt": eip712.sign_receipt, "Voucher": eip712.sign_voucher}
RECOVERERS: dict[str, Any] = {
    "Order": eip712.recover_order,
    "Receipt": eip712.recover_receipt,
    "Voucher": eip712.recover_voucher,
}
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "address": st.binary(min_size=20, max_size=20).filter(any).map(lambda raw: "0x" + raw.hex()),
    "bytes32": st.binary(min_size=32, max_size=32),
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=64),
    "uint64": st.integers(0, 2**64 - 1),
    "uint256": st.integers(0, 2**256 - 1),
}

by_document = pytest.mark.parametrize("vector", VECTORS["documents"], ids=lambda vector: vector["name"])
by_struct = pytest.mark.parametrize("struct", list(MESSAGES))


def domain_of(struct: str) -> Eip712Domain:
    return VAULT_DOMAIN if struct == "Voucher" else MARKET_DOMAIN


def read(struct: str, message: dict[str, str]) -> Any:
    """Make a message of a vector's fields, which are text."""
    values: list[Any] = []
    for name, kind in FIELDS[struct]:
        text = message[name]
        values.append(bytes.fromhex(text[2:]) if kind == "bytes32" else int(text) if kind[:4] == "uint" else text)
    return MESSAGES[struct](*values)


def sample(struct: str) -> Any:
    return next(read(struct, found["message"]) for found in VECTORS["documents"] if found["struct"] == struct)


def by_oracle(struct: str, domain: Eip712Domain, message: Any) -> Any:
    """Encode with eth-account, from the field list of this file alone."""
    return encode_typed_data(
        full_message={
            "types": {
                name: [{"name": field, "type": kind} for field, kind in FIELDS[name]]
                for name in ("EIP712Domain", struct)
            },
            "primaryType": struct,
            "domain": {
                "name": domain.name,
                "version": "1",
                "chainId": domain.chain_id,
                "verifyingContract": domain.vault,
            },
            "message": {
                name: getattr(message, ours.name)
                for (name, _), ours in zip(FIELDS[struct], fields(message), strict=True)
            },
        }
    )


def oracle_digest(struct: str, domain: Eip712Domain, message: Any) -> bytes:
    signable = by_oracle(struct, domain, message)
    return keccak(b"\x19" + signable.version + signable.header + signable.body)


# -- golden vectors and the oracle -------------------------------------------------------------------------------


@by_document
def test_recorded_documents_have_their_digest_and_signature(vector: dict[str, Any]) -> None:
    domain = Eip712Domain(vector["domain"]["name"], vector["domain"]["chainId"], vector["domain"]["verifyingContract"])
    struct, key = vector["struct"], deterministic_evm_key(vector["key"])
    message = read(struct, vector["message"])
    signature = bytes.fromhex(vector["signature"][2:])

    assert domain == domain_of(struct)
    assert DIGESTS[struct](domain, message).hex() == vector["digest"][2:]
    assert SIGNERS[struct](domain, message, key) == signature
    assert RECOVERERS[struct](domain, message, signature) == vector["signer"] == key.address


@by_document
def test_eth_account_signs_recorded_documents_alike(vector: dict[str, Any]) -> None:
    struct = vector["struct"]
    message = read(struct, vector["message"])
    key = deterministic_evm_key(vector["key"])

    signed = Account.from_key(key.reveal_secret()).sign_message(by_oracle(struct, domain_of(struct), message))

    assert "0x" + bytes(signed.message_hash).hex() == vector["digest"]
    assert "0x" + bytes(signed.signature).hex() == vector["signature"]


@by_struct
@settings(max_examples=30)
@given(data=st.data())
def test_any_document_has_the_digest_that_eth_account_gives_it(struct: str, data: st.DataObject) -> None:
    message = MESSAGES[struct](*(data.draw(KINDS[kind], name) for name, kind in FIELDS[struct]))
    make = Eip712Domain.stake_vault if struct == "Voucher" else Eip712Domain.market
    domain = make(data.draw(st.integers(0, 2**63)), data.draw(KINDS["address"]))

    assert DIGESTS[struct](domain, message) == oracle_digest(struct, domain, message)


# -- what a signature does not cover cannot be changed -----------------------------------------------------------


@by_struct
def test_every_single_bit_of_a_signature_counts(struct: str) -> None:
    key, message, domain = deterministic_evm_key("signer"), sample(struct), domain_of(struct)
    signature = SIGNERS[struct](domain, message, key)

    accepted = []
    for bit in range(len(signature) * 8):
        altered = bytearray(signature)
        altered[bit // 8] ^= 1 << bit % 8
        try:
            signer = RECOVERERS[struct](domain, message, bytes(altered))
        except BadSignature:
            continue
        if signer == key.address:
            accepted.append(bit)
    assert accepted == []


@by_struct
def test_every_field_is_covered(struct: str) -> None:
    message, domain = sample(struct), domain_of(struct)
    digests = {DIGESTS[struct](domain, message)}

    for (_, kind), field in zip(FIELDS[struct], fields(message), strict=True):
        value = getattr(message, field.name)
        other: object
        if kind == "bytes32":
            other = bytes([value[0] ^ 1]) + value[1:]
        elif kind in ("address", "string"):
            other = value[:-1] + ("0" if value[-1] != "0" else "1")
        else:
            other = value ^ 1
        digests.add(DIGESTS[struct](domain, replace(message, **{field.name: other})))

    assert len(digests) == 1 + len(FIELDS[struct])


@by_struct
def test_domain_is_covered(struct: str) -> None:
    domain = domain_of(struct)
    others = [replace(domain, chain_id=1), replace(domain, vault=Address("0x" + "01" * 20))]

    digests = {DIGESTS[struct](other, sample(struct)) for other in (domain, *others)}

    assert len(digests) == 3


@by_struct
def test_document_is_not_signed_for_the_other_domain(struct: str) -> None:
    other = MARKET_DOMAIN if struct == "Voucher" else VAULT_DOMAIN

    with pytest.raises(BadField, match="signed for"):
        SIGNERS[struct](other, sample(struct), deterministic_evm_key("signer"))
    with pytest.raises(BadField, match="signed for"):
        RECOVERERS[struct](other, sample(struct), bytes(65))


# -- ranges ------------------------------------------------------------------------------------------------------

WRONG: dict[str, list[object]] = {
    "address": [
        "",
        "0x",
        "0x" + "0" * 40,
        VAULT.upper(),
        VAULT[2:],
        VAULT + "0",
        VAULT + "\n",
        "0x" + "g" * 40,
        None,
        b"\x01" * 20,
    ],
    "bytes32": [b"", b"\x01" * 31, b"\x01" * 33, "0x" + "01" * 32, None, bytearray(32)],
    "string": [None, b"text", "x" * 1_025, "\ud800"],
    "uint64": [-1, 2**64, 1.0, True, None, "1"],
    "uint256": [-1, 2**256, 1.0, False, None, "1"],
}


@pytest.mark.parametrize(
    ("struct", "place"), [(name, place) for name in MESSAGES for place in range(len(FIELDS[name]))]
)
def test_value_out_of_its_range_is_refused_by_name(struct: str, place: int) -> None:
    name, kind = FIELDS[struct][place]
    message = sample(struct)

    for value in WRONG[kind]:
        with pytest.raises(BadField) as refused:
            DIGESTS[struct](domain_of(struct), replace(message, **{fields(message)[place].name: value}))
        assert refused.value.field == name


@pytest.mark.parametrize(
    ("chain_id", "vault"),
    [(-1, VAULT), (2**256, VAULT), (1, "0x" + "0" * 40), (1, ""), (1, VAULT.upper())],
)
def test_domain_out_of_its_range_is_refused(chain_id: int, vault: str) -> None:
    with pytest.raises(BadField, match="domain"):
        eip712.order_digest(Eip712Domain.market(chain_id, Address(vault)), sample("Order"))


# -- accounts and the chain of receipts --------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["accounts"], ids=lambda vector: vector["id"][:8])
def test_account_key_is_the_hash_of_the_ids_text(vector: dict[str, str]) -> None:
    assert eip712.account_key(vector["id"]).hex() == vector["key"][2:] == keccak(text=vector["id"]).hex()


def test_receipts_head_chains_digests() -> None:
    first, second, third = (bytes.fromhex(head[2:]) for head in VECTORS["receipts_heads"])
    receipt = next(found for found in VECTORS["documents"] if found["struct"] == "Receipt")
    digest = bytes.fromhex(receipt["digest"][2:])

    assert first == eip712.EMPTY_RECEIPTS_HEAD == bytes(32)
    assert second == eip712.extend_receipts_head(first, digest) == keccak(bytes(32) + digest)
    assert third == eip712.extend_receipts_head(second, second)
    assert VECTORS["documents"][2]["message"]["receiptsHead"] == "0x" + second.hex()


@pytest.mark.parametrize(("head", "digest"), [(b"", bytes(32)), (bytes(32), b""), (bytes(33), bytes(31))])
def test_receipts_head_takes_whole_words_only(head: bytes, digest: bytes) -> None:
    with pytest.raises(BadField):
        eip712.extend_receipts_head(head, digest)


# -- EIP-191 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "hello", "größer 🎈", "x" * 1_000, "line\nline"])
def test_text_is_signed_as_wallets_sign_it(text: str) -> None:
    key = deterministic_evm_key("signer")
    oracle = Account.from_key(key.reveal_secret()).sign_message(encode_defunct(text=text))

    assert eip191.personal_digest(text) == bytes(oracle.message_hash) == eip191.personal_digest(text.encode())
    assert eip191.sign_personal(text, key) == bytes(oracle.signature)
    assert eip191.recover_personal(text, bytes(oracle.signature)) == key.address


def test_signed_text_is_no_bare_digest() -> None:
    key = deterministic_evm_key("signer")
    digest = eip712.order_digest(MARKET_DOMAIN, sample("Order"))

    assert recover_address(digest, eip191.sign_personal(digest, key)) != key.address


def test_text_with_a_lone_surrogate_cannot_be_signed() -> None:
    with pytest.raises(BadField):
        eip191.personal_digest("\ud800")
