"""EIP-712 documents that a chain or a third party can check: orders, receipts and vouchers.

Two domains keep them apart: what the vault redeems is signed for ``Parity StakeVault``, what market and nodes check
among themselves for ``Parity Market``; both name the chain and the vault. A new struct is a dataclass, a ``_Struct``
and three one-line functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Generic, TypeVar

from parity_protocol.errors import BadField
from parity_protocol.ids import AccountId, Address
from parity_protocol.signing.keccak import keccak256
from parity_protocol.signing.keys import EvmKey, recover_address

__all__ = [
    "EMPTY_RECEIPTS_HEAD",
    "Eip712Domain",
    "OrderMessage",
    "ReceiptMessage",
    "VoucherMessage",
    "account_key",
    "extend_receipts_head",
    "order_digest",
    "receipt_digest",
    "recover_order",
    "recover_receipt",
    "recover_voucher",
    "sign_order",
    "sign_receipt",
    "sign_voucher",
    "voucher_digest",
]

EMPTY_RECEIPTS_HEAD = bytes(32)  # of a voucher that pays for nothing yet

_MARKET_NAME = "Parity Market"
_VAULT_NAME = "Parity StakeVault"
_VERSION = "1"
_MAX_STRING = 1_024  # characters of a string field
_ADDRESS = re.compile(r"0x[0-9a-f]{40}")
_ZERO_ADDRESS = "0x" + "0" * 40

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Eip712Domain:
    """Where a signature counts. Make one with ``market`` or ``stake_vault``: the name is what keeps uses apart."""

    name: str
    chain_id: int
    vault: Address

    @classmethod
    def market(cls, chain_id: int, vault: Address) -> Eip712Domain:
        """Return the domain of orders and receipts."""
        return cls(_MARKET_NAME, chain_id, vault)

    @classmethod
    def stake_vault(cls, chain_id: int, vault: Address) -> Eip712Domain:
        """Return the domain of vouchers."""
        return cls(_VAULT_NAME, chain_id, vault)


@dataclass(frozen=True, slots=True)
class OrderMessage:
    """A submitter's consent to pay at most ``max_reward`` for one spec at one market."""

    creator: Address
    spec_hash: bytes  # 32: sha256 of the submitted spec's exact bytes
    max_reward: int  # base units, for everything the order covers
    market: bytes  # 32: the market identity's thumbprint
    deadline: int  # unix seconds after which no lease may start
    nonce: bytes  # 32, random: submission is idempotent by (creator, nonce)


@dataclass(frozen=True, slots=True)
class ReceiptMessage:
    """A node's statement of what it did, signed by its operator key."""

    task_id: str
    node_id: str
    fence: int
    order_hash: bytes  # 32: digest of the order
    manifest_hash: bytes  # 32: sha256 of the manifest's compact JWS
    result_hash: bytes  # 32: sha256 of the result CID's text
    wall_ms: int
    cpu_ms: int
    peak_memory_bytes: int
    tokens: int
    joules: int
    finished_at: int  # unix seconds
    environment_hash: bytes = bytes(32)  # 32: sha256 digest of the image or model that ran; zero when there is none


@dataclass(frozen=True, slots=True)
class VoucherMessage:
    """A spender's promise: ``solver`` may draw ``cumulative`` in all on what ``creator`` set aside for ``spender``."""

    creator: bytes  # 32: account_key
    solver: bytes  # 32: account_key
    spender: Address
    cumulative: int  # base units, never falls
    count: int  # receipts paid, never falls
    receipts_head: bytes  # 32: hash chain over them


# -- the documents -----------------------------------------------------------------------------------------------


def order_digest(domain: Eip712Domain, message: OrderMessage) -> bytes:
    """Return what an order's signature covers, 32 bytes.

    Raises:
        BadField: A field is out of its range, or the domain is not a market's.
    """
    return _ORDER.digest(domain, message)


def receipt_digest(domain: Eip712Domain, message: ReceiptMessage) -> bytes:
    """Return what a receipt's signature covers, 32 bytes.

    Raises:
        BadField: A field is out of its range, or the domain is not a market's.
    """
    return _RECEIPT.digest(domain, message)


def voucher_digest(domain: Eip712Domain, message: VoucherMessage) -> bytes:
    """Return what a voucher's signature covers, 32 bytes.

    Raises:
        BadField: A field is out of its range, or the domain is not a vault's.
    """
    return _VOUCHER.digest(domain, message)


def sign_order(domain: Eip712Domain, message: OrderMessage, key: EvmKey) -> bytes:
    """Return the creator's signature, 65 bytes."""
    return key.sign_digest(order_digest(domain, message))


def sign_receipt(domain: Eip712Domain, message: ReceiptMessage, key: EvmKey) -> bytes:
    """Return the operator's signature, 65 bytes."""
    return key.sign_digest(receipt_digest(domain, message))


def sign_voucher(domain: Eip712Domain, message: VoucherMessage, key: EvmKey) -> bytes:
    """Return the spender's signature, 65 bytes."""
    return key.sign_digest(voucher_digest(domain, message))


