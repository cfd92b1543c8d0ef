"""Updates and models as bytes: safetensors in fp32, in fp16, or as 8-bit whole numbers with a scale per 1,024 values.

A tensor says by its type how it is coded, so a reader needs no setting:

- F32: the values. A tensor with a value that the wanted format cannot hold, or that is not finite, is always F32;
- F16: the values, rounded. Beside ``name`` stands ``name.scale``, F32, one power of two to multiply all of them with:
  the largest is near half precision's own, so that small updates keep their eleven bits and are no subnormal numbers,
  which lose them and take ten times as long to convert. Without a scale it is 1;
- I8: whole numbers from -127 to 127. Beside ``name`` stands ``name.scale``, F32, one factor for each 1,024 values of the
  flat tensor, the last one shorter.

What rounding to 8 bits lost is added to the next update (error feedback: Seide et al., 2014; Karimireddy et al., 2019),
so that it is late and not lost; half precision loses a thousandth at most and does without. Names, types, shapes and sizes are checked before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from parity_fl.limits import MAX_HEADER_BYTES, MAX_UPDATE_BYTES
from parity_fl.models.base import Weights
from parity_fl.rounds_config import UpdateFormat
from parity_fl.tensors import Tensor, decode_tensors, encode_tensors
from parity_protocol.errors import BadDocument, InvalidInput

__all__ = [
    "as_sent",
    "decode_delta",
    "decode_weights",
    "encode_delta",
    "encode_weights",
    "largest_body",
    "mapped_delta",
    "pack",
    "sent_weights",
    "unpack",
]

Shapes = Mapping[str, tuple[int, ...]]
Flat = NDArray[np.float32]

_HALVED_BYTES: Final = 1 << 20  # of a model in 32 bits: from here on it may be sent in 16
_BLOCK: Final = 1024  # values that share a scale
_PIECE: Final = 1 << 16  # values of half precision worked on at a time
_STEP: Final = 64  # blocks worked on at a time: a quarter of a megabyte stays near the core
_SCALE: Final = ".scale"
_LARGEST: Final = 127
_TOP: Final = 14  # of half precision's exponents: the largest value comes to lie between 2**14 and 2**15
_LEAST_EXPONENT: Final = -100  # the inverse of a scale is a float32 too
_APART: Final = 112  # exponents between the bits of a half and of the float32 of that value
_LARGEST_EXPONENT: Final = 28  # of values whose factor is a normal float32 with that as well
_LARGEST_FACTOR: Final = 2.0**127
_NO_NUMBER: Final = np.uint16(0x7C00)  # all bits of the exponent
_SIGN_AND_VALUE: Final = np.int32(0x0FFFE000 - 2**31)  # where a half's sign and its other fifteen bits come to lie
_LARGEST_SCALE: Final = 2.0**110  # the largest half, times this, is still a float32
_LARGEST_CODED: Final = 2.0**120  # its scale, times 127, is still a float32
_SMALLEST: Final = 1e-30  # a block whose largest value is below is all zeros: its scale would have no inverse


class HalfTensor:
    """A tensor in 16 bits with a scale that rules read a slice at a time; as ``CodedTensor``."""

    dtype = np.dtype(np.float32)

    def __init__(self, halves: Tensor, scale: np.float32) -> None:
        self.shape = halves.shape
        self._halves, self._scale = halves.reshape(-1), scale

    def reshape(self, _flat: int) -> HalfTensor:
        """Return the flat tensor: -1 is the only argument."""
        return HalfTensor(self._halves, self._scale)

    def __len__(self) -> int:
        return len(self._halves)

    def __getitem__(self, at: slice) -> Flat:
        return _from_half(self._halves[at], self._scale)

    def part(self, begin: int, end: int) -> HalfTensor:
        """Return some values of the flat tensor without decoding them: whoever reads them does, a little at a time."""
        return HalfTensor(self._halves[begin:end], self._scale)

    def __array__(self, *_: object, **__: object) -> Flat:  # NumPy's wishes: it is new and float32 whatever they are
        return _from_half(self._halves, self._scale)


class CodedTensor:
    """A tensor in 8 bits that rules read a slice at a time: decoding all of it for every slice would cost seconds."""

    dtype = np.dtype(np.float32)

    def __init__(self, coded: NDArray[np.int8], scales: Flat) -> None:
        self.shape = coded.shape
        self._coded, self._scales = coded.reshape(-1), scales

    def reshape(self, _flat: int) -> CodedTensor:
        """Return the flat tensor: -1 is the only argument."""
        return CodedTensor(self._coded, self._scales)

    def __len__(self) -> int:
        return len(self._coded)

    def __getitem__(self, at: slice) -> Flat:
        begin, end, _ = at.indices(len(self._coded))
        first = begin // _BLOCK
        return _from_int8(self._coded[first * _BLOCK : end], self._scales[first:])[begin - first * _BLOCK :]


def encode_weights(weights: Weights, update_format: UpdateFormat = "fp32") -> bytes:
    """Return a model's file; equal models give equal bytes."""
    return encode_tensors(pack(weights, update_format), {})


