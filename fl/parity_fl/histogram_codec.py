"""The bytes of a histogram forest's phases: requests to all parts, and each part's answer.

A request is a tensor document (``parity_fl.tensors``). An answer that is statistics is sparse: of a table of whole
numbers only the cells that are not 0::

    "PFH1"                      4 bytes
    request                     SHA-256 of the request that it answers, 32 bytes
    cells                       varint: how many follow
    gaps                        cells varints: first index, then index - previous index (at least 1)
    values                      cells varints, each at least 1

A varint is LEB128 (seven bits a byte, low bits first) of at most 9 bytes, in its shortest form, so that equal
statistics are equal bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from parity_protocol.errors import BadDocument, TooLarge

__all__ = ["Sparse", "decode_answer", "encode_answer", "max_answer_bytes", "request_digest", "summed"]

_MAGIC: Final = b"PFH1"
_DIGEST_BYTES: Final = 32
_HEAD_BYTES: Final = len(_MAGIC) + _DIGEST_BYTES
_MAX_VARINT: Final = 9  # 63 bits
_SEVEN: Final = np.uint64(7)
_LOW_BITS: Final = np.uint64(0x7F)


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """The cells of a table that are not 0.

    Attributes:
        index: Strictly rising, int64 ``(m,)``.
        value: At least 1, int64 ``(m,)``.
    """

    index: NDArray[np.int64]
    value: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    def between(self, low: int, high: int) -> Sparse:
        """Return the cells with ``low <= index < high``."""
        first, end = np.searchsorted(self.index, [low, high])
        return Sparse(self.index[first:end], self.value[first:end])

    def equals(self, other: Sparse) -> bool:
        """Whether both are the same table."""
        return np.array_equal(self.index, other.index) and np.array_equal(self.value, other.value)


def summed(index: NDArray[np.int64], value: NDArray[np.int64]) -> Sparse:
    """Add up values of equal index; what sums to 0 is left out. Sums must stay below 2^63."""
    order = np.argsort(index, kind="stable")
    index, value = index[order], value[order]
    if not len(index):
        return Sparse(index, value)
    starts = np.flatnonzero(np.concatenate([[True], index[1:] != index[:-1]]))
    totals = np.add.reduceat(value, starts)
    kept = totals != 0
    return Sparse(index[starts[kept]], totals[kept])


def request_digest(request: bytes) -> bytes:
    """Return what an answer says it answers: SHA-256, 32 bytes."""
    return hashlib.sha256(request).digest()


def encode_answer(request: bytes, cells: Sparse) -> bytes:
    """Return the answer to ``request``."""
    gaps = np.diff(cells.index, prepend=0)
    return b"".join(
        [
            _MAGIC,
            request_digest(request),
            _varints(np.array([len(cells)], dtype=np.int64)),
            _varints(gaps),
            _varints(cells.value),
        ]
    )


def max_answer_bytes(cells: int, size: int, most: int) -> int:
    """Return the longest answer of at most ``cells`` cells out of ``size``, with values up to ``most``."""
    return _HEAD_BYTES + _MAX_VARINT + cells * (_length(size) + _length(most))


def decode_answer(data: bytes, request: bytes, *, max_cells: int, size: int, max_value: int) -> Sparse:
    """Read an answer from a part.

    Args:
        data: The whole answer.
        request: What it must answer.
        max_cells: Most cells that can be other than 0.
        size: Cells of the whole table.
        max_value: Largest value of a cell.

    Raises:
        TooLarge: Longer than such an answer can be.
        BadDocument: It is not exactly such an answer.
    """
    cap = max_answer_bytes(min(max_cells, size), size, max_value)
    if len(data) > cap:
        raise TooLarge(f"the answer is {len(data)} bytes long, at most {cap} are possible")
    if len(data) <= _HEAD_BYTES or data[: len(_MAGIC)] != _MAGIC:
        _fail(f"it must begin with {_MAGIC!r}, a digest and a count")
    if data[len(_MAGIC) : _HEAD_BYTES] != request_digest(request):
        _fail("it answers another request")
    numbers = _numbers(data[_HEAD_BYTES:])
    count = int(numbers[0])
    if count > min(max_cells, size) or len(numbers) != 1 + 2 * count:
        _fail(f"it announces {count} cells and has {len(numbers) - 1} numbers; at most {min(max_cells, size)} cells")
    gaps, values = numbers[1 : 1 + count], numbers[1 + count :]
    index = np.cumsum(gaps, dtype=np.uint64)
    # A sum that wraps falls below the one before it, because a gap has 63 bits.
    if (index[1:] <= index[:-1]).any() or (count and int(index[-1]) >= size):
        _fail("its cells are not in rising order inside the table")
    if (values == 0).any() or (values > np.uint64(max_value)).any():
        _fail(f"a value is not from 1 to {max_value}")
    return Sparse(index.astype(np.int64), values.astype(np.int64))


def _varints(numbers: NDArray[np.int64]) -> bytes:
    words = numbers.astype(np.uint64)
    lengths = np.ones(len(words), dtype=np.int64)
    for place in range(1, _MAX_VARINT):
        lengths += words >= np.uint64(1 << (7 * place))
    ends = np.cumsum(lengths)
    out = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    starts = ends - lengths
    for place in range(int(lengths.max()) if len(lengths) else 0):
        longer = np.flatnonzero(lengths > place)
        low = (words[longer] >> (_SEVEN * np.uint64(place))) & _LOW_BITS
        more = (lengths[longer] > place + 1).astype(np.uint64) << _SEVEN
        out[starts[longer] + place] = (low | more).astype(np.uint8)
    return out.tobytes()


def _numbers(data: bytes) -> NDArray[np.uint64]:
    raw = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    if not len(ends) or ends[-1] != len(raw) - 1:
        _fail("it ends inside a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_VARINT or ((lengths > 1) & (raw[ends] == 0)).any():
        _fail("a number is too long or not in its shortest form")
    numbers = np.zeros(len(ends), dtype=np.uint64)
    for place in range(int(lengths.max())):
        longer = np.flatnonzero(lengths > place)
        numbers[longer] |= (raw[starts[longer] + place].astype(np.uint64) & _LOW_BITS) << (_SEVEN * np.uint64(place))
    return numbers


def _length(most: int) -> int:
    return max(1, -(-most.bit_length() // 7))


def _fail(message: str) -> NoReturn:
    raise BadDocument(f"not an answer to this phase: {message}")