def recover_order(domain: Eip712Domain, message: OrderMessage, signature: bytes) -> Address:
    """Return who signed an order; the caller compares with ``creator``. ``BadSignature`` when nobody can have."""
    return recover_address(order_digest(domain, message), signature)


def recover_receipt(domain: Eip712Domain, message: ReceiptMessage, signature: bytes) -> Address:
    """Return who signed a receipt; the caller compares with the operator. ``BadSignature`` when nobody can have."""
    return recover_address(receipt_digest(domain, message), signature)


def recover_voucher(domain: Eip712Domain, message: VoucherMessage, signature: bytes) -> Address:
    """Return who signed a voucher; the caller compares with ``spender``. ``BadSignature`` when nobody can have."""
    return recover_address(voucher_digest(domain, message), signature)


def account_key(account: AccountId | str) -> bytes:
    """Return what the vault knows an account by: keccak of the id's text, 32 bytes."""
    return keccak256(account.encode())


def extend_receipts_head(head: bytes, digest: bytes) -> bytes:
    """Return the hash chain ``head`` with one more receipt digest (both 32 bytes) at its end."""
    if len(head) != 32 or len(digest) != 32:
        raise BadField("a receipts head and a receipt digest have 32 bytes each", field="receiptsHead")
    return keccak256(head + digest)


# -- encoding (EIP-712, "Definition of encodeData") --------------------------------------------------------------


def _bytes32(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != 32:
        raise ValueError("expected 32 bytes")
    return value


def _address(value: object) -> bytes:
    if not isinstance(value, str) or not _ADDRESS.fullmatch(value) or value == _ZERO_ADDRESS:
        raise ValueError("expected a lower-case 0x address that is not zero")
    return bytes(12) + bytes.fromhex(value[2:])


def _string(value: object) -> bytes:
    if not isinstance(value, str) or len(value) > _MAX_STRING:
        raise ValueError(f"expected text of at most {_MAX_STRING} characters")
    return keccak256(value.encode())  # a lone surrogate raises UnicodeEncodeError, which is a ValueError


def _uint(bits: int) -> Callable[[object], bytes]:
    def encode(value: object) -> bytes:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0 or value >> bits:
            raise ValueError(f"expected an integer from 0 to 2**{bits} - 1")
        return value.to_bytes(32, "big")

    return encode


_ENCODERS: dict[str, Callable[[object], bytes]] = {
    "address": _address,
    "bytes32": _bytes32,
    "string": _string,
    "uint64": _uint(64),
    "uint256": _uint(256),
}


class _Struct(Generic[M]):
    """One struct type: its hash, computed once, and its fields' encoders in order."""

    def __init__(self, domain_name: str, encoded_type: str) -> None:
        self._domain_name = domain_name
        self._type_hash = keccak256(encoded_type.encode())
        self.name, _, fields = encoded_type.rstrip(")").partition("(")
        pairs = [field.split(" ") for field in fields.split(",")]
        self._names = [name for _, name in pairs]
        self._encoders = [_ENCODERS[kind] for kind, _ in pairs]
        self._values: Callable[[M], tuple[object, ...]] = attrgetter(*(_snake(name) for name in self._names))

    def digest(self, domain: Eip712Domain, message: M) -> bytes:
        if domain.name != self._domain_name:
            raise BadField(f"{self.name} is signed for {self._domain_name!r}, not {domain.name!r}", field="domain")
        return keccak256(b"\x19\x01" + _separator(domain) + keccak256(self._encode(message)))

    def _encode(self, message: M) -> bytes:
        words = [self._type_hash]
        try:
            for encode, value in zip(self._encoders, self._values(message), strict=True):
                words.append(encode(value))
        except ValueError as exc:
            name = self._names[len(words) - 1]
            raise BadField(f"{self.name}.{name}: {exc}", field=name) from exc
        return b"".join(words)


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda match: "_" + match[0].lower(), name)


@lru_cache(maxsize=64)
def _separator(domain: Eip712Domain) -> bytes:
    try:
        chain_id, vault = _uint(256)(domain.chain_id), _address(domain.vault)
    except ValueError as exc:
        raise BadField(f"the EIP-712 domain is not valid: {exc}", field="domain") from exc
    return keccak256(
        b"".join(
            (
                keccak256(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256(domain.name.encode()),
                keccak256(_VERSION.encode()),
                chain_id,
                vault,
            )
        )
    )


_ORDER: _Struct[OrderMessage] = _Struct(
    _MARKET_NAME,
    "Order(address creator,bytes32 specHash,uint256 maxReward,bytes32 market,uint64 deadline,bytes32 nonce)",
)
_RECEIPT: _Struct[ReceiptMessage] = _Struct(
    _MARKET_NAME,
    "Receipt(string taskId,string nodeId,uint64 fence,bytes32 orderHash,bytes32 manifestHash,bytes32 resultHash,"
    "uint64 wallMs,uint64 cpuMs,uint64 peakMemoryBytes,uint64 tokens,uint64 joules,uint64 finishedAt,"
    "bytes32 environmentHash)",
)
_VOUCHER: _Struct[VoucherMessage] = _Struct(
    _VAULT_NAME,
    "Voucher(bytes32 creator,bytes32 solver,address spender,uint256 cumulative,uint64 count,bytes32 receiptsHead)",
)