def sent_weights(weights: Weights, update_format: UpdateFormat) -> bytes:
    """Return the file that nodes start a round from: equal models give equal bytes.

    A large model goes out in 16 bits unless updates come in 32: its download is the larger half of a round's traffic,
    and what rounding takes, a thousandth at most, the market's own model keeps, to which the updates are added.
    """
    is_large = update_format != "fp32" and sum(tensor.nbytes for tensor in weights.values()) >= _HALVED_BYTES
    return encode_weights(weights, "fp16" if is_large else "fp32")


def as_sent(weights: Weights, update_format: UpdateFormat) -> Weights:
    """Return a model of float32 as nodes read it from ``sent_weights``."""
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    return decode_weights(sent_weights(weights, update_format), shapes)


def decode_weights(data: bytes | memoryview, shapes: Shapes, *, max_bytes: int = MAX_UPDATE_BYTES) -> Weights:
    """Read a model's file, in whatever format it is.

    Args:
        data: The whole document.
        shapes: What the session's model has.
        max_bytes: Cap on its length.

    Returns:
        float32; read-only views of ``data`` where it holds float32.

    Raises:
        BadDocument: It is not one of this model: other names, shapes or types, or values that are not finite.
        TooLarge: Over ``max_bytes``.
    """
    tensors, _ = decode_tensors(data, max_bytes=min(max_bytes, largest_body(shapes)))
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not _is_finite(tensor):
            raise BadDocument(f"tensor {ascii(name)[1:-1][:80]} has NaN or Inf values")
    return unpack(tensors, shapes)


def encode_delta(
    delta: Weights, update_format: UpdateFormat, *, left: Weights | None = None
) -> tuple[bytes, Weights | None]:
    """Return an update's body, and what its format could not carry, to be given as ``left`` with the next one.

    Args:
        delta: float32. One that is not finite is encoded, and refused by who reads it.
        update_format: How to code it.
        left: What the update before could not carry; None for the first, or after a round that was not sent.
    """
    total = delta if left is None else {name: delta[name] + left[name] for name in delta}
    packed = pack(total, update_format)
    if update_format != "int8":
        return encode_tensors(packed, {}), None
    carried = unpack(packed, {name: tensor.shape for name, tensor in total.items()})
    rest = {
        name: np.subtract(tensor, carried[name], out=carried[name])
        if packed[name].dtype == np.int8
        else np.zeros_like(tensor)
        for name, tensor in total.items()
    }
    return encode_tensors(packed, {}), rest


def decode_delta(data: bytes | memoryview, shapes: Shapes, *, max_bytes: int = MAX_UPDATE_BYTES) -> Weights:
    """Read an update's body in whatever format it came; see ``decode_weights``."""
    return decode_weights(data, shapes, max_bytes=max_bytes)


def mapped_delta(data: bytes | memoryview, shapes: Shapes, *, max_bytes: int = MAX_UPDATE_BYTES) -> Weights:
    """Read an update's names, types and shapes and leave its values where they are; for rules, which check them.

    Args:
        data: A view of a mapped file costs no memory.
        shapes: What the session's model has.
        max_bytes: Cap on its length.

    Returns:
        Read-only; float32, or float16 as it came. What came in 8 bits or with a scale is decoded piece by piece: it has
        a shape, a type and, flat, slices, and that is all that rules use.

    Raises:
        BadDocument: It is not one of this model.
        TooLarge: Over ``max_bytes``.
    """
    tensors, _ = decode_tensors(data, max_bytes=min(max_bytes, largest_body(shapes)))
    return unpack(tensors, shapes, widen=False)


def largest_body(shapes: Shapes) -> int:
    """Return how many bytes a body of these shapes has at most, to stop reading a longer one."""
    values = sum(_size(shape) for shape in shapes.values())
    return 4 * values + 8 + min(MAX_HEADER_BYTES, 4096 + sum(256 + 12 * len(name) for name in shapes))


