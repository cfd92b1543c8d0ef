"""Content identifiers: CIDv0 and CIDv1 of raw and dag-pb blocks, parsed strictly.

A CID that parses here names content by sha2-256, or holds at most 128 bytes of it in itself (the identity hash).
Weak or unknown hashes and codecs are refused when the CID is read, not when the content arrives.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from parity_blobs.multibase import decode_base58, decode_multibase, encode_base32, encode_base58, encode_multibase
from parity_blobs.varint import decode_varint, encode_varint
from parity_protocol.errors import BadCid, BadDocument

__all__ = ["CODEC_DAG_PB", "CODEC_RAW", "HASH_IDENTITY", "HASH_SHA2_256", "MAX_IDENTITY_BYTES", "Block", "Cid"]

CODEC_RAW = 0x55
CODEC_DAG_PB = 0x70
HASH_IDENTITY = 0x00
HASH_SHA2_256 = 0x12
MAX_IDENTITY_BYTES = 128

_MAX_TEXT = 300  # characters; the longest accepted CID is 128 inline bytes in base16
_SHA2_256_BYTES = 32
_V0_PREFIX = b"\x12\x20"
_V0_TEXT_CHARS = 46
_V1_PREFIXES = {bytes((1, codec, HASH_SHA2_256, _SHA2_256_BYTES)): codec for codec in (CODEC_RAW, CODEC_DAG_PB)}
_CODEC_NAMES = {CODEC_RAW: "raw", CODEC_DAG_PB: "dag-pb"}


@dataclass(frozen=True, slots=True, repr=False)
class Cid:
    """Names a block by the hash of its bytes.

    Two CIDs are equal when version, codec and hash are; ``key`` ignores the version, since a CIDv0 and a CIDv1 of
    the same dag-pb block name the same thing.

    Attributes:
        version: 0 or 1.
        codec: ``CODEC_RAW`` or ``CODEC_DAG_PB``; version 0 is always dag-pb.
        digest: 32 bytes of sha2-256, or the block itself when ``hash_code`` is ``HASH_IDENTITY``.
    """

    version: int
    codec: int
    digest: bytes
    hash_code: int = HASH_SHA2_256

    def __post_init__(self) -> None:
        if self.version not in (0, 1):
            raise BadCid(f"CID version must be 0 or 1, got {self.version}")
        if self.codec not in _CODEC_NAMES:
            raise BadCid(f"CID codec must be raw (0x55) or dag-pb (0x70), got 0x{self.codec:x}")
        if self.hash_code == HASH_SHA2_256:
            if len(self.digest) != _SHA2_256_BYTES:
                raise BadCid(f"a sha2-256 digest has {_SHA2_256_BYTES} bytes, got {len(self.digest)}")
        elif self.hash_code == HASH_IDENTITY:
            if len(self.digest) > MAX_IDENTITY_BYTES:
                raise BadCid(f"a CID holds at most {MAX_IDENTITY_BYTES} bytes inline, got {len(self.digest)}")
        else:
            raise BadCid(f"CID hash must be sha2-256 (0x12), got 0x{self.hash_code:x}")
        if self.version == 0 and (self.codec != CODEC_DAG_PB or self.hash_code != HASH_SHA2_256):
            raise BadCid("CIDv0 is always dag-pb with sha2-256")

    @classmethod
    def of_block(cls, data: bytes, *, codec: int = CODEC_RAW, version: int = 1) -> Cid:
        """Return the CID of one block, given its bytes."""
        return cls(version, codec, hashlib.sha256(data).digest())

    @classmethod
    def parse(cls, text: str) -> Cid:
        """Read a CID as people write it: ``Qm…``, or multibase b, f, k or z.

        Raises:
            BadCid: Anything else, a path such as ``/ipfs/…`` and surrounding blanks included.
        """
        if len(text) > _MAX_TEXT:
            raise BadCid(f"a CID has at most {_MAX_TEXT} characters, got {len(text)}")
        if text.startswith("Qm"):
            if len(text) != _V0_TEXT_CHARS:
                raise BadCid(f"a CIDv0 has {_V0_TEXT_CHARS} characters, got {len(text)}")
            data = decode_base58(text)
            if len(data) != len(_V0_PREFIX) + _SHA2_256_BYTES or not data.startswith(_V0_PREFIX):
                raise BadCid(f"not a CIDv0: {text!r}")
            return cls.from_bytes(data)
        data = decode_multibase(text)
        if data[:1] != b"\x01":
            raise BadCid(f"a CID in multibase must be version 1, got {text[:80]!r}")
        return cls.from_bytes(data)

    @classmethod
    def from_bytes(cls, data: bytes) -> Cid:
        """Read a binary CID that fills ``data``.

        Raises:
            BadCid: Not a CID accepted here, or bytes are left over.
        """
        cid, end = cls.read(data, 0)
        if end != len(data):
            raise BadCid(f"{len(data) - end} bytes after the end of the CID")
        return cid

    @classmethod
    def read(cls, data: bytes, at: int) -> tuple[Cid, int]:
        """Read the binary CID that starts at ``at``; return it and the position after it.

        Raises:
            BadCid: Not a CID accepted here.
        """
        if data[at : at + 2] == _V0_PREFIX:
            end = at + 2 + _SHA2_256_BYTES
            return cls(0, CODEC_DAG_PB, bytes(data[at + 2 : end])), end
        if (codec := _V1_PREFIXES.get(bytes(data[at : at + 4]), 0)) and len(data) >= (end := at + 4 + _SHA2_256_BYTES):
            return cls(1, codec, bytes(data[at + 4 : end])), end  # nearly every one; the rest says what is wrong
        try:
            version, at = decode_varint(data, at)
            if version != 1:
                raise BadCid(f"CID version must be 0 or 1, got {version}")
            codec, at = decode_varint(data, at)
            hash_code, at = decode_varint(data, at)
            length, at = decode_varint(data, at)
        except BadDocument as exc:
            raise BadCid(f"not a binary CID: {exc.message}") from exc
        if length > MAX_IDENTITY_BYTES or at + length > len(data):
            raise BadCid(f"the CID's digest is cut off or too long: {length} bytes")
        return cls(1, codec, bytes(data[at : at + length]), hash_code), at + length

    @property
    def key(self) -> tuple[int, int, bytes]:
        """What this names, whichever version it is written in: codec, hash and digest."""
        return self.codec, self.hash_code, self.digest

    @property
    def inline(self) -> bytes | None:
        """The block itself when the CID holds it (identity hash), else None."""
        return self.digest if self.hash_code == HASH_IDENTITY else None

    def to_v1(self) -> Cid:
        """Return the version 1 form, which names the same block."""
        return self if self.version == 1 else Cid(1, self.codec, self.digest, self.hash_code)

    def encode(self, base: str) -> str:
        """Return the text in another multibase: b, f, k or z (version 1 only).

        Raises:
            BadCid: Version 0, or another base.
        """
        if self.version == 0:
            raise BadCid("a CIDv0 has one text form; use to_v1() first")
        return encode_multibase(bytes(self), base)

    def __hash__(self) -> int:
        return hash(self.digest)  # which keeps its own; a tuple of the fields would be made for every look-up

    def __bytes__(self) -> bytes:
        if self.version == 0:
            return _V0_PREFIX + self.digest
        if self.hash_code == HASH_SHA2_256:
            return bytes((1, self.codec, HASH_SHA2_256, _SHA2_256_BYTES)) + self.digest
        return bytes((1, self.codec, self.hash_code)) + encode_varint(len(self.digest)) + self.digest

    def __repr__(self) -> str:
        return f"Cid.parse({str(self)!r})"

    def __str__(self) -> str:
        return encode_base58(bytes(self)) if self.version == 0 else "b" + encode_base32(bytes(self))


class Block(NamedTuple):
    """A block and the CID it goes by. Holding one proves nothing: check it with ``verify.check_block``."""

    cid: Cid
    data: bytes
