"""Where the parts of a sharded session lie: signed by the submitter, and shown to each node for its own part alone.

The spec that the order signs holds one SHA-256 per part. What is hashed is a short JSON text with the part's source and
16 random bytes, without which a name or a CID could be guessed from its hash. A manifest carries its own part's text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import StringConstraints

from parity_protocol import strict_json
from parity_protocol.errors import BadField, DigestMismatch, ParityError
from parity_protocol.needs import CidInput, HttpsInput, InputSpec, ShardInput
from parity_protocol.wire import Request, parse_as

__all__ = ["MAX_SEALED_CHARS", "SALT_BYTES", "SealedShard", "open_shard", "open_shards", "seal_shard", "shard_digest"]

MAX_SEALED_CHARS = 6_000  # of one part's text: a URL has at most 4,096
SALT_BYTES = 16

_SALT = re.compile(rf"[0-9a-f]{{{2 * SALT_BYTES}}}")


class SealedShard(Request):
    """One part's source. Its JSON text is what the spec's hash covers, exactly as it was written."""

    source: InputSpec
    salt: Annotated[str, StringConstraints(pattern=_SALT.pattern, max_length=2 * SALT_BYTES)]


def seal_shard(source: CidInput | HttpsInput | ShardInput, salt: bytes) -> str:
    """Return the text of one part.

    Args:
        source: Where the part's data lie.
        salt: ``SALT_BYTES`` random bytes, other ones for each part.

    Raises:
        BadField: The salt has another length, or the text is over its cap.
    """
    if len(salt) != SALT_BYTES:
        raise BadField(f"a shard's salt has {SALT_BYTES} bytes, got {len(salt)}", field="salt")
    text = json.dumps({"source": source.model_dump(mode="json"), "salt": salt.hex()}, separators=(",", ":"))
    if len(text) > MAX_SEALED_CHARS:
        raise BadField(f"a shard's text has at most {MAX_SEALED_CHARS} characters, got {len(text)}", field="source")
    return text


def shard_digest(text: str) -> str:
    """Return the SHA-256, hex, that the spec names a part by."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def open_shard(text: str, digest: str) -> SealedShard:
    """Read one part's text.

    Args:
        digest: What the signed spec says of this part.

    Raises:
        DigestMismatch: It is another text than was signed.
        BadField: It is not a part's source.
    """
    found = shard_digest(text)
    if found != digest:
        raise DigestMismatch(f"the shard's text has the hash {found[:16]}…, the spec signs {digest[:16]}…")
    strict_json.loads(text.encode("utf-8", errors="surrogatepass"), max_bytes=4 * MAX_SEALED_CHARS)
    return parse_as(SealedShard, text)


def open_shards(texts: Sequence[str], digests: Sequence[str]) -> tuple[SealedShard, ...]:
    """Read all parts' texts; the market does this once, at submission.

    Raises:
        BadField: One is missing, is not what was signed, or is no source; the message and ``field`` name the part.
    """
    if len(texts) != len(digests):
        raise BadField(f"the spec signs {len(digests)} shards, {len(texts)} came with it", field="shards")
    opened = []
    for part, (text, digest) in enumerate(zip(texts, digests, strict=True)):
        try:
            opened.append(open_shard(text, digest))
        except ParityError as exc:
            raise BadField(f"shard of part {part}: {exc.message}", field=f"shards.{part}") from exc
    return tuple(opened)