def pack(weights: Weights, update_format: UpdateFormat) -> dict[str, Tensor]:
    """Return the tensors that carry ``weights``.

    Raises:
        InvalidInput: A name ends in ``.scale``.
    """
    packed: dict[str, Tensor] = {}
    for name in sorted(weights):
        if name.endswith(_SCALE):
            raise InvalidInput(f"a tensor's name must not end in {_SCALE}, got {ascii(name)[:80]}")
        tensor = np.asarray(weights[name], dtype=np.float32)
        low, high = _range(tensor) if update_format != "fp32" else (0.0, 0.0)
        # Comparisons with NaN are false.
        if update_format == "fp32" or not (low >= -_LARGEST_CODED and high <= _LARGEST_CODED):
            packed[name] = tensor
        elif update_format == "int8":
            packed[name], packed[name + _SCALE] = _to_int8(tensor)
        else:
            packed[name], packed[name + _SCALE] = _to_half(tensor, max(-low, high))
    return packed


def unpack(tensors: Mapping[str, Tensor], shapes: Shapes, *, widen: bool = True) -> Weights:
    """Return the weights that ``pack`` coded.

    Args:
        tensors: From ``pack``, or from somebody else.
        shapes: What must come out.
        widen: Make everything arrays of float32; else float16 is left as it is, and 8 bits are decoded when read.

    Raises:
        BadDocument: Names, types or shapes differ, or a scale is not a finite number of at least 0, or above 0 for
            float16.
    """
    found: Weights = {}
    expected = set(shapes)
    for name in sorted(shapes):
        shape, tensor = tuple(shapes[name]), tensors.get(name)
        if tensor is None:
            raise BadDocument(f"expected the tensors {', '.join(sorted(shapes))}"[:300])
        if tensor.dtype not in (np.float32, np.float16, np.int8) or tensor.shape != shape:
            raise BadDocument(f"tensor {name} must be F32, F16 or I8 of shape {shape}")
        if tensor.dtype == np.int8:
            expected.add(name + _SCALE)
            scales = _scales(name, tensor, tensors.get(name + _SCALE))
            found[name] = _from_int8(tensor, scales) if widen else cast("Flat", CodedTensor(tensor, scales))
        elif tensor.dtype == np.float16 and name + _SCALE in tensors:
            expected.add(name + _SCALE)
            scale = _half_scale(name, tensors[name + _SCALE])
            found[name] = _from_half(tensor, scale) if widen else cast("Flat", HalfTensor(tensor, scale))
        else:
            found[name] = tensor.astype(np.float32, copy=False) if widen else tensor
    if set(tensors) != expected:
        raise BadDocument(f"expected the tensors {', '.join(sorted(shapes))} and nothing else"[:300])
    return found


def _to_half(tensor: Flat, largest: float) -> tuple[NDArray[np.float16], Flat]:
    """Return a tensor over its scale, and the scale, shape ``(1,)``.

    Rounded to the nearest half, of two the even one, as NumPy's conversion does it in two to four times the time: a
    float32 that is 2**112 too small has a half's bits, thirteen places to the left.
    """
    exponent = max(math.frexp(largest)[1] - 1, _LEAST_EXPONENT) if largest > 0 else _TOP
    flat = np.ascontiguousarray(tensor).reshape(-1)
    halves = np.empty(len(flat), dtype=np.float16)
    fits = exponent <= _LARGEST_EXPONENT
    factor = np.float32(2.0 ** (_TOP - exponent - (_APART if fits else 0)))
    room = np.empty(min(_PIECE, len(flat)), dtype=np.float32)
    spare = np.empty(len(room), dtype=np.int32)
    for begin in range(0, len(flat), _PIECE):
        piece, into = flat[begin : begin + _PIECE], halves[begin : begin + _PIECE]
        scaled = np.multiply(piece, factor, out=room[: len(piece)])
        if not fits:
            into[:] = scaled
            continue
        bits, half = scaled.view(np.int32), spare[: len(piece)]
        np.right_shift(bits, 13, out=half)
        np.bitwise_and(half, 1, out=half)
        np.add(half, bits, out=half)
        np.add(half, 0xFFF, out=half)
        np.right_shift(half, 13, out=half)
        np.bitwise_and(half, 0x7FFF, out=half)
        np.right_shift(bits, 16, out=bits)
        np.bitwise_and(bits, -0x8000, out=bits)
        into.view(np.int16)[:] = np.bitwise_or(half, bits, out=half)
    return halves.reshape(tensor.shape), np.array([2.0 ** (exponent - _TOP)], dtype=np.float32)


def _half_scale(name: str, scale: Tensor) -> np.float32:
    if scale.dtype != np.float32 or scale.shape != (1,) or not 0 < scale[0] <= _LARGEST_SCALE:
        raise BadDocument(f"tensor {name}{_SCALE} must be one F32 above 0 and at most 2**110")
    return np.float32(scale[0])


