from __future__ import annotations

import copy
import pickle
from hashlib import sha256

import pytest
from eth_account import Account

from parity_protocol.errors import BadField, BadSignature
from parity_protocol.signing.keys import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
    EvmKey,
    checksum_address,
    node_id_of,
    recover_address,
)
from parity_protocol.testing.keys import deterministic_ed25519, deterministic_evm_key

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
PRIME = 2**255 - 19
RFC8032_SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")  # §7.1, TEST 1
DIGEST = sha256(b"digest").digest()


def test_ed25519_follows_rfc_8032() -> None:
    key = Ed25519PrivateKey(RFC8032_SEED)

    assert key.public_key.raw.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


def test_thumbprint_follows_rfc_8037() -> None:
    key = Ed25519PrivateKey(RFC8032_SEED).public_key

    assert key.thumbprint() == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"  # appendix A.3
    assert key.jwk() == {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    }


def test_node_id_is_the_hash_of_the_public_key() -> None:
    key = deterministic_ed25519("device").public_key

    assert node_id_of(key) == sha256(key.raw).hexdigest()


def test_every_bit_of_an_ed25519_signature_counts() -> None:
    key = deterministic_ed25519("device")
    signature = key.sign(b"data")

    key.public_key.verify(signature, b"data")
    for bit in range(len(signature) * 8):
        with pytest.raises(BadSignature):
            key.public_key.verify(_flipped(signature, bit), b"data")


@pytest.mark.parametrize("length", [0, 63, 65])
def test_ed25519_signature_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(BadSignature):
        deterministic_ed25519("device").public_key.verify(b"\x01" * length, b"data")


@pytest.mark.parametrize("sign_bit", [0, 1 << 255])
@pytest.mark.parametrize(
    "y",
    [
        0,
        1,
        PRIME - 1,
        PRIME,
        PRIME + 1,
        2**255 - 1,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
        PRIME - 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    ],
)
def test_public_key_under_which_anybody_can_sign_is_refused(y: int, sign_bit: int) -> None:
    with pytest.raises(BadField, match="weak"):
        Ed25519PublicKey((y | sign_bit).to_bytes(32, "little"))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_ed25519_keys_have_32_bytes(length: int) -> None:
    with pytest.raises(BadField):
        Ed25519PublicKey(b"\x02" * length)
    with pytest.raises(BadField):
        Ed25519PrivateKey(b"\x02" * length)


def test_keys_are_made_new_each_time_and_come_back_from_their_secret() -> None:
    device, wallet = Ed25519PrivateKey.generate(), EvmKey.generate()

    assert device.public_key != Ed25519PrivateKey.generate().public_key
    assert wallet.address != EvmKey.generate().address
    assert Ed25519PrivateKey(device.reveal_seed()).public_key == device.public_key
    assert EvmKey(wallet.reveal_secret()).address == wallet.address


@pytest.mark.parametrize(
    "key", [deterministic_ed25519("a"), deterministic_evm_key("a")], ids=lambda key: type(key).__name__
)
def test_secret_is_not_shown_pickled_or_copied(key: Ed25519PrivateKey | EvmKey) -> None:
    assert repr(key) == str(key) == f"{key}" == f"{type(key).__name__}(***)"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="secret"):
            leak(key)
    assert not hasattr(key, "__dict__")


def test_address_and_signature_agree_with_eth_account() -> None:
    key = EvmKey.from_hex("0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
    oracle = Account.from_key(key.reveal_secret())

    assert key.address == "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"  # anvil's first account
    assert oracle.address == checksum_address(key.address)
    assert key.sign_digest(DIGEST) == bytes(oracle.unsafe_sign_hash(DIGEST).signature)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        "11" * 31,
        "11" * 33,
        "0x" + "0" * 64,
        f"{ORDER:064x}",
        "f" * 64,
        "zz" * 32,
        "１" * 64,
        "0X" + "11" * 32,
    ],
)
def test_private_key_of_another_form_or_range_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(BadField) as refused:
        EvmKey.from_hex(text)

    assert not text or text not in refused.value.message


def test_private_key_in_hex_may_have_a_prefix_and_a_line_end() -> None:
    assert EvmKey.from_hex("0x" + "1a" * 32 + "\n").address == EvmKey.from_hex("1A" * 32).address


def test_recovery_gives_the_signer() -> None:
    for name in ("one", "two", "three", "four"):  # both values of v
        key = deterministic_evm_key(name)
        signature = key.sign_digest(DIGEST)

        assert recover_address(DIGEST, signature) == key.address
        assert int.from_bytes(signature[32:64], "big") <= ORDER // 2


def test_second_form_of_a_signature_is_refused() -> None:
    signature = deterministic_evm_key("one").sign_digest(DIGEST)
    high_s = ORDER - int.from_bytes(signature[32:64], "big")
    second = signature[:32] + high_s.to_bytes(32, "big") + bytes([55 - signature[64]])

    with pytest.raises(BadSignature, match="lower half"):
        recover_address(DIGEST, second)


@pytest.mark.parametrize("v", [0, 1, 2, 3, 26, 29, 30, 35, 36, 255])
def test_v_is_27_or_28(v: int) -> None:
    signature = deterministic_evm_key("one").sign_digest(DIGEST)

    with pytest.raises(BadSignature, match="v is 27 or 28"):
        recover_address(DIGEST, signature[:64] + bytes([v]))


@pytest.mark.parametrize(
    ("r", "s"), [(0, 1), (1, 0), (0, 0), (ORDER, 1), (ORDER + 1, 1), (2**256 - 1, 1), (1, ORDER // 2 + 1), (1, ORDER)]
)
def test_r_and_s_are_in_range(r: int, s: int) -> None:
    with pytest.raises(BadSignature):
        recover_address(DIGEST, r.to_bytes(32, "big") + s.to_bytes(32, "big") + b"\x1b")


def test_r_that_is_on_no_curve_point_is_refused() -> None:
    with pytest.raises(BadSignature, match="recovers to no key"):
        recover_address(DIGEST, (5).to_bytes(32, "big") + (1).to_bytes(32, "big") + b"\x1b")


@pytest.mark.parametrize("length", [0, 64, 66, 130])
def test_evm_signature_has_65_bytes(length: int) -> None:
    with pytest.raises(BadSignature, match="65 bytes"):
        recover_address(DIGEST, b"\x1b" * length)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_digest_has_32_bytes(length: int) -> None:
    with pytest.raises(BadField):
        deterministic_evm_key("one").sign_digest(b"\x01" * length)
    with pytest.raises(BadSignature):
        recover_address(b"\x01" * length, deterministic_evm_key("one").sign_digest(DIGEST))


@pytest.mark.parametrize(
    "shown",
    [  # EIP-55, test cases
        "0x52908400098527886E0F7030069857D2E4169EE7",
        "0xde709f2102306220921060314715629080e2fb77",
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
        "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
    ],
)
def test_address_is_shown_with_its_checksum(shown: str) -> None:
    assert checksum_address(shown.lower()) == shown


def _flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
