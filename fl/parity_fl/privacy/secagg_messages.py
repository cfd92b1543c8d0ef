"""What market and nodes send each other for a secure sum: safetensors tables of 32-bit words, every size checked first."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_fl.privacy.secagg import SumSetup
from parity_fl.privacy.shamir import SHARE_BYTES
from parity_fl.tensors import Tensor, decode_tensors, encode_tensors
from parity_protocol.errors import BadDocument

__all__ = [
    "COMMITTED",
    "KEY",
    "KEYS",
    "SEALED",
    "SHARE",
    "Table",
    "absent",
    "decode_message",
    "encode_message",
    "is_message",
    "parts_of",
    "table",
    "words",
]

Table = NDArray[np.uint32]

KEY: Final = 8  # words of a key, a digest or a commitment
KEYS: Final = 3 * KEY  # of a part: to seal with, to mask with, and the commitment to its seed
SHARE: Final = SHARE_BYTES // 4
SEALED: Final = 2 * SHARE + 4  # a share of the mask key, one of the seed, and the tag
COMMITTED: Final = 2 * KEY
_FORM: Final = "parity-fl/secure-sum/1"
_HEADER: Final = 4096
_MAX_REASON: Final = 200


def encode_message(setup: SumSetup, phase: str, tables: Mapping[str, Tensor], **said: str) -> bytes:
    """Return a message of one sum; ``tables`` are of uint32."""
    return encode_tensors(tables, {"form": _FORM, "phase": phase, "context": setup.context.hex(), **said})


def is_message(data: bytes | memoryview) -> bool:
    """Return whether some bytes look like a message of a secure sum, and not like a model."""
    return _FORM.encode() in bytes(data[:_HEADER])


def decode_message(
    setup: SumSetup, data: bytes | memoryview, phase: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Table]:
    """Read a message.

    Args:
        setup: The sum that it must belong to.
        data: The whole of it.
        phase: Which one it must be.
        shapes: Tables that it must have; -1 is any length up to that of all pairs of parts.

    Raises:
        BadDocument: It is another message, of another sum, or has other tables.
        TooLarge: It is longer than such a message can be.
    """
    pairs = setup.parts * setup.parts
    most = sum(4 * _cells(shape, pairs) for shape in shapes.values()) + 2 * _HEADER
    tensors, said = decode_tensors(data, max_bytes=most)
    if said.get("form") == _FORM and said.get("phase") == "absent":
        _fail(f"absent: {said.get('reason', '')[:_MAX_REASON]}")
    if said.get("form") != _FORM or said.get("context") != setup.context.hex():
        _fail("it belongs to another sum: what was sent before must not be sent again")
    if said.get("phase") != phase:
        _fail(f"expected the phase {phase}, got {said.get('phase', '')[:20]!a}")
    if set(tensors) != set(shapes):
        _fail(f"expected the tables {', '.join(sorted(shapes))}")
    for name, shape in shapes.items():
        found = tensors[name]
        fits = len(found.shape) == len(shape) and all(
            want in (-1, have) for want, have in zip(shape, found.shape, strict=True)
        )
        if found.dtype != np.uint32 or not fits:
            _fail(f"the table {name} must be U32 of shape {shape}, got {found.shape}")
    return tensors


def absent(reason: str) -> bytes:
    """Return what a part sends that cannot take part any further, in whatever sum it is, so that nobody waits for it."""
    return encode_tensors({}, {"form": _FORM, "phase": "absent", "reason": reason[:_MAX_REASON]})


def table(rows: Iterable[bytes], width: int) -> Table:
    """Return rows of bytes as a table, shape ``(n, width)``."""
    return np.frombuffer(b"".join(rows), dtype="<u4").reshape(-1, width)


def words(parts: Sequence[int]) -> Table:
    """Return numbers of parts as a table, shape ``(n,)``."""
    return np.array(parts, dtype="<u4")


def parts_of(found: Table, allowed: Iterable[int], *, least: int) -> tuple[int, ...]:
    """Return a list of parts.

    Raises:
        BadDocument: They are not ascending, not all allowed, or fewer than ``least``.
    """
    listed = tuple(found.tolist())
    if not set(listed) <= set(allowed) or any(one >= two for one, two in itertools.pairwise(listed)):
        _fail("parts must be ascending and known")
    if len(listed) < least:
        _fail(f"{len(listed)} parts are fewer than {least}")
    return listed


def _cells(shape: tuple[int, ...], pairs: int) -> int:
    cells = 1
    for length in shape:
        cells *= pairs if length == -1 else length
    return cells


def _fail(message: str) -> NoReturn:
    raise BadDocument(f"not a message of this secure sum: {message}")