def _from_half(halves: Tensor, scale: np.float32) -> Flat:
    """Return what NumPy's conversion and a product give, bit for bit; the reverse of ``_to_half``.

    The factor that is due anyway makes up for 2**112, subnormal numbers included. Infinity and NaN are not among the
    numbers that this holds for.
    """
    flat = halves.reshape(-1)
    out = np.empty(len(flat), dtype=np.float32)
    factor = float(scale) * 2.0**_APART
    room = np.empty(min(_PIECE, len(flat)), dtype=np.int32)
    for begin in range(0, len(flat), _PIECE):
        piece, into = flat[begin : begin + _PIECE], out[begin : begin + _PIECE]
        if factor > _LARGEST_FACTOR or (piece.view(np.uint16) & _NO_NUMBER).max() == _NO_NUMBER:
            np.multiply(piece.astype(np.float32), scale, out=into)
            continue
        bits = np.left_shift(piece.view(np.int16), 13, out=room[: len(piece)], dtype=np.int32)
        np.bitwise_and(bits, _SIGN_AND_VALUE, out=bits)
        np.multiply(bits.view(np.float32), np.float32(factor), out=into)
    return out.reshape(halves.shape)


def _to_int8(tensor: Flat) -> tuple[NDArray[np.int8], Flat]:
    flat = np.ascontiguousarray(tensor).reshape(-1)
    coded = np.empty(len(flat), dtype=np.int8)
    scales = np.empty(-(-len(flat) // _BLOCK), dtype=np.float32)
    whole = len(flat) // _BLOCK * _BLOCK
    rows, coded_rows = flat[:whole].reshape(-1, _BLOCK), coded[:whole].reshape(-1, _BLOCK)
    for begin in range(0, len(rows), _STEP):
        at = slice(begin, min(begin + _STEP, len(rows)))
        scales[at] = _code(rows[at], coded_rows[at])
    if whole < len(flat):
        scales[-1:] = _code(flat[None, whole:], coded[None, whole:])
    return coded.reshape(tensor.shape), scales


def _code(rows: Flat, out: NDArray[np.int8]) -> Flat:
    """Write the whole numbers of some blocks, shape ``(blocks, values)``, and return their scales, ``(blocks,)``."""
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    scale = np.where(largest < _SMALLEST, np.float32(0), largest / np.float32(_LARGEST)).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    scaled = rows * inverse[:, None]
    out[:] = np.rint(scaled, out=scaled)
    return scale


def _scales(name: str, coded: Tensor, scales: Tensor | None) -> Flat:
    blocks = -(-coded.size // _BLOCK)
    if scales is None or scales.dtype != np.float32 or scales.shape != (blocks,):
        raise BadDocument(f"tensor {name}{_SCALE} must be F32 of shape ({blocks},)")
    low, high = _range(scales)
    if not (low >= 0 and high <= _LARGEST_CODED):
        raise BadDocument(f"tensor {name}{_SCALE} must be finite and at least 0")
    if coded.size and coded.min() < -_LARGEST:
        raise BadDocument(f"tensor {name} must hold whole numbers from -{_LARGEST} to {_LARGEST}")
    return scales


def _from_int8(coded: Tensor, scales: Flat) -> Flat:
    """Return the values of ``coded``, whose first one begins a block."""
    flat = coded.reshape(-1)
    out = np.empty(len(flat), dtype=np.float32)
    whole = len(flat) // _BLOCK * _BLOCK
    np.multiply(flat[:whole].reshape(-1, _BLOCK), scales[: whole // _BLOCK, None], out=out[:whole].reshape(-1, _BLOCK))
    if whole < len(flat):
        np.multiply(flat[whole:], scales[whole // _BLOCK], out=out[whole:])
    return out.reshape(coded.shape)


def _is_finite(tensor: Tensor) -> bool:
    low, high = _range(tensor)
    return bool(np.isfinite(low) and np.isfinite(high))


def _range(tensor: Tensor) -> tuple[float, float]:
    """Return the least and the greatest value; NaN if there is one. Faster than a mask, and it allocates nothing."""
    if tensor.size == 0:
        return 0.0, 0.0
    if tensor.dtype == np.float16:
        # Half precision is compared by its bits: NumPy has no fast path for it. NaN and Inf have all exponent bits.
        largest = float((tensor.reshape(-1).view(np.uint16) & 0x7FFF).max())
        return (0.0, float("nan")) if largest >= 0x7C00 else (0.0, largest)
    return float(tensor.min()), float(tensor.max())


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
